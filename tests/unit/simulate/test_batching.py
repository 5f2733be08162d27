"""vLLM's rules: who is scheduled, for how much, and who has to go."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_smart.errors import ConfigError
from vllm_smart.simulate.batching import Batching, EngineLimits


def test_a_prompt_is_cut_where_the_tokens_of_a_step_end_and_goes_on_in_the_next():
    batching = Batching(EngineLimits(4, 10, 100, 16), lookahead=0)
    batching.add(0, 15, 20)
    slots, tokens, admitted = batching.schedule()
    assert (tokens.tolist(), admitted) == ([10], slots.tolist())
    batching.computed[slots] += tokens
    batching.add(1, 3, 5)
    slots, tokens, _ = batching.schedule()
    assert tokens.tolist() == [5, 3], "running requests come first"


def test_drafts_are_trimmed_before_a_request_is_left_out():
    batching = Batching(EngineLimits(4, 6, 100, 16), lookahead=4)
    for request in range(2):
        batching.add(request, 1, 20)
    slots, tokens, _ = batching.schedule()
    batching.computed[slots] += tokens
    batching.known[slots] += 1
    batching.drafts[slots] = 4
    slots, tokens, _ = batching.schedule()
    assert tokens.tolist() == [5, 1]
    assert batching.drafts[slots].tolist() == [4, 0]


def test_the_latest_request_is_preempted_and_computes_all_of_it_again():
    batching = Batching(EngineLimits(4, 100, 64, 16, num_kv_blocks=4), lookahead=0)
    for request in range(2):
        batching.add(request, 32, 60)
    slots, tokens, _ = batching.schedule()
    batching.computed[slots] += tokens
    batching.known[slots] += 1
    slots, tokens, admitted = batching.schedule()
    assert batching.requests[slots].tolist() == [0]
    assert (batching.num_preemptions, admitted, list(batching.waiting)) == (1, [], [(1, 33)])
    batching.end(int(slots[0]))
    slots, tokens, _ = batching.schedule()
    assert (tokens.tolist(), batching.prefill[slots].tolist()) == ([33], [33])


def test_nobody_is_admitted_before_all_of_its_tokens_fit():
    batching = Batching(EngineLimits(4, 16, 64, 16, num_kv_blocks=4), lookahead=0)
    batching.add(0, 33, 60)
    batching.add(1, 33, 60)
    slots, *_ = batching.schedule()
    assert batching.requests[slots].tolist() == [0]


@pytest.mark.parametrize(
    ("limits", "setting"),
    [
        (EngineLimits(4, 16, 32, 16), "--max-model-len"),
        (EngineLimits(4, 16, 64, 16, 2), "--kv-blocks"),
    ],
)
def test_a_request_that_could_never_be_served_is_an_error_that_names_the_setting(limits, setting):
    with pytest.raises(ConfigError, match=setting):
        Batching(limits, lookahead=0).add(0, 30, 40)


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 20)), min_size=1, max_size=12),
    st.integers(4, 12),
    st.integers(1, 40),
)
def test_no_step_exceeds_its_limits_and_all_blocks_come_back(requests, num_blocks, budget):
    limits = EngineLimits(3, budget, 60, 16, num_blocks)
    batching = Batching(limits, lookahead=0)
    left = {}
    for request, (prompt, output) in enumerate(requests):
        batching.add(request, prompt, prompt + output)
        left[request] = output
    for _ in range(5_000):
        if batching.is_idle:
            break
        slots, tokens, _ = batching.schedule()
        assert 0 < tokens.sum() <= budget
        assert len(slots) <= 3
        assert 0 <= batching.free_blocks <= num_blocks
        emits = batching.computed[slots] + tokens == batching.known[slots]
        batching.computed[slots] += tokens
        batching.known[slots] += emits
        for slot in slots[emits].tolist():
            left[int(batching.requests[slot])] -= 1
            if not left[int(batching.requests[slot])]:
                batching.end(slot)
    assert batching.is_idle
    assert set(left.values()) == {0}
    assert batching.free_blocks == num_blocks
    assert np.all(batching.requests == -1)

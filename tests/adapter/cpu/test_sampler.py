"""Which batches our sampler takes a shortcut for; that outputs stay the same is for tests/e2e."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

SLOTS = np.array([3, 1])
PLAIN = {"temperature": 0.0}


@pytest.fixture
def sampler(monkeypatch):
    """Our sampler over one of vLLM's that only says that it was asked."""
    from vllm.v1.worker.gpu.sample.sampler import Sampler

    from vllm_smart.mrv2_cpu.sampler import CPUSampler

    def add_request(self, slot, params):
        self.needs_logits_processing[slot] = params.repetition_penalty != 1.0

    monkeypatch.setattr(Sampler, "__init__", lambda self: None)
    monkeypatch.setattr(Sampler, "__call__", lambda self, logits, batch: "vLLM's")
    monkeypatch.setattr(Sampler, "sample", lambda self, *args, **kwargs: ("vLLM's", None))
    monkeypatch.setattr(Sampler, "get_logprobs_dims", lambda self, *args: "vLLM's")
    monkeypatch.setattr(Sampler, "add_request", add_request)
    monkeypatch.setattr(
        Sampler, "apply_staged_writes", lambda self: setattr(self, "writes", self.writes + 1)
    )
    stock = Sampler()
    stock.needs_logits_processing = np.zeros(4, bool)
    stock.compute_nans = stock.return_sampling_mask = False
    stock.trace_replay_state, stock.logits_processors, stock.writes = None, [None] * 3, 0
    return CPUSampler.in_place_of(stock)


def add(sampler, *params):
    from vllm import SamplingParams

    for slot, keys in zip(SLOTS, params, strict=True):
        sampler.add_request(slot, SamplingParams(**keys))


def call(sampler, logits, has_prefill=False):
    return sampler(logits, SimpleNamespace(idx_mapping_np=SLOTS, has_prefill=has_prefill))


def test_a_greedy_batch_takes_the_first_of_the_largest_logits(sampler):
    add(sampler, PLAIN, PLAIN)
    logits = torch.tensor([[0.0, 2.0, 2.0, 1.0], [-1.0, -torch.inf, -3.0, -0.5]])
    for dtype in (torch.float32, torch.bfloat16):
        output = call(sampler, logits.to(dtype))
        assert output.sampled_token_ids.tolist() == [[1], [3]]
        assert output.num_sampled.tolist() == [1, 1]
        assert output.num_rejected.tolist() == [0, 0]
        sampled, processed = sampler.sample(logits, None, None, SLOTS)
        assert sampled.tolist() == [1, 3]
        assert processed is logits
    assert sampler.get_logprobs_dims(SLOTS) is None


@pytest.mark.parametrize("other", [{"temperature": 0.5}, {**PLAIN, "repetition_penalty": 1.2}])
def test_a_request_that_is_not_greedy_is_for_vllm(sampler, other):
    add(sampler, PLAIN, other)
    assert call(sampler, torch.zeros(2, 4)) == "vLLM's"
    assert sampler.sample(torch.zeros(2, 4), None, None, SLOTS)[0] == "vLLM's"


def test_what_is_reported_besides_tokens_is_for_vllm(sampler):
    add(sampler, PLAIN, {**PLAIN, "logprobs": 2})
    assert call(sampler, torch.zeros(2, 4)) == "vLLM's"
    assert sampler.get_logprobs_dims(SLOTS) == "vLLM's"
    assert sampler.sample(torch.zeros(2, 4), None, None, SLOTS)[0].tolist() == [0, 0]


def test_prefills_are_for_vllm(sampler):
    add(sampler, PLAIN, PLAIN)
    assert call(sampler, torch.zeros(2, 4), has_prefill=True) == "vLLM's"


def test_state_is_copied_once_per_new_request(sampler):
    for _ in range(3):
        sampler.apply_staged_writes()
    assert sampler.writes == 1
    add(sampler, PLAIN, PLAIN)
    for _ in range(3):
        sampler.apply_staged_writes()
    assert sampler.writes == 2

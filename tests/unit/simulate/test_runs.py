"""What simulated servers do, held against what must be so."""

from dataclasses import replace

import numpy as np
import pytest

from tests.unit.simulate.small import POLICIES, TABLE, requests, setup
from vllm_smart.profiling import CostSamples, CostTable
from vllm_smart.scheduler import Controller, Queue
from vllm_smart.simulate import EngineLimits, Load, Point, arriving, simulate
from vllm_smart.simulate.known_pairs import of_number


def point(policy: str, workload, **others) -> Point:
    (found,) = simulate(setup(**others), [policy], [Load("test", None, workload)])
    return found


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("num_blocks", [16, 40, None])
def test_every_request_gets_as_many_tokens_as_it_asks_for(policy, num_blocks):
    work = arriving(50.0, 60, (5, 100), (1, 60), seed=3)
    found = point(policy, work, limits=EngineLimits(8, 64, 256, 16, num_blocks))
    assert found.tokens_per_s * found.duration_s == pytest.approx(work.output_tokens.sum())
    assert (found.num_preemptions > 0) == (num_blocks is not None)


def test_plain_at_a_low_rate_takes_what_its_steps_take():
    found = point("plain", requests([0.0, 5_000.0, 10_000.0], prompt=50, output=11))
    first, each = TABLE.verify_ms(50), TABLE.verify_ms(1)
    for percentile in ("p50", "p90", "p99"):
        assert getattr(found.ttft_ms, percentile) == pytest.approx(first)
        assert getattr(found.tpot_ms, percentile) == pytest.approx(each)
        assert getattr(found.itl_ms, percentile) == pytest.approx(each)
    assert found.duration_s * 1e3 == pytest.approx(10_000 + first + 10 * each)


def test_a_long_prompt_takes_a_step_for_each_chunk():
    found = point("plain", requests([0.0], prompt=150, output=1))
    chunks = 2 * TABLE.verify_ms(64) + TABLE.verify_ms(22)
    assert found.ttft_ms.p50 == pytest.approx(chunks)


def test_saturated_plain_throughput_is_that_of_full_batches():
    found = point("plain", requests([0.0] * 8, prompt=1, output=200))
    assert found.tokens_per_s == pytest.approx(8 / TABLE.verify_ms(8) * 1e3)


def test_a_chain_takes_reading_levels_and_verification_and_gains_what_is_accepted():
    found = point("chain:1", requests([0.0], prompt=1, output=2_000), limits=EngineLimits(8, 64, 2048))
    length = found.acceptance_length
    assert length == pytest.approx(1.7, abs=0.06)
    step_ms = TABLE.verify_ms(2) + TABLE.read_ms(2, 1)
    assert found.tpot_ms.p50 == pytest.approx(step_ms / length, rel=0.01)


@pytest.mark.parametrize("seed", range(4))
def test_more_kv_blocks_never_preempt_more(seed):
    work = arriving(float("inf"), 40, (5, 60), (20, 60), seed)
    counts = [
        point("plain", work, limits=EngineLimits(8, 64, 256, 16, num_blocks)).num_preemptions
        for num_blocks in (12, 24, 48, 96)
    ]
    assert counts[0] > 0
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == 0


@pytest.mark.parametrize("policy", POLICIES)
def test_two_runs_are_equal_and_another_seed_is_not(policy):
    loads = [Load("20/s", 20.0, arriving(20.0, 40, (5, 100), (10, 40), seed=1))]
    first, again = (simulate(setup(), [policy], loads) for _ in range(2))
    assert first == again
    other = [Load("20/s", 20.0, arriving(20.0, 40, (5, 100), (10, 40), seed=2))]
    assert simulate(setup(), [policy], other) != first


def test_policies_meet_the_same_text():
    alone = requests([0.0], prompt=10, output=400)
    limits = EngineLimits(8, 64, 1024, 16)
    once, twice = (point("chain:1", alone, limits=limits) for _ in range(2))
    other = point("chain:1", alone, limits=limits, seed=1)
    assert once.acceptance_length == twice.acceptance_length != other.acceptance_length


def test_replicas_share_requests_and_are_each_like_one():
    work = arriving(40.0, 80, (20, 20), (20, 20), seed=0)
    alone = work.of_replica(0, 2)[0]
    both = point("plain", work, num_replicas=2)
    assert both.num_requests == 80
    assert both.tokens_per_s * both.duration_s == pytest.approx(80 * 20)
    single = point("plain", alone)
    assert both.ttft_ms.p50 == pytest.approx(single.ttft_ms.p50, rel=0.3)
    crowded = point("plain", work)
    assert crowded.ttft_ms.p90 > both.ttft_ms.p90


def test_smart_gains_where_rows_are_nearly_free_and_rests_where_they_are_not():
    alone = requests([0.0], prompt=10, output=2500)
    limits = EngineLimits(8, 64, 4096, 16)
    cheap = CostTable(CostSamples(verify=((1, 10.0), (1000, 20.0)), draft=((1, 0.2), (1000, 0.2))))
    dear = CostTable(CostSamples(verify=((1, 10.0), (1000, 5000.0)), draft=((1, 5.0), (1000, 500.0))))
    plain, smart = (point(name, alone, table=cheap, limits=limits) for name in ("plain", "smart"))
    assert smart.tokens_per_s > 1.5 * plain.tokens_per_s
    plain, smart = (point(name, alone, table=dear, limits=limits) for name in ("plain", "smart"))
    assert smart.drafting_share < 0.2
    assert smart.tokens_per_s > 0.9 * plain.tokens_per_s


def test_a_better_drafter_gains_more():
    alone = requests([0.0], prompt=10, output=400)
    speeds = [
        point("smart", alone, expansions=of_number(first, 0), limits=EngineLimits(8, 64, 1024))
        for first in (0.3, 0.6, 0.9)
    ]
    rates = [each.tokens_per_s for each in speeds]
    assert rates == sorted(rates)


def test_tokens_that_are_sent_before_drafting_bring_the_first_earlier():
    given = setup()
    later = replace(given, machine=replace(given.machine, tokens_first=False))
    load = Load("test", None, requests([0.0], prompt=50, output=10))
    (late,), (early,) = (simulate(each, ["chain:2"], [load]) for each in (later, given))
    read_and_level = TABLE.read_ms(50, 1) + TABLE.draft_ms(1)
    assert late.ttft_ms.p50 - early.ttft_ms.p50 == pytest.approx(read_and_level)
    assert np.isclose(early.acceptance_length, late.acceptance_length)


def test_what_arrives_while_a_step_runs_is_known_when_it_drafts(monkeypatch):
    """And who it has had no room for; not who comes later."""
    seen = []

    def watch(self, queue, num_unfilled):
        seen.append((queue, num_unfilled))
        return 0

    monkeypatch.setattr(Controller, "num_waiting", watch)
    first = TABLE.verify_ms(50)
    times = [0.0, 0.3 * first, 0.6 * first, 1.5 * first + 1e6]
    limits = EngineLimits(max_num_seqs=2, max_num_batched_tokens=64, max_model_len=256)
    point("smart", requests(times, prompt=50, output=20), limits=limits)
    assert seen[0] == (Queue(num_left=0, num_arrived=2, num_seats=1), 0)
    assert seen[1] == (Queue(num_left=1, num_arrived=0, num_seats=0), 0)
    assert {each for each, _ in seen[-5:]} == {Queue(0, 0, 1), Queue(0, 0, 2)}


def test_first_tokens_wait_less_where_what_waits_is_weighed():
    work = arriving(8.0, 200, (40, 60), (20, 20), seed=5)
    given = setup()
    found = {}
    for beside in ("draft", "weigh"):
        policy = given.config.policy.model_copy(update={"beside_prompts": beside})
        config = given.config.model_copy(update={"policy": policy})
        (found[beside],) = simulate(replace(given, config=config), ["smart"], [Load("t", 8.0, work)])
    first = {name: each.ttft_ms.p90 for name, each in found.items()}
    assert first["weigh"] < first["draft"]
    assert found["weigh"].drafting_share < found["draft"].drafting_share

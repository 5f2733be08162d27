"""Who waits, and what that makes of drafting."""

import numpy as np
import pytest

from tests.unit.scheduler.random_costs import staircase, table
from tests.unit.scheduler.test_gate import explored, gate
from vllm_smart.config import SmartConfig
from vllm_smart.scheduler import NOBODY, Controller, Drafting, Queue, StepLoad, best_prefix
from vllm_smart.scheduler.budget import LongRun, StepPrices


def test_who_has_just_arrived_is_delayed_if_there_is_a_seat():
    assert Queue(num_arrived=3, num_seats=8).num_delayed(0) == 3
    assert Queue(num_arrived=3, num_seats=2).num_delayed(0) == 2
    assert Queue(num_arrived=3, num_seats=0).num_delayed(0) == 0


def test_who_was_left_waits_for_the_next_step_only_where_tokens_have_run_out():
    """Else for a seat or KV blocks, which others leave when they have their tokens."""
    assert Queue(num_left=5, num_seats=8).num_delayed(num_unfilled=0) == 0
    assert Queue(num_left=5, num_seats=8).num_delayed(num_unfilled=1) == 6
    assert Queue(num_left=50, num_seats=0).num_delayed(num_unfilled=1) == 1


def test_nobody_waits():
    assert NOBODY.num_delayed(0) == 0


@pytest.mark.parametrize("seed", range(20))
def test_each_request_that_waits_is_worth_a_token_of_the_step_and_takes_no_row(seed):
    rng, cost = np.random.default_rng(seed), staircase(seed)
    values = np.sort(rng.random(40).astype(np.float32))[::-1]
    load = StepLoad(int(rng.integers(1, 20)), num_waiting=int(rng.integers(0, 20)))
    ms = cost.verify_ms(load.num_requests + np.arange(len(values) + 1)) + 2.0
    tokens = load.num_requests + np.concatenate(([0.0], np.cumsum(values, dtype=np.float64)))
    best = int(((tokens + load.num_waiting) / ms).argmax())
    choice = best_prefix(values, load, cost, 2.0)
    assert choice.num_nodes == best
    assert choice.expected_tokens == pytest.approx(tokens[best])
    assert choice.rate == pytest.approx((tokens[best] + load.num_waiting) / ms[best])


@pytest.mark.parametrize("rule", [None, LongRun()])
def test_the_more_wait_the_less_is_verified_and_at_last_nothing(rule):
    values = np.linspace(0.9, 0.1, 9).astype(np.float32)
    cost = table({1: 10.0, 64: 73.0})
    counts = []
    for num_waiting in (0, 0, 1, 2, 4, 8, 100):
        load = StepLoad(4, num_waiting=num_waiting)
        if rule is None:
            choice = best_prefix(values, load, cost, 1.0)
        else:
            rule.aim(load)
            choice = rule(values, StepPrices.of(load, cost, len(values)), 1.0)
            if not num_waiting:
                rule.took(choice)
        counts.append(choice.num_nodes)
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > 0 == counts[-1]


def test_the_drafter_gives_way_to_as_many_as_lose_more_than_others_gain():
    subject = explored()
    decisions = [subject.decide(StepLoad(2, num_waiting=n), 2, 0) for n in (0, 1, 2, 8, 64, 0)]
    assert decisions[0] is decisions[-1] is Drafting.ALL
    assert decisions[-2] is Drafting.NONE
    first = decisions.index(Drafting.NONE)
    assert set(decisions[first:-1]) == {Drafting.NONE}
    assert subject.is_on


def test_it_gives_way_sooner_if_it_has_a_prompt_to_read():
    load = StepLoad(2, num_waiting=1)
    assert explored().decide(load, 2, 0) is Drafting.ALL
    assert explored().decide(load, 5_000, 0) is Drafting.NONE


def test_a_long_prompt_is_read_later_when_only_its_end_is_left_to_read():
    for num_rows, gives_way in ((80, False), (500, True)):
        subject = explored(sees_arrivals=True)
        subject.decide(StepLoad(4), num_rows, 80)
        assert subject.gives_way == gives_way


def test_nothing_is_explored_or_probed_while_most_requests_wait():
    assert gate().decide(StepLoad(2, num_waiting=2), 2, 0) is Drafting.NONE
    assert gate().decide(StepLoad(2, num_waiting=1), 2, 0) is Drafting.EXPLORE
    off = explored(probe_every=2)
    off.is_on = False
    loads = [StepLoad(2, num_waiting=8)] * 10
    assert {off.decide(load, 2, 0) for load in loads} == {Drafting.NONE}
    assert Drafting.PROBE in {off.decide(StepLoad(32), 32, 0) for _ in range(10)}


def test_no_prompt_is_read_while_others_wait_for_theirs():
    subject = explored()
    assert subject.decide(StepLoad(0, 500, num_waiting=3), 500, 500) is Drafting.NONE
    assert subject.gives_way


@pytest.mark.parametrize("sees_arrivals", [False, True])
@pytest.mark.parametrize("num_waiting", [0, 2])
def test_beside_a_prompt_the_drafter_rests_if_somebody_waits_or_nobody_would_know(
    sees_arrivals, num_waiting
):
    subject = explored(sees_arrivals=sees_arrivals)
    load = StepLoad(4, num_waiting=num_waiting)
    decision = subject.decide(load, 80, 80)
    assert subject.gives_way == (num_waiting > 0 or not sees_arrivals)
    assert decision is Drafting.NONE or not subject.gives_way


@pytest.mark.parametrize(("setting", "waits"), [("weigh", 3), ("draft", 0)])
def test_the_setting_says_whether_anybody_counts(setting, waits):
    policy = {"name": "smart", "beside_prompts": setting}
    content = {"drafter": {"method": "eagle3", "model": "demo:eagle3"}, "policy": policy}
    config = SmartConfig.model_validate(content).resolve_node_budget(4)
    controller = Controller(config, staircase(0), 8)
    assert controller.num_waiting(Queue(num_arrived=3, num_seats=5), 0) == waits


def test_other_policies_know_of_nobody():
    content = {
        "drafter": {"method": "eagle3", "model": "demo:eagle3"},
        "policy": {"name": "chain", "num_tokens": 2},
    }
    controller = Controller(SmartConfig.model_validate(content).resolve_node_budget(2), None, 8)
    assert controller.num_waiting(Queue(num_arrived=3, num_seats=5), 2) == 0

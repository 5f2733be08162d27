from itertools import accumulate, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.scheduler.random_costs import staircase, table
from vllm_smart.scheduler import StepLoad, best_prefix
from vllm_smart.scheduler.budget import FirstDrop, LongRun, StepPrices

seeds = st.integers(0, 10**6)
loads = st.builds(
    StepLoad,
    num_requests=st.integers(1, 40),
    num_prefill_tokens=st.integers(0, 50),
    context_tokens=st.integers(0, 10**5),
)
probs = st.lists(st.floats(2.0**-10, 1.0, width=32), max_size=60).map(
    lambda values: np.array(sorted(values, reverse=True), np.float32)
)


def first_drop(prob, load, cost, spent_ms):
    return FirstDrop()(prob, StepPrices.of(load, cost, len(prob)), spent_ms)


def rates(prob, load, cost, spent_ms) -> list[float]:
    """Every prefix's rate, one by one."""
    without, fixed = load.num_requests, load.num_prefill_tokens + load.num_requests
    chunk_ms = cost.verify_ms(fixed, load.context) - cost.verify_ms(without, load.context)
    ms = [cost.verify_ms(fixed + n, load.context) - chunk_ms for n in range(len(prob) + 1)]
    tokens = [load.num_requests + s for s in accumulate(prob.tolist(), initial=0.0)]
    return [t / (spent_ms + verify_ms) for t, verify_ms in zip(tokens, ms, strict=True)]


@given(probs, loads, seeds, st.floats(0, 20))
def test_the_choice_is_the_best_of_all_prefixes(prob, load, seed, spent_ms):
    cost = staircase(seed)
    every_rate = rates(prob, load, cost, spent_ms)
    choice = best_prefix(prob, load, cost, spent_ms)
    assert choice.rate == pytest.approx(max(every_rate), rel=1e-12)
    assert every_rate[choice.num_nodes] == pytest.approx(choice.rate, rel=1e-12)
    assert choice.expected_tokens / choice.predicted_ms == pytest.approx(choice.rate, rel=1e-12)


@given(probs, loads, seeds)
def test_the_first_drop_is_where_the_rate_first_falls(prob, load, seed):
    cost = staircase(seed)
    every_rate = rates(prob, load, cost, 0.0)
    n = first_drop(prob, load, cost, 0.0).num_nodes
    assert all(a <= b * (1 + 1e-12) for a, b in pairwise(every_rate[: n + 1]))
    assert n == len(prob) or every_rate[n + 1] < every_rate[n] * (1 + 1e-12)


def test_stopping_at_the_first_drop_misses_the_next_stair():
    cost = table({1: 10.0, 8: 10.0, 9: 16.0, 64: 16.0})
    prob = np.linspace(0.9, 0.3, 40).astype(np.float32)
    load = StepLoad(1)
    first, best = first_drop(prob, load, cost, 0.0), best_prefix(prob, load, cost, 0.0)
    assert first.num_nodes == 7
    assert best.num_nodes == 40
    assert best.rate > 1.5 * first.rate


def test_nothing_is_verified_when_every_node_costs_more_than_it_brings():
    cost = table({1: 10.0, 100: 1000.0})
    prob = np.full(20, 0.9, np.float32)
    assert best_prefix(prob, StepLoad(1), cost, 0.0).num_nodes == 0


def test_nothing_is_chosen_from_nothing():
    choice = best_prefix(np.zeros(0, np.float32), StepLoad(3), table({1: 10.0}), 5.0)
    assert (choice.num_nodes, choice.expected_tokens, choice.predicted_ms) == (0, 3.0, 15.0)


def test_among_equal_rates_the_smallest_wins():
    cost = table({1: 10.0, 2: 15.0, 3: 20.0})
    prob = np.array([0.5, 0.5], np.float32)
    assert best_prefix(prob, StepLoad(1), cost, 0.0).num_nodes == 0


def test_prefill_tokens_move_the_step_up_the_stairs():
    cost = table({1: 10.0, 16: 10.0, 17: 60.0, 64: 60.0})
    prob = np.full(8, 0.5, np.float32)
    assert best_prefix(prob, StepLoad(1), cost, 0.0).num_nodes == 8
    assert best_prefix(prob, StepLoad(1, num_prefill_tokens=15), cost, 0.0).num_nodes == 0
    assert best_prefix(prob, StepLoad(1, num_prefill_tokens=40), cost, 0.0).num_nodes == 8


def test_a_chunk_of_a_prompt_does_not_make_nodes_look_cheap():
    cost = table({1: 10.0, 1024: 1033.0})
    prob = np.linspace(0.9, 0.02, 40).astype(np.float32)
    alone = best_prefix(prob, StepLoad(2), cost, 4.0)
    beside = best_prefix(prob, StepLoad(2, num_prefill_tokens=512), cost, 4.0)
    assert 0 < alone.num_nodes < 40
    assert beside.num_nodes == alone.num_nodes
    assert beside.rate == pytest.approx(alone.rate)


def test_a_step_without_emitting_requests_has_no_rate():
    assert best_prefix(np.zeros(0, np.float32), StepLoad(0, 512), table({1: 10.0}), 0.0).rate == 0.0


def run_steps(choose, steps, took=lambda choice: None) -> float:
    """Expected tokens per millisecond of a sequence of steps under a rule."""
    tokens = ms = 0.0
    for prob, load, cost in steps:
        choice = choose(prob, load, cost, 1.0)
        took(choice)
        tokens, ms = tokens + choice.expected_tokens, ms + choice.predicted_ms
    return tokens / ms


def gain_of_the_long_run_rule(seed: int) -> float:
    """Its rate over the per-step rule's, once it has settled, over steps of two kinds."""
    rng = np.random.default_rng(seed)
    load = StepLoad(int(rng.integers(1, 9)))
    kinds = [
        (np.sort(rng.random(30).astype(np.float32))[::-1], load, cost)
        for cost in (staircase(seed), staircase(seed + 1))
    ]
    steps = [kinds[i] for i in rng.integers(0, 2, 400)]
    rule = LongRun(window_ms=5_000.0)

    def choose(prob, load, cost, spent_ms):
        rule.aim(load)
        return rule(prob, StepPrices.of(load, cost, len(prob)), spent_ms)

    run_steps(choose, steps[:200], rule.took)
    return run_steps(choose, steps[200:], rule.took) / run_steps(best_prefix, steps[200:])


def test_the_long_run_rule_gains_over_steps_that_differ():
    gains = [gain_of_the_long_run_rule(seed) for seed in range(100)]
    assert min(gains) > 0.999
    assert np.mean(gains) > 1.005


def test_the_rate_of_large_batches_does_not_forbid_a_small_one_to_draft():
    prob, cost = np.array([0.9, 0.8, 0.7], np.float32), table({1: 10.0, 2: 10.5, 128: 80.0})
    rule = LongRun()
    for num_requests in (64,) * 20 + (1,) * 20:
        load = StepLoad(num_requests)
        rule.aim(load)
        choice = rule(prob, StepPrices.of(load, cost, len(prob)), 1.0)
        rule.took(choice)
        assert choice == best_prefix(prob, load, cost, 1.0)


def test_over_steps_that_do_not_differ_both_rules_choose_alike():
    prob, load, cost = np.array([0.9, 0.5, 0.2, 0.1], np.float32), StepLoad(1), staircase(3)
    rule = LongRun()
    for _ in range(50):
        rule.aim(StepLoad(1))
        choice = rule(prob, StepPrices.of(load, cost, len(prob)), 1.0)
        rule.took(choice)
        assert choice == best_prefix(prob, load, cost, 1.0)

from itertools import chain
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.proposer.random_pools import LIMITS, random_candidates
from tests.unit.scheduler.random_costs import staircase, table
from vllm_smart.kernels.evidence import Evidence
from vllm_smart.profiling import CorrectedCost, Correction, token_counts
from vllm_smart.proposer import Candidates
from vllm_smart.scheduler import StepLoad, best_prefix
from vllm_smart.scheduler.marginal import EqualSharePolicy, MarginalPolicy
from vllm_smart.scheduler.policy import branches

CHILDREN = np.array([0.6, 0.2, 0.1], np.float32)
EXPECTED = np.tile(CHILDREN, (5, 1))  # whatever the confidence
FREE_DRAFTING = {1: 1e-6, 100: 1e-6}


def budgeted_probs(pool, node_budget: int) -> list[list[float]]:
    """Each request's candidates, best first, no more than its budget."""
    return [
        sorted((p for p in row[1:].tolist() if p > 0), reverse=True)[:node_budget]
        for row in pool.path_prob
    ]


@given(st.integers(0, 10**6), st.booleans(), st.floats(0, 10))
def test_the_allocation_is_the_best_over_the_whole_batch(seed, coarse, spent_ms):
    cost, pool, load = staircase(seed), random_candidates(seed, coarse=coarse), StepLoad(4)
    allocation = MarginalPolicy(LIMITS, cost).choose(pool, load, spent_ms)
    probs = budgeted_probs(pool, LIMITS.node_budget)
    together = np.array(sorted(chain(*probs), reverse=True), np.float32)
    expected = best_prefix(together, load, cost, spent_ms)
    assert allocation.choice == expected
    assert allocation.num_draft_nodes.sum() == expected.num_nodes
    taken = [p for row, n in zip(probs, allocation.num_draft_nodes, strict=True) for p in row[:n]]
    assert sorted(taken, reverse=True) == together[: expected.num_nodes].tolist()


@given(st.integers(0, 10**6))
def test_the_allocation_yields_valid_trees_within_the_budget(seed):
    pool = random_candidates(seed)
    allocation = MarginalPolicy(LIMITS, staircase(seed)).choose(pool, StepLoad(4), 1.0)
    trees = pool.select(allocation.num_draft_nodes)
    trees.validate()
    assert (trees.num_nodes - 1).tolist() == allocation.num_draft_nodes.tolist()
    assert allocation.num_draft_nodes.max() <= LIMITS.node_budget


def test_a_likelier_request_gets_the_nodes():
    pool = random_candidates(0, num_reqs=2, accept=lambda q, depth, req: q)
    pool.path_prob[0, 1:] *= 0.01
    steep = table({1: 10.0, 3: 10.0, 4: 30.0, 99: 99.0}, FREE_DRAFTING)
    given_nodes = MarginalPolicy(LIMITS, steep).choose(pool, StepLoad(2), 0.0).num_draft_nodes
    assert given_nodes.tolist() == [0, 1]


@pytest.fixture
def pool_and_frontier():
    pools = []
    random_candidates(5, after_level=lambda pool, frontier: pools.append((pool, frontier)))
    return pools[0]


def level_of(pool_and_frontier, cost, min_gain=0.0) -> tuple[np.ndarray, float]:
    policy = MarginalPolicy(LIMITS, cost, min_gain)
    return policy.level(*pool_and_frontier, EXPECTED, StepLoad(4), 0.0)


def test_a_level_is_drafted_when_drafting_and_verifying_are_nearly_free(pool_and_frontier):
    expanded, level_ms = level_of(pool_and_frontier, table({1: 10.0, 99: 10.0}, FREE_DRAFTING))
    assert expanded.all()
    assert level_ms == pytest.approx(1e-6)


def test_a_level_is_not_drafted_when_its_forward_costs_more_than_its_nodes_bring(pool_and_frontier):
    expanded, level_ms = level_of(pool_and_frontier, table({1: 10.0, 99: 10.0}, {1: 100.0}))
    assert not expanded.any()
    assert level_ms == 0.0


def test_a_level_is_not_drafted_when_its_nodes_would_not_be_verified(pool_and_frontier):
    assert not level_of(pool_and_frontier, table({1: 1.0, 99: 1000.0}, FREE_DRAFTING))[0].any()


def test_a_level_must_promise_the_gain_asked_for(pool_and_frontier):
    cost = table({1: 10.0, 99: 10.0}, FREE_DRAFTING)
    assert level_of(pool_and_frontier, cost, min_gain=0.01)[0].any()
    assert not level_of(pool_and_frontier, cost, min_gain=9.0)[0].any()


def test_only_the_likeliest_nodes_are_expanded_where_rows_cost(pool_and_frontier):
    pool, frontier = pool_and_frontier
    cost = table({1: 10.0, 99: 10.0}, {1: 0.01, 2: 20.0, 99: 2000.0})
    expanded, level_ms = level_of(pool_and_frontier, cost)
    values = pool.path_prob[frontier.req, frontier.node]
    assert np.flatnonzero(expanded).tolist() == [values.argmax()]
    assert level_ms == pytest.approx(0.01)


@given(st.integers(0, 10**6))
def test_the_level_rule_counts_what_the_expected_children_would_bring(seed):
    cost, load = staircase(seed), StepLoad(4)
    policy = MarginalPolicy(LIMITS, cost, min_gain=0.02)

    def check(pool, frontier):
        if not len(frontier.req):
            return
        now = list(chain(*budgeted_probs(pool, LIMITS.node_budget)))
        values = pool.path_prob[frontier.req, frontier.node]

        def best(probs, ms):
            most = 4 * LIMITS.node_budget
            return best_prefix(np.array(sorted(probs)[::-1][:most], np.float32), load, cost, ms).rate

        rates = {}
        for size in token_counts(len(values)):
            children = [p * c for p in sorted(values, reverse=True)[:size] for c in CHILDREN]
            rates[size] = best(now + children, 0.7 + cost.draft_ms(size))
        expanded, level_ms = policy.level(pool, frontier, EXPECTED, load, 0.7)
        size = max(rates, key=rates.get)
        if rates[size] > best(now, 0.7) * 1.02:
            assert rates[int(expanded.sum())] == pytest.approx(rates[size], rel=1e-6)
            assert level_ms == cost.draft_ms(int(expanded.sum()))
            assert values[expanded].min() >= values[~expanded].max(initial=0.0)
        else:
            assert not expanded.any()

    random_candidates(seed, after_level=check)


def test_without_the_level_rule_every_level_is_drafted(pool_and_frontier):
    policy = MarginalPolicy(LIMITS, table({1: 10.0, 99: 10.0}, {1: 100.0}), drafts_all_levels=True)
    expanded, level_ms = policy.level(*pool_and_frontier, EXPECTED, StepLoad(4), 0.0)
    assert expanded.all()
    assert level_ms == 100.0


def test_a_request_that_weighs_more_gets_more_and_one_with_a_cap_no_more_than_it():
    cost = table({1: 10.0, 8: 10.0, 9: 30.0, 99: 99.0}, FREE_DRAFTING)
    pool = random_candidates(2, num_reqs=2, accept=lambda q, depth, req: q)
    pool.path_prob[1] = pool.path_prob[0]
    even = MarginalPolicy(LIMITS, cost).choose(pool, StepLoad(2), 0.0).num_draft_nodes
    pool.weight[:] = (1.6, 0.4)
    uneven = MarginalPolicy(LIMITS, cost).choose(pool, StepLoad(2), 0.0).num_draft_nodes
    assert uneven[0] > even[0]
    assert uneven[1] < even[1]
    pool.max_nodes = np.array([1, 99])
    capped = MarginalPolicy(LIMITS, cost).choose(pool, StepLoad(2), 0.0).num_draft_nodes
    assert capped[0] == 1


@given(st.integers(0, 10**6), st.floats(0.1, 30))
def test_a_tree_must_be_worth_what_branching_costs(seed, branching_ms):
    pool, load = random_candidates(seed), StepLoad(4)
    cost = CorrectedCost(staircase(seed), Correction(branching_ms=branching_ms))
    allocation = MarginalPolicy(LIMITS, cost).choose(pool, load, 1.0)
    probs = budgeted_probs(pool, LIMITS.node_budget)
    together = np.array(sorted(chain(*probs), reverse=True), np.float32)
    rates = []
    for n in range(len(together) + 1):
        shares = np.array([sum(p in together[:n] for p in row) for row in probs])
        ms = 1.0 + cost.verify_ms(4 + n) + branching_ms * branches(pool, shares)
        rates.append((4 + together[:n].astype(float).sum()) / ms)
    assert allocation.choice.rate == pytest.approx(max(rates), rel=1e-5)
    # What costs nothing is not looked for.
    free = MarginalPolicy(LIMITS, staircase(seed)).choose(pool, load, 1.0)
    assert free.choice.rate >= allocation.choice.rate - 1e-9


def test_the_first_candidate_beside_a_chain_makes_it_a_tree():
    pool = random_candidates(0, num_reqs=1, accept=lambda q, depth, req: q)
    depth = pool.depth[0, pool.best_first()[0][0]]
    first = int(np.flatnonzero(depth != np.arange(len(depth)))[0])
    assert pool.off_chain().tolist() == [pool.best_first()[1][0, first]]
    assert not branches(pool, np.array([first - 1]))
    assert branches(pool, np.array([first]))


@given(st.integers(0, 10**6))
def test_equal_shares_are_the_best_of_all_equal_shares(seed):
    pool, load, cost = random_candidates(seed), StepLoad(4), staircase(seed)
    allocation = EqualSharePolicy(LIMITS, cost).choose(pool, load, 1.0)
    probs = budgeted_probs(pool, LIMITS.node_budget)
    rates = []
    for each in range(LIMITS.node_budget + 1):
        taken = [p for row in probs for p in row[:each]]
        rates.append((4 + sum(taken)) / (1.0 + cost.verify_ms(4 + len(taken))))
    assert allocation.choice.rate == pytest.approx(max(rates), rel=1e-5)
    assert allocation.num_draft_nodes.sum() == allocation.choice.num_nodes


def test_children_of_surer_nodes_are_expected_to_be_likelier():
    levels = []
    random_candidates(4, after_level=lambda pool, frontier: levels.append((pool, frontier)))
    pool, frontier = levels[0]
    sure = pool.path_prob[frontier.req, frontier.node] >= 0.5  # the first level: of its own
    assert sure.any()
    assert not sure.all()
    by_confidence = np.zeros((5, 3), np.float32)
    by_confidence[2:] = 0.3
    cost = table({1: 10.0, 99: 10.5}, {1: 0.01, 99: 0.99})
    expanded, _ = MarginalPolicy(LIMITS, cost).level(pool, frontier, by_confidence, StepLoad(4), 0.0)
    assert expanded.tolist() == sure.tolist()


def test_a_level_brings_nothing_where_ngrams_have_named_all_that_comes():
    """After 5 an n-gram is nearly certain of 7; after 6 nobody has named anything."""
    prob = np.array([[1.0, 0.5, 0.4, 0.499]], np.float32)
    pool = Candidates.roots(1, 4)
    pool.parent[0, 1:], pool.depth[0, 1:], pool.path_prob[:] = (0, 0, 1), (1, 1, 2), prob
    pool.size[0], pool.evidence = 4, Evidence.none(1, 4)
    frontier = SimpleNamespace(req=np.array([0, 0]), node=np.array([1, 2]))
    cost = table({1: 10.0, 99: 10.5}, {1: 0.01, 99: 1.0})
    policy = MarginalPolicy(LIMITS, cost)
    assert policy.level(pool, frontier, EXPECTED, StepLoad(1), 0.0)[0].tolist() == [False, True]
    pool.evidence = None
    assert policy.level(pool, frontier, EXPECTED, StepLoad(1), 0.0)[0].tolist() == [True, True]

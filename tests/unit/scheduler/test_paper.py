import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.proposer.random_pools import LIMITS, random_candidates
from tests.unit.scheduler.random_costs import staircase, table
from vllm_smart.scheduler import StepLoad
from vllm_smart.scheduler.exponential_cost import ExponentialCost
from vllm_smart.scheduler.paper import PaperPolicy


def published_rule(
    pool, req: int, fitted: ExponentialCost, alpha: float, budget: int, batch: int
) -> set:
    """The kept candidates of one request, node by node as the paper says it."""
    kept, benefit = {0}, 0.0
    for level in range(1, int(pool.depth[req].max()) + 1):
        candidates = [
            (-pool.path_prob[req, node], node)
            for node in range(1, pool.size[req])
            if pool.depth[req, node] == level
            and pool.parent[req, node] in kept
            and pool.path_prob[req, node] > 0
        ]
        num_before = len(kept)
        for negative_prob, node in sorted(candidates):
            size = len(kept) - 1
            if size == budget:
                break
            gain = -float(negative_prob) / level
            if size:
                marginal = float(fitted.marginal(np.array(float(size * batch))))
                total = float(fitted.total(np.array(float(size * batch)))) / batch
                if not alpha * gain / marginal > benefit / total:
                    continue
            kept.add(node)
            benefit += gain
        if len(kept) == num_before:
            break
    return kept - {0}


@given(st.integers(0, 10**6), st.sampled_from([0.5, 0.8, 1.0]), st.sampled_from([None, 3, 20]))
def test_the_vectorised_rule_equals_the_published_one(seed, alpha, device_budget):
    pool, load = random_candidates(seed), StepLoad(4)
    policy = PaperPolicy(LIMITS, staircase(seed % 50), alpha, device_budget)
    budget = LIMITS.node_budget if device_budget is None else device_budget // 4
    allocation = policy.choose(pool, load, 0.0)
    for req in range(4):
        expected = published_rule(pool, req, policy._fitted, alpha, budget, 4)
        assert allocation.num_draft_nodes[req] == len(expected)


def test_the_device_budget_is_split_equally():
    pool = random_candidates(1)
    policy = PaperPolicy(LIMITS, table({1: 10.0, 99: 10.0}, {1: 0.001}), 0.8, device_budget=8)
    num_draft_nodes = policy.choose(pool, StepLoad(4), 0.0).num_draft_nodes
    assert num_draft_nodes.max() == 2


def test_no_level_is_drafted_below_nodes_that_were_not_kept():
    steep = table({1: 1.0, 500: 5000.0}, {1: 1.0, 500: 500.0})
    frontiers = []
    random_candidates(5, after_level=lambda *level: frontiers.append(level))
    pool, frontier = frontiers[0]
    answers = [
        bool(
            PaperPolicy(LIMITS, cost, 0.8, budget)
            .level(pool, frontier, None, StepLoad(4), 0.0)[0]
            .any()
        )
        for cost, budget in ((table({1: 10.0, 9: 10.0}, {1: 0.01}), None), (steep, 3))
    ]
    assert answers == [True, False]


def test_the_fit_recovers_a_cost_of_the_published_form():
    true = ExponentialCost(per_node=0.02, gamma=5.0, delta=0.05, rho=0.6)
    sizes = np.arange(1, 600)
    verify = true.total(sizes.astype(float)) - 0.02 * sizes
    cost = table(
        dict(zip(sizes.tolist(), verify.tolist(), strict=True)), {n: 0.02 * n for n in (1, 100, 600)}
    )
    fitted = ExponentialCost.fit(cost)
    sizes = np.array([1.0, 5.0, 30.0, 200.0, 500.0])
    assert fitted.per_node == pytest.approx(0.02, rel=1e-3)
    assert fitted.total(sizes) == pytest.approx(true.total(sizes), rel=0.02)


@given(st.floats(0.01, 1), st.floats(0.01, 10), st.floats(0.001, 0.1), st.floats(0.2, 1.0))
def test_the_marginal_cost_is_the_slope_of_the_total(per_node, gamma, delta, rho):
    cost = ExponentialCost(per_node, gamma, delta, rho)
    step = 1e-4
    slope = (cost.total(np.array(20 + step)) - cost.total(np.array(20 - step))) / (2 * step)
    assert math.isclose(float(cost.marginal(np.array(20.0))), float(slope), rel_tol=1e-5)


def test_nothing_costs_nothing():
    assert ExponentialCost(0.1, 2.0, 0.1, 0.5).total(np.array(0.0)) == 0.0

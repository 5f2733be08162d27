import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.device import DEVICE
from vllm_smart.config import GrowthLimits
from vllm_smart.kernels.torch_select import RequestTerms, Selection, StepPromise, select_nodes
from vllm_smart.proposer import CandidatePool
from vllm_smart.scheduler import StepLoad, StepPrices
from vllm_smart.scheduler.marginal import MarginalPolicy
from vllm_smart.scheduler.policy import usable_probs


class Stairs:
    """Costs that jump every few rows, as those of a GPU do."""

    def __init__(self, width: int, step_ms: float, extra_ms: float = 0.0) -> None:
        rows = np.arange(2000)
        self.ms = 10.0 + step_ms * (rows // width) + 0.001 * rows
        self.extra_ms = extra_ms

    def verify_ms(self, rows, context):
        return self.ms[rows]

    def branching_ms(self, num_requests):
        return self.extra_ms


def random_pool(num_reqs: int, limits: GrowthLimits, seed: int) -> CandidatePool:
    """A pool grown level by level; probabilities in eighths, so that many are tied."""
    rng = np.random.default_rng(seed)
    weight = rng.choice(np.array([0.5, 1.0, 2.0], np.float32), num_reqs)
    caps = rng.integers(0, limits.node_budget + 1, num_reqs)
    pool = CandidatePool(num_reqs, limits, lambda *level: level[0], weight, caps)
    req, parent = np.arange(num_reqs), np.zeros(num_reqs, np.int64)
    for _ in range(limits.depth):
        prob = np.sort(rng.integers(0, 5, (len(req), limits.children)))[:, ::-1] / np.float32(8)
        tokens = np.tile(np.arange(limits.children), (len(req), 1))
        pool.add_children(req, parent, tokens, prob.astype(np.float32))
        frontier = pool.frontier(limits.width)
        req, parent = frontier.req, frontier.node
    return pool


def on_device(pool: CandidatePool, limits: GrowthLimits, load: StepLoad, cost: Stairs) -> Selection:
    def scalar(value, dtype) -> torch.Tensor:
        return torch.tensor(value, dtype=dtype, device=DEVICE)

    promise = StepPromise(
        num_requests=scalar(load.num_requests, torch.float64),
        spent_ms=scalar(1.5, torch.float64),
        branching_value=scalar((pool.off_chain() * pool.weight).max(), torch.float32),
        branching_ms=scalar(cost.extra_ms, torch.float64),
    )
    max_nodes = np.full(len(pool.weight), limits.node_budget)
    if pool.max_nodes is not None:
        max_nodes = pool.max_nodes
    terms = RequestTerms(*(torch.from_numpy(a).to(DEVICE) for a in (pool.weight, max_nodes)))
    prob = torch.from_numpy(pool.path_prob[:, 1:]).to(DEVICE)
    prices = StepPrices.of(load, cost, len(pool.weight) * limits.node_budget)
    verify_ms = torch.from_numpy(prices.verify_ms).to(DEVICE)
    return select_nodes(prob, limits.node_budget, verify_ms, promise, terms)


@settings(max_examples=40, deadline=None)
@given(
    num_reqs=st.integers(1, 9),
    depth=st.integers(1, 4),
    children=st.integers(1, 4),
    node_budget=st.integers(1, 20),
    width=st.integers(1, 32),
    step_ms=st.floats(0.0, 3.0),
    extra_ms=st.sampled_from([0.0, 0.5, 5.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_choice_is_that_of_the_host(
    num_reqs, depth, children, node_budget, width, step_ms, extra_ms, seed
):
    limits = GrowthLimits(node_budget=node_budget, depth=depth, width=3, children=children)
    pool, cost = random_pool(num_reqs, limits, seed), Stairs(width, step_ms, extra_ms)
    load = StepLoad(num_requests=num_reqs, num_prefill_tokens=7)
    allocation = MarginalPolicy(limits, cost).choose(pool, load, spent_ms=1.5)
    prob = usable_probs(pool, limits)

    selection = on_device(pool, limits, load, cost)
    num_draft = selection.num_draft_nodes.cpu().numpy()
    assert int(selection.total) == allocation.choice.num_nodes
    assert num_draft.tolist() == allocation.num_draft_nodes.tolist()
    order = selection.order.cpu().numpy() + 1  # the host counts the root
    host_order = pool.best_first()[0]
    for req, count in enumerate(num_draft):
        assert order[req, :count].tolist() == host_order[req, 1 : 1 + count].tolist()
        assert selection.path_prob[req, :count].tolist() == prob[req, :count].tolist()


@pytest.mark.parametrize(("step_ms", "expected"), [(1000.0, 3), (0.0, 24)])
def test_the_best_prefix_lies_at_the_edge_of_a_stair(step_ms, expected):
    """Costs jump after the 8th row, 5 of which run anyway: nothing or everything is beyond it."""
    limits = GrowthLimits(node_budget=24, depth=1, width=1, children=24)
    pool = CandidatePool(1, limits, lambda *level: level[0])
    prob = np.full((1, 24), 1 / 32, np.float32)
    pool.add_children(np.array([0]), np.array([0]), np.arange(24)[None], prob)
    cost = Stairs(9, step_ms)
    cost.ms = 10.0 + step_ms * (np.arange(2000) > 8) + 0.0 * cost.ms
    selection = on_device(pool, limits, StepLoad(num_requests=1, num_prefill_tokens=4), cost)
    assert int(selection.total) == expected


def test_no_candidate_no_node():
    prob = torch.zeros(3, 5, device=DEVICE)
    one = torch.ones((), device=DEVICE)
    promise = StepPromise(one.double(), one.double(), one, one.double())
    terms = RequestTerms(torch.ones(3, device=DEVICE), torch.full((3,), 5, device=DEVICE))
    verify_ms = torch.ones(4, dtype=torch.float64, device=DEVICE)
    selection = select_nodes(prob, 5, verify_ms, promise, terms)
    assert int(selection.total) == 0
    assert selection.num_draft_nodes.tolist() == [0, 0, 0]

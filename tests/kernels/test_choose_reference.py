import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.device import DEVICE, examples
from vllm_smart.config import GrowthLimits
from vllm_smart.kernels.choose.device import RequestTerms, StepPromise
from vllm_smart.kernels.choose.reference import Selection, select_nodes
from vllm_smart.proposer import CandidatePool, Candidates
from vllm_smart.scheduler import StepLoad
from vllm_smart.scheduler.budget import FirstDrop, LongRun, PrefixRule
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


def random_pool(num_reqs: int, limits: GrowthLimits, seed: int) -> Candidates:
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
    return pool.candidates


def on_device(
    pool: Candidates, limits: GrowthLimits, load: StepLoad, policy: MarginalPolicy
) -> Selection:
    def number(value: float) -> torch.Tensor:
        return torch.tensor(value, dtype=torch.float64, device=DEVICE)

    spec = policy.spec(load, len(pool.weight))
    assert spec.prices is not None
    promise = StepPromise(
        num_served=number(load.num_served),
        spent_ms=number(1.5),
        branching_ms=number(spec.prices.branching_ms),
        least_nodes=number(0),
        goal=number(spec.goal),
        price=number(spec.price),
        verify_ms=torch.from_numpy(spec.prices.verify_ms).to(DEVICE),
    )
    max_nodes = np.full(len(pool.weight), limits.node_budget)
    if pool.max_nodes is not None:
        max_nodes = pool.max_nodes
    terms = RequestTerms(*(torch.from_numpy(a).to(DEVICE) for a in (pool.weight, max_nodes)))
    prob = torch.from_numpy(pool.path_prob[:, 1:]).to(DEVICE)
    off_chain = number((pool.off_chain() * pool.weight).max())
    return select_nodes(prob, limits.node_budget, promise, terms, off_chain)


@examples(40)
@given(
    num_reqs=st.integers(1, 9),
    depth=st.integers(1, 4),
    children=st.integers(1, 4),
    node_budget=st.integers(1, 20),
    width=st.integers(1, 32),
    step_ms=st.floats(0.0, 3.0),
    extra_ms=st.sampled_from([0.0, 0.5, 5.0]),
    rule=st.sampled_from([PrefixRule, FirstDrop, LongRun]),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_choice_is_that_of_the_host(
    num_reqs, depth, children, node_budget, width, step_ms, extra_ms, rule, seed
):
    limits = GrowthLimits(node_budget=node_budget, depth=depth, width=3, children=children)
    pool, cost = random_pool(num_reqs, limits, seed), Stairs(width, step_ms, extra_ms)
    load = StepLoad(num_requests=num_reqs, num_prefill_tokens=7)
    policy = MarginalPolicy(limits, cost, rule=rule())
    if policy.remembers_choices:  # a rate to aim at
        policy.choose(random_pool(num_reqs, limits, seed + 1), load, spent_ms=4.0)
    prob = usable_probs(pool, limits)
    selection = on_device(pool, limits, load, policy)
    allocation = policy.choose(pool, load, spent_ms=1.5)
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
    load = StepLoad(num_requests=1, num_prefill_tokens=4)
    selection = on_device(pool.candidates, limits, load, MarginalPolicy(limits, cost))
    assert int(selection.total) == expected


def test_no_candidate_no_node():
    prob = torch.zeros(3, 5, device=DEVICE)
    numbers = torch.ones(10, dtype=torch.float64, device=DEVICE)
    promise = StepPromise(*numbers[:6], verify_ms=numbers[6:])
    terms = RequestTerms(torch.ones(3, device=DEVICE), torch.full((3,), 5, device=DEVICE))
    selection = select_nodes(prob, 5, promise, terms, numbers[0])
    assert int(selection.total) == 0
    assert selection.num_draft_nodes.tolist() == [0, 0, 0]

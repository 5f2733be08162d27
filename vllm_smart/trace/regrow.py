"""Growing recorded trees again, as another policy would have."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vllm_smart.config import GrowthLimits
from vllm_smart.kernels.candidates import NUM_CONFIDENCES
from vllm_smart.profiling import StepCost
from vllm_smart.scheduler import Allocation, BudgetPolicy, usable_depths, usable_probs
from vllm_smart.trace.records import Decision

_Nodes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """Candidates to expand; implements `FrontierRows`."""

    req: _Nodes  # [num_rows] ascending
    node: _Nodes  # [num_rows]


@dataclass(frozen=True)
class Regrown:
    """A policy's decision on a recorded step."""

    nodes: list[_Nodes]  # per request, the candidates chosen, best first, roots excluded
    allocation: Allocation
    level_rows: tuple[int, ...]  # rows of each draft level after the first
    branches: bool  # some tree is not a chain
    prob: npt.NDArray[np.float32]  # [num_growing, <= node_budget] path_prob of trees, best first
    depth: npt.NDArray[np.int32]  # of the same nodes
    beyond_record: bool  # it wanted candidates that were not drafted


class RecordedPool:
    """The candidates of a recorded step that a policy has drafted so far; implements `Candidates`.

    Nodes keep their recorded numbers, so that ties break as they did.
    """

    def __init__(self, decision: Decision, limits: GrowthLimits, calibrated: bool) -> None:
        """Start with the roots.

        Args:
            decision: the step.
            limits: the policy's; candidates of higher rank than it takes are left out.
            calibrated: whether the policy orders candidates by their recorded path_prob, or by
                the products of what the draft said.
        """
        requests = decision.requests
        shape = (len(requests), max((len(request.token) for request in requests), default=1))
        self.parent = np.full(shape, -1, np.int32)
        self.depth = np.zeros(shape, np.int32)
        self.path_prob = np.zeros(shape, np.float32)
        self._recorded = np.zeros(shape, np.float32)
        self._taken = np.zeros(shape, bool)  # children that the policy takes of their parents
        for row, request in enumerate(requests):
            size = len(request.token)
            prob = request.path_prob if calibrated else products(request.parent, request.draft_prob)
            self.parent[row, :size] = request.parent
            self.depth[row, :size] = request.depth
            self._recorded[row, :size] = prob
            self._taken[row, 1:size] = request.rank[1:] < limits.children
        self.path_prob[:, 0] = 1.0
        self.weight = np.array([request.weight for request in requests], np.float32)
        caps = [request.max_nodes for request in requests]
        uncapped = np.iinfo(np.int64).max
        self.max_nodes: _Nodes | None = np.array(
            [uncapped if cap is None else cap for cap in caps], np.int64
        )
        self._level = np.zeros(shape, bool)
        self._num_children = np.zeros(shape, np.int64)
        req, node = np.nonzero(self._taken)
        np.add.at(self._num_children, (req, self.parent[req, node]), 1)

    def frontier(self, width: _Nodes) -> Rows:
        """The best [num_reqs] `width` nodes of the latest level, ruled-out ones excluded."""
        level = np.where(self._level, self.path_prob, 0.0)
        order = np.argsort(-level, axis=1, kind="stable")
        best = np.arange(level.shape[1]) < np.minimum(width, np.count_nonzero(level, axis=1))[:, None]
        req, place = np.nonzero(best)
        return Rows(req, order[req, place])

    def num_children(self, rows: Rows) -> _Nodes:
        """[num_rows] recorded children that the policy would take."""
        counts: _Nodes = self._num_children[rows.req, rows.node]
        return counts

    def expand(self, rows: Rows) -> None:
        """Draft the children of `rows`: they are the latest level from now on."""
        expanded = np.zeros(self._level.shape, bool)
        expanded[rows.req, rows.node] = True
        above = np.maximum(self.parent, 0)
        self._level = self._taken & np.take_along_axis(expanded, above, axis=1)
        self.path_prob[self._level] = self._recorded[self._level]

    def best_first(self) -> tuple[_Nodes, npt.NDArray[np.float32]]:
        """Candidates and path_prob of each request, the root first, then best first, ties by id."""
        order = np.argsort(-self.path_prob, axis=1, kind="stable")
        return order, np.take_along_axis(self.path_prob, order, axis=1)

    def off_chain(self) -> npt.NDArray[np.float32]:
        """[num_reqs] path_prob of the best candidate that makes a tree of a chain; 0 if none does."""
        order, prob = self.best_first()
        depth = np.take_along_axis(self.depth, order, axis=1)
        beside: npt.NDArray[np.float32] = np.where(depth == np.arange(depth.shape[1]), 0.0, prob)
        best: npt.NDArray[np.float32] = beside.max(axis=1)
        return best


def products(
    parent: npt.NDArray[np.int64], draft_prob: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """[num_candidates] what the draft says about each path."""
    product = draft_prob.copy()
    for node in range(1, len(product)):
        product[node] *= product[parent[node]]
    return product


def regrow(
    decision: Decision, policy: BudgetPolicy, cost: StepCost, calibrated: bool, num_unread: int = 0
) -> Regrown:
    """Let `policy` grow and choose from what was recorded, as the engine would.

    Args:
        decision: with drafted requests.
        policy: to replay.
        cost: charges what the drafter reads; the policy charges its own levels.
        calibrated: as for `RecordedPool`.
        num_unread: rows that the drafter reads beyond those recorded.
    """
    limits, requests = policy.limits, decision.requests
    pool = RecordedPool(decision, limits, calibrated)
    max_depth = np.array([request.max_depth for request in requests])
    free = np.array([request.max_rows for request in requests])
    roots = np.flatnonzero(max_depth > 0)
    first = Rows(roots, np.zeros_like(roots))
    beyond = bool((pool.num_children(first) < limits.children).any())
    pool.expand(first)
    spent_ms = cost.overhead_ms(decision.load.num_requests, drafts=True)
    spent_ms += cost.read_ms(decision.read_rows + num_unread, decision.candidate_rows)
    level_rows: list[int] = []
    for depth in range(1, limits.depth):
        width = np.minimum(min(limits.width, decision.max_width), free)
        rows = pool.frontier(np.where(max_depth > depth, width, 0))
        if not len(rows.req):
            break
        if not decision.child_acceptance:  # the trace was not to grow any deeper
            beyond = True
            break
        acceptance = decision.child_acceptance[min(depth, len(decision.child_acceptance)) - 1]
        acceptance = acceptance.reshape(NUM_CONFIDENCES, -1)
        expanded, level_ms = policy.level(pool, rows, acceptance, decision.load, spent_ms)
        if not expanded.any():
            break
        rows = Rows(rows.req[expanded], rows.node[expanded])
        num_children = pool.num_children(rows)
        beyond |= bool((num_children < limits.children).any())
        known = Rows(rows.req[num_children > 0], rows.node[num_children > 0])
        if not len(known.req):
            break
        spent_ms += level_ms
        pool.expand(known)
        free = free - np.bincount(known.req, minlength=len(free))
        level_rows.append(len(known.req))
    allocation = policy.choose(pool, decision.load, spent_ms)
    order, _ = pool.best_first()
    nodes = [
        row[1 : count + 1]
        for row, count in zip(order, allocation.num_draft_nodes.tolist(), strict=True)
    ]
    branches = any(
        bool((pool.depth[row, tree] != np.arange(1, len(tree) + 1)).any())
        for row, tree in enumerate(nodes)
    )
    prob, depths = usable_probs(pool, limits)[roots], usable_depths(pool, limits)[roots]
    return Regrown(nodes, allocation, tuple(level_rows), branches, prob, depths, beyond)

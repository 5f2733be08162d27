"""Candidate nodes of a batch of requests while their trees grow, level by level.

Knows probabilities and shapes; not which model made the candidates, nor what a node costs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vllm_smart.config import GrowthLimits
from vllm_smart.kernels.candidates import NUM_CONFIDENCES, add_level, best_first, best_of_level
from vllm_smart.tree import TreeBatch

# (draft_prob [num_rows, children], depth, req [num_rows]) -> probability that each node of a level
# is accepted if its parent is; column i has the draft's i-th choice.
AcceptanceFn = Callable[
    [npt.NDArray[np.float32], int, npt.NDArray[np.integer[Any]]], npt.NDArray[np.float32]
]

_Ints = npt.NDArray[np.integer[Any]]
_Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Frontier:
    """The nodes to expand next, by request and then best first."""

    req: npt.NDArray[np.int64]  # [num_rows] ascending
    node: npt.NDArray[np.int64]  # [num_rows] pool ids
    row_start: npt.NDArray[np.int64]  # [num_reqs + 1] first row of each request, then num_rows

    def only(self, kept: _Bools) -> "Frontier":
        """Those of the [num_rows] rows that are `kept`."""
        row_start = np.concatenate(([0], np.cumsum(kept)))[self.row_start]
        return Frontier(self.req[kept], self.node[kept], row_start)


class CandidatePool:
    """All candidates of a batch; a candidate's id is its column. Column 0 is the root.

    Columns fill level by level, so parents come before their children. A candidate with
    draft_prob 0 is ruled out: its path_prob is 0, and it is neither expanded nor selected.
    """

    def __init__(
        self,
        num_reqs: int,
        limits: GrowthLimits,
        accept: AcceptanceFn,
        weight: npt.NDArray[np.float32] | None = None,
        max_nodes: npt.NDArray[np.int64] | None = None,
    ) -> None:
        """Args:
        num_reqs: requests in the batch.
        limits: bound the pool's capacity.
        accept: turns draft probabilities into conditional acceptance probabilities.
        weight: [num_reqs] what a token of each request is worth, 1 on average; None = all alike.
        max_nodes: [num_reqs] most draft nodes that each request allows; None = as many as fit.
        """
        self.weight = np.ones(num_reqs, np.float32) if weight is None else weight
        self.max_nodes = max_nodes
        capacity = 1 + limits.children * (1 + max(limits.depth - 1, 0) * limits.width)
        shape = (num_reqs, capacity)
        self.token = np.zeros(shape, np.int64)
        self.parent = np.zeros(shape, np.int32)
        self.depth = np.zeros(shape, np.int32)
        self.rank = np.zeros(shape, np.int32)
        self.draft_prob = np.zeros(shape, np.float32)
        self.path_prob = np.zeros(shape, np.float32)
        self.token[:, 0] = -1
        self.parent[:, 0] = -1
        self.draft_prob[:, 0] = 1.0
        self.path_prob[:, 0] = 1.0
        self.size = np.ones(num_reqs, np.int64)  # [num_reqs] columns in use, root included
        self.limits = limits
        self._accept = accept
        self.num_levels = 0
        # Of the latest level: path_prob of the nodes expanded, summed by their confidence, and of
        # their children, by rank too.
        self.parent_mass = np.zeros(NUM_CONFIDENCES, np.float32)
        self.child_mass = np.zeros((NUM_CONFIDENCES, limits.children), np.float32)
        self._arrays = (
            *(self.token, self.parent, self.depth, self.rank),
            *(self.draft_prob, self.path_prob),
        )
        # The latest level, by request.
        self._level_req = np.zeros(0, np.int64)
        self._level_node = np.zeros(0, np.int64)
        self._ordered: tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]] | None = None
        self._off_chain = np.zeros(num_reqs, np.float32)

    def add_children(
        self,
        req: _Ints,
        parent: _Ints,
        token: npt.NDArray[np.int64],
        draft_prob: npt.NDArray[np.float32],
    ) -> None:
        """Add a level: the candidate children of some nodes of the level before.

        Args:
            req: [num_rows] ascending; a request may have several rows, or none.
            parent: [num_rows] pool ids of the nodes expanded; all 0, the root, at the first call.
            token: [num_rows, children] distinct within a row, the draft's top choice first.
            draft_prob: [num_rows, children] given the parent; 0 rules a candidate out.
        """
        children = token.shape[1]
        req = np.asarray(req, np.int64)
        self.num_levels += 1
        # One type and layout each, or the loop is compiled again for every other one.
        token = np.ascontiguousarray(token, np.int64)
        draft_prob = np.ascontiguousarray(draft_prob, np.float32)
        accepted = self._accept(draft_prob, self.num_levels, req)
        most = int(np.bincount(req).max(initial=0)) * children
        assert most + self.size.max(initial=0) <= self.token.shape[1], "more than the limits allow"
        node, self.parent_mass, self.child_mass = add_level(
            self._arrays,
            self.size,
            req,
            np.asarray(parent, np.int64),
            token,
            draft_prob,
            np.ascontiguousarray(accepted, np.float32),
            self.num_levels,
        )
        self._level_req = np.repeat(req, children)
        self._level_node = node.reshape(-1)
        self._ordered = None

    def frontier(
        self,
        width: int | _Ints,
        min_path_prob: float = 0.0,
        active: _Bools | None = None,
    ) -> Frontier:
        """The best nodes of the latest level.

        Args:
            width: most nodes per request, scalar or [num_reqs].
            min_path_prob: nodes must be likelier than this.
            active: [num_reqs] bool, requests that may still grow; None = all.

        Returns:
            Rows by request, then by path_prob (ties: lower id first).
        """
        num_reqs = len(self.size)
        if isinstance(width, int):
            width = np.full(num_reqs, width)
        if active is None:
            active = np.ones(num_reqs, bool)
        rows = best_of_level(
            self.path_prob,
            self._level_req,
            self._level_node,
            np.asarray(width, np.int64),
            active,
            min_path_prob,
        )
        return Frontier(*rows)

    def best_first(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Each request's candidates, best first.

        Returns:
            order: [num_reqs, columns] pool ids; the root first, parents before their children,
                ties by id. `columns` is the largest size; unused and ruled-out columns come last.
            sorted_path_prob: [num_reqs, columns] float32, never increasing, 0 where unused.
        """
        if self._ordered is None:
            order, prob, self._off_chain = best_first(self.path_prob, self.depth, self.size)
            self._ordered = order, prob
        return self._ordered

    def off_chain(self) -> npt.NDArray[np.float32]:
        """[num_reqs] path_prob of the best candidate that makes a tree of a chain; 0 if none does."""
        self.best_first()
        return self._off_chain

    def select(self, num_draft_nodes: _Ints) -> TreeBatch:
        """The best subtree of each request with the given number of draft nodes.

        Args:
            num_draft_nodes: [num_reqs], root excluded; capped by what the request allows and by the
                candidates there are.

        Returns:
            Trees as wide as the largest of them, padding zeroed.
        """
        order, prob = self.best_first()
        num_reqs, columns = order.shape
        if self.max_nodes is not None:
            num_draft_nodes = np.minimum(num_draft_nodes, self.max_nodes)
        num_nodes = np.minimum(np.asarray(num_draft_nodes) + 1, (prob > 0).sum(axis=1))
        width = int(num_nodes.max(initial=1))
        order, prob = order[:, :width], prob[:, :width]
        nodes = np.arange(width, dtype=np.int32)
        is_node = nodes < num_nodes[:, None]
        rows = np.arange(num_reqs)[:, None]
        # Parents by their place in the tree instead of in the pool.
        place = np.zeros((num_reqs, columns), np.int32)
        place[rows, order] = nodes
        parent = place[rows, self.parent[rows, order]] * is_node
        parent[:, 0] = -1
        return TreeBatch(
            token=self.token[rows, order] * is_node,
            parent=parent,
            depth=self.depth[rows, order] * is_node,
            rank=self.rank[rows, order] * is_node,
            path_prob=prob * is_node,
            draft_prob=self.draft_prob[rows, order] * is_node,
            num_nodes=num_nodes.astype(np.int32),
        )

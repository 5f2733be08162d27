"""Candidate nodes of a batch of requests while their trees grow, level by level.

Knows probabilities and shapes; not which model made the candidates, nor what a node costs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vllm_smart.config import GrowthLimits
from vllm_smart.tree import TreeBatch

# (draft_prob, depth, rank, req) -> probability that a node is accepted if its parent is, for one
# level: draft_prob [num_rows, children], depth [1, 1], rank [1, children], req [num_rows].
AcceptanceFn = Callable[
    [
        npt.NDArray[np.float32],
        npt.NDArray[np.int32],
        npt.NDArray[np.int32],
        npt.NDArray[np.integer[Any]],
    ],
    npt.NDArray[np.float32],
]

_Ints = npt.NDArray[np.integer[Any]]
_Bools = npt.NDArray[np.bool_]

_ONE_BITS = np.int64(np.float32(1.0).view(np.int32))  # the largest probability, as ordered bits


@dataclass(frozen=True)
class Frontier:
    """The nodes to expand next, by request and then best first."""

    req: npt.NDArray[np.int64]  # [num_rows] ascending
    node: npt.NDArray[np.int64]  # [num_rows] pool ids
    row_start: npt.NDArray[np.int64]  # [num_reqs + 1] first row of each request, then num_rows


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
        # Of the latest level: path_prob of the nodes expanded, summed; of their children by rank.
        self.parent_mass = 0.0
        self.child_mass = np.zeros(0, np.float32)
        self._first = np.arange(num_reqs, dtype=np.int64) * capacity  # flat index of each root
        # The latest level, request by request.
        self._level_req = np.zeros(0, np.int64)
        self._level_node = np.zeros(0, np.int64)
        self._level_prob = np.zeros(0, np.float32)
        self._ordered: tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]] | None = None

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
        num_rows, children = token.shape
        req = np.asarray(req, np.int64)
        base = self._first[req]
        self.num_levels += 1
        above = self.path_prob.reshape(-1)[base + parent]
        prob = self._path_probs(above, draft_prob, req)
        self.parent_mass = float(above.sum())
        self.child_mass = np.ones(num_rows, np.float32) @ prob  # faster than a sum over rows
        rank = np.arange(children, dtype=np.int32)
        of_request = np.arange(num_rows) - np.searchsorted(req, req)
        node = (self.size[req] + of_request * children)[:, None] + rank
        at = base[:, None] + node
        self.token.reshape(-1)[at] = token
        self.parent.reshape(-1)[at] = np.asarray(parent)[:, None]
        self.depth.reshape(-1)[at] = self.num_levels
        self.rank.reshape(-1)[at] = rank
        self.draft_prob.reshape(-1)[at] = draft_prob
        self.path_prob.reshape(-1)[at] = prob
        self.size += np.bincount(req, minlength=len(self.size)) * children
        assert self.size.max(initial=0) <= self.token.shape[1], "more candidates than the limits allow"
        self._level_req = np.repeat(req, children)
        self._level_node = node.reshape(-1)
        self._level_prob = prob.reshape(-1)
        self._ordered = None

    def _path_probs(
        self,
        above: npt.NDArray[np.float32],
        draft_prob: npt.NDArray[np.float32],
        req: _Ints,
    ) -> npt.NDArray[np.float32]:
        """Path probabilities of a level: [num_rows, children], never above the parents' [num_rows]."""
        depth = np.full((1, 1), self.num_levels, np.int32)
        rank = np.arange(draft_prob.shape[1], dtype=np.int32)[None, :]
        accepted = np.where(draft_prob > 0, self._accept(draft_prob, depth, rank, req), np.float32(0))
        # Siblings carry distinct tokens and the target samples one: together at most certain.
        total = accepted @ np.ones(accepted.shape[1], np.float32)
        accepted /= np.maximum(total, np.float32(1))[:, None]
        return above[:, None] * accepted.astype(np.float32, copy=False)

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
        kept = self._level_prob > min_path_prob
        if active is not None:
            kept &= active[self._level_req]
        req, node = self._level_req[kept], self._level_node[kept]
        order = _descending(self._level_prob[kept], req)
        req, node = req[order], node[order]
        end = np.searchsorted(req, req) + (width if isinstance(width, int) else width[req])
        within = np.arange(len(req)) < end
        req, node = req[within], node[within]
        return Frontier(req, node, np.searchsorted(req, np.arange(len(self.size) + 1)))

    def best_first(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Each request's candidates, best first.

        Returns:
            order: [num_reqs, columns] pool ids; the root first, parents before their children,
                ties by id. `columns` is the largest size; unused and ruled-out columns come last.
            sorted_path_prob: [num_reqs, columns] float32, never increasing, 0 where unused.
        """
        if self._ordered is None:
            columns = int(self.size.max(initial=1))
            prob = self.path_prob[:, :columns]
            order = _descending(prob)
            self._ordered = order, prob.reshape(-1)[order + self._row_starts(columns)]
        return self._ordered

    def _row_starts(self, columns: int) -> npt.NDArray[np.int64]:
        return np.arange(0, len(self.size) * columns, columns, dtype=np.int64)[:, None]

    def select(self, num_draft_nodes: _Ints) -> TreeBatch:
        """The best subtree of each request with the given number of draft nodes.

        Args:
            num_draft_nodes: [num_reqs], root excluded; capped by the candidates there are.

        Returns:
            Trees as wide as the largest of them, padding zeroed.
        """
        order, prob = self.best_first()
        num_reqs, columns = order.shape
        num_nodes = np.minimum(np.asarray(num_draft_nodes) + 1, (prob > 0).sum(axis=1))
        width = int(num_nodes.max(initial=1))
        order, prob = order[:, :width], prob[:, :width]
        nodes = np.arange(width, dtype=np.int32)
        is_node = nodes < num_nodes[:, None]
        at = order + self._first[:, None]
        # Parents by their place in the tree instead of in the pool.
        row = self._row_starts(columns)
        place = np.zeros(num_reqs * columns, np.int32)
        place[order + row] = nodes
        parent = place[self.parent.reshape(-1)[at] + row] * is_node
        parent[:, 0] = -1
        return TreeBatch(
            token=self.token.reshape(-1)[at] * is_node,
            parent=parent,
            depth=self.depth.reshape(-1)[at] * is_node,
            rank=self.rank.reshape(-1)[at] * is_node,
            path_prob=prob * is_node,
            draft_prob=self.draft_prob.reshape(-1)[at] * is_node,
            num_nodes=num_nodes.astype(np.int32),
        )


def _descending(prob: npt.NDArray[np.float32], group: _Ints | None = None) -> npt.NDArray[np.int64]:
    """Indices that sort `prob` (in [0, 1]) along its last axis, highest first, ties by index.

    With `group` (ascending, same shape) groups stay together, in their order. Sorts packed
    integers, group | inverted probability | index, which is several times faster than a stable
    argsort: a non-negative float's bits grow with it.
    """
    length = prob.shape[-1]
    index_bits = max(length, 1).bit_length()
    key = _ONE_BITS - prob.view(np.int32).astype(np.int64)
    if group is not None:
        key |= group << np.int64(30)
    key = (key << np.int64(index_bits)) | np.arange(length)
    key.sort(axis=-1)
    order: npt.NDArray[np.int64] = key & np.int64((1 << index_bits) - 1)
    return order

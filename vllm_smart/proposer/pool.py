"""Candidates while their trees grow, level by level."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vllm_smart.config import GrowthLimits
from vllm_smart.kernels.grow.cpu import add_level, best_of_level
from vllm_smart.proposer.candidates import Candidates

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
    node: npt.NDArray[np.int64]  # [num_rows] ids
    row_start: npt.NDArray[np.int64]  # [num_reqs + 1] first row of each request, then num_rows

    @classmethod
    def of_roots(cls, req: _Ints, num_reqs: int) -> "Frontier":
        """The roots of some requests, [num_rows] ascending."""
        row_start = np.searchsorted(req, np.arange(num_reqs + 1))
        return cls(np.asarray(req, np.int64), np.zeros(len(req), np.int64), row_start)

    def only(self, kept: _Bools) -> "Frontier":
        """Those of the [num_rows] rows that are `kept`."""
        row_start = np.concatenate(([0], np.cumsum(kept)))[self.row_start]
        return Frontier(self.req[kept], self.node[kept], row_start)


class CandidatePool:
    """The candidates of a batch so far; sources add to them.

    Attributes:
        candidates: all of them.
        limits: bound what there is room for.
        num_levels: that were added.
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
        capacity = 1 + limits.children * (1 + max(limits.depth - 1, 0) * limits.width)
        self._start(Candidates.roots(num_reqs, capacity, weight, max_nodes), limits)
        self._accept = accept

    def emptied(self) -> "CandidatePool":
        """Another pool of roots alone, for the same requests."""
        of = self.candidates
        return CandidatePool(len(of.size), self.limits, self._accept, of.weight, of.max_nodes)

    @classmethod
    def hiding(cls, known: Candidates, limits: GrowthLimits) -> "CandidatePool":
        """A pool of candidates that are known already but not to be seen before they are shown."""
        pool = cls.__new__(cls)
        columns = dict(vars(known))
        del columns["_ordered"]
        columns["path_prob"] = np.zeros_like(known.path_prob)
        columns["path_prob"][:, 0] = 1.0
        pool._start(Candidates(**columns), limits)
        return pool

    def _start(self, candidates: Candidates, limits: GrowthLimits) -> None:
        self.candidates, self.limits = candidates, limits
        self.num_levels = 0
        # The latest level, by request.
        self._level_req = np.zeros(0, np.int64)
        self._level_node = np.zeros(0, np.int64)

    def add_children(
        self,
        req: _Ints,
        parent: _Ints,
        token: npt.NDArray[np.int64],
        draft_prob: npt.NDArray[np.float32],
        source: int = 0,
    ) -> None:
        """Add a level: the candidate children of some nodes of the level before.

        Args:
            req: [num_rows] ascending; a request may have several rows, or none.
            parent: [num_rows] ids of the nodes expanded; all 0, the root, at the first call.
            token: [num_rows, children] distinct within a row, the draft's top choice first.
            draft_prob: [num_rows, children] given the parent; 0 rules a candidate out.
            source: who says so.
        """
        candidates, children = self.candidates, token.shape[1]
        req = np.asarray(req, np.int64)
        self.num_levels += 1
        # One type and layout each, or the loop is compiled again for every other one.
        draft_prob = np.ascontiguousarray(draft_prob, np.float32)
        accepted = self._accept(draft_prob, self.num_levels, req)
        most = int(np.bincount(req).max(initial=0)) * children
        assert most + candidates.size.max(initial=0) <= candidates.token.shape[1], "more than may be"
        node = add_level(
            candidates.columns,
            candidates.size,
            req,
            np.asarray(parent, np.int64),
            np.ascontiguousarray(token, np.int64),
            draft_prob,
            np.ascontiguousarray(accepted, np.float32),
            source,
        )
        self._level_req = np.repeat(req, children)
        self._level_node = node.reshape(-1)
        candidates._ordered = None

    def show(self, req: _Ints, node: _Ints, path_prob: npt.NDArray[np.float32]) -> None:
        """Add a level of candidates that were hidden, [num_nodes] by request, ids ascending."""
        self.num_levels += 1
        self.candidates.path_prob[req, node] = path_prob
        self._level_req, self._level_node = np.asarray(req, np.int64), np.asarray(node, np.int64)
        self.candidates._ordered = None

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
        num_reqs = len(self.candidates.size)
        if isinstance(width, int):
            width = np.full(num_reqs, width)
        if active is None:
            active = np.ones(num_reqs, bool)
        rows = best_of_level(
            self.candidates.path_prob,
            self._level_req,
            self._level_node,
            np.asarray(width, np.int64),
            active,
            min_path_prob,
        )
        return Frontier(*rows)

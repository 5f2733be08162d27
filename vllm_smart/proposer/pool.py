"""Candidates while their trees grow, level by level."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vllm_smart.config import GrowthLimits
from vllm_smart.kernels.evidence import GRAMMAR
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
        most_forced: int = 0,
    ) -> None:
        """Args:
        num_reqs: requests in the batch.
        limits: bound the pool's capacity.
        accept: turns draft probabilities into conditional acceptance probabilities.
        weight: [num_reqs] what a token of each request is worth, 1 on average; None = all alike.
        max_nodes: [num_reqs] most draft nodes that each request allows; None = as many as fit.
        most_forced: nodes of a request that its grammar may force.
        """
        capacity = 1 + limits.children * (1 + max(limits.depth - 1, 0) * limits.width)
        candidates = Candidates.roots(num_reqs, capacity + most_forced, weight, max_nodes)
        self._start(candidates, limits, most_forced)
        self._accept = accept

    def emptied(self) -> "CandidatePool":
        """Another pool of roots alone, for the same requests."""
        of, most_forced = self.candidates, self._most_forced
        return CandidatePool(
            len(of.size), self.limits, self._accept, of.weight, of.max_nodes, most_forced
        )

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

    def _start(self, candidates: Candidates, limits: GrowthLimits, most_forced: int = 0) -> None:
        self.candidates, self.limits = candidates, limits
        self._most_forced = most_forced
        self._room_for_forced = np.full(len(candidates.size), most_forced)
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

    def room_for_forced(self, req: int) -> int:
        """How many more nodes a request's grammar may force."""
        return int(self._room_for_forced[req])

    def add_forced(self, req: int, node: int, tokens: Sequence[int]) -> list[int]:
        """Add what must come after a node without a choice, one token below the other.

        They are as likely as the node, and in no level before it was passed over.

        Args:
            req: a request with room for so many.
            node: which nothing else comes after.
            tokens: from below it on.

        Returns:
            The nodes' ids.
        """
        of, added = self.candidates, []
        for token in tokens:
            at = int(of.size[req])
            of.size[req] += 1
            of.token[req, at], of.parent[req, at], of.source[req, at] = token, node, GRAMMAR
            of.depth[req, at], of.draft_prob[req, at] = of.depth[req, node] + 1, 1.0
            of.path_prob[req, at] = of.path_prob[req, node]
            added.append(at)
            node = at
        self._room_for_forced[req] -= len(added)
        of._ordered = None
        return added

    def pass_over(self, req: _Ints, node: _Ints) -> None:
        """The drafter has read [num_rows] nodes of whose children it need not be asked.

        These belong to the level that was added last.
        """
        if not len(req):
            return
        of = self.candidates
        is_forced = of.source[req] == GRAMMAR
        row, child = np.nonzero(is_forced & (of.parent[req] == np.asarray(node)[:, None]))
        level_req = np.concatenate((self._level_req, np.asarray(req, np.int64)[row]))
        level_node = np.concatenate((self._level_node, child))
        order = np.lexsort((level_node, level_req))
        self._level_req, self._level_node = level_req[order], level_node[order]

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

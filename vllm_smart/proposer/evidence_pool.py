"""Candidates of several sources while their trees grow: a token has one node below its parent."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vllm_smart.config import GrowthLimits
from vllm_smart.kernels.evidence import GRAMMAR, MODEL, Evidence, EvidenceScores
from vllm_smart.kernels.evidence.cpu import add_choices, add_paths, rank_children
from vllm_smart.kernels.grow.cpu import best_of_level
from vllm_smart.proposer.candidates import Candidates
from vllm_smart.proposer.ngram import Continuations
from vllm_smart.proposer.pool import CandidatePool, Frontier

_Ints = npt.NDArray[np.integer[Any]]


class EvidencePool(CandidatePool):
    """A pool whose candidates are as likely as all that speaks for them together.

    Columns only grow, so that an id stays what it is. Ranks, probabilities and those of all paths are
    told anew whenever something is added.
    """

    def __init__(
        self,
        num_reqs: int,
        limits: GrowthLimits,
        most_ngrams: int,
        scores: EvidenceScores,
        weight: npt.NDArray[np.float32] | None = None,
        max_nodes: npt.NDArray[np.int64] | None = None,
        most_forced: int = 0,
    ) -> None:
        """Args:
        num_reqs, limits, weight, max_nodes, most_forced: as for `CandidatePool`.
        most_ngrams: nodes of n-grams that a request may have.
        scores: what candidates are judged by.
        """
        capacity = 1 + most_ngrams + limits.children * (1 + max(limits.depth - 1, 0) * limits.width)
        capacity += most_forced
        self._start(Candidates.roots(num_reqs, capacity, weight, max_nodes), limits, most_forced)
        self._evidence = Evidence.none(num_reqs, capacity)
        self._is_passed = np.zeros((num_reqs, capacity), bool)  # read, but not asked about
        self.candidates.evidence, self.candidates.is_sampled = self._evidence, scores.is_sampled
        self._scores = scores

    def add_paths(self, req: _Ints, trees: Continuations, max_depth: _Ints) -> None:
        """Add trees of n-grams below roots, before anything else.

        Args:
            req: [num_rows] distinct requests, ascending.
            trees: one for each.
            max_depth: [num_rows] deeper nodes are left out.
        """
        req = np.asarray(req, np.int64)
        of = self.candidates
        assert (of.size[req] == 1).all(), "n-grams come first"
        req, parent = add_paths(
            of.columns,
            self._evidence.columns,
            of.size,
            req,
            trees.token,
            trees.parent,
            trees.match_len,
            trees.count,
            trees.share,
            trees.num,
            np.asarray(max_depth, np.int64),
        )
        self._rank(req, parent)

    def add_children(
        self,
        req: _Ints,
        parent: _Ints,
        token: npt.NDArray[np.int64],
        draft_prob: npt.NDArray[np.float32],
        source: int = MODEL,
    ) -> None:
        """Add what the drafter names after some nodes; see `CandidatePool.add_children`."""
        assert source == MODEL, "n-grams are added as paths"
        of, most = self.candidates, token.shape[1] * int(np.bincount(req).max(initial=0))
        assert most + of.size.max(initial=0) <= of.token.shape[1], "more than may be"
        self.num_levels += 1
        req, parent = np.asarray(req, np.int64), np.asarray(parent, np.int64)
        add_choices(
            of.columns,
            self._evidence.columns,
            of.size,
            req,
            parent,
            np.ascontiguousarray(token, np.int64),
            np.ascontiguousarray(draft_prob, np.float32),
        )
        self._rank(req, parent)

    def add_forced(self, req: int, node: int, tokens: Sequence[int]) -> list[int]:
        """Add what must come after a node; n-grams that have named it are taken for it."""
        of, added, parents = self.candidates, [], []
        for token in tokens:
            children = np.flatnonzero(of.parent[req, : of.size[req]] == node)
            if len(children):
                (at,) = children.tolist()
                assert of.token[req, at] == token, "forbidden n-grams are not added"
                of.source[req, at] = GRAMMAR
            else:
                (at,) = super().add_forced(req, node, [token])
            added.append(at)
            parents.append(node)
            node = at
        self._rank(np.full(len(added), req), np.array(parents, np.int64))
        return added

    def pass_over(self, req: _Ints, node: _Ints) -> None:
        """The drafter has read nodes of whose children it need not be asked."""
        self._is_passed[req, node] = True

    def _rank(self, req: _Ints, parent: _Ints) -> None:
        of = self.candidates
        arrays = of.columns, self._evidence.columns, of.size
        rank_children(*arrays, req, parent, *self._scores.arguments())
        of._ordered = None

    def frontier(
        self,
        width: int | _Ints,
        min_path_prob: float = 0.0,
        active: npt.NDArray[np.bool_] | None = None,
    ) -> Frontier:
        """The best candidates below the nodes that the drafter was asked about last, by whomever.

        Args, returns: as for `CandidatePool.frontier`.
        """
        of, depth = self.candidates, self.num_levels
        is_next = (of.depth == depth) & (np.arange(of.depth.shape[1]) < of.size[:, None])
        is_read = self._evidence.is_expanded | self._is_passed
        is_next &= np.take_along_axis(is_read, np.maximum(of.parent, 0), axis=1)
        level_req, level_node = np.nonzero(is_next)
        num_reqs = len(of.size)
        if isinstance(width, int):
            width = np.full(num_reqs, width)
        if active is None:
            active = np.ones(num_reqs, bool)
        width = np.asarray(width, np.int64)
        rows = best_of_level(of.path_prob, level_req, level_node, width, active, min_path_prob)
        return Frontier(*rows)

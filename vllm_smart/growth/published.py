"""What the drafter's process has grown, as a source of a step's candidates."""

import time
from typing import Protocol

import numpy as np
import numpy.typing as npt

from vllm_smart.overlap.drafts import Miss, PublishedTree
from vllm_smart.proposer import CandidatePool, Candidates, Frontier, GrowthWork, grow

Found = tuple[PublishedTree, int] | Miss  # a tree, and the node that a request's text has come to

_POLL_S = 50e-6
_MOST_TIMES_PREDICTED = 3.0  # a wait may last
_BRIEFLY_MS = 1.0  # where nothing is predicted


class Lookup(Protocol):
    """Where trees are found."""

    is_drafting: bool
    """Whether the drafter may be waited for."""

    def find(self, req: int) -> Found:
        """What is published below the text of a request of the pool."""


class PublishedSource:
    """Candidates that are there already; those of a level need no forward.

    Attributes:
        found: what is published, by request.
    """

    name, is_one_shot = "model", False
    levels_ms = 0.0  # as `LevelDecisions`

    def __init__(self, lookup: Lookup, grows: npt.NDArray[np.int64]) -> None:
        """Look all requests up.

        Args:
            lookup: where.
            grows: [num_growing] requests of the pool.
        """
        self.lookup = lookup
        self.found = {req: lookup.find(req) for req in grows.tolist()}
        self._at: npt.NDArray[np.int64] = np.zeros((0, 0), np.int64)  # published node of each candidate

    @property
    def misses(self) -> dict[int, Miss]:
        """Requests that nothing was found for, and why."""
        return {req: found for req, found in self.found.items() if isinstance(found, Miss)}

    @property
    def hits(self) -> npt.NDArray[np.int64]:
        """[num_hits] the others, ascending."""
        return np.array([r for r, found in self.found.items() if not isinstance(found, Miss)], np.int64)

    def look_again(self, reqs: list[int]) -> None:
        """Look some up once more."""
        self.found |= {req: self.lookup.find(req) for req in reqs}

    def expand(self, pool: CandidatePool, frontier: Frontier) -> int:
        """Add what is published below some nodes; see `CandidateSource`."""
        if not len(frontier.req):
            return 0
        if not pool.num_levels:
            self._at = np.full(pool.candidates.token.shape, -1, np.int64)
            for req in frontier.req.tolist():
                found = self.found[req]
                assert not isinstance(found, Miss)
                self._at[req, 0] = found[1]
        children = min(pool.limits.children, self._tree(int(frontier.req[0])).children)
        shape = len(frontier.req), children
        token, prob = np.zeros(shape, np.int64), np.zeros(shape, np.float32)
        begin = pool.candidates.size.copy()
        for row, (req, node) in enumerate(
            zip(frontier.req.tolist(), frontier.node.tolist(), strict=True)
        ):
            tree = self._tree(req)
            first = int(tree.first[self._at[req, node]])
            token[row], prob[row] = (
                tree.token[first : first + children],
                tree.prob[first : first + children],
            )
            self._at[req, begin[req] : begin[req] + children] = first + np.arange(children)
            begin[req] += children
        pool.add_children(frontier.req, frontier.node, token, prob)
        return len(frontier.req)

    # As `LevelDecisions`: what is there is taken.

    def ask(self, pool: CandidatePool, frontier: Frontier, depth: int) -> npt.NDArray[np.bool_]:
        """[num_rows] which nodes have published children."""
        nodes = zip(frontier.req.tolist(), frontier.node.tolist(), strict=True)
        return np.array([self._tree(r).first[self._at[r, n]] >= 0 for r, n in nodes], bool)

    def took(self, num_rows: int) -> None:
        """It has cost nothing."""

    def _tree(self, req: int) -> PublishedTree:
        found = self.found[req]
        assert not isinstance(found, Miss)
        return found[0]


class Beside:
    """Growth in the drafter's process: a step takes what is there, and waits where that pays.

    Attributes:
        max_wait_ms: most that a step waits; None: three times what is predicted.
        wait_s: time that steps have waited so far.
    """

    def __init__(self, max_wait_ms: float | None) -> None:
        """See above."""
        self.max_wait_ms = max_wait_ms
        self.wait_s = 0.0

    def submit(self, work: GrowthWork) -> GrowthWork:
        """The drafter has been at it for long."""
        return work

    def collect(self, work: GrowthWork) -> Candidates:
        """What is published; of requests without any, what comes in time if the policy waits."""
        source = work.source
        assert isinstance(source, PublishedSource)
        pool = self._take(work.pool, source, work)
        # A drafter that still reads a prompt is at it for nobody knows how long.
        misses = source.misses
        missing = np.array([req for req in misses if misses[req] is not Miss.LATE], np.int64)
        if not len(missing) or not source.lookup.is_drafting or self.max_wait_ms == 0:
            return pool.candidates
        before_ms = work.decisions.levels_ms
        frontier = Frontier.of_roots(missing, len(pool.candidates.size))
        wanted = frontier.only(work.decisions.ask(pool, frontier, 0)).req
        if not len(wanted):
            return pool.candidates
        work.decisions.took(len(wanted))
        predicted_ms = work.decisions.levels_ms - before_ms
        self._wait(source, wanted.tolist(), predicted_ms)
        if len(source.misses) == len(misses):
            return pool.candidates
        return self._take(work.pool.emptied(), source, work).candidates

    def _take(self, pool: CandidatePool, source: PublishedSource, work: GrowthWork) -> CandidatePool:
        hits = source.hits
        if len(hits):
            grow(pool, source, hits, work.bounds, source)
        return pool

    def _wait(self, source: PublishedSource, reqs: list[int], predicted_ms: float) -> None:
        most_ms = max(_MOST_TIMES_PREDICTED * predicted_ms, _BRIEFLY_MS)
        if self.max_wait_ms is not None:
            most_ms = min(most_ms, self.max_wait_ms)
        begin = time.perf_counter()
        while reqs and time.perf_counter() - begin < most_ms / 1e3:
            time.sleep(_POLL_S)
            source.look_again(reqs)
            reqs = [req for req in reqs if req in source.misses]
        self.wait_s += time.perf_counter() - begin

"""What the drafter's process has grown, as a source of a step's candidates."""

import time
from typing import Protocol

import numpy as np
import numpy.typing as npt

from vllm_smart.overlap.drafts import Miss, PublishedTree
from vllm_smart.proposer import CandidatePool, Candidates, Frontier, GrowthWork, StepGrammars, grow

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

    def __init__(self, lookup: Lookup, grows: npt.NDArray[np.int64], grammars: StepGrammars) -> None:
        """Look all requests up.

        Args:
            lookup: where.
            grows: [num_growing] requests of the pool.
            grammars: of requests that have some, which the drafter knows nothing of.
        """
        self.lookup, self._grammars = lookup, grammars
        self.found = {req: lookup.find(req) for req in grows.tolist()}
        self._places: dict[tuple[int, int], int] = {}  # published node of the pool's nodes, -1: none

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
            self._places = {}
        # What comes after some is known from a grammar.
        is_forced, masks = self._grammars.after(frontier)
        passed, frontier = frontier.only(is_forced), frontier.only(~is_forced)
        children = max(1, pool.limits.children)
        token = np.zeros((len(frontier.req), children), np.int64)
        prob = np.zeros((len(frontier.req), children), np.float32)
        for row, (req, node) in enumerate(zip(frontier.req, frontier.node, strict=True)):
            tree, place = self._tree(int(req)), self._place(pool, int(req), int(node))
            assert place >= 0, "asked for what is not there"
            block = slice(tree.first[place], tree.first[place] + min(children, tree.children))
            num = len(tree.token[block])
            token[row, :num], prob[row, :num] = tree.token[block], tree.prob[block]
        if masks is not None:
            prob[masks.rows] *= _are_allowed(token[masks.rows], masks.masks)
        pool.add_children(frontier.req, frontier.node, token, prob)
        pool.pass_over(passed.req, passed.node)
        return len(frontier.req) + len(passed.req)

    # As `LevelDecisions`: what is there is taken.

    def ask(self, pool: CandidatePool, frontier: Frontier, depth: int) -> npt.NDArray[np.bool_]:
        """[num_rows] which nodes have published children."""
        return np.array(
            [
                (place := self._place(pool, int(req), int(node))) >= 0
                and self._tree(int(req)).first[place] >= 0
                for req, node in zip(frontier.req, frontier.node, strict=True)
            ],
            bool,
        )

    def took(self, num_rows: int) -> None:
        """It has cost nothing."""

    def _place(self, pool: CandidatePool, req: int, node: int) -> int:
        """The published node that has the path of a node of the pool; -1 where there is none."""
        if node == 0:
            found = self.found[req]
            assert not isinstance(found, Miss)
            return found[1]
        if (known := self._places.get((req, node))) is not None:
            return known
        of, tree = pool.candidates, self._tree(req)
        above = self._place(pool, req, int(of.parent[req, node]))
        place = tree.child(above, int(of.token[req, node])) if above >= 0 else -1
        return self._places.setdefault((req, node), place)

    def _tree(self, req: int) -> PublishedTree:
        found = self.found[req]
        assert not isinstance(found, Miss)
        return found[0]


def _are_allowed(token: npt.NDArray[np.int64], masks: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
    """[num_rows, children] whether tokens are in the masks [num_rows, num_words] of their rows."""
    word = np.minimum(token >> 5, masks.shape[1] - 1)
    bits = np.take_along_axis(masks, word, axis=1).astype(np.int64)
    allowed: npt.NDArray[np.bool_] = ((bits >> (token & 31)) & 1).astype(bool) & (token >> 5 == word)
    return allowed


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
        pool = work.pool.emptied()
        if work.grammars is not None:
            work.grammars.restart(pool)
        return self._take(pool, source, work).candidates

    def _take(self, pool: CandidatePool, source: PublishedSource, work: GrowthWork) -> CandidatePool:
        hits = source.hits
        if len(hits):
            grow(pool, source, hits, work.bounds, source, work.grammars)
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

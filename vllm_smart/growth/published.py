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
        left: published nodes that growth came to and that have no children yet, by request.
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
        self.left: dict[int, list[int]] = {}
        self._places: dict[tuple[int, int], int] = {}  # published node of the pool's nodes, -1: none

    def restart(self) -> None:
        """Growth begins, from roots."""
        self._places, self.left = {}, {}

    def to_come(self, num_reqs: int) -> Frontier:
        """Nodes whose children the drafter may soon have, roots included, in the order of growth."""
        nodes = {
            req: [0] if isinstance(found, Miss) else self.left.get(req, [])
            for req, found in sorted(self.found.items())
            # A drafter that still reads a prompt is at it for nobody knows how long.
            if found is not Miss.LATE and (isinstance(found, Miss) or not found[0].is_done)
        }
        req = np.repeat(np.array(list(nodes), np.int64), [len(each) for each in nodes.values()])
        node = np.array([node for each in nodes.values() for node in each], np.int64)
        return Frontier(req, node, np.searchsorted(req, np.arange(num_reqs + 1)))

    def has_children(self, pool: CandidatePool, frontier: Frontier) -> npt.NDArray[np.bool_]:
        """[num_rows] of which nodes children are published."""
        return np.array(
            [
                not isinstance(found := self.found[req], Miss)
                and (place := self._place(pool, req, node)) >= 0
                and found[0].first[place] >= 0
                for req, node in zip(frontier.req.tolist(), frontier.node.tolist(), strict=True)
            ],
            bool,
        )

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
        self._places = {}  # roots may have moved

    def expand(self, pool: CandidatePool, frontier: Frontier) -> int:
        """Add what is published below some nodes; see `CandidateSource`."""
        if not len(frontier.req):
            return 0
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
        """[num_rows] which nodes have published children; the others are noted as left."""
        has_children = self.has_children(pool, frontier)
        left = frontier.only(~has_children)
        for req, node in zip(left.req.tolist(), left.node.tolist(), strict=True):
            if self._place(pool, req, node) >= 0:
                self.left.setdefault(req, []).append(node)
        return has_children

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
        """What is published, and what comes in time where the policy waits for more.

        A wait is for a level of the drafter's, and is asked about as a level.
        """
        source, decisions, most_ms = work.source, work.decisions, self.max_wait_ms
        assert isinstance(source, PublishedSource)
        pool, wait_s = self._take(work.pool, source, work), self.wait_s
        for _ in range(pool.limits.depth):
            if not source.lookup.is_drafting or (most_ms is not None and most_ms <= 0):
                break
            to_come = source.to_come(len(pool.candidates.size))
            if not len(to_come.req):
                break
            before_ms = decisions.levels_ms
            wanted = to_come.only(decisions.ask(pool, to_come, 0))
            if not len(wanted.req):
                break
            decisions.took(len(wanted.req))
            if not self._wait(pool, source, wanted, decisions.levels_ms - before_ms, most_ms):
                break
            if self.max_wait_ms is not None:
                most_ms = self.max_wait_ms - (self.wait_s - wait_s) * 1e3
            pool = work.pool.emptied()
            if work.grammars is not None:
                work.grammars.restart(pool)
            pool = self._take(pool, source, work)
        return pool.candidates

    def _take(self, pool: CandidatePool, source: PublishedSource, work: GrowthWork) -> CandidatePool:
        hits = source.hits
        source.restart()
        if len(hits):
            grow(pool, source, hits, work.bounds, source, work.grammars)
        return pool

    def _wait(
        self,
        pool: CandidatePool,
        source: PublishedSource,
        wanted: Frontier,
        predicted_ms: float,
        most_ms: float | None,
    ) -> bool:
        """Wait until each request has children of a node that is wanted; whether any have come."""
        longest_ms = max(_MOST_TIMES_PREDICTED * predicted_ms, _BRIEFLY_MS)
        if most_ms is not None:
            longest_ms = min(longest_ms, most_ms)
        begin = time.perf_counter()
        waits, has_come = wanted, False
        while len(waits.req) and time.perf_counter() - begin < longest_ms / 1e3:
            time.sleep(_POLL_S)
            source.look_again(np.unique(waits.req).tolist())
            served = waits.req[source.has_children(pool, waits)]
            has_come |= len(served) > 0
            waits = waits.only(~np.isin(waits.req, served))
        self.wait_s += time.perf_counter() - begin
        return has_come

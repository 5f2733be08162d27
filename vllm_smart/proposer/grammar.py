"""What grammars say about the trees of a step: which nodes there cannot be, and which there must be.

Knows nothing of how a grammar is written, or of who reads it. Where the state of a request's grammar
after a node is known, so is which tokens the target can sample there. Of others no candidate is made.
Where there is but one, it is certain, and no drafter need be asked about it.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from vllm_smart.kernels.allowed_tokens.cpu import RowMasks, sole_token
from vllm_smart.proposer.ngram import Continuations
from vllm_smart.proposer.pool import CandidatePool, Frontier

_Ints = npt.NDArray[np.integer[Any]]
_Mask = npt.NDArray[np.int32]


class Grammar(Protocol):
    """One request's grammar on its way along a path of drafts, from the request's last known token."""

    @property
    def is_over(self) -> bool:
        """Whether nothing comes after the present place."""

    def allowed(self, mask: _Mask) -> bool:
        """Write which tokens may come next into `mask` [num_words]; False where it does not say.

        Args:
            mask: stays as it is until the path has been left.
        """

    def advance(self, token: int) -> bool:
        """Go on with `token`; False, and stay, if it may not come next."""

    def back(self, count: int) -> None:
        """Take the last `count` tokens back."""


class _Place(NamedTuple):
    """What is known after a node."""

    mask: _Mask | None = None  # None: all tokens, or the one that is there already
    is_forced: bool = False  # the only token that may come next is there
    is_last: bool = False  # nothing is worth drafting after it, or after all that is forced


class _Walk:
    """Moves a grammar from node to node."""

    def __init__(self, grammar: Grammar) -> None:
        self.grammar = grammar
        self._path: list[int] = []

    def go_to(self, path: list[int]) -> bool:
        """Be after the tokens of `path`, from below the root on; False if one of them is forbidden."""
        shared = 0
        for before, token in zip(self._path, path, strict=False):
            if before != token:
                break
            shared += 1
        if shared < len(self._path):
            self.grammar.back(len(self._path) - shared)
            del self._path[shared:]
        for token in path[shared:]:
            if not self.grammar.advance(token):
                return False
            self._path.append(token)
        return True


class StepGrammars:
    """The grammars of one step's requests, as far as they are known.

    A grammar that raises is given up: its request is drafted for as if it had none.
    """

    def __init__(
        self,
        grammars: dict[int, Grammar],
        num_words: int,
        deepest: _Ints,
        deepest_drafted: int,
        give_up: Callable[[int, Exception], None],
    ) -> None:
        """Args:
        grammars: by request of the step's pool, each at its root.
        num_words: of a mask.
        deepest: [num_reqs] deeper nodes would be wasted.
        deepest_drafted: no drafter gets deeper.
        give_up: told the request and why.
        """
        self._walks = {req: _Walk(grammar) for req, grammar in grammars.items()}
        self._num_words = num_words
        self._deepest, self._deepest_drafted = deepest, deepest_drafted
        self._give_up = give_up
        self._places: dict[tuple[int, int], _Place] = {}

    def visit(self, pool: CandidatePool, frontier: Frontier) -> Frontier:
        """Add what is forced after some nodes; see which tokens may come next after the others.

        Args:
            pool: of the step.
            frontier: nodes that might be expanded.

        Returns:
            Those of them that are worth expanding.
        """
        if not self._walks:
            return frontier
        is_last = [self._visit(pool, *node).is_last for node in _nodes(frontier)]
        return frontier.only(~np.array(is_last, bool)) if any(is_last) else frontier

    def restart(self, pool: CandidatePool) -> None:
        """Another pool for the same requests, of roots alone, is grown: visit those roots again."""
        roots = np.array([req for req, node in self._places if node == 0], np.int64)
        self._places.clear()
        self.visit(pool, Frontier.of_roots(np.sort(roots), len(pool.candidates.size)))

    def after(self, frontier: Frontier) -> tuple[npt.NDArray[np.bool_], RowMasks | None]:
        """What is known of nodes that were visited.

        Returns:
            [num_rows] whether what comes next is there already, and masks of the other rows,
            counted without these; None where there are none.
        """
        if not self._places:
            return np.zeros(len(frontier.req), bool), None
        places = [self._places.get(node, _Place()) for node in _nodes(frontier)]
        others = [place.mask for place in places if not place.is_forced]
        rows = [row for row, mask in enumerate(others) if mask is not None]
        is_forced = np.array([place.is_forced for place in places], bool)
        if not rows:
            return is_forced, None
        masks = np.stack([mask for mask in others if mask is not None])
        return is_forced, RowMasks(np.array(rows, np.int64), masks)

    def allowed_of(self, req: _Ints, trees: Continuations) -> Continuations:
        """The trees of [num_rows] requests `req`, without nodes that their grammars forbid.

        What is left of siblings shares the weight that all of them had.
        """
        if not self._walks:
            return trees
        trees = replace(trees, **{name: column.copy() for name, column in vars(trees).items()})
        for row, of in enumerate(req.tolist()):
            if (walk := self._walks.get(of)) is None:
                continue
            try:
                _keep(trees, row, _allowed_nodes(walk, trees, row))
            except Exception as error:
                self._lose(of, error)
        return trees

    def finish(self) -> None:
        """Bring all grammars back to their roots."""
        for req, walk in list(self._walks.items()):
            try:
                walk.go_to([])
            except Exception as error:
                self._lose(req, error)

    def _visit(self, pool: CandidatePool, req: int, node: int) -> _Place:
        if req not in self._walks:
            return _Place()
        if (known := self._places.get((req, node))) is not None:
            return known
        try:
            place = self._place(pool, req, node)
        except Exception as error:
            self._lose(req, error)
            return _Place()
        return self._places.setdefault((req, node), place)

    def _lose(self, req: int, error: Exception) -> None:
        del self._walks[req]
        self._give_up(req, error)

    def _place(self, pool: CandidatePool, req: int, node: int) -> _Place:
        walk, of = self._walks[req], pool.candidates
        if not walk.go_to(_path(of.token[req], of.parent[req], node)):
            return _Place(is_last=True)  # a source that knows no grammars has named it
        grammar, mask = walk.grammar, np.zeros(self._num_words, np.int32)
        if grammar.is_over:
            return _Place(is_last=True)
        if not grammar.allowed(mask):
            return _Place()
        if (token := sole_token(mask)) < 0:
            return _Place(mask)
        depth = int(of.depth[req, node])
        most = min(int(self._deepest[req]) - depth, pool.room_for_forced(req))
        run, is_over = _forced_run(grammar, token, self._num_words, most)
        if not run:
            return _Place(mask)
        end = depth + len(run)
        # Levels pass through a run, for the drafter has to read it, but no deeper than they may be.
        is_last = is_over or end >= min(self._deepest_drafted, int(self._deepest[req]))
        place = _Place(is_forced=True, is_last=is_last)
        *within, last = pool.add_forced(req, node, run)
        for passed in within:
            self._places[req, passed] = place
        if is_last:
            self._places[req, last] = _Place(is_last=True)
        return place


def _forced_run(grammar: Grammar, token: int, num_words: int, most: int) -> tuple[list[int], bool]:
    """The tokens that follow one another without a choice, at most `most`, and whether the text ends.

    Args:
        token: the first of them.
        num_words: of a mask.
    """
    run: list[int] = []
    is_over = False
    while token >= 0 and len(run) < most and grammar.advance(token):
        run.append(token)
        mask, is_over = np.zeros(num_words, np.int32), grammar.is_over
        token = -1 if is_over or not grammar.allowed(mask) else sole_token(mask)
    if run:
        grammar.back(len(run))
    return run, is_over


def _nodes(frontier: Frontier) -> list[tuple[int, int]]:
    return list(zip(frontier.req.tolist(), frontier.node.tolist(), strict=True))


def _path(token: _Ints, parent: _Ints, node: int) -> list[int]:
    """The tokens from below the root to `node`."""
    path = []
    while node > 0:
        path.append(int(token[node]))
        node = int(parent[node])
    return path[::-1]


def _allowed_nodes(walk: _Walk, trees: Continuations, row: int) -> list[int]:
    """Columns of the nodes of a tree that are allowed, with all nodes before them."""
    paths: dict[int, list[int]] = {-1: []}
    for node in range(int(trees.num[row])):
        above = paths.get(int(trees.parent[row, node]))
        if above is None:
            continue
        path = [*above, int(trees.token[row, node])]
        if walk.go_to(path):
            paths[node] = path
    return [node for node in paths if node >= 0]


def _keep(trees: Continuations, row: int, kept: list[int]) -> None:
    """Leave only the columns `kept` of a tree."""
    num = int(trees.num[row])
    if len(kept) == num:
        return
    gone = sorted(set(range(num)) - set(kept))
    left = np.ones(num + 1)  # of the weight after each parent; the root's is the last
    np.subtract.at(left, trees.parent[row, gone], trees.share[row, gone])
    trees.share[row, :num] /= np.maximum(left[trees.parent[row, :num]], trees.share[row, :num])
    place = np.full(num + 1, -1, np.int32)
    place[kept] = np.arange(len(kept))
    parent = place[trees.parent[row, kept]]
    for name, column in vars(trees).items():
        if name != "num":
            column[row, : len(kept)] = column[row, kept]
            column[row, len(kept) :] = -1 if name in ("token", "parent") else 0
    trees.parent[row, : len(kept)] = parent
    trees.num[row] = len(kept)

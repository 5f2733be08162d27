"""What grammars forbid is never a candidate, and what they force needs no drafter."""

import numpy as np
import pytest

from vllm_smart.config import GrowthLimits
from vllm_smart.kernels.evidence import FEATURES, GRAMMAR, EvidenceScores
from vllm_smart.kernels.grow.cpu import level_masses
from vllm_smart.proposer import (
    CandidatePool,
    EvidencePool,
    Frontier,
    GrowthBounds,
    RecordedSource,
    StepGrammars,
    grow,
)
from vllm_smart.proposer.ngram import Continuations
from vllm_smart.scheduler import usable_levels

LIMITS = GrowthLimits(node_budget=12, depth=4, width=2, children=2)
NUM_WORDS = 2
END = 60  # ends a text
TEXTS = [[1, 2, 3, 4, END], [1, 2, 3, 5, 6, END], [9, 8, END]]
ANY = 99  # after it, all is allowed


class Texts:
    """Allows some texts; counts what it was asked."""

    def __init__(self, texts=TEXTS) -> None:
        self.texts, self.path, self.num_asked = texts, [], 0

    def _next(self, path) -> set[int]:
        return {text[len(path)] for text in self.texts if text[: len(path)] == path and text != path}

    @property
    def is_over(self) -> bool:
        return self.path[-1:] == [END]

    def allowed(self, mask) -> bool:
        self.num_asked += 1
        if ANY in self.path:
            return False
        bits = np.zeros(32 * NUM_WORDS, np.uint8)
        bits[[token for token in self._next(self.path) if token < ANY]] = 1
        mask[:] = np.packbits(bits, bitorder="little").view(np.int32)
        return True

    def advance(self, token: int) -> bool:
        if ANY not in self.path and token not in self._next(self.path):
            return False
        self.path.append(token)
        return True

    def back(self, count: int) -> None:
        del self.path[len(self.path) - count :]


class Broken(Texts):
    def allowed(self, mask) -> bool:
        raise RuntimeError("out of order")


def step_grammars(grammars, deepest=9, given_up=None) -> StepGrammars:
    num_reqs = 1 + max(grammars, default=0)
    given_up = {} if given_up is None else given_up
    return StepGrammars(
        grammars, NUM_WORDS, np.full(num_reqs, deepest), LIMITS.depth, given_up.__setitem__
    )


class Masked:
    """A drafter that likes tokens in the order of their numbers, among those that are allowed."""

    name, is_one_shot = "masked", False

    def __init__(self, grammars: StepGrammars) -> None:
        self.grammars, self.expanded, self.passed = grammars, [], []

    def expand(self, pool, frontier) -> int:
        if not len(frontier.req):
            return 0
        is_forced, masks = self.grammars.after(frontier)
        passed, asked = frontier.only(is_forced), frontier.only(~is_forced)
        self.passed += passed.node.tolist()
        self.expanded += asked.node.tolist()
        likes = np.ones((len(asked.req), 32 * NUM_WORDS), bool)
        if masks is not None:
            likes[masks.rows] = np.unpackbits(masks.masks.view(np.uint8), axis=1, bitorder="little")
        token = np.argsort(~likes, axis=1, kind="stable")[:, : LIMITS.children]
        prob = np.array([0.6, 0.3], np.float32) * np.take_along_axis(likes, token, axis=1)
        pool.add_children(asked.req, asked.node, token, prob)
        pool.pass_over(passed.req, passed.node)
        return len(frontier.req)


class Always:
    def ask(self, pool, frontier, depth):
        return np.ones(len(frontier.req), bool)

    def took(self, num_rows) -> None:
        pass


def grown(grammar, pool=None, deepest=9, **kwargs):
    pool = new_pool() if pool is None else pool
    grammars = step_grammars({0: grammar}, deepest, **kwargs)
    source = Masked(grammars)
    bounds = GrowthBounds(np.array([deepest]), np.array([20]), 8)
    grow(pool, source, np.zeros(1, np.int64), bounds, Always(), grammars)
    grammars.finish()
    return pool, source


def new_pool() -> CandidatePool:
    return CandidatePool(1, LIMITS, lambda prob, depth, req: prob, most_forced=LIMITS.node_budget)


def evidence_pool() -> EvidencePool:
    weights = np.zeros(len(FEATURES))
    none = np.zeros(1, bool)
    scores = EvidenceScores(weights, None, none, none)
    return EvidencePool(1, LIMITS, 8, scores, most_forced=LIMITS.node_budget)


def paths(pool, only_source=None) -> set[tuple[int, ...]]:
    """The tokens from below the root to each candidate that is not ruled out."""
    of, found = pool.candidates, set()
    for node in range(1, of.size[0]):
        if of.path_prob[0, node] > 0 and only_source in (None, of.source[0, node]):
            path, at = [], node
            while at:
                path.insert(0, int(of.token[0, at]))
                at = of.parent[0, at]
            found.add(tuple(path))
    return found


def starts(texts) -> set[tuple[int, ...]]:
    return {tuple(text[:end]) for text in texts for end in range(1, len(text) + 1)}


@pytest.mark.parametrize("make_pool", [new_pool, evidence_pool])
def test_candidates_are_what_the_grammar_allows_and_forced_runs_are_certain(make_pool):
    grammar = Texts()
    pool, _ = grown(grammar, make_pool())
    assert paths(pool) <= starts(TEXTS)
    # Deeper than levels get, where there is no choice.
    assert (1, 2, 3, 5, 6, END) in paths(pool)
    assert paths(pool, GRAMMAR) == {(1, 2), (1, 2, 3), (1, 2, 3, 4, END), (1, 2, 3, 5, 6), (9, 8)} | {
        (1, 2, 3, 5, 6, END),
        (9, 8, END),
    }
    of = pool.candidates
    forced = np.flatnonzero(of.source[0] == GRAMMAR)
    above = of.parent[0, forced]
    assert (of.path_prob[0, forced] == of.path_prob[0, above]).all()
    assert (of.depth[0, forced] == of.depth[0, above] + 1).all()
    assert (of.draft_prob[0, forced] == 1).all()
    assert grammar.path == []
    of.select(np.array([LIMITS.node_budget])).validate()


@pytest.mark.parametrize("make_pool", [new_pool, evidence_pool])
def test_the_drafter_reads_forced_nodes_and_is_asked_after_them(make_pool):
    pool, source = grown(Texts(), make_pool())
    of = pool.candidates
    token = {node: int(of.token[0, node]) for node in source.expanded + source.passed}
    assert 0 in source.expanded
    assert {token[node] for node in source.passed} == {1, 2}
    assert 3 in {token[node] for node in source.expanded}  # where there is a choice again
    # What ends the text without a choice is not worth a forward.
    assert 9 not in token.values()


def test_a_forced_root_needs_no_drafter_at_all():
    grammar = Texts([[1, 2, 3, 4, 5, 6, 7, 8]])
    pool, source = grown(grammar)
    assert source.expanded == source.passed == []
    assert (1, 2, 3, 4, 5, 6, 7, 8) in paths(pool)
    assert (pool.candidates.path_prob[0, : pool.candidates.size[0]] == 1).all()


@pytest.mark.parametrize("deepest", [1, 2, 3])
def test_runs_end_where_deeper_nodes_would_be_wasted(deepest):
    pool, _ = grown(Texts(), deepest=deepest)
    of = pool.candidates
    assert of.depth[0, : of.size[0]].max() == deepest


def test_runs_end_where_there_is_no_room():
    pool = CandidatePool(1, LIMITS, lambda prob, depth, req: prob, most_forced=2)
    grown(Texts([[1, 2, 3, 4, 5, 6, 7, 8]]), pool)
    assert paths(pool, GRAMMAR) == {(1,), (1, 2)}
    assert pool.room_for_forced(0) == 0


def test_nothing_is_masked_before_a_grammar_begins():
    """As before reasoning has ended."""
    grammar = Texts()
    grammar.path.append(ANY)
    pool, source = grown(grammar)
    assert {path[0] for path in paths(pool)} == {0, 1}
    assert not source.passed


def test_a_grammar_that_raises_is_given_up_and_the_request_drafted_for_without():
    given_up: dict = {}
    pool, _ = grown(Broken(), given_up=given_up)
    assert isinstance(given_up[0], RuntimeError)
    assert {path[0] for path in paths(pool)} == {0, 1}


def test_a_node_is_asked_about_once():
    grammar, pool = Texts(), new_pool()
    grammars = step_grammars({0: grammar})
    root = Frontier.of_roots(np.zeros(1, np.int64), 1)
    for _ in range(3):
        grammars.visit(pool, root)
    assert grammar.num_asked == 1


def ngrams(nodes: list[tuple[int, int, float]]) -> Continuations:
    """One tree of (token, parent, share)."""
    shape, num = (1, 8), len(nodes)
    token, share = np.full(shape, -1), np.zeros(shape, np.float32)
    parent, depth, rank, match_len, count, stores = np.zeros((6, *shape), np.int32)
    parent[:] = -1
    for at, (of_node, above, part) in enumerate(nodes):
        token[0, at], parent[0, at], share[0, at] = of_node, above, part
        depth[0, at] = 1 if above < 0 else depth[0, above] + 1
        match_len[0, at] = count[0, at] = 1 + at
    num = np.array([num], np.int32)
    return Continuations(token, parent, depth, rank, match_len, count, stores, share, num)


def test_forbidden_ngrams_are_left_out_with_what_comes_after_them():
    trees = ngrams([(7, -1, 0.5), (1, -1, 0.2), (2, 0, 1.0), (9, -1, 0.3), (2, 1, 1.0), (8, 3, 1.0)])
    grammars = step_grammars({0: Texts()})
    left = grammars.allowed_of(np.zeros(1, np.int64), trees)
    num = int(left.num[0])
    assert left.token[0].tolist() == [1, 9, 2, 8, -1, -1, -1, -1]
    assert left.parent[0, :num].tolist() == [-1, -1, 0, 1]
    assert left.match_len[0, :num].tolist() == [2, 4, 5, 6]
    # Siblings share what was the weight of all.
    assert left.share[0, :num] == pytest.approx([0.4, 0.6, 1.0, 1.0])
    assert trees.num[0] == 6
    pool = evidence_pool()
    pool.add_paths(np.zeros(1, np.int64), left, np.full(1, 9))
    pool, _ = grown(Texts(), pool)
    assert paths(pool) <= starts(TEXTS)
    # The n-gram that has named it is the one that is forced.
    assert (1, 2) in paths(pool, GRAMMAR)
    assert len(paths(pool)) == (pool.candidates.path_prob[0, 1 : pool.candidates.size[0]] > 0).sum()


def test_a_source_that_knows_no_grammars_is_not_followed_where_it_may_not_go():
    class Stubborn(Masked):
        def expand(self, pool, frontier) -> int:
            rows = len(frontier.req)
            token, prob = np.tile([1, 30], (rows, 1)), np.tile(np.float32([0.5, 0.4]), (rows, 1))
            self.expanded += frontier.node.tolist()
            pool.add_children(frontier.req, frontier.node, token, prob)
            return rows

    pool, grammars = new_pool(), step_grammars({0: Texts()})
    source = Stubborn(grammars)
    bounds = GrowthBounds(np.array([9]), np.array([20]), 8)
    grow(pool, source, np.zeros(1, np.int64), bounds, Always(), grammars)
    assert 30 not in {int(pool.candidates.token[0, node]) for node in source.expanded}


def test_a_forced_node_needs_the_levels_of_the_node_it_comes_after():
    pool, _ = grown(Texts())
    of = pool.candidates
    order, _ = of.best_first()
    levels = usable_levels(of, LIMITS)[0]
    by_node = dict(zip(order[0, 1 : 1 + LIMITS.node_budget].tolist(), levels.tolist(), strict=True))
    for node, needed in by_node.items():
        above = int(of.parent[0, node])
        if of.source[0, node] == GRAMMAR:
            assert needed == (by_node[above] if above else 1)
        else:
            assert needed == of.depth[0, node]


def test_levels_are_not_taken_to_promise_what_is_forced():
    pool, source = grown(Texts())
    of = pool.candidates
    parents, children = level_masses(
        of.parent, of.depth, of.rank, of.source, of.path_prob, of.size, LIMITS.children
    )
    asked = np.array(source.expanded)
    assert parents.sum() == pytest.approx(of.path_prob[0, asked].sum())
    drafted = of.source[0, 1 : of.size[0]] != GRAMMAR
    assert children.sum() == pytest.approx(of.path_prob[0, 1 : of.size[0]][drafted].sum())


def test_a_replay_finds_forced_nodes_where_it_asks():
    known = grown(Texts())[0].candidates
    pool, source = CandidatePool.hiding(known, LIMITS), RecordedSource(known, LIMITS.children)
    bounds = GrowthBounds(np.array([9]), np.array([20]), 8)
    grow(pool, source, np.zeros(1, np.int64), bounds, Always())
    assert {(1, 2), (1, 2, 3)} <= paths(pool, GRAMMAR)

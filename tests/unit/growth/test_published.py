"""A step takes what the drafter's process has published, and waits for the rest where that pays."""

import numpy as np
import pytest

from tests.unit.proposer.test_grammar import NUM_WORDS, Texts
from vllm_smart.config import GrowthLimits
from vllm_smart.growth.published import Beside, PublishedSource
from vllm_smart.kernels.evidence import GRAMMAR
from vllm_smart.overlap.drafts import DraftBoard, Miss, PublishedTree
from vllm_smart.overlap.grown_tree import GrownTree
from vllm_smart.proposer import CandidatePool, Frontier, GrowthBounds, GrowthWork, StepGrammars

LIMITS = GrowthLimits(node_budget=8, depth=3, width=2, children=2)


def tree(num_expanded: int = 5) -> PublishedTree:
    """Of which nothing more is expanded where all five nodes are."""
    grown, board = GrownTree(3, 6), DraftBoard(1, 3, 6, 100)
    prob = np.array([[0.5, 0.3, 0.1]], np.float32)
    for node, first in ((0, 10), (1, 20), (2, 30), (4, 40), (3, 50))[:num_expanded]:
        grown.add(np.array([node]), first + np.arange(3)[None], prob)
    board.write(0, 1, 7, grown, num_expanded == 5)
    return board.read(0)


class Lookup:
    """Trees that are there at once, or from some look on, and that grow from another one on."""

    is_drafting = True

    def __init__(self, from_look: dict[int, int], miss: Miss, grows_from: int = 0) -> None:
        self.miss, self.grows_from = miss, grows_from
        self.looks, self.from_look = dict.fromkeys(from_look, 0), from_look

    def find(self, req: int):
        self.looks[req] += 1
        if self.looks[req] <= self.from_look[req]:
            return self.miss
        return tree(5 if self.looks[req] > self.grows_from else 3), 0


class Decisions:
    """A policy that waits, or does not."""

    levels_ms = 0.0

    def __init__(self, waits: bool) -> None:
        self.waits, self.asked, self.rows = waits, [], []

    def ask(self, pool: CandidatePool, frontier: Frontier, depth: int) -> np.ndarray:
        self.asked.append((frontier.req.tolist(), frontier.node.tolist(), depth))
        return np.full(len(frontier.req), self.waits)

    def took(self, num_rows: int) -> None:
        self.rows.append(num_rows)
        self.levels_ms += 500.0


def collect(
    from_look: dict[int, int],
    waits: bool,
    max_wait_ms: float | None = None,
    miss: Miss = Miss.NOT_EXPANDED,
    texts: dict[int, list[list[int]]] | None = None,
    grows_from: int = 0,
):
    num_reqs = len(from_look)
    pool = CandidatePool(num_reqs, LIMITS, lambda prob, depth, req: prob, most_forced=4)
    grows, ones = np.arange(num_reqs), np.ones(num_reqs, np.int64)
    known = {req: Texts(of) for req, of in (texts or {}).items()}
    grammars = StepGrammars(known, NUM_WORDS, 9 * ones, LIMITS.depth, pytest.fail)
    grammars.visit(pool, Frontier.of_roots(grows, num_reqs))
    lookup, decisions = Lookup(from_look, miss, grows_from), Decisions(waits)
    bounds = GrowthBounds(useful_depth=9 * ones, most_rows=99 * ones, max_width=2)
    work = GrowthWork(
        pool, PublishedSource(lookup, grows, grammars), grows, bounds, decisions, grammars
    )
    beside = Beside(max_wait_ms)
    return beside.collect(beside.submit(work)), lookup, decisions, beside


def test_the_best_of_what_is_published_becomes_the_pool():
    candidates, _, decisions, beside = collect({0: 0}, waits=True)
    size = int(candidates.size[0])
    # Two children of each of the two likeliest nodes of a level, as far as they are expanded.
    assert candidates.token[0, :size].tolist() == [-1, 10, 11, 20, 21, 30, 31, 40, 41]
    assert candidates.parent[0, :size].tolist() == [-1, 0, 0, 1, 1, 2, 2, 3, 3]
    assert candidates.depth[0, :size].tolist() == [0, 1, 1, 2, 2, 2, 2, 3, 3]
    assert candidates.path_prob[0, 7] == pytest.approx(0.125)
    assert decisions.asked == []  # nothing was missing
    assert beside.wait_s == 0.0


def test_one_requests_miss_leaves_the_trees_of_others_alone():
    alone, *_ = collect({0: 0}, waits=False)
    both, _, decisions, _ = collect({0: 0, 1: 99}, waits=False)
    assert both.token[0].tolist() == alone.token[0].tolist()
    assert both.size.tolist() == [alone.size[0], 1]
    assert decisions.asked == [([1], [0], 0)]
    assert decisions.rows == []  # nobody waits, nothing is charged


def test_a_step_waits_where_the_policy_has_it_and_no_longer_than_needed():
    candidates, lookup, decisions, beside = collect({0: 0, 1: 5}, waits=True)
    assert candidates.size.tolist() == [9, 9]
    assert candidates.depth[1].tolist() == candidates.depth[0].tolist()
    assert (lookup.looks, decisions.rows) == ({0: 1, 1: 6}, [1])
    assert 0 < beside.wait_s < 1.0


def test_a_step_waits_for_the_next_level_of_a_tree_that_is_there():
    thin, _, declined, _ = collect({0: 0}, waits=False, grows_from=9)
    assert thin.token[0, : thin.size[0]].tolist() == [-1, 10, 11, 20, 21, 30, 31]
    assert declined.asked == [([0, 0], [3, 4], 0)]  # the level's likeliest two, which have no children
    grown, lookup, decisions, _ = collect({0: 0}, waits=True, grows_from=9)
    assert grown.token[0, : grown.size[0]].tolist() == [-1, 10, 11, 20, 21, 30, 31, 40, 41]
    assert (lookup.looks, decisions.rows) == ({0: 10}, [2])


def test_nobody_waits_for_what_the_drafter_has_not_named():
    """A forced token that is not in its tree has no children there, ever."""
    _, lookup, decisions, _ = collect({0: 0}, waits=True, texts={0: [[60, 30], [60, 31]]}, grows_from=9)
    assert (lookup.looks, decisions.asked) == ({0: 1}, [])


@pytest.mark.parametrize(("max_wait_ms", "looks"), [(0.0, 1), (5.0, None)])
def test_a_wait_has_an_end(max_wait_ms, looks):
    candidates, lookup, _, beside = collect({0: 10**9}, waits=True, max_wait_ms=max_wait_ms)
    assert candidates.size.tolist() == [1]
    assert looks is None or lookup.looks == {0: looks}
    assert beside.wait_s < 0.5


def test_nobody_waits_for_a_drafter_that_still_reads_a_prompt():
    candidates, lookup, decisions, _ = collect({0: 0, 1: 1}, waits=True, miss=Miss.LATE)
    assert candidates.size.tolist() == [9, 1]
    assert (lookup.looks, decisions.asked) == ({0: 1, 1: 1}, [])


def test_what_a_grammar_forbids_is_not_taken_though_it_is_published():
    candidates, *_ = collect({0: 0}, waits=False, texts={0: [[11, 30], [11, 31], [12, 40]]})
    shown = candidates.token[0][candidates.path_prob[0] > 0].tolist()
    assert shown == [-1, 11, 30, 31]


def test_a_published_tree_goes_on_below_what_a_grammar_forces():
    candidates, *_ = collect({0: 0}, waits=False, texts={0: [[10, 20, 40], [10, 20, 41], [10, 21, 99]]})
    size = int(candidates.size[0])
    named = list(zip(candidates.token[0, :size].tolist(), candidates.source[0, :size], strict=True))
    assert named[1] == (10, GRAMMAR)
    assert [token for token, source in named[2:] if source != GRAMMAR][:2] == [20, 21]
    assert candidates.parent[0, 2] == 1


@pytest.mark.parametrize("looks", [0, 5])
def test_what_is_forced_survives_a_wait_for_another_request(looks):
    """And for the request itself, whose tree comes late."""
    texts = {0: [[10, 20, 60], [10, 21, 60]]}
    at_once, *_ = collect({0: looks, 1: 0}, waits=looks > 0, texts=texts)
    waited, *_ = collect({0: looks, 1: 5}, waits=True, texts=texts)
    for candidates in (at_once, waited):
        assert candidates.token[0, : candidates.size[0]].tolist() == [-1, 10, 20, 21, 60, 60]
        assert candidates.token[1].tolist() == at_once.token[1].tolist()

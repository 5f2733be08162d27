"""Candidates of several sources, against the same rules in plain Python."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.proposer.random_pools import ngram_trees
from vllm_smart.config import GrowthLimits
from vllm_smart.kernels.evidence import FEATURES, EvidenceScores, SiblingScores
from vllm_smart.kernels.grow import CONFIDENCE_EDGES
from vllm_smart.kernels.grow.cpu import added_masses, unnamed_share
from vllm_smart.proposer import BOTH, MODEL, NGRAM, EvidencePool, Frontier
from vllm_smart.proposer.ngram import Continuations

LIMITS = GrowthLimits(node_budget=16, depth=4, width=3, children=3)
MOST_NGRAMS, NUM_REQS = 8, 3
WEIGHTS = np.zeros(len(FEATURES))
WEIGHTS[[FEATURES.index(name) for name in ("constant", "model: logit", "ngram", "both")]] = (
    -1,
    0.6,
    0.7,
    1,
)
IDENTITY = SiblingScores(
    np.zeros((1, 1, 1), np.int64),
    np.zeros(NUM_REQS, np.int64),
    np.zeros(1, np.float32),
    np.ones(1, np.float32),
    np.zeros(NUM_REQS, np.float32),
)


def scores(chain_only: bool = False, siblings: SiblingScores | None = IDENTITY) -> EvidenceScores:
    of_all = np.full(NUM_REQS, chain_only)
    return EvidenceScores(WEIGHTS, siblings, np.zeros(NUM_REQS, bool), of_all)


def grown(seed: int, chain_only: bool = False, num_levels: int = 3) -> EvidencePool:
    """N-grams, then a drafter's levels after the likeliest candidates."""
    rng = np.random.default_rng(seed)
    pool = EvidencePool(NUM_REQS, LIMITS, MOST_NGRAMS, scores(chain_only))
    everyone = np.arange(NUM_REQS)
    pool.add_paths(everyone, ngram_trees(rng, NUM_REQS, MOST_NGRAMS), np.full(NUM_REQS, 5))
    frontier = Frontier.of_roots(everyone, NUM_REQS)
    for _ in range(num_levels):
        num_rows = len(frontier.req)
        token = np.array([rng.choice(9, 3, replace=False) for _ in range(num_rows)]).reshape(-1, 3)
        prob = -np.sort(-rng.dirichlet(np.ones(4), num_rows)[:, :3], axis=1).astype(np.float32)
        pool.add_children(frontier.req, frontier.node, token, prob.reshape(-1, 3))
        frontier = pool.frontier(LIMITS.width)
    return pool


def used(pool: EvidencePool, req: int) -> range:
    return range(1, int(pool.candidates.size[req]))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_a_token_has_one_node_below_its_parent(seed, chain_only):
    of = grown(seed, chain_only).candidates
    for req in range(NUM_REQS):
        nodes = range(1, int(of.size[req]))
        paths = [(int(of.parent[req, node]), int(of.token[req, node])) for node in nodes]
        assert len(set(paths)) == len(paths)
        assert all(of.parent[req, node] < node for node in nodes)
        assert all(of.depth[req, node] == of.depth[req, of.parent[req, node]] + 1 for node in nodes)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_a_path_is_never_likelier_than_its_beginning_and_siblings_are_at_most_certain(seed):
    pool = grown(seed)
    of = pool.candidates
    for req in range(NUM_REQS):
        together: dict[int, float] = {}
        for node in used(pool, req):
            above = int(of.parent[req, node])
            assert of.path_prob[req, node] <= of.path_prob[req, above]
            together[above] = together.get(above, 0.0) + float(of.path_prob[req, node])
        for above, mass in together.items():
            assert mass <= of.path_prob[req, above] * (1 + 1e-5)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_siblings_are_ranked_by_what_speaks_for_them(seed):
    pool = grown(seed)
    of, seen = pool.candidates, pool.candidates.evidence
    for req in range(NUM_REQS):
        by_parent: dict[int, list[int]] = {}
        for node in used(pool, req):
            by_parent.setdefault(int(of.parent[req, node]), []).append(node)
        for siblings in by_parent.values():
            ranked = sorted(siblings, key=lambda node: of.rank[req, node])
            assert [of.rank[req, node] for node in ranked] == list(range(len(siblings)))
            believed = [expected_prob(seen, of, req, node) for node in ranked]
            assert all(a >= b - 1e-6 for a, b in pairwise(believed))
            left = 1.0
            for node, prob in zip(ranked, believed, strict=True):
                wanted = min(prob, left)
                if wanted >= 1e-4:
                    assert of.draft_prob[req, node] == pytest.approx(wanted, abs=1e-5)
                left -= wanted if wanted >= 1e-4 else 0.0


def expected_prob(seen, of, req: int, node: int) -> float:
    """By `WEIGHTS`: -1 + 0.6 logit of the model's probability + 0.7 for n-grams + 1 for both."""
    z, prob = -1.0, float(seen.model_prob[req, node])
    if prob > 0:
        clipped = min(max(prob, 1e-4), 1 - 1e-4)
        z += 0.6 * np.log(clipped / (1 - clipped))
    if of.source[req, node] != MODEL:
        z += 0.7
    if of.source[req, node] == BOTH:
        z += 1.0
    return 1 / (1 + np.exp(-z))


def one_tree(*nodes: tuple[int, int]) -> Continuations:
    """(token, parent) of the nodes of request 0."""
    shape = (1, len(nodes))
    token, parent = (np.array([column]) for column in zip(*nodes, strict=True))
    ones, share = np.ones(shape, np.int32), np.full(shape, 0.5, np.float32)
    columns = (token, parent.astype(np.int32), ones, 0 * ones, 3 * ones, ones, ones, share)
    return Continuations(*columns, np.array([len(nodes)], np.int32))


def pool_of(trees: Continuations, max_depth: int = 9) -> EvidencePool:
    pool = EvidencePool(NUM_REQS, LIMITS, MOST_NGRAMS, scores())
    pool.add_paths(np.zeros(1, np.int64), trees, np.array([max_depth]))
    return pool


def add(pool: EvidencePool, parent: int, *tokens: int) -> None:
    prob = np.full((1, len(tokens)), 0.3, np.float32)
    pool.add_children(np.zeros(1, np.int64), np.array([parent]), np.array([tokens]), prob)


def test_tokens_are_merged_below_their_own_parent_alone():
    """The n-gram 5 -> 7; the drafter says 6 and 7 at the root: its 7 is another node."""
    pool = pool_of(one_tree((5, -1), (7, 0)))
    add(pool, 0, 6, 7, 5)
    of = pool.candidates
    assert of.size[0] == 5
    assert of.token[0, :5].tolist() == [-1, 5, 7, 6, 7]
    assert of.parent[0, :5].tolist() == [-1, 0, 1, 0, 0]
    assert of.source[0, 1:5].tolist() == [BOTH, NGRAM, MODEL, MODEL]


def test_what_both_say_is_likelier_than_what_one_says():
    pool = pool_of(one_tree((5, -1), (6, -1)))
    before = pool.candidates.path_prob[0, :3].copy()
    add(pool, 0, 5, 7)
    after = pool.candidates.path_prob[0]
    assert after[1] > before[1]
    assert after[1] > after[2]
    assert after[1] > after[3]


def test_a_path_below_a_candidate_that_became_likelier_does_so_too():
    pool = pool_of(one_tree((5, -1), (7, 0)))
    before = float(pool.candidates.path_prob[0, 2])
    add(pool, 0, 5, 6)
    of = pool.candidates
    assert of.path_prob[0, 2] > before
    assert of.path_prob[0, 2] == pytest.approx(of.path_prob[0, 1] * of.evidence.accepted[0, 2])


def test_the_frontier_has_ngrams_too_but_only_below_what_was_expanded():
    """5 is expanded, so its n-gram 7 may be; 6 is not, so the drafter cannot go on after 8."""
    pool = pool_of(one_tree((5, -1), (6, -1), (7, 0), (8, 1)))
    add(pool, 0, 5, 9)
    assert set(pool.frontier(9).node.tolist()) == {1, 2, 5}
    add(pool, 1, 7, 4)
    assert set(pool.frontier(9).node.tolist()) == {3, 6}


def test_a_request_that_allows_chains_only_gets_one_child_a_node():
    of = grown(3, chain_only=True).candidates
    assert ((of.path_prob[:, 1:] > 0) <= (of.rank[:, 1:] == 0)).all()
    assert (of.path_prob[:, 1:] > 0).any()


def test_deeper_nodes_than_are_of_use_are_left_out():
    pool = pool_of(one_tree((5, -1), (7, 0), (8, 1), (6, -1)), max_depth=2)
    of = pool.candidates
    assert of.token[0, 1 : of.size[0]].tolist() == [5, 7, 6]
    assert of.parent[0, 1 : of.size[0]].tolist() == [0, 1, 0]


def test_ngrams_come_before_the_drafter():
    pool = EvidencePool(NUM_REQS, LIMITS, MOST_NGRAMS, scores())
    add(pool, 0, 5)
    with pytest.raises(AssertionError, match="n-grams come first"):
        pool.add_paths(np.zeros(1, np.int64), one_tree((5, -1)), np.array([9]))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_a_drafter_adds_to_what_ngrams_leave(seed):
    of = grown(seed).candidates
    said, is_model = of.evidence, of.source == MODEL
    columns = of.parent, of.depth, said.model_rank, of.path_prob, of.size
    masses = added_masses(*columns, said.is_expanded, is_model, LIMITS.children)
    levels = int(of.depth.max())
    parents, children = np.zeros((levels, 5)), np.zeros((levels, 5, LIMITS.children))
    for req in range(NUM_REQS):
        for node in np.flatnonzero(said.is_expanded[req, : of.size[req]]):
            depth, prob = of.depth[req, node], of.path_prob[req]
            if depth == levels:
                continue
            above = prob[of.parent[req, node]] if node else 0.0  # roots are the surest
            sure = np.searchsorted(CONFIDENCE_EDGES * above, prob[node], side="right")
            below = (of.parent[req] == node) & (np.arange(len(prob)) < of.size[req])
            named = prob[below & ~is_model[req]].sum()
            parents[depth, sure] += max(0.0, prob[node] - named)
            for child in np.flatnonzero(below & is_model[req]):
                children[depth, sure, said.model_rank[req, child]] += prob[child]
    assert masses[0] == pytest.approx(parents, rel=1e-4, abs=1e-6)
    assert masses[1] == pytest.approx(children, rel=1e-4, abs=1e-6)


def test_what_follows_a_node_is_as_open_as_ngrams_leave_it():
    pool = pool_of(one_tree((5, -1), (6, -1), (7, 0)))
    prob = pool.candidates.path_prob
    share = unnamed_share(prob, pool.candidates.parent, np.array([0, 0, 0]), np.array([0, 1, 2]))
    left = [1 - prob[0, 1] - prob[0, 2], 1 - prob[0, 3] / prob[0, 1], 1]
    assert share == pytest.approx(np.array(left), rel=1e-5)
    assert share.max() == 1

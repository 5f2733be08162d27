import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.proposer.random_pools import LIMITS, as_drafted, drafts, random_pool
from vllm_smart.config import GrowthLimits
from vllm_smart.kernels.grow import CONFIDENCE_EDGES
from vllm_smart.kernels.grow.cpu import level_masses
from vllm_smart.proposer import COLUMNS, CandidatePool, Candidates

seeds = st.integers(0, 10**6)


def by_definition(pool: CandidatePool, req: int) -> list[int]:
    """Candidates of a request that are not ruled out: best first, ties by id."""
    ids = [i for i in range(pool.candidates.size[req]) if pool.candidates.path_prob[req, i] > 0]
    return sorted(ids, key=lambda i: (-pool.candidates.path_prob[req, i], i))


@given(seeds, st.booleans())
def test_candidates_come_best_first_and_ties_by_id(seed, coarse):
    pool = random_pool(seed, coarse=coarse)
    order, prob = pool.candidates.best_first()
    for req in range(len(order)):
        expected = by_definition(pool, req)
        assert order[req, : len(expected)].tolist() == expected
        assert prob[req, : len(expected)].tolist() == pool.candidates.path_prob[req, expected].tolist()
        assert not prob[req, len(expected) :].any()


@given(seeds, st.booleans(), st.lists(st.integers(0, 50), min_size=4, max_size=4))
def test_selected_trees_are_valid_and_hold_the_best_candidates(seed, coarse, num_draft_nodes):
    pool = random_pool(seed, coarse=coarse)
    trees = pool.candidates.select(np.array(num_draft_nodes))
    trees.validate()
    assert trees.token.shape[1] == trees.num_nodes.max()
    for req, wanted in enumerate(num_draft_nodes):
        nodes = by_definition(pool, req)[: wanted + 1]
        assert trees.num_nodes[req] == len(nodes)
        for name in ("token", "depth", "rank", "path_prob", "draft_prob"):
            expected = getattr(pool.candidates, name)[req, nodes].tolist()
            assert getattr(trees, name)[req, : len(nodes)].tolist() == expected
        parents = [-1] + [nodes.index(pool.candidates.parent[req, node]) for node in nodes[1:]]
        assert trees.parent[req, : len(nodes)].tolist() == parents


@given(seeds)
def test_the_mass_of_a_level_is_that_of_the_nodes_expanded_and_of_their_children(seed):
    of = random_pool(seed).candidates
    masses = level_masses(
        of.parent, of.depth, of.rank, of.source, of.path_prob, of.size, LIMITS.children
    )
    assert len(masses[0]) == of.depth.max()
    for level, (parent_mass, child_mass) in enumerate(zip(*masses, strict=True)):
        req, node = np.nonzero(of.depth == level + 1)
        expanded = {(r, of.parent[r, n]) for r, n in zip(req, node, strict=True)}
        parents, children = np.zeros(5), np.zeros((5, LIMITS.children))
        for r, n in expanded:
            above = of.path_prob[r, of.parent[r, n]] if n else 0.0  # roots are the surest
            confidence = np.searchsorted(CONFIDENCE_EDGES * above, of.path_prob[r, n], side="right")
            is_child = (of.depth[r] == level + 1) & (of.parent[r] == n)
            parents[confidence] += of.path_prob[r, n]
            children[confidence] += of.path_prob[r, is_child]
        assert parent_mass == pytest.approx(parents, rel=1e-4, abs=1e-6)
        assert child_mass == pytest.approx(children, rel=1e-4, abs=1e-6)


@given(seeds)
def test_candidates_with_gaps_between_them_are_the_same_without(seed):
    of, rng = random_pool(seed).candidates, np.random.default_rng(seed)
    num_reqs, most = of.token.shape
    room = {
        name: rng.integers(-9, 9, (num_reqs, 2 * most)).astype(dtype) for name, dtype in COLUMNS.items()
    }
    room["source"][:] = -1
    for req in range(num_reqs):
        places = np.sort(rng.permutation(2 * most)[: of.size[req] - 1])
        for name in COLUMNS:
            room[name][req, places] = getattr(of, name)[req, 1 : of.size[req]]
        parent = of.parent[req, 1 : of.size[req]]
        room["parent"][req, places] = np.where(
            parent == 0, -1, places[parent - 1] if len(places) else 0
        )
    closed = Candidates.closed_up(room, of.weight, of.max_nodes)
    assert closed.size.tolist() == of.size.tolist()
    for req in range(num_reqs):
        for name in COLUMNS:
            columns = slice(0, of.size[req])
            assert (
                getattr(closed, name)[req, columns].tolist() == getattr(of, name)[req, columns].tolist()
            )


@given(seeds, st.integers(0, 12))
def test_a_smaller_selection_is_a_prefix_of_a_larger_one(seed, size):
    pool = random_pool(seed)
    small, large = (
        pool.candidates.select(np.full(4, size)),
        pool.candidates.select(np.full(4, 13)).prefix(size + 1),
    )
    assert np.array_equal(small.num_nodes, large.num_nodes)
    is_node = np.arange(small.token.shape[1]) < small.num_nodes[:, None]
    for name in ("token", "parent", "depth", "rank", "path_prob", "draft_prob"):
        assert np.array_equal(getattr(small, name)[is_node], getattr(large, name)[is_node])


@given(seeds)
def test_padding_of_selected_trees_is_zero(seed):
    trees = random_pool(seed).candidates.select(np.array([0, 3, 7, 12]))
    is_padding = np.arange(trees.token.shape[1]) >= trees.num_nodes[:, None]
    for name in ("token", "parent", "depth", "rank", "path_prob", "draft_prob"):
        assert not getattr(trees, name)[is_padding].any()


@given(seeds, st.booleans())
def test_the_frontier_holds_the_best_nodes_of_the_latest_level(seed, coarse):
    rng = np.random.default_rng(seed)

    def check(pool, _):
        width, active = rng.integers(0, 5, 4), rng.random(4) < 0.7
        lowest = float(rng.choice([0.0, 0.1]))
        frontier = pool.frontier(width, lowest, active)
        assert frontier.row_start.tolist() == np.searchsorted(frontier.req, range(5)).tolist()
        deepest = max(1, pool.candidates.depth.max())
        for req in range(4):
            rows = slice(frontier.row_start[req], frontier.row_start[req + 1])
            level = [
                node
                for node in by_definition(pool, req)
                if pool.candidates.depth[req, node] == deepest
                and pool.candidates.path_prob[req, node] > lowest
            ]
            expected = level[: width[req]] if active[req] else []
            assert frontier.node[rows].tolist() == expected
            assert (frontier.req[rows] == req).all()

    random_pool(seed, coarse=coarse, after_level=check)


def test_acceptance_is_asked_for_whole_levels():
    asked = []

    def accept(draft_prob, depth, req):
        asked.append((depth, draft_prob.shape == (len(req), 3)))
        return draft_prob

    random_pool(0, accept=accept)
    assert asked == [(depth, True) for depth in (1, 2, 3, 4)]


@pytest.mark.parametrize("ruled_out", [0.0, np.nan])
def test_ruled_out_candidates_are_neither_expanded_nor_selected(ruled_out):
    pool = CandidatePool(1, LIMITS, lambda draft_prob, depth, req: np.full_like(draft_prob, 0.3))
    prob = np.array([[0.9, ruled_out, ruled_out]], np.float32)
    pool.add_children(np.array([0]), np.array([0]), np.array([[4, 5, 6]]), prob)
    assert pool.frontier(3).node.tolist() == [1]
    assert pool.candidates.select(np.array([3])).token.tolist() == [[-1, 4]]


def test_a_request_that_drafts_nothing_keeps_its_root_alone():
    pool = CandidatePool(2, LIMITS, as_drafted)
    token, prob = drafts(np.random.default_rng(0), 1, 3)
    pool.add_children(np.array([1]), np.array([0]), token, prob)
    assert pool.candidates.select(np.array([5, 5])).num_nodes.tolist() == [1, 4]


def test_without_candidates_there_are_roots_and_an_empty_frontier():
    pool = CandidatePool(3, GrowthLimits(0, 0, 0, 0), as_drafted)
    trees = pool.candidates.select(np.array([2, 2, 2]))
    trees.validate()
    assert trees.num_nodes.tolist() == [1, 1, 1]
    assert len(pool.frontier(8).req) == 0


def test_more_candidates_than_the_limits_allow_are_our_own_bug():
    pool = CandidatePool(1, GrowthLimits(node_budget=4, depth=1, width=1, children=2), as_drafted)
    add = [np.array([0]), np.array([0]), np.array([[1, 2]]), np.array([[0.5, 0.2]], np.float32)]
    pool.add_children(*add)
    with pytest.raises((AssertionError, IndexError)):
        pool.add_children(*add)

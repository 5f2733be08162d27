import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.tree.random_trees import random_trees
from vllm_smart.tree import TreeBatch, walk, walk_reference


def walk_all(trees: TreeBatch, sampled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return walk(trees.parent, trees.token, trees.num_nodes, sampled)


def likely_samples(trees: TreeBatch, seed: int) -> np.ndarray:
    """For each node a token that one of its children often carries."""
    rng = np.random.default_rng(seed)
    sampled = rng.integers(0, 50, trees.token.shape)
    for req, num_nodes in enumerate(trees.num_nodes):
        for node in rng.permutation(np.arange(1, num_nodes)):
            if rng.random() < 0.8:
                sampled[req, trees.parent[req, node]] = trees.token[req, node]
    return sampled


@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 40))
def test_the_walk_equals_its_definition(seed, num_reqs, max_nodes):
    trees = random_trees(seed, num_reqs, max_nodes)
    sampled = likely_samples(trees, seed)
    path, num_accepted = walk_all(trees, sampled)
    assert path.shape == (num_reqs, num_accepted.max() + 1)
    assert (path.dtype, num_accepted.dtype) == (np.int32, np.int32)
    for req in range(num_reqs):
        expected = walk_reference(
            trees.parent[req], trees.token[req], int(trees.num_nodes[req]), sampled[req]
        )
        assert num_accepted[req] == len(expected) - 1
        padding = [-1] * (path.shape[1] - len(expected))
        assert path[req].tolist() == expected + padding


@given(st.integers(0, 10**6))
def test_a_chain_that_the_target_agrees_with_is_accepted_whole(seed):
    trees = random_trees(seed, num_reqs=3, chain=True)
    sampled = np.roll(trees.token, -1, axis=1)
    _, num_accepted = walk_all(trees, sampled)
    assert num_accepted.tolist() == (trees.num_nodes - 1).tolist()


def test_padding_is_never_visited_even_if_it_carries_the_sample():
    trees = random_trees(1, num_reqs=2, max_nodes=5).prefix(5)
    trees.num_nodes[:] = 1
    trees.parent[:, 1:] = 0
    trees.token[:, 1:] = 9
    path, num_accepted = walk_all(trees, np.full(trees.token.shape, 9))
    assert path.tolist() == [[0], [0]]
    assert num_accepted.tolist() == [0, 0]


def test_a_root_whose_unknown_token_equals_the_sample_is_not_a_child():
    trees = random_trees(1, num_reqs=1, max_nodes=1)
    path, _ = walk_all(trees, np.full((1, 1), -1))
    assert path.tolist() == [[0]]


def test_nodes_beyond_a_forbidden_one_are_not_reached():
    parent = np.array([[-1, 0, 1, 2]], np.int32)
    sampled = np.array([[5, 6, 7, 8]])
    num_nodes = np.array([4], np.int32)
    assert walk(parent, np.array([[-1, 5, 6, 7]]), num_nodes, sampled)[1].tolist() == [3]
    nothing_samples = -2
    assert walk(parent, np.array([[-1, 5, nothing_samples, 7]]), num_nodes, sampled)[1].tolist() == [1]


def test_no_requests_walk_nowhere():
    empty = np.zeros((0, 3), np.int32)
    path, num_accepted = walk(
        empty, empty.astype(np.int64), np.zeros(0, np.int32), empty.astype(np.int64)
    )
    assert path.shape == (0, 1)
    assert num_accepted.shape == (0,)

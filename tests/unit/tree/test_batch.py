from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.tree.random_trees import random_trees
from vllm_smart.tree import TreeBatch


def small_tree() -> TreeBatch:
    """Root, its children 1 and 2, and 3 below 1; one column of padding."""
    return TreeBatch(
        token=np.array([[-1, 7, 8, 7, 0]]),
        parent=np.array([[-1, 0, 0, 1, 0]], np.int32),
        depth=np.array([[0, 1, 1, 2, 0]], np.int32),
        rank=np.array([[0, 0, 1, 0, 0]], np.int32),
        path_prob=np.array([[1, 0.6, 0.3, 0.2, 0]], np.float32),
        draft_prob=np.array([[1, 0.6, 0.3, 0.4, 0]], np.float32),
        source=np.zeros((1, 5), np.int32),
        num_nodes=np.array([4], np.int32),
    )


@given(st.integers(0, 10**6), st.booleans())
def test_random_trees_are_valid(seed, chain):
    random_trees(seed, chain=chain).validate()


@given(st.integers(0, 10**6), st.integers(1, 25))
def test_every_prefix_of_a_tree_is_a_tree(seed, num_nodes):
    trees = random_trees(seed)
    prefix = trees.prefix(num_nodes)
    prefix.validate()
    assert prefix.num_nodes.tolist() == np.minimum(trees.num_nodes, num_nodes).tolist()


def test_a_prefix_can_differ_by_request_and_is_as_wide_as_its_largest_tree():
    trees = random_trees(3, num_reqs=3).prefix([1, 5, 2])
    assert trees.token.shape[1] == trees.num_nodes.max()


@given(st.integers(0, 10**6))
def test_chains_are_recognised(seed):
    assert random_trees(seed, chain=True).is_chain().all()


@given(st.integers(0, 10**6))
def test_a_chain_is_a_tree_whose_depths_are_its_indices(seed):
    trees = random_trees(seed, max_nodes=6)
    for req, n in enumerate(trees.num_nodes):
        linear = trees.depth[req, :n].tolist() == list(range(n))
        assert trees.is_chain()[req] == linear


@pytest.mark.parametrize(
    ("field", "node", "value", "complaint"),
    [
        ("parent", 0, 0, "the root has no parent"),
        ("depth", 0, 1, "root is at depth 0"),
        ("path_prob", 0, 0.9, "root is certain"),
        ("parent", 2, 3, "parents come before children"),
        ("parent", 2, -1, "only roots have no parent"),
        ("parent", 4, 4, "parents come before children"),
        ("depth", 3, 1, "depth grows by one"),
        ("path_prob", 3, 0.0, "a path never grows likelier"),
        ("path_prob", 2, 0.7, "nodes are best-first"),
        ("draft_prob", 3, 1.5, "draft_prob is a probability"),
        ("rank", 1, -1, "ranks count from 0"),
        ("token", 3, -1, "draft tokens are known"),
        ("token", 2, 7, "siblings carry distinct tokens"),
    ],
)
def test_validate_says_which_invariant_is_broken(field, node, value, complaint):
    tree = small_tree()
    tree.validate()
    broken = getattr(tree, field).copy()
    broken[0, node] = value
    with pytest.raises(AssertionError, match=complaint):
        replace(tree, **{field: broken}).validate()


@pytest.mark.parametrize("num_nodes", [0, 6])
def test_sizes_out_of_range_are_invalid(num_nodes):
    with pytest.raises(AssertionError, match="sizes in range"):
        replace(small_tree(), num_nodes=np.array([num_nodes], np.int32)).validate()

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.tree.random_trees import random_trees
from vllm_smart.tree import ancestor_masks


def bits(mask: np.ndarray) -> set[int]:
    return {64 * w + b for w, word in enumerate(mask.tolist()) for b in range(64) if word >> b & 1}


def ancestors(parent: np.ndarray, node: int) -> set[int]:
    found = {node}
    while parent[node] >= 0:
        node = int(parent[node])
        found.add(node)
    return found


@given(st.integers(0, 10**6), st.sampled_from([1, 2, 63, 64, 65, 130]), st.booleans())
def test_masks_hold_exactly_the_ancestors_and_the_node(seed, max_nodes, chain):
    trees = random_trees(seed, 2, max_nodes, vocab_size=200, chain=chain)
    masks = ancestor_masks(trees.parent)
    assert masks.shape == (2, max_nodes, -(-max_nodes // 64))
    assert masks.dtype == np.uint64
    for req, num_nodes in enumerate(trees.num_nodes):
        for node in range(num_nodes):
            assert bits(masks[req, node]) == ancestors(trees.parent[req], node)


def test_more_words_than_needed_are_zero():
    parent = random_trees(0, 2, 70).parent
    masks = ancestor_masks(parent, words=4)
    assert not masks[..., 2:].any()
    assert np.array_equal(masks[..., :2], ancestor_masks(parent))


def test_too_few_words_are_refused():
    with pytest.raises(ValueError, match="words=1 holds 64 nodes, not 65"):
        ancestor_masks(np.zeros((1, 65), np.int32), words=1)


def test_no_requests_give_no_masks():
    assert ancestor_masks(np.zeros((0, 5), np.int32)).shape == (0, 5, 1)

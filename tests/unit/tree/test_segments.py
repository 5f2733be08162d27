import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.tree.random_trees import random_trees
from vllm_smart.tree import leaf_segments, segment_places


@given(st.integers(0, 10**6), st.booleans())
def test_segments_run_from_the_root_to_every_leaf_and_cover_all_nodes(seed, chain):
    trees = random_trees(seed, num_reqs=1, chain=chain)
    parent, num_nodes = trees.parent[0], int(trees.num_nodes[0])
    segments = leaf_segments(parent, num_nodes)
    leaves = set(range(num_nodes)) - set(parent[:num_nodes].tolist())
    assert sorted(segment[-1] for segment in segments) == sorted(leaves)
    assert {node for segment in segments for node in segment} == set(range(num_nodes))
    for segment in segments:
        assert segment[0] == 0
        assert [parent[node] for node in segment[1:]] == segment[:-1]


@given(st.integers(0, 10**6))
def test_every_node_has_a_place_whose_offset_is_its_depth(seed):
    trees = random_trees(seed, num_reqs=1)
    num_nodes = int(trees.num_nodes[0])
    segments = leaf_segments(trees.parent[0], num_nodes)
    for node, (segment, offset) in enumerate(segment_places(segments, num_nodes)):
        assert segments[segment][offset] == node
        assert offset == trees.depth[0, node]


def test_a_chain_is_one_segment():
    assert leaf_segments(np.array([-1, 0, 1, 2], np.int32), 4) == [[0, 1, 2, 3]]


def test_a_root_alone_is_a_segment():
    assert leaf_segments(np.array([-1, 0, 0], np.int32), 1) == [[0]]

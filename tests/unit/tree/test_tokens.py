"""Draft tokens that know their tree."""

import pickle

from vllm_smart.tree import TreeTokens

TREE = TreeTokens([10, 11, 12, 13], [-1, -1, 0, 2])


def test_a_first_part_is_a_tree_and_any_other_part_a_list():
    first = TREE[:3]
    assert isinstance(first, TreeTokens)
    assert (list(first), first.parents) == ([10, 11, 12], [-1, -1, 0])
    assert not isinstance(TREE[1:], TreeTokens)
    assert not isinstance(TREE[::2], TreeTokens)
    assert TREE[2] == 12


def test_it_is_the_same_in_another_process():
    copy = pickle.loads(pickle.dumps(TREE))
    assert isinstance(copy, TreeTokens)
    assert (copy, copy.parents) == (TREE, TREE.parents)


def test_children_end_where_tokens_are_not_known():
    assert TREE.children() == [[0, 1], [2], [], [3], []]
    padded = TreeTokens(TREE, TREE.parents)
    del padded[2:]
    padded.extend([-1, -1])
    assert padded.children() == [[0, 1], [], [], [], []]

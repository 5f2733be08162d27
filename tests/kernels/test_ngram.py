"""Occurrences in sorted contexts, and trees of any occurrences, against plain Python."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.mutants import mutant
from vllm_smart.kernels.ngram.cpu import contexts, trees
from vllm_smart.kernels.ngram.reference import Node, Occurrence, build_tree, same_backwards

NAMES = ("token", "parent", "depth", "rank", "match_len", "count", "stores", "share")
UNUSED = 7
SEEDS = st.integers(0, 10**6)
compiling = settings(deadline=None, max_examples=100)  # the first call compiles


def room(num_requests: int, most: int, max_depth: int) -> tuple[np.ndarray, ...]:
    """For what is found, poisoned."""
    shape = (num_requests, most)
    match, store, num_ahead = (np.full(shape, -9, np.int32) for _ in range(3))
    return (
        match,
        store,
        num_ahead,
        np.full((*shape, max_depth), -9, np.int32),
        np.zeros(num_requests, np.int32),
    )


def found_of(found: tuple[np.ndarray, ...], request: int) -> list[Occurrence]:
    match, store, num_ahead, ahead, num = (array[request] for array in found)
    return [
        Occurrence(int(match[k]), int(store[k]), tuple(ahead[k, : num_ahead[k]].tolist()))
        for k in range(num)
    ]


def sorted_places(text: list[int]) -> list[int]:
    return sorted(range(len(text)), key=lambda place: text[place::-1])


def check_sorted_contexts(seed: int, find=contexts.find_in_contexts) -> None:
    """As many as asked for are found, none matches longer than those, and all are where they say."""
    rng = np.random.default_rng(seed)
    vocabulary, max_depth = int(rng.integers(1, 5)), int(rng.integers(1, 5))
    lengths = rng.integers(1, 40, rng.integers(1, 4))
    # Tokens that a signed type would take for negative.
    texts = [rng.integers(65_500, 65_500 + vocabulary, length) for length in lengths]
    text = np.concatenate(texts).astype(np.uint16)
    places = np.concatenate([sorted_places(each.tolist()) for each in texts]).astype(np.uint32)
    starts = np.concatenate(([0], np.cumsum(lengths)))
    for array in (text, places):
        array.setflags(write=False)
    history = rng.integers(65_500, 65_500 + vocabulary + 1, (2, 30)).astype(np.int32)
    rows, end = np.array([1, 0]), rng.integers(0, 31, 2)
    barriers = np.array([65_500][: rng.integers(0, 2)], np.int64)
    max_match, most = int(rng.integers(1, 9)), int(rng.integers(1, 12))
    min_match = int(rng.integers(1, max_match + 1))
    found = room(2, most, max_depth)
    matches = (max_match, min_match)
    find(text, places, starts, history, rows, end, *matches, most, 4, barriers, found)
    for request in range(2):
        context = history[rows[request], : end[request]].tolist()
        there = [
            Occurrence(same, 4, tuple(each[at + 1 : at + 1 + max_depth].tolist()))
            for each in texts
            for at in range(len(each) - 1)
            if (same := same_backwards(each, at, context, max_match, barriers)) >= min_match
        ]
        those = found_of(found, request)
        longest = sorted((each.match for each in there), reverse=True)[:most]
        assert [each.match for each in those] == longest
        assert not Counter(those) - Counter(there)


@compiling
@given(SEEDS)
def test_the_longest_matches_are_found_in_sorted_contexts(seed):
    check_sorted_contexts(seed)


def random_occurrences(rng: np.random.Generator, max_depth: int, vocabulary: int) -> list[Occurrence]:
    return [
        Occurrence(
            int(rng.choice([1, 2, 3, 20])),
            int(rng.choice([1, 1, 2, 4])),
            tuple(rng.integers(-1, vocabulary, rng.integers(1, max_depth + 1)).tolist()),
        )
        for _ in range(rng.integers(0, rng.choice([7, 30])))
    ]


def built(
    requests: list[list[Occurrence]], max_nodes: int, max_depth: int, barriers, build=trees.build_trees
) -> list[list[Node]]:
    found = room(len(requests), 40, max_depth)
    for request, each in enumerate(requests):
        found[4][request] = len(each)
        for k, one in enumerate(each):
            found[0][request, k], found[1][request, k] = one.match, one.store
            found[2][request, k] = len(one.ahead)
            found[3][request, k, : len(one.ahead)] = one.ahead
    shape = (len(requests), max_nodes)
    types = {"token": np.int64, "share": np.float32}
    columns = tuple(np.full(shape, UNUSED, types.get(name, np.int32)) for name in NAMES)
    num = np.full(len(requests), UNUSED, np.int32)
    build(found, np.array(barriers, np.int64), columns, num)
    for name, column in zip(NAMES, columns, strict=True):
        padding = column[np.arange(max_nodes) >= num[:, None]]
        assert (padding == (-1 if name in ("token", "parent") else 0)).all()
    return [
        [Node(*(column[request, node].item() for column in columns)) for node in range(num[request])]
        for request in range(len(requests))
    ]


def check_trees(seed: int, build=trees.build_trees) -> None:
    rng = np.random.default_rng(seed)
    max_nodes, max_depth, vocabulary = (int(rng.integers(1, most)) for most in (20, 6, 12))
    barriers = [0] if rng.random() < 0.3 else []
    requests = [random_occurrences(rng, max_depth, vocabulary) for _ in range(3)]
    for mine, nodes in zip(
        requests, built(requests, max_nodes, max_depth, barriers, build), strict=True
    ):
        wanted = build_tree(mine, max_nodes, max_depth, barriers)
        assert nodes == [Node(**vars(n) | {"share": np.float32(n.share).item()}) for n in wanted]
        children: dict[int, list[Node]] = {}
        for place, node in enumerate(nodes):
            assert node.parent < place
            assert node.depth == (nodes[node.parent].depth + 1 if node.parent >= 0 else 1)
            assert node.token >= 0
            assert node.token not in barriers
            children.setdefault(node.parent, []).append(node)
        for siblings in children.values():
            assert len({node.token for node in siblings}) == len(siblings)
            assert [node.rank for node in siblings] == list(range(len(siblings)))
            shares = [node.share for node in siblings]
            assert shares == sorted(shares, reverse=True)
            assert min(shares) > 0
            assert sum(shares) <= 1 + 1e-6


@compiling
@given(SEEDS)
def test_trees_are_those_grown_from_a_heap(seed):
    check_trees(seed)


def test_occurrences_of_all_stores_make_one_tree():
    own, datastore = Occurrence(3, 1, (5, 6)), Occurrence(2, 4, (5, 7))
    (nodes,) = built([[own, datastore]], 8, 4, [])
    assert [(node.token, node.parent, node.count, node.stores) for node in nodes] == [
        (5, -1, 2, 5),
        (6, 0, 1, 1),
        (7, 0, 1, 4),
    ]
    assert nodes[0].share == 1.0
    assert nodes[1].share == pytest.approx(2**4 / (2**4 + 2**3 / 16))


def check_many(check, *args) -> None:
    for seed in range(100):
        check(seed, *args)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("prob_of[waiting[index - 1]] >= child_prob", "prob_of[waiting[index - 1]] > child_prob"),
        ("child_prob <= prob_of[waiting[0]]", "child_prob < prob_of[waiting[0]]"),
        ("level < max_depth", "level < max_depth - 1"),
        ("first, prob, node = kin_of[slot, _FIRST]", "first, prob, node = 0"),
        ("made:], parent[i, made:] = -1, -1", "made:], parent[i, made:] = 0, -1"),
    ],
)
def test_faults_of_trees_are_noticed(right, wrong):
    with pytest.raises(AssertionError):
        check_many(check_trees, mutant(trees.build_trees, (right, wrong)))


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("low - 1, low", "low - 2, low"),
        ("num_ahead > 0", "True"),
        ("num_ahead = min(max_depth, last - 1 - place)", "num_ahead = max_depth"),
        ("ends or token < 0", "token < 0"),
    ],
)
def test_faults_of_sorted_contexts_are_noticed(right, wrong):
    with pytest.raises((AssertionError, IndexError)):
        check_many(check_sorted_contexts, mutant(contexts.find_in_contexts, (right, wrong)))


def test_tokens_read_as_signed_are_noticed():
    def signed(text, *args):
        contexts.find_in_contexts(text.view(np.int16), *args)

    with pytest.raises(AssertionError):
        check_many(check_sorted_contexts, signed)

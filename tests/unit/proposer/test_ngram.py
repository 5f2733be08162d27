"""The index of requests' own texts and the trees made of it, against a search of every place."""

import mmap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.mutants import mutant
from vllm_smart.kernels.ngram.cpu import trees
from vllm_smart.kernels.ngram.reference import Node, build_tree, find_in_text
from vllm_smart.proposer import ngram
from vllm_smart.proposer.ngram import OWN, Continuations, NgramIndex, NgramLimits

NUM_SLOTS = 3
SEEDS = st.integers(0, 10**6)


def nodes_of(trees: Continuations, request: int = 0) -> list[Node]:
    used = range(trees.num[request])
    names = ("token", "parent", "depth", "rank", "match_len", "count", "stores", "share")
    return [Node(*(getattr(trees, name)[request, node].item() for name in names)) for node in used]


def expected(text: list[int], limits: NgramLimits, barriers=()) -> list[Node]:
    found = find_in_text(
        text,
        text,
        limits.max_match,
        limits.min_match,
        NgramIndex.most_found,
        limits.max_depth,
        OWN,
        barriers,
    )
    nodes = build_tree(found, limits.max_nodes, limits.max_depth, barriers)
    return [Node(**vars(node) | {"share": np.float32(node.share).item()}) for node in nodes]


def random_limits(rng: np.random.Generator) -> NgramLimits:
    return NgramLimits(
        max_nodes=int(rng.integers(1, 20)),
        max_match=int(rng.integers(1, 10)),
        min_match=int(rng.integers(1, 4)),
        max_depth=int(rng.integers(1, 8)),
    )


def check_slots_are_used_by_one_request_after_another(seed: int, longest: int = 120) -> None:
    """Requests come and go, their tokens arrive in pieces, and at each piece all trees are right."""
    rng = np.random.default_rng(seed)
    vocabulary = int(rng.integers(1, 6)) if longest < 1000 else 8
    barriers = [0] if rng.random() < 0.3 else []
    index = NgramIndex(NUM_SLOTS, longest, barriers)
    history = np.full((NUM_SLOTS, longest + 3), vocabulary - 1, np.int32)  # what is stale looks right
    end = np.zeros(NUM_SLOTS, np.int64)
    for _ in range(6):
        active = np.flatnonzero(rng.random(NUM_SLOTS) < 0.7)
        fresh = active[rng.random(len(active)) < 0.3]
        index.reset(fresh)
        end[fresh] = 0
        for slot in active:
            begin = end[slot]
            end[slot] = rng.integers(begin, longest + 1)
            history[slot, begin : end[slot]] = rng.integers(0, vocabulary, end[slot] - begin)
        index.extend(active, history, end[active])
        limits = random_limits(rng)
        trees = index.continuations(active, history, end[active], limits)
        for request, slot in enumerate(active):
            text = history[slot, : end[slot]].tolist()
            assert nodes_of(trees, request) == expected(text, limits, barriers)


@given(SEEDS)
def test_trees_are_those_of_a_search_of_every_place(seed):
    check_slots_are_used_by_one_request_after_another(seed)


@pytest.mark.parametrize("seed", range(3))
def test_and_so_they_are_where_the_heads_were_doubled(seed):
    check_slots_are_used_by_one_request_after_another(seed, longest=3000)


def check_many(longest: int) -> None:
    for seed in range(40):
        check_slots_are_used_by_one_request_after_another(seed, longest)


FAULTS = {
    "a context matches itself": (
        "find_in_chains",
        ("position + 1 < until[i]", "position < until[i]"),
        ("until[i] - 1 - position", "until[i] - position"),
    ),
    "what comes after the known tokens counts": (
        "find_in_chains",
        ("min(max_depth, until[i] - 1 - position)", "max_depth"),
    ),
    "the index is behind": (
        "index_tokens",
        ("range(num_indexed[row], end[i])", "range(num_indexed[row], end[i] - 2)"),
    ),
    "tokens are indexed twice": (
        "index_tokens",
        ("range(num_indexed[row], end[i])", "range(max(num_indexed[row] - 1, 0), end[i])"),
    ),
    "a slot's heads stay when its request goes": (
        "empty_rows",
        ("links[row, :MIN_HEADS] = 0", "pass"),
        ("links[row, singles : singles + MIN_HEADS // 4] = 0", "pass"),
    ),
    "a longer match counts again as a shorter one": ("find_in_chains", ("<= same < below", "<= same")),
    "a barrier is matched": (
        "find_in_chains",
        ("not _is_barrier(context[stop - 1 - longest], barriers)", "True"),
    ),
    "equals come in the reverse order": (
        "build_trees",
        ("prob_of[waiting[index - 1]] >= child_prob", "prob_of[waiting[index - 1]] > child_prob"),
    ),
    "doubled heads lose what they had": (
        "index_tokens",
        ("link[heads : 2 * heads] = link[:heads]", "pass"),
    ),
    "a barrier is proposed": ("_group_children", ("ends |= next_token == barrier", "pass")),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_check_notices(fault, monkeypatch):
    name, *faults = FAULTS[fault]
    if name == "_group_children":
        within = {name: mutant(trees._group_children, *faults)}
        monkeypatch.setattr(ngram, "build_trees", mutant(ngram.build_trees, **within))
    else:
        monkeypatch.setattr(ngram, name, mutant(getattr(ngram, name), *faults))
    with pytest.raises(AssertionError):
        check_many(longest=3000 if "doubled" in fault else 120)


def test_a_slot_that_was_not_reset_or_has_no_room_is_an_error():
    index, history = NgramIndex(2, 10), np.zeros((2, 20), np.int32)
    index.extend([1], history, [5])
    with pytest.raises(ValueError, match="the slot was not reset"):
        index.extend([1], history, [4])
    index.reset([1])
    index.extend([1], history, [10])
    assert index.num_indexed.tolist() == [0, 10]
    with pytest.raises(ValueError, match="more tokens than the index has room for"):
        index.extend([1], history, [11])


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


@pytest.mark.skipif(not hasattr(mmap, "MADV_DONTNEED"), reason="memory cannot be given back here")
def test_memory_is_taken_by_what_is_indexed_and_given_back():
    length, num_slots = 1 << 17, 512
    history = np.random.default_rng(0).integers(0, 1000, (1, length)).astype(np.int32)
    before = resident_bytes()
    index = NgramIndex(num_slots, length)  # more than a gigabyte if it were all taken
    short = np.broadcast_to(history[:, :64], (num_slots, 64)).copy()
    index.extend(np.arange(num_slots), short, np.full(num_slots, 64))
    taken = resident_bytes() - before
    assert taken < num_slots * 8 * mmap.PAGESIZE
    index.reset([0])
    index.extend([0], history, [length])
    assert index.num_bytes > 19 * length
    assert resident_bytes() - before - taken > 18 * length
    index.reset([0])
    assert resident_bytes() - before - taken < length
    index.extend([0], history, [50])  # as after any other reset
    text = history[0, :50].tolist()
    assert nodes_of(index.continuations([0], history, [50], NgramLimits())) == expected(
        text, NgramLimits()
    )


def test_placeholders_take_no_part():
    placeholder = 99
    history = np.array([[1, 2, 3, placeholder, placeholder, 1, 2]], np.int32)
    index = NgramIndex(1, 7, barriers=[placeholder])
    index.extend([0], history, [7])
    trees = index.continuations([0], history, [7], NgramLimits())
    assert trees.token[0, : trees.num[0]].tolist() == [3]
    assert index.continuations([0], history, [5], NgramLimits()).num[0] == 0

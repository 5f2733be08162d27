"""What stands on the boards is read as it was written, or not at all."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_smart.config import MAX_CHILDREN, AcceptanceConfig
from vllm_smart.overlap.drafts import DraftBoard, Miss, PublishedTree
from vllm_smart.overlap.grown_tree import GrownTree
from vllm_smart.overlap.memory import SharedMemory, checksum
from vllm_smart.overlap.truth import CHAINS, NUM_DEPTHS, READS, TREES, Terms, TruthBoard, TruthReader
from vllm_smart.scheduler import AcceptanceModel

CHILDREN, BLOCKS, VOCABULARY, SLOTS = 3, 8, 50, 2


def tree_of(rng: np.random.Generator, num_blocks: int) -> GrownTree:
    tree = GrownTree(CHILDREN, BLOCKS)
    for block in range(num_blocks):
        node = np.flatnonzero(tree.first[: tree.size] < 0)[:1] if block else np.zeros(1, np.int64)
        token = rng.permutation(VOCABULARY)[:CHILDREN][None]
        tree.add(node, token, rng.uniform(0.1, 0.9, (1, CHILDREN)).astype(np.float32))
    return tree


def board() -> DraftBoard:
    return DraftBoard(SLOTS, CHILDREN, BLOCKS, VOCABULARY)


@given(st.integers(0, 2**32 - 1), st.integers(0, BLOCKS))
def test_a_tree_is_read_as_it_was_written(seed, num_blocks):
    tree, drafts = tree_of(np.random.default_rng(seed), num_blocks), board()
    reader = DraftBoard(SLOTS, CHILDREN, BLOCKS, VOCABULARY, os.dup(drafts.memory.fd))
    for turn in range(3):
        drafts.write(1, generation=7, base=20 + turn, tree=tree, is_done=True)
        read = reader.read(1)
        assert (read.generation, read.base, read.is_done) == (7, 20 + turn, True)
        for name in ("token", "prob", "first"):
            assert getattr(read, name).tolist() == getattr(tree, name)[: tree.size].tolist(), name


@given(st.data())
def test_any_bytes_and_torn_writes_make_a_valid_tree_or_none(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    drafts = board()
    for turn in range(2):
        drafts.write(0, 3, 11 + turn, tree_of(rng, data.draw(st.integers(0, BLOCKS))), False)
    place = drafts._places[0, int(drafts._turn[0]) % 2].view(np.uint8)
    at = data.draw(st.integers(0, len(place) - 1))
    junk = np.frombuffer(data.draw(st.binary(min_size=1, max_size=200)), np.uint8)[: len(place) - at]
    place[at : at + len(junk)] = junk
    if data.draw(st.booleans()):  # even if the checksum is right by chance
        num_blocks = int(place[24:32].view(np.int64)[0])
        end = 40 + 4 * drafts._block * num_blocks
        if 0 <= num_blocks <= BLOCKS:
            place[:8] = np.array([checksum(place[8:end])]).view(np.uint8)
    drafts._turn[0] += 2 * data.draw(st.integers(-(2**40), 2**40))
    read = drafts.read(0)
    if read is not None:
        assert_valid(read)
        read.below(np.array(data.draw(st.lists(st.integers(-1, VOCABULARY), max_size=5)), np.int32))


def assert_valid(tree: PublishedTree) -> None:
    size = len(tree.token)
    assert ((tree.token[1:] >= 0) & (tree.token[1:] < VOCABULARY)).all()
    assert np.isfinite(tree.prob).all()
    assert ((tree.prob >= 0) & (tree.prob <= 1)).all()
    nodes = np.flatnonzero(tree.first >= 0)
    assert sorted(tree.first[nodes]) == list(range(1, size, CHILDREN))
    assert (tree.first[nodes] > nodes).all()
    for first in tree.first[nodes]:
        siblings = slice(first, first + CHILDREN)
        told = tree.token[siblings][tree.prob[siblings] > 0]
        assert len(set(told.tolist())) == len(told)


def test_a_write_that_is_caught_half_way_is_not_read():
    """A checksum over nothing would let it through: the control of the test before."""
    rng, drafts = np.random.default_rng(0), board()
    drafts.write(0, 3, 11, tree_of(rng, 4), False)
    drafts.write(0, 3, 12, tree_of(rng, 4), False)
    other = drafts._places[0, 1].copy()
    drafts._places[0, 0, 12:30] = other[12:30]
    assert drafts.read(0) is None


def test_a_text_that_went_on_finds_its_node():
    tree, drafts = GrownTree(2, 4), DraftBoard(1, 2, 4, VOCABULARY)
    tree.add(np.zeros(1, np.int64), np.array([[5, 6]]), np.array([[0.5, 0.3]], np.float32))
    tree.add(np.array([2]), np.array([[7, 8]]), np.array([[0.5, 0.0]], np.float32))
    drafts.write(0, 1, 4, tree, False)
    read = drafts.read(0)

    def below(*text: int) -> int | Miss:
        return read.below(np.array(text, np.int32))

    assert below() == 0
    assert below(6) == 2
    assert below(5) is Miss.NOT_EXPANDED
    assert below(5, 1) is Miss.NOT_EXPANDED
    assert below(9) is below(6, 8) is Miss.NOT_IN_TREE  # 8 is ruled out
    tree.clear()
    drafts.write(0, 1, 4, tree, False)
    read = drafts.read(0)
    assert below() is below(5) is Miss.LATE


def test_texts_arrive_in_parts_and_start_anew_with_each_request():
    truth = TruthBoard(SLOTS, 40)
    reader = TruthReader(TruthBoard(SLOTS, 40, os.dup(truth.memory.fd)))
    assert reader.poll() == []
    text = np.arange(30, dtype=np.int32)
    truth.start(1, text[:10])
    assert reader.poll() == [1]
    assert (reader.texts[1].length, reader.texts[1].grows) == (10, READS)
    assert truth.extend(1, text[:13], Terms(0.5, 9, 20, 0.75)) == 3
    assert truth.extend(1, text[:20], Terms(0.5, 9, 20, 0.75)) == 7
    assert reader.poll() == [1]
    known = reader.texts[1]
    assert known.tokens[: known.length].tolist() == text[:20].tolist()
    assert (known.terms, known.grows) == (Terms(0.5, 9, 20, 0.75), TREES)
    assert reader.poll() == []
    truth.start(1, text[5:9])
    truth.extend(1, text[5:10], Terms(chain_only=True))
    assert reader.poll() == [1]
    assert reader.texts[1].tokens[:5].tolist() == [5, 6, 7, 8, 9]
    assert (reader.texts[1].generation, reader.texts[1].grows) == (known.generation + 1, CHAINS)
    truth.end(1)
    assert reader.poll() == [1]
    assert 1 not in reader.texts


@given(st.data())
def test_a_torn_text_is_read_later_and_never_wrongly(data):
    truth, text = TruthBoard(1, 64), np.arange(40, dtype=np.int32)
    reader = TruthReader(truth)
    truth.start(0, text[:12])
    reader.poll()
    truth.extend(0, text[:30], Terms())
    whole = truth.slots.copy(), truth.tokens.copy()
    for of in (truth.slots, truth.tokens):
        if data.draw(st.booleans()):
            of = of.view(np.uint8).reshape(-1)
            at = data.draw(st.integers(0, len(of) - 1))
            junk = np.frombuffer(data.draw(st.binary(min_size=1, max_size=60)), np.uint8)[
                : len(of) - at
            ]
            of[at : at + len(junk)] = junk
    reader.poll()
    known = reader.texts[0]
    assert known.length in (12, 30)
    assert known.tokens[: known.length].tolist() == text[: known.length].tolist()
    truth.slots[:], truth.tokens[:] = whole
    reader.poll()
    assert reader.texts[0].tokens[: reader.texts[0].length].tolist() == text[:30].tolist()


def test_memory_is_shared_with_a_child_and_has_no_name():
    before = set(os.listdir("/dev/shm"))
    memory = SharedMemory(256)
    array = memory.take((4,), np.int32)
    array[:] = 3
    code = (
        "import sys, numpy as np; from vllm_smart.overlap.memory import SharedMemory\n"
        "SharedMemory(256, int(sys.argv[1])).take((4,), np.int32)[1] += 4"
    )
    subprocess.run([sys.executable, "-c", code, str(memory.fd)], pass_fds=[memory.fd], check=True)
    assert array.tolist() == [3, 7, 3, 3]
    assert set(os.listdir("/dev/shm")) == before


@pytest.mark.parametrize("num_bytes", [0, 1, 64, 65])
def test_arrays_begin_at_cache_lines(num_bytes):
    memory = SharedMemory(512)
    memory.take((num_bytes,), np.uint8)
    address = memory.take((1,), np.int64).ctypes.data
    assert address % 64 == 0


def test_a_hit_is_as_likely_as_the_expanded_nodes_just_beyond_what_is_verified():
    tree, drafts = GrownTree(2, 6), DraftBoard(1, 2, 6, VOCABULARY)
    prob = np.array([[0.5, 0.25]], np.float32)
    # The root's children are 1 and 2, those of 1 are 3 and 4, of 2 are 5 and 6, of 3 are 7 and 8.
    for node, first in ((0, 10), (1, 20), (2, 30), (3, 40)):
        tree.add(np.array([node]), first + np.arange(2)[None], prob)
    drafts.write(0, 1, 5, tree, False)
    read = drafts.read(0)
    assert isinstance(read, PublishedTree)

    def chance(parent: list[int], token: list[int]) -> float:
        return read.chance_of_hit(np.array(parent), np.array(token), lambda of, depth: of)

    assert chance([-1], [-1]) == pytest.approx(0.5 + 0.25)  # a step of one token: nodes 1 and 2
    assert chance([-1, 0], [-1, 10]) == pytest.approx(0.25 + 0.25)  # node 2, and node 3 below 1
    assert chance([-1, 0, 0], [-1, 10, 11]) == pytest.approx(0.25)  # 3; nothing is known below 5, 6
    assert chance([-1, 0, 1], [-1, 10, 20]) == pytest.approx(0.25)  # 2; nothing is known below 7, 8
    assert chance([-1, 0], [-1, 48]) == pytest.approx(0.75)  # verified, but not drafted here
    later = read.chance_of_hit(np.array([-1, 0]), np.array([-1, 10]), lambda of, depth: of / depth)
    assert later == pytest.approx(0.25 + 0.5 * 0.5 / 2)  # each level is calibrated as its own


def test_a_drafter_that_rehearses_does_not_draft():
    truth = TruthBoard(SLOTS, 10)
    truth.rehearses = True
    assert truth.rehearses
    assert not truth.runs
    truth.runs = True  # as a step with requests has it
    assert truth.runs
    assert not truth.rehearses


def test_a_drafter_goes_by_what_the_worker_has_learnt():
    rng, depths = np.random.default_rng(0), np.arange(1, 10, dtype=np.int32)
    truth, model = TruthBoard(1, 8), AcceptanceModel(AcceptanceConfig(per_request=False), 2)
    model.add_request(1, is_coupled=True)
    prob = -np.sort(-rng.dirichlet(np.ones(9), len(depths)).astype(np.float32)[:, :8])
    reader = TruthBoard(1, 8, os.dup(truth.memory.fd))
    greedy, sampled = Terms(), Terms(temperature=0.8)
    # What the draft says, at first.
    np.testing.assert_allclose(reader.accepted(prob, depths, greedy), prob, rtol=1e-3)
    for _ in range(40):
        share, depth, rank = rng.random(50, np.float32), rng.integers(1, 9, 50), rng.integers(0, 8, 50)
        slot = rng.integers(0, 2, 50)
        accepted = rng.random(50) < 0.3 + 0.4 * slot
        model.observe(share, depth, rank, np.zeros(50, np.int64), accepted, slot)
    truth.acceptance[:] = model.regressions(NUM_DEPTHS, MAX_CHILDREN)
    for slot, terms in enumerate((greedy, sampled)):
        found = reader.accepted(prob, depths, terms)
        for row, depth in enumerate(depths.tolist()):
            expected = model.predict_level(prob[row : row + 1], depth, np.array([slot]))
            np.testing.assert_allclose(found[row], expected[0], rtol=1e-6)
        assert not np.allclose(found, prob, rtol=0.1)

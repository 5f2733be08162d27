"""The ring of finished responses: what it finds, whose, and what it no longer has."""

import stat

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.mutants import mutant
from vllm_smart.errors import DatastoreError
from vllm_smart.kernels.ngram.cpu.chains import MIN_HEADS, _bucket, _mixed
from vllm_smart.kernels.ngram.reference import Occurrence, find_in_text
from vllm_smart.proposer import shared_ring
from vllm_smart.proposer.ngram import SHARED, Contexts, NgramLimits, occurrences
from vllm_smart.proposer.shared_ring import NOBODY, SharedRing

LIMITS = NgramLimits(max_depth=5)
SMALL_MB = 0.01  # the smallest ring: MIN_HEADS tokens
TENANTS = (0, 1)


def bucket_of(token: int, tenant: int) -> int:
    state = np.uint64(_mixed(np.uint64(0), tenant))
    return _bucket(np.uint64(_mixed(state, token)), MIN_HEADS // 4)


# Those of which no two share a bucket, or so long chains would not be followed to their end.
TOKENS = next(
    np.array(three)
    for three in ([t, t + 1, t + 2] for t in range(100))
    if len({bucket_of(token, tenant) for token in three for tenant in TENANTS}) == 6
)


def found_in(ring: SharedRing, tokens: list[int], tenant: int) -> list[Occurrence]:
    contexts = Contexts.of([0], np.array([tokens], np.int32), [len(tokens)], [tenant])
    match, store, num_ahead, ahead, num = occurrences([ring], contexts, LIMITS)
    return [
        Occurrence(int(match[0, k]), int(store[0, k]), tuple(ahead[0, k, : num_ahead[0, k]].tolist()))
        for k in range(num[0])
    ]


def check_ring(seed: int) -> None:
    """After each response the ring finds what a search of all that it should have finds."""
    rng = np.random.default_rng(seed)
    ring = SharedRing(SMALL_MB, last_position=3100)  # positions start anew now and then
    written: list[int] = []
    owner: list[int] = []
    for _ in range(15):
        tokens, tenant = rng.choice(TOKENS, rng.integers(1, 400)), int(rng.integers(NOBODY, 2))
        ring.add(tokens, tenant)
        if tenant != NOBODY:
            written += [-1, *tokens.tolist()]
            owner += [tenant] * (1 + len(tokens))
        live = slice(max(len(written) - ring.capacity, 0), None)
        context = rng.choice(TOKENS, rng.integers(1, 40)).tolist()
        for asker in (NOBODY, *TENANTS):
            # What others have written is a gap.
            own = zip(written[live], owner[live], strict=True)
            text = [token if whose == asker else -1 for token, whose in own]
            limits = (LIMITS.max_match, LIMITS.min_match, ring.most_found, LIMITS.max_depth)
            assert found_in(ring, context, asker) == find_in_text(text, context, *limits, SHARED)


def check_tenants_whose_tokens_share_a_bucket() -> None:
    shared = (token for token in range(100_000) if bucket_of(token, 0) == bucket_of(token, 1))
    for _, token in zip(range(5), shared, strict=False):
        ring = SharedRing(SMALL_MB)
        ring.add(np.array([token, 42]), tenant=0)
        assert found_in(ring, [token], tenant=1) == []
        assert [each.ahead for each in found_in(ring, [token], tenant=0)] == [(42,)]


@settings(max_examples=30)
@given(st.integers(0, 10**6))
def test_a_tenant_finds_all_of_its_own_that_is_not_overwritten_and_nothing_else(seed):
    check_ring(seed)


def test_a_secret_stays_one_where_tenants_share_a_bucket():
    check_tenants_whose_tokens_share_a_bucket()


def check_many() -> None:
    for seed in range(20):
        check_ring(seed)
    check_tenants_whose_tokens_share_a_bucket()


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("find_in_chains", "owner[place] == asker[i]", "True"),
        ("find_in_chains", "while position >= oldest", "while position >= 0"),
        ("find_in_chains", "and position - same >= oldest", "and True"),
        ("find_in_chains", "position + 1 < until[i]", "True"),
    ],
)
def test_the_checks_notice(name, right, wrong, monkeypatch):
    monkeypatch.setattr(shared_ring, name, mutant(getattr(shared_ring, name), (right, wrong)))
    with pytest.raises(AssertionError):
        check_many()


def test_the_checks_notice_responses_without_an_end_between(monkeypatch):
    monkeypatch.setattr(shared_ring, "_END", int(TOKENS[0]))
    with pytest.raises(AssertionError):
        check_many()


def test_the_checks_notice_positions_that_are_not_moved(monkeypatch):
    def wrong(ring, begin, end):
        shift = (begin - ring.capacity) // ring.capacity * ring.capacity
        ring._num_indexed -= shift
        return begin - shift, end - shift

    monkeypatch.setattr(SharedRing, "_start_anew", wrong)
    with pytest.raises(AssertionError):
        check_many()


def test_of_a_response_that_does_not_fit_the_end_is_kept():
    ring = SharedRing(SMALL_MB)
    tokens = np.arange(3 * ring.capacity)
    ring.add(tokens, tenant=0)
    last = int(tokens[-1])
    assert [each.ahead for each in found_in(ring, [last - 1], 0)] == [(last,)]
    assert found_in(ring, [last - ring.capacity], 0) == []


@pytest.mark.parametrize("max_mb", [0.1, 1, 7, 64])
def test_the_ring_fits_its_bound_and_uses_half_of_it(max_mb):
    assert 0.5 * max_mb * 1e6 < SharedRing(max_mb).num_bytes <= max_mb * 1e6


def test_what_one_tenant_left_outlives_the_process_in_a_file_of_its_own(tmp_path):
    ring, path = SharedRing(SMALL_MB), tmp_path / "ring"
    ring.add(np.array([1, 2, 3, 4]), tenant=0)
    ring.add(np.array([7, 8]), tenant=0)
    ring.add(np.array([1, 2, 9]), tenant=1)
    ring.save(path, 0, "words")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["ring"]
    again = SharedRing(SMALL_MB)
    again.load(path, 0, "words")
    for context in ([1, 2], [4], [8], [7]):
        assert found_in(again, context, 0) == found_in(ring, context, 0)
        assert found_in(again, context, 1) == []
    assert [each.ahead for each in found_in(again, [1, 2], 0)] == [(3, 4)]


def test_without_a_file_the_ring_starts_empty(tmp_path):
    ring = SharedRing(SMALL_MB)
    ring.load(tmp_path / "none", 0, "words")
    assert ring.num_written == 0


def test_files_that_cannot_be_used_are_refused_with_the_way_out(tmp_path):
    ring, path = SharedRing(SMALL_MB), tmp_path / "ring"
    ring.add(np.arange(100), tenant=0)
    ring.save(path, 0, "words")
    with pytest.raises(DatastoreError, match=r"another tokenizer. Delete it"):
        ring.load(path, 0, "other words")
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DatastoreError, match=r"400 bytes after its header instead of 404. Delete it"):
        ring.load(path, 0, "words")
    path.write_text("something else")
    with pytest.raises(DatastoreError, match=r"is no shared ring of vllm_smart. Delete it"):
        ring.load(path, 0, "words")
    with pytest.raises(DatastoreError, match="Name a file in a folder that exists"):
        ring.save(tmp_path / "missing" / "ring", 0, "words")

"""How growth begins, in one launch each, against the plain versions."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.device import DEVICE, examples
from tests.kernels.random_growth import copy_of, on_device, random_candidates, random_slots
from vllm_smart.kernels.grow import gpu, reference

POISON = 77


@examples(30)
@given(
    num_reqs=st.integers(1, 200),
    reads_bonus=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_what_the_device_knows_is_added_as_by_the_plain_version(num_reqs, reads_bonus, seed):
    rng, num_in_step = np.random.default_rng(seed), num_reqs + 5
    num_rejected = on_device(rng.integers(0, 9, num_in_step, np.int32))
    temperature_of = on_device(rng.random(num_in_step, np.float32))
    fixed = (rng.integers(0, num_in_step, num_reqs) for _ in range(2))
    req, slot, emits = map(on_device, (*fixed, rng.integers(0, 2, num_reqs)))
    changed = [rng.integers(9, 99, num_reqs), rng.integers(0, 9, num_reqs), np.full(num_reqs, POISON)]
    changed += [np.full(num_reqs, POISON, np.float32)]
    ours, plain = (list(map(on_device, changed)) for _ in range(2))
    for settle, tensors in ((gpu.settle, ours), (reference.settle, plain)):
        settle(num_rejected, temperature_of, req, slot, emits, *tensors, reads_bonus, max_len=60)
    for one, other in zip(ours, plain, strict=True):
        assert one.tolist() == other.tolist()


@examples(30)
@given(
    num_reqs=st.integers(1, 6),
    depth=st.integers(1, 4),
    width=st.integers(1, 5),
    children=st.integers(1, 4),
    max_slots=st.integers(1, 70),
    seed=st.integers(0, 2**32 - 1),
)
def test_roots_are_begun_with_as_by_the_plain_versions(
    num_reqs, depth, width, children, max_slots, seed
):
    rng, max_len = np.random.default_rng(seed), 80
    candidates = random_candidates(rng, num_reqs, depth, width, children)
    slots = random_slots(rng, num_reqs, max_slots, max(30, num_reqs))
    plain_candidates, plain_slots = copy_of(candidates), copy_of(slots)
    prefix_len, window_start = on_device(rng.integers(1, max_len, (2, num_reqs)))
    emits, useful_depth = on_device(rng.integers(0, 2, (2, num_reqs)))
    level = torch.tensor([POISON], device=DEVICE)

    frontier, row = gpu.begin_growth(
        *(candidates, slots, level, prefix_len, window_start, emits, useful_depth),
        max_len=max_len,
        most_slots=max_slots,
    )
    capacity = (max_len - prefix_len).clamp(max=max_slots)
    reference.begin_slots(plain_slots, prefix_len, window_start, capacity)
    expected = reference.begin_candidates(plain_candidates, (emits > 0) & (useful_depth > 0))

    assert level.tolist() == [0]
    assert row.tolist() == [[req] for req in range(num_reqs)]
    for name in ("candidate", "path_prob"):
        assert getattr(frontier, name).tolist() == getattr(expected, name).tolist()
        assert getattr(frontier, name).dtype == getattr(expected, name).dtype
    for name in ("source", "path_prob", "draft_prob"):
        assert getattr(candidates, name).tolist() == getattr(plain_candidates, name).tolist()
    for name in ("prefix_len", "window_start", "capacity", "used", "row_start"):
        assert getattr(slots, name).tolist() == getattr(plain_slots, name).tolist(), name
    # Those of the roots' rows; others are nobody's parents.
    assert not slots.mask[:num_reqs].any()

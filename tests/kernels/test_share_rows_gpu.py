"""Rows of drafts shared out in a few launches against the plain version."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.device import DEVICE, examples
from tests.kernels.random_growth import on_device
from vllm_smart.kernels.share_rows import gpu, reference

POISON = 77


@examples(40)
@given(
    num_reqs=st.integers(1, 6),
    max_nodes=st.integers(2, 40),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**32 - 1),
)
def test_rows_are_shared_out_as_by_the_plain_version(num_reqs, max_nodes, share, seed):
    """Values in eighths, so that many are tied; many nodes are inert."""
    rng = np.random.default_rng(seed)
    value = -np.sort(-rng.integers(0, 6, (num_reqs + 3, max_nodes)), axis=1) / np.float32(8)
    slot = rng.permutation(num_reqs + 3)[:num_reqs]
    room = rng.integers(0, max_nodes, num_reqs, np.int32)
    room[0] = 1
    total = max(1, int(share * room.sum()))
    arguments = (*map(on_device, (value.astype(np.float32), slot, room)), total)
    counts = gpu.share_out(*arguments)
    assert counts.tolist() == reference.share_out(*arguments).tolist()
    assert int(counts.sum()) == total


@pytest.mark.parametrize("num_reqs", [1, 5, 1030])
def test_rows_begin_as_by_the_plain_version(num_reqs):
    rng = np.random.default_rng(num_reqs)
    counts = on_device(rng.integers(0, 9, num_reqs, np.int32))
    fixed = on_device(rng.integers(1, 9, num_reqs, np.int32))
    ours, plain = (
        torch.full((num_reqs + 4,), POISON, dtype=torch.int32, device=DEVICE) for _ in range(2)
    )
    found = gpu.row_starts(counts, fixed, ours)
    expected = reference.row_starts(counts, fixed, plain)
    assert found.tolist() == expected.tolist()
    assert found.dtype == expected.dtype
    assert ours.tolist() == plain.tolist()

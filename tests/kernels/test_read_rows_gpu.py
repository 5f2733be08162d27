"""What a drafter reads on the device against the plain version, and against what the host reads."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.device import DEVICE, examples
from tests.kernels.random_growth import on_device
from vllm_smart.kernels.read_rows import ReadRows, RowsToRead, gpu, reference

POISON = 77
MAX_LEN, COLUMNS, CAPACITY = 300, 6, 20


def poisoned(num_rows: int, num_reqs: int) -> ReadRows:
    def room(size: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.full((size,), POISON, dtype=dtype, device=DEVICE)

    return ReadRows(
        token=room(num_rows + 3, torch.int32),
        position=room(num_rows + 3, torch.int64),
        source=room(num_rows, torch.int64),
        slot=room(num_reqs, torch.int32),
        query_start=room(num_reqs + 1, torch.int32),
        seq_lens=room(num_reqs, torch.int32),
        last_row=room(num_reqs, torch.int64),
        stands=room(num_reqs, torch.int32),
    )


@examples(60)
@given(
    num_reqs=st.integers(1, 6),
    most_rows=st.sampled_from([1, 4, 150]),
    has_walk=st.booleans(),
    token_shift=st.integers(0, 1),
    seed=st.integers(0, 2**32 - 1),
)
def test_rows_are_placed_as_by_the_plain_version(num_reqs, most_rows, has_walk, token_shift, seed):
    rng, num_in_step = np.random.default_rng(seed), num_reqs + 3
    num_rows = rng.integers(1, most_rows + 1, num_reqs)
    first = rng.integers(0, MAX_LEN - most_rows - 1, num_reqs)
    root_position = np.maximum(first + num_rows - 1 - rng.integers(0, COLUMNS - 1, num_reqs), 0)
    reads = RowsToRead(
        req=on_device(rng.permutation(num_in_step)[:num_reqs]),
        slot=on_device(rng.permutation(num_in_step)[:num_reqs]),
        row_start=on_device(np.cumsum(num_rows) - num_rows),
        num_rows=on_device(num_rows),
        first=on_device(first),
        start=on_device(np.maximum(root_position - rng.integers(0, 9, num_reqs), 0)),
        root_row=on_device(rng.integers(10, 20, num_reqs)),
        root_position=on_device(root_position),
        window_start=on_device(rng.integers(0, 2, num_reqs) * (first // 2)),
    )
    path = rng.integers(0, 30, (num_in_step, COLUMNS), np.int32)
    path[np.arange(COLUMNS) > rng.integers(0, COLUMNS, (num_in_step, 1))] = -1
    known_end = on_device(first + rng.integers(-2, num_rows + 1))
    tokens = on_device(rng.integers(0, 999, (num_in_step, MAX_LEN), np.int32))
    ours, plain = (poisoned(int(num_rows.sum()), num_reqs) for _ in range(2))
    for module, out in ((gpu, ours), (reference, plain)):
        walked = on_device(path) if has_walk else None
        module.place_reads(reads, known_end, walked, tokens, token_shift, CAPACITY, out)
    for name, expected in vars(plain).items():
        assert getattr(ours, name).tolist() == expected.tolist(), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("has_kept", [True, False])
def test_rows_are_gathered_as_by_the_plain_version(dtype, has_kept):
    width, num_rows = 1100, 9
    rows = torch.randn(7, width).to(DEVICE, dtype)
    kept = torch.randn(12, 2 * width).to(DEVICE, dtype)[:, width:]
    source = torch.randint(-12 if has_kept else 0, 7, (num_rows,)).to(DEVICE)
    ours, plain = (torch.full((num_rows, 2 * width), POISON).to(DEVICE, dtype) for _ in range(2))
    for module, out in ((gpu, ours), (reference, plain)):
        module.gather_rows(rows, kept if has_kept else None, source, out[:, :width])
    assert torch.equal(ours, plain)
    assert (ours[:, width:] == POISON).all()


def test_the_last_rows_that_stand_are_found_in_whatever_part_they_are():
    """What was read as far as a step may have brought, and then cut into parts."""
    from vllm_smart.proposer.backlog import Backlog

    backlog = Backlog(max_num_reqs=4, block_size=16, num_blocks=100)
    slots, start, most = np.array([0, 1, 2]), np.zeros(3, np.int64), np.array([9, 3, 6])
    unread = backlog.unread(slots, start, most)
    for end in ([9, 3, 6], [1, 1, 1], [5, 2, 3], [4, 1, 6]):
        for size in (4, 5, 7, 99):
            found = [-1, -1, -1]
            for first, part in unread.parts(size):
                num_reqs = len(part.first)
                nothing = on_device(np.zeros(num_reqs, np.int64))
                reads = RowsToRead(
                    req=nothing,
                    slot=nothing,
                    row_start=on_device(part.row_start[:-1]),
                    num_rows=on_device(part.end - part.first),
                    first=on_device(part.first),
                    start=nothing,
                    root_row=nothing,
                    root_position=nothing,
                    window_start=nothing,
                )
                out = poisoned(len(part.req), num_reqs)
                known = on_device(np.array(end)[first : first + num_reqs])
                tokens = on_device(np.zeros((1, 99), np.int32))
                gpu.place_reads(reads, known, None, tokens, 0, CAPACITY, out)
                for req in range(num_reqs):
                    row = int(out.last_row[req])
                    if out.stands[req]:
                        found[first + req] = int(part.position[row])
                    assert part.req[row] == req
            assert found == [position - 1 for position in end]

"""The best values of a whole batch, found by counting what comes before each: no sort, one launch.

All pairs are compared, which for the nodes of a batch,
thousands, takes a GPU less time than a sort takes to start. No synchronisation; capturable.
"""

import torch
import triton
import triton.language as tl

_PAIRS_AT_ONCE = 4096  # of a program, in registers


def count_best(values: torch.Tensor, total: int) -> torch.Tensor:
    """How many of each row's values are among the `total` best of all rows, zeros excluded.

    Ties go to the lower row, then to the lower column, so all ranks of a tensor-parallel group count
    alike.

    Args:
        values: [num_rows, num_columns] float32, none negative, contiguous.
        total: how many there are of these, at most.

    Returns:
        [num_rows] int32.
    """
    num_rows, num_columns = values.shape
    assert values.is_contiguous()
    counts = torch.empty(num_rows, dtype=torch.int32, device=values.device)
    block = triton.next_power_of_2(num_columns)
    _count_best[(num_rows,)](
        values,
        total,
        counts,
        num_rows,
        COLUMNS=num_columns,
        BLOCK=block,
        CHUNK=pairs_per_value(block),
        num_warps=4,
    )
    return counts


def pairs_per_value(block: int) -> int:
    """With how many values a program compares each of `block` at once; both are powers of two."""
    return max(16, _PAIRS_AT_ONCE // block)


@triton.jit
def num_before(own, own_index, values, num_values, CHUNK: tl.constexpr):
    """[BLOCK] int32 how many of `values` come before each of `own`: larger ones, equals by index."""
    before = tl.zeros_like(own_index)
    for begin in range(0, num_values, CHUNK):
        index = begin + tl.arange(0, CHUNK)
        other = tl.load(values + index, mask=index < num_values, other=-1.0)
        is_before = (other[None, :] > own[:, None]) | (
            (other[None, :] == own[:, None]) & (index[None, :] < own_index[:, None])
        )
        before += tl.sum(is_before.to(tl.int32), axis=1)
    return before


@triton.jit(do_not_specialize=["total", "num_rows"])
def _count_best(
    values,
    total,
    counts,
    num_rows,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    row = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    index = row * COLUMNS + column
    own = tl.load(values + index, mask=column < COLUMNS, other=0.0)
    place = num_before(own, index, values, num_rows * COLUMNS, CHUNK)
    is_best = (place < total) & (own > 0)
    tl.store(counts + row, tl.sum(is_best.to(tl.int32)))

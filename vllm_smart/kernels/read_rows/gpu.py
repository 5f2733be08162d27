"""The rows that a drafter reads.

A launch for all rows' numbers, one for the hidden states of each of the target's tensors. No
synchronisation.
"""

import torch
import triton
import triton.language as tl

from vllm_smart.kernels.read_rows import ReadRows, RowsToRead

_ROWS_AT_ONCE = 64  # of a request
_COLUMNS_AT_ONCE = 1024


def place_reads(
    reads: RowsToRead,
    known_end: torch.Tensor,
    path: torch.Tensor | None,
    all_tokens: torch.Tensor,
    token_shift: int,
    capacity: int,
    out: ReadRows,
) -> None:
    """Say what a drafter's rows read.

    Beyond a root the accepted path counts, wherever its nodes are in the target's step; beyond its end
    the root does, whose hidden states nobody reads there.

    Args:
        reads: of the batch.
        known_end: [num_reqs] int64 position after the last one that stands.
        path: [num_reqs of the step, columns] int32 nodes visited by the walk, -1 beyond, with a column
            for each depth that is read; None without drafts.
        all_tokens: [num_slots, max_len] int32.
        token_shift: a row takes the token so many positions behind its own.
        capacity: places of each slot in what was kept, a ring by position.
        out: written.
    """
    assert all_tokens.stride(1) == 1
    assert path is None or path.stride(1) == 1
    _place_reads[(len(reads.slot),)](
        *vars(reads).values(),
        known_end,
        # Without a walk any tensor will do.
        known_end if path is None else path,
        0 if path is None else path.stride(0),
        0 if path is None else path.shape[1],
        all_tokens,
        all_tokens.stride(0),
        capacity,
        *vars(out).values(),
        TOKEN_SHIFT=token_shift,
        BLOCK=_ROWS_AT_ONCE,
        num_warps=1,
    )


def gather_rows(
    rows: torch.Tensor, kept: torch.Tensor | None, source: torch.Tensor, out: torch.Tensor
) -> None:
    """Write to `out` [num_rows, width] what `source` of `ReadRows` names.

    Args:
        rows: [num_rows of the step, width] of the target's step.
        kept: [places, width] of steps before; None if no source is of them.
        source: [num_rows] int64.
    """
    num_rows, width = out.shape
    for tensor in (rows, out) if kept is None else (rows, kept, out):
        assert tensor.stride(1) == 1
        assert tensor.dtype == rows.dtype
    _gather_rows[(num_rows, triton.cdiv(width, _COLUMNS_AT_ONCE))](
        rows,
        rows if kept is None else kept,
        source,
        out,
        rows.stride(0),
        0 if kept is None else kept.stride(0),
        out.stride(0),
        width,
        BLOCK=_COLUMNS_AT_ONCE,
        num_warps=4,
    )


# Arrays of the host arrive anywhere; compiling for each alignment takes seconds.
@triton.jit(
    do_not_specialize=["path_stride", "path_columns", "tokens_stride", "capacity"],
    do_not_specialize_on_alignment=[
        *("req_of", "slot_of", "row_start", "num_rows", "first", "start"),
        *("root_row", "root_position", "window_start", "known_end", "path"),
        *("to_slot", "query_start", "seq_lens", "last_row", "stands"),
    ],
)
def _place_reads(
    req_of,
    slot_of,
    row_start,
    num_rows,
    first,
    start,
    root_row,
    root_position,
    window_start,
    known_end,
    path,
    path_stride: tl.int64,
    path_columns,
    all_tokens,
    tokens_stride: tl.int64,
    capacity,
    token,
    position,
    source,
    to_slot,
    query_start,
    seq_lens,
    last_row,
    stands,
    TOKEN_SHIFT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    of = tl.program_id(0)
    slot, own_row, count = tl.load(slot_of + of), tl.load(row_start + of), tl.load(num_rows + of)
    begin, computed = tl.load(first + of), tl.load(start + of)
    root, root_at = tl.load(root_position + of), tl.load(root_row + of)
    own_path = path + tl.load(req_of + of) * path_stride
    for at in range(0, count, BLOCK):
        row = at + tl.arange(0, BLOCK)
        is_row = row < count
        own_position = begin + row
        offset = own_position - root
        is_draft = is_row & (offset > 0)
        visited = tl.load(own_path + offset, mask=is_draft & (offset < path_columns), other=-1)
        node = tl.where(is_draft, tl.maximum(visited, 0).to(tl.int64), offset)
        is_new = own_position >= computed
        kept = -1 - (slot * capacity + own_position % capacity)
        to = own_row + row
        read = tl.load(all_tokens + slot * tokens_stride + own_position + TOKEN_SHIFT, mask=is_row)
        tl.store(token + to, read, mask=is_row)
        tl.store(position + to, own_position, mask=is_row)
        tl.store(source + to, tl.where(is_new, root_at + node, kept), mask=is_row)
    place = tl.load(known_end + of) - 1 - begin
    tl.store(to_slot + of, slot.to(tl.int32))
    tl.store(query_start + of, own_row.to(tl.int32))
    # Also what the next request writes, if there is one.
    tl.store(query_start + of + 1, (own_row + count).to(tl.int32))
    tl.store(seq_lens + of, (begin + count - tl.load(window_start + of)).to(tl.int32))
    tl.store(last_row + of, own_row + tl.minimum(tl.maximum(place, 0), count - 1))
    tl.store(stands + of, (place >= 0).to(tl.int32))


@triton.jit
def _gather_rows(
    rows,
    kept,
    source,
    out,
    rows_stride: tl.int64,
    kept_stride: tl.int64,
    out_stride: tl.int64,
    width,
    BLOCK: tl.constexpr,
):
    row, column = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_column = column < width
    own = tl.load(source + row)
    at = rows + own * rows_stride
    if own < 0:
        at = kept + (-1 - own) * kept_stride
    values = tl.load(at + column, mask=is_column)
    tl.store(out + row * out_stride + column, values, mask=is_column)

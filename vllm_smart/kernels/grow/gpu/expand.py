"""Which nodes a draft level runs on the device, and what their rows see.

The host says how many rows a level has, for all requests together; whose they are is decided here, by
value. Two or three launches before the drafter's forward, where plain torch takes fifty. No
synchronisation; capturable: the level is a tensor.
"""

import torch
import triton
import triton.language as tl

from vllm_smart.kernels.count_best.gpu import count_best
from vllm_smart.kernels.grow.device import DeviceCandidates, DeviceDraftSlots, DeviceLevel, Frontier
from vllm_smart.kernels.tree_attention import MASK_WORD_BITS

_REQS_AT_ONCE = 256  # whose rows are counted


def expand_level(
    candidates: DeviceCandidates,
    slots: DeviceDraftSlots,
    level: torch.Tensor,
    useful_depth: torch.Tensor,
    weight: torch.Tensor,
    num_rows: int,
    token: torch.Tensor,
    position: torch.Tensor,
) -> DeviceLevel:
    """The best `num_rows` nodes of a level, each with a slot.

    Args:
        candidates: as grown so far.
        slots: as the level before has left them, changed.
        level: [1] int64 whose nodes are to be expanded, counted from 0.
        useful_depth: [num_reqs] int64, deeper nodes are wasted: only requests grow whose useful depth
            is beyond the level.
        weight: [num_reqs] float32 what a token of each is worth.
        num_rows: rows of the forward; fewer nodes leave padding.
        token: [>= num_rows] of any integers, written: what the forward reads.
        position: [>= num_rows] int64, written: positions of these tokens.
    """
    num_reqs, width = len(weight), candidates.width
    device = weight.device

    def room(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    candidate, prob = room(num_reqs, width), room(num_reqs, width, dtype=torch.float32)
    count = room(num_reqs, dtype=torch.int32)
    assert candidates.path_prob.stride(1) == candidates.token.stride(1) == 1
    _frontier[(num_reqs,)](
        candidates.path_prob,
        candidates.path_prob.stride(0),
        level,
        useful_depth,
        slots.capacity,
        slots.used,
        candidate,
        prob,
        count,
        COLUMNS=candidates.level_columns,
        WIDTH=width,
        BLOCK=triton.next_power_of_2(candidates.level_columns),
        num_warps=1,
    )
    if num_rows < num_reqs * width:
        # Best first within a request, ties by place: what is taken of each is a prefix.
        count = count_best(prob * weight.unsqueeze(1), num_rows)
    words = slots.mask.shape[1]
    row, req = room(num_reqs, width), room(num_rows)
    slot_position, source = room(num_rows), room(num_rows)
    mask = room(num_rows, words, dtype=torch.int32)
    seq_lens, tail_lens = room(2, num_reqs, dtype=torch.int32)
    _place_rows[(num_reqs + 1,)](
        candidates.token,
        candidates.token.stride(0),
        level,
        candidate,
        prob,
        count,
        slots.prefix_len,
        slots.window_start,
        slots.used,
        slots.row_start,
        slots.mask,
        len(slots.mask),
        row,
        req,
        token,
        position,
        slot_position,
        source,
        mask,
        seq_lens,
        tail_lens,
        num_reqs,
        num_rows,
        COLUMNS=candidates.level_columns,
        CHILDREN=candidates.children,
        WIDTH=width,
        WORDS=words,
        WORD_BITS=MASK_WORD_BITS,
        BLOCK=triton.next_power_of_2(width),
        REQS_AT_ONCE=_REQS_AT_ONCE,
        num_warps=1,
    )
    slots.mask[:num_rows] = mask
    return DeviceLevel(
        frontier=Frontier(candidate, prob),
        row=row,
        req=req,
        token=token[:num_rows],
        position=position[:num_rows],
        slot_position=slot_position,
        source=source,
        row_start=slots.row_start,
        seq_lens=seq_lens,
        tail_lens=tail_lens,
        ancestor_mask=mask,
    )


@triton.jit(do_not_specialize=["stride"])
def _frontier(
    path_prob,
    stride: tl.int64,
    level,
    useful_depth,
    capacity,
    used,
    candidate,
    prob,
    count,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The best candidates of a request's level by rank, and how many of them it may expand."""
    req = tl.program_id(0)
    own_level = tl.load(level)
    column = tl.arange(0, BLOCK)
    is_column = column < COLUMNS
    first = own_level * COLUMNS
    own = tl.load(path_prob + req * stride + first + column, mask=is_column, other=-1.0)
    is_better = (own[None, :] > own[:, None]) | (
        (own[None, :] == own[:, None]) & (column[None, :] < column[:, None])
    )
    rank = tl.sum(is_better.to(tl.int32), axis=1)
    free = tl.load(capacity + req) - tl.load(used + req)
    is_active = tl.load(useful_depth + req) > own_level + 1
    kept = tl.where(is_active & (rank < free), own, 0.0)
    is_best = is_column & (rank < WIDTH)
    tl.store(candidate + req * WIDTH + rank, first + column, mask=is_best)
    tl.store(prob + req * WIDTH + rank, kept, mask=is_best)
    tl.store(count + req, tl.sum((is_best & (kept > 0)).to(tl.int32)))


@triton.jit(do_not_specialize=["stride", "mask_rows", "num_reqs", "num_rows"])
def _place_rows(
    cand_token,
    stride: tl.int64,
    level,
    candidate,
    prob,
    count,
    prefix_len,
    window_start,
    used,
    row_start,
    old_mask,
    mask_rows,
    row,
    req_of,
    token,
    position,
    slot_position,
    source,
    mask,
    seq_lens,
    tail_lens,
    num_reqs,
    num_rows,
    COLUMNS: tl.constexpr,
    CHILDREN: tl.constexpr,
    WIDTH: tl.constexpr,
    WORDS: tl.constexpr,
    WORD_BITS: tl.constexpr,
    BLOCK: tl.constexpr,
    REQS_AT_ONCE: tl.constexpr,
):
    """Rows of one request, in order; the last program fills what is left with padding."""
    req = tl.program_id(0)
    old_first = tl.load(row_start + req)  # of the level before, that nobody else asks for
    first = 0
    for begin in range(0, req, REQS_AT_ONCE):
        other = begin + tl.arange(0, REQS_AT_ONCE)
        first += tl.sum(tl.load(count + other, mask=other < req, other=0))
    tl.store(row_start + req, first)
    place = tl.arange(0, BLOCK)
    if req == num_reqs:
        for begin in range(first, num_rows, BLOCK):
            at = begin + place
            is_padding = at < num_rows
            tl.store(req_of + at, 0, mask=is_padding)
            tl.store(token + at, 0, mask=is_padding)
            tl.store(position + at, 0, mask=is_padding)
            tl.store(slot_position + at, 0, mask=is_padding)
            tl.store(source + at, 0, mask=is_padding)
            for word in tl.static_range(WORDS):
                tl.store(mask + at * WORDS + word, 0, mask=is_padding)
        return
    own_level = tl.load(level)
    num_own = tl.load(count + req)
    is_place = place < WIDTH
    is_row = place < num_own
    at = first + place
    column = tl.load(candidate + req * WIDTH + place, mask=is_row, other=0)
    tl.store(prob + req * WIDTH + place, 0.0, mask=is_place & (place >= num_own))
    tl.store(row + req * WIDTH + place, tl.minimum(at, num_rows - 1), mask=is_place)

    own_prefix, own_used = tl.load(prefix_len + req), tl.load(used + req)
    slot = own_used + place
    above = old_first + column % COLUMNS // CHILDREN
    above = tl.minimum(above, mask_rows - 1)
    tl.store(req_of + at, req, mask=is_row)
    own_token = tl.load(cand_token + req * stride + column, mask=is_row, other=0)
    tl.store(token + at, own_token, mask=is_row)
    tl.store(position + at, own_prefix + own_level + tl.zeros_like(place), mask=is_row)
    tl.store(slot_position + at, own_prefix + slot, mask=is_row)
    tl.store(source + at, above, mask=is_row)
    for word in tl.static_range(WORDS):
        seen = tl.load(old_mask + above * WORDS + word, mask=is_row, other=0)
        bit = tl.where(slot // WORD_BITS == word, 1 << (slot % WORD_BITS).to(tl.int32), 0)
        tl.store(mask + at * WORDS + word, seen | bit, mask=is_row)

    now_used = own_used + num_own
    tl.store(used + req, now_used)
    tl.store(tail_lens + req, now_used.to(tl.int32))
    length = own_prefix + now_used - tl.load(window_start + req)
    tl.store(seq_lens + req, length.to(tl.int32))

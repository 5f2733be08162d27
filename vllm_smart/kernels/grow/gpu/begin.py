"""How a step's growth begins on the device: what the host could not know, and trees of roots alone.

A launch each. No synchronisation; capturable.
"""

import torch
import triton
import triton.language as tl

from vllm_smart.kernels.grow.device import DeviceCandidates, DeviceDraftSlots, Frontier

_REQS_AT_ONCE = 128  # that are settled by one program
_COLUMNS_AT_ONCE = 256  # that are forgotten


def settle(
    num_rejected: torch.Tensor,
    temperature_of: torch.Tensor,
    req: torch.Tensor,
    slot: torch.Tensor,
    emits: torch.Tensor,
    end: torch.Tensor,
    useful_depth: torch.Tensor,
    prefix_end: torch.Tensor,
    temperature: torch.Tensor,
    reads_bonus: bool,
    max_len: int,
) -> None:
    """Complete what the host has said of requests that draft, as if nothing would be rejected.

    Args:
        num_rejected: [num_reqs of the step] int32 nodes that the walk did not take.
        temperature_of: [max_num_reqs] float32 by slot.
        req: [num_reqs] int64 batch indices.
        slot: [num_reqs] int64 request-state slots.
        emits: [num_reqs] int64, 1 if a request has a root.
        end: [num_reqs] int64, changed: position after the last one that stands.
        useful_depth: [num_reqs] int64, changed: deeper nodes are wasted.
        prefix_end: [num_reqs] int64, written: position after the last one that the drafter has read.
        temperature: [num_reqs] float32, written.
        reads_bonus: whether the drafter reads the bonus token, too.
        max_len: no position reaches it.
    """
    num_reqs = len(req)
    _settle[(triton.cdiv(num_reqs, _REQS_AT_ONCE),)](
        num_rejected,
        temperature_of,
        req,
        slot,
        emits,
        end,
        useful_depth,
        prefix_end,
        temperature,
        num_reqs,
        max_len,
        READS_BONUS=reads_bonus,
        BLOCK=_REQS_AT_ONCE,
        num_warps=1,
    )


def begin_growth(
    candidates: DeviceCandidates,
    slots: DeviceDraftSlots,
    level: torch.Tensor,
    prefix_len: torch.Tensor,
    window_start: torch.Tensor,
    emits: torch.Tensor,
    useful_depth: torch.Tensor,
    max_len: int,
    most_slots: int,
) -> tuple[Frontier, torch.Tensor]:
    """Forget the candidates of the step before; roots are to be expanded, and no slot is taken.

    Args:
        candidates: of the batch, which has none then.
        slots: of the batch; the forward before has one row per request, its root's.
        level: [1] int64, becomes 0.
        prefix_len: [num_reqs] int64 position after the drafter's prefix.
        window_start: [num_reqs] int64 first position of the prefix that the drafter sees.
        emits: [num_reqs] int64, 0 for requests without a root.
        useful_depth: [num_reqs] int64, deeper nodes are wasted.
        max_len: no position reaches it.
        most_slots: of each request.

    Returns:
        The roots of those that grow, and [num_reqs, 1] int64 the row of each in the forward before.
    """
    num_reqs, num_columns = candidates.path_prob.shape
    root = torch.empty(num_reqs, 1, dtype=torch.int64, device=level.device)
    row, grows = torch.empty_like(root), torch.empty_like(root, dtype=torch.float32)
    assert candidates.path_prob.stride() == candidates.draft_prob.stride()
    assert candidates.source.stride() == candidates.path_prob.stride()
    assert slots.mask.is_contiguous()
    _begin[(num_reqs,)](
        candidates.path_prob,
        candidates.draft_prob,
        candidates.source,
        candidates.path_prob.stride(0),
        level,
        prefix_len,
        window_start,
        emits,
        useful_depth,
        max_len,
        most_slots,
        slots.prefix_len,
        slots.window_start,
        slots.capacity,
        slots.used,
        slots.row_start,
        slots.mask,
        root,
        grows,
        row,
        NUM_COLUMNS=num_columns,
        WORDS=slots.mask.shape[1],
        BLOCK=_COLUMNS_AT_ONCE,
        num_warps=1,
    )
    return Frontier(root, grows), row


# Arrays of the host arrive anywhere; compiling for each alignment takes seconds.
@triton.jit(
    do_not_specialize=["num_reqs", "max_len"],
    do_not_specialize_on_alignment=[
        *("req_of", "slot_of", "emits", "end", "useful_depth", "prefix_end", "temperature"),
    ],
)
def _settle(
    num_rejected,
    temperature_of,
    req_of,
    slot_of,
    emits,
    end,
    useful_depth,
    prefix_end,
    temperature,
    num_reqs,
    max_len,
    READS_BONUS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_req = at < num_reqs
    rejected = tl.load(num_rejected + tl.load(req_of + at, mask=is_req, other=0), mask=is_req, other=0)
    stands = tl.load(end + at, mask=is_req, other=0) - rejected
    depth = tl.load(useful_depth + at, mask=is_req, other=0) + rejected
    read_to = stands
    if READS_BONUS:
        read_to += tl.load(emits + at, mask=is_req, other=0)
    slot = tl.load(slot_of + at, mask=is_req, other=0)
    tl.store(end + at, stands, mask=is_req)
    tl.store(useful_depth + at, depth, mask=is_req)
    tl.store(prefix_end + at, tl.minimum(read_to, max_len), mask=is_req)
    tl.store(temperature + at, tl.load(temperature_of + slot, mask=is_req), mask=is_req)


@triton.jit(do_not_specialize=["stride", "max_len", "most_slots"])
def _begin(
    path_prob,
    draft_prob,
    source,
    stride: tl.int64,
    level,
    prefix_len,
    window_start,
    emits,
    useful_depth,
    max_len,
    most_slots,
    own_prefix_len,
    own_window_start,
    capacity,
    used,
    row_start,
    mask,
    root,
    grows,
    row,
    NUM_COLUMNS: tl.constexpr,
    WORDS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A request whose tree is a root alone, with no slot taken."""
    req = tl.program_id(0)
    for begin in range(0, NUM_COLUMNS, BLOCK):
        column = begin + tl.arange(0, BLOCK)
        tl.store(path_prob + req * stride + column, 0.0, mask=column < NUM_COLUMNS)
        tl.store(draft_prob + req * stride + column, 0.0, mask=column < NUM_COLUMNS)
        tl.store(source + req * stride + column, -1, mask=column < NUM_COLUMNS)
    length = tl.load(prefix_len + req)
    tl.store(own_prefix_len + req, length)
    tl.store(own_window_start + req, tl.load(window_start + req))
    tl.store(capacity + req, tl.minimum(max_len - length, most_slots))
    tl.store(used + req, 0)
    tl.store(row_start + req, req)
    for word in tl.static_range(WORDS):
        tl.store(mask + req * WORDS + word, 0)
    tl.store(root + req, -1)
    does_grow = (tl.load(emits + req) > 0) & (tl.load(useful_depth + req) > 0)
    tl.store(grows + req, does_grow.to(tl.float32))
    tl.store(row + req, req)
    if req == 0:
        tl.store(level, 0)
        tl.store(row_start + tl.num_programs(0), tl.num_programs(0))

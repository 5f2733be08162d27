"""A step's rows of drafts shared out over its requests in three launches. No synchronisation."""

import torch
import triton
import triton.language as tl

from vllm_smart.kernels.count_best.gpu import count_best
from vllm_smart.kernels.share_rows import LEAST_VALUE

_REQS_AT_ONCE = 1024


def share_out(value: torch.Tensor, slot: torch.Tensor, room: torch.Tensor, total: int) -> torch.Tensor:
    """How many draft nodes of each request are verified, `total` together.

    The best of the batch; if there are too few, inert ones.

    Args:
        value: [num_slots, max_nodes] float32 what each node is worth, never increasing from the first
            draft on, 0 beyond a tree; roots first, whose values are not read.
        slot: [num_reqs] int64.
        room: [num_reqs] int32 most of each request, less than max_nodes, at least `total` together.
        total: at least 1.

    Returns:
        [num_reqs] int32.
    """
    num_reqs, max_nodes = len(slot), value.shape[1]
    assert value.is_contiguous()
    own = torch.empty(num_reqs, max_nodes - 1, dtype=torch.float32, device=value.device)
    _fill_room[(num_reqs,)](
        value,
        slot,
        room,
        own,
        LEAST_VALUE,
        MAX_NODES=max_nodes,
        BLOCK=triton.next_power_of_2(max_nodes),
        num_warps=1,
    )
    return count_best(own, total)


def row_starts(counts: torch.Tensor, fixed: torch.Tensor, query_start: torch.Tensor) -> torch.Tensor:
    """First logits row of each request; first query rows are written to `query_start`.

    Args:
        counts: [num_reqs] int32 draft nodes.
        fixed: [num_reqs] int32 other rows, roots included.
        query_start: [> num_reqs] int32, written; beyond the batch it is the number of rows.

    Returns:
        [num_reqs + 1] int32, a request's root and its draft nodes.
    """
    num_reqs = len(counts)
    logits_start = counts.new_empty(num_reqs + 1)
    _starts[(1,)](
        counts,
        fixed,
        query_start,
        logits_start,
        num_reqs,
        len(query_start),
        BLOCK=_REQS_AT_ONCE,
        num_warps=4,
    )
    return logits_start


# Arrays of the host arrive anywhere; compiling for each alignment takes seconds.
@triton.jit(do_not_specialize=["least"], do_not_specialize_on_alignment=["slot", "room"])
def _fill_room(
    value,
    slot,
    room,
    own,
    least: tl.float32,
    MAX_NODES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    req, node = tl.program_id(0), tl.arange(0, BLOCK)
    is_draft = (node > 0) & (node < MAX_NODES)
    worth = tl.load(value + tl.load(slot + req) * MAX_NODES + node, mask=is_draft, other=0.0)
    worth = tl.where(node <= tl.load(room + req), tl.maximum(worth, least), 0.0)
    tl.store(own + req * (MAX_NODES - 1) + node - 1, worth, mask=is_draft)


@triton.jit(
    do_not_specialize=["num_reqs", "num_query_starts"],
    do_not_specialize_on_alignment=["counts", "fixed"],
)
def _starts(
    counts,
    fixed,
    query_start,
    logits_start,
    num_reqs,
    num_query_starts,
    BLOCK: tl.constexpr,
):
    tl.store(query_start, 0)
    tl.store(logits_start, 0)
    num_rows, num_logits = 0, 0
    for begin in range(0, num_reqs, BLOCK):
        req = begin + tl.arange(0, BLOCK)
        is_req = req < num_reqs
        count = tl.load(counts + req, mask=is_req, other=0)
        rows = count + tl.load(fixed + req, mask=is_req, other=0)
        nodes = count + is_req.to(tl.int32)
        tl.store(query_start + 1 + req, num_rows + tl.cumsum(rows, axis=0), mask=is_req)
        tl.store(logits_start + 1 + req, num_logits + tl.cumsum(nodes, axis=0), mask=is_req)
        num_rows += tl.sum(rows)
        num_logits += tl.sum(nodes)
    for begin in range(num_reqs + 1, num_query_starts, BLOCK):
        beyond = begin + tl.arange(0, BLOCK)
        tl.store(query_start + beyond, num_rows, mask=beyond < num_query_starts)

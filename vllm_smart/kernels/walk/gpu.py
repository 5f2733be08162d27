"""The walk through draft trees on the device: one launch, no synchronisation.

The same walk as `vllm_smart.tree.walk`, over samples as the target returns them: one row per node,
requests in batch order.
"""

import torch
import triton
import triton.language as tl


def walk_trees(
    parent: torch.Tensor,
    token: torch.Tensor,
    row_start: torch.Tensor,
    sampled: torch.Tensor,
    path: torch.Tensor,
    num_accepted: torch.Tensor,
    emitted: torch.Tensor,
) -> None:
    """Follow the target's samples from each root; see `vllm_smart.tree.walk` for why it is exact.

    Siblings carry distinct tokens, or tokens that no sample equals.

    Args:
        parent: [num_reqs, max_nodes] int32, -1 at roots.
        token: [num_reqs, max_nodes] int64, the nodes' own tokens; the roots' are not read.
        row_start: [num_reqs + 1] int32, first row of each request in `sampled`; the difference is
            its number of nodes, the root included, and 0 for a request that is only padding.
        sampled: [num_rows] int64, the target's token after each node.
        path: [num_reqs, max_nodes] int32, written: nodes visited, root first, -1 beyond.
        num_accepted: [num_reqs] int32, written: draft nodes visited.
        emitted: [num_reqs, max_nodes] int64, written: `sampled` along the path, -1 beyond.
    """
    num_reqs, max_nodes = parent.shape
    for name, tensor in (("token", token), ("path", path), ("emitted", emitted)):
        assert tensor.shape[1] >= max_nodes, f"{name} has a column for each node"
    assert parent.stride(1) == token.stride(1) == path.stride(1) == emitted.stride(1) == 1
    _walk[(num_reqs,)](
        parent,
        token,
        row_start,
        sampled,
        path,
        num_accepted,
        emitted,
        parent.stride(0),
        token.stride(0),
        path.stride(0),
        emitted.stride(0),
        max_nodes,
        BLOCK=triton.next_power_of_2(max_nodes),
        num_warps=1,
    )


# Trees differ in width from step to step; compiling for each takes seconds.
@triton.jit(
    do_not_specialize=["parent_stride", "token_stride", "path_stride", "emitted_stride", "max_nodes"]
)
def _walk(
    parent,
    token,
    row_start,
    sampled,
    path,
    num_accepted,
    emitted,
    parent_stride: tl.int64,
    token_stride: tl.int64,
    path_stride: tl.int64,
    emitted_stride: tl.int64,
    max_nodes,
    BLOCK: tl.constexpr,
):
    req = tl.program_id(0)
    first = tl.load(row_start + req)
    num_nodes = tl.load(row_start + req + 1) - first
    node = tl.arange(0, BLOCK)
    is_draft = (node > 0) & (node < num_nodes)
    above = tl.load(parent + req * parent_stride + node, mask=is_draft, other=0)
    own = tl.load(token + req * token_stride + node, mask=is_draft, other=0)
    wanted = tl.load(sampled + first + above, mask=is_draft, other=0)
    # [BLOCK] the node whose sample each taken draft is, -1 for drafts that are not taken
    taken_after = tl.where(is_draft & (own == wanted), above, -1)

    is_column = node < max_nodes
    tl.store(path + req * path_stride + node, tl.full([BLOCK], -1, tl.int32), mask=is_column)
    tl.store(emitted + req * emitted_stride + node, tl.full([BLOCK], -1, tl.int64), mask=is_column)
    # Single elements are stored below, by other threads than the rows above.
    tl.debug_barrier()
    visited = tl.where(num_nodes > 0, 0, BLOCK)
    length = 0
    while visited < BLOCK:
        tl.store(path + req * path_stride + length, visited)
        tl.store(emitted + req * emitted_stride + length, tl.load(sampled + first + visited))
        length += 1
        visited = tl.min(tl.where(taken_after == visited, node, BLOCK), 0)
    tl.store(num_accepted + req, tl.maximum(length - 1, 0))

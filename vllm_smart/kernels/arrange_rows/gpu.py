"""Rows of a step arranged as trees, on the device: one launch, no synchronisation.

The trees lie by request-state slot; how many nodes of each are verified, and where their rows are, is
told by the batch.
"""

import torch
import triton
import triton.language as tl

from vllm_smart.kernels.plant import KeptTrees


def arrange_trees(
    slot: torch.Tensor,
    row_start: torch.Tensor,
    query_start: torch.Tensor,
    trees: KeptTrees,
    sequential: torch.Tensor,
    positions: torch.Tensor,
    row_mask: torch.Tensor,
    tail_lens: torch.Tensor,
    node_position: torch.Tensor,
    node_depth: torch.Tensor,
    root_position: torch.Tensor,
    parent: torch.Tensor,
    token: torch.Tensor,
) -> None:
    """Positions by depth instead of by row, masks, and what sampling, walk and compaction ask for.

    A request's nodes are its last rows, its root before its drafts.

    Args:
        slot: [num_reqs] int64 request-state slots.
        row_start: [num_reqs + 1] int32 first node of each request among all nodes, then their number.
        query_start: [num_reqs + 1] int32 first query row of each request, then their number.
        trees: of all slots.
        sequential: [num_rows] int64 positions, as KV slots are named by them.
        positions: [num_rows] or [dimensions, num_rows] int64, changed at rows of nodes.
        row_mask: [>= num_rows, words] int32, written at rows of nodes.
        tail_lens: [>= num_reqs] int32, written: nodes of each request that has drafts, 0 elsewhere.
        node_position: [num_nodes] int64, written: root position plus depth.
        node_depth: [num_nodes] int32, written.
        root_position: [num_reqs] int64, written.
        parent: [num_reqs, max_nodes] int32, written.
        token: [num_reqs, max_nodes] int64, written.
    """
    num_reqs, (_, max_nodes, words) = len(slot), trees.mask.shape
    for tensor in (*vars(trees).values(), parent, token):
        assert tensor.is_contiguous()
    assert parent.shape == token.shape == (num_reqs, max_nodes)
    assert row_mask.shape[1] == words
    by_dimension = positions.view(-1, positions.shape[-1]) if positions.dim() == 1 else positions
    assert by_dimension.stride(1) == row_mask.stride(1) == 1
    _arrange[(len(tail_lens),)](
        slot,
        row_start,
        query_start,
        trees.depth,
        trees.mask,
        trees.parent,
        trees.token,
        sequential,
        by_dimension,
        by_dimension.stride(0),
        row_mask,
        row_mask.stride(0),
        tail_lens,
        node_position,
        node_depth,
        root_position,
        parent,
        token,
        num_reqs,
        MAX_NODES=max_nodes,
        WORDS=words,
        DIMENSIONS=len(by_dimension),
        BLOCK=triton.next_power_of_2(max_nodes),
        num_warps=1,
    )


@triton.jit(do_not_specialize=["num_reqs", "positions_stride"])
def _arrange(
    slot,
    row_start,
    query_start,
    depth,
    mask,
    kept_parent,
    kept_token,
    sequential,
    positions,
    positions_stride: tl.int64,
    row_mask,
    row_mask_stride: tl.int64,
    tail_lens,
    node_position,
    node_depth,
    root_position,
    parent,
    token,
    num_reqs,
    MAX_NODES: tl.constexpr,
    WORDS: tl.constexpr,
    DIMENSIONS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    req = tl.program_id(0)
    if req >= num_reqs:
        tl.store(tail_lens + req, 0)
        return
    first = tl.load(row_start + req)
    num_nodes = tl.load(row_start + req + 1) - first
    root_row = tl.load(query_start + req + 1) - num_nodes
    of_slot = tl.load(slot + req) * MAX_NODES
    node = tl.arange(0, BLOCK)
    is_node = node < num_nodes
    own_depth = tl.load(depth + of_slot + node, mask=is_node, other=0)
    shift = (own_depth - node).to(tl.int64)
    root = tl.load(sequential + root_row)
    for dimension in tl.static_range(DIMENSIONS):
        at = positions + dimension * positions_stride + root_row + node
        tl.store(at, tl.load(at, mask=is_node, other=0) + shift, mask=is_node)
    for word in tl.static_range(WORDS):
        bits = tl.load(mask + (of_slot + node) * WORDS + word, mask=is_node, other=0)
        tl.store(row_mask + (root_row + node) * row_mask_stride + word, bits, mask=is_node)
    tl.store(node_position + first + node, root + own_depth, mask=is_node)
    tl.store(node_depth + first + node, own_depth, mask=is_node)
    tl.store(root_position + req, root)
    is_room = node < MAX_NODES
    at = req * MAX_NODES + node
    tl.store(parent + at, tl.load(kept_parent + of_slot + node, mask=is_room), mask=is_room)
    tl.store(token + at, tl.load(kept_token + of_slot + node, mask=is_room), mask=is_room)
    tl.store(tail_lens + req, tl.where(num_nodes > 1, num_nodes, 0))

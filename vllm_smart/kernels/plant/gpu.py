"""The trees of candidates, written where the next step finds them, and all of it for the host.

A launch each, where plain torch takes some fifty. No synchronisation; capturable.
"""

import torch
import triton
import triton.language as tl

from vllm_smart.kernels.choose.device import OrderedCandidates
from vllm_smart.kernels.grow.device import DeviceCandidates
from vllm_smart.kernels.plant import KeptTrees
from vllm_smart.kernels.tree_attention import MASK_WORD_BITS

_COLUMNS_AT_ONCE = 256  # of a request, reported by one program


def plant_trees(
    candidates: DeviceCandidates,
    ordered: OrderedCandidates,
    chosen: torch.Tensor,
    weight: torch.Tensor,
    slot: torch.Tensor,
    kept: KeptTrees,
    ints: torch.Tensor,
    floats: torch.Tensor,
) -> None:
    """Write trees to their slots, and for the host.

    Args:
        candidates: of the batch.
        ordered: the best of them, of which all that may be verified are written.
        chosen: [num_reqs] int32 how many draft nodes of each the policy would verify.
        weight: [num_reqs] float32 what a token of each is worth.
        slot: [num_reqs] int64 in `kept`.
        kept: written at the slots.
        ints: [>= num_reqs, 4 * max_nodes + 1] int32, written: token, parent, depth and rank of each
            node, then how many were chosen, roots included.
        floats: [>= num_reqs, 2 * max_nodes] float32, written: path_prob and draft_prob of each node.
    """
    num_reqs, budget = ordered.order.shape
    _, max_nodes, words = kept.mask.shape
    for tensor in (*vars(kept).values(), ordered.order, ordered.path_prob, ints, floats):
        assert tensor.is_contiguous()
    assert ints.shape[1] == 4 * max_nodes + 1
    assert floats.shape[1] == 2 * max_nodes
    _plant[(num_reqs,)](
        candidates.token,
        candidates.parent,
        candidates.depth,
        candidates.rank,
        candidates.draft_prob,
        candidates.token.stride(0),
        ordered.order,
        ordered.path_prob,
        ordered.num_available,
        chosen,
        weight,
        slot,
        kept.token,
        kept.parent,
        kept.depth,
        kept.mask,
        kept.value,
        ints,
        floats,
        BUDGET=budget,
        MAX_NODES=max_nodes,
        DEPTH=candidates.num_levels,
        WORDS=words,
        WORD_BITS=MASK_WORD_BITS,
        BLOCK=triton.next_power_of_2(max_nodes),
        num_warps=4,
    )


def report_candidates(candidates: DeviceCandidates, ints: torch.Tensor, floats: torch.Tensor) -> None:
    """Write all candidates for the host.

    Args:
        candidates: of the batch.
        ints: [>= num_reqs, 5 * num_columns] int32, written: token, parent, depth, rank and source
            of each.
        floats: [>= num_reqs, 2 * num_columns] float32, written: draft_prob and path_prob of each.
    """
    num_reqs, num_columns = candidates.token.shape
    assert ints.is_contiguous()
    assert floats.is_contiguous()
    assert (ints.shape[1], floats.shape[1]) == (5 * num_columns, 2 * num_columns)
    _report[(num_reqs, triton.cdiv(num_columns, _COLUMNS_AT_ONCE))](
        candidates.token,
        candidates.parent,
        candidates.depth,
        candidates.rank,
        candidates.source,
        candidates.draft_prob,
        candidates.path_prob,
        candidates.token.stride(0),
        ints,
        floats,
        num_columns,
        BLOCK=_COLUMNS_AT_ONCE,
        num_warps=4,
    )


@triton.jit(do_not_specialize=["stride", "num_columns"])
def _report(
    token,
    parent,
    depth,
    rank,
    source,
    draft_prob,
    path_prob,
    stride: tl.int64,
    ints,
    floats,
    num_columns,
    BLOCK: tl.constexpr,
):
    req, column = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_column = column < num_columns
    at = req * stride + column
    to = ints + req * 5 * num_columns + column
    tl.store(to, tl.load(token + at, mask=is_column).to(tl.int32), mask=is_column)
    tl.store(to + num_columns, tl.load(parent + at, mask=is_column).to(tl.int32), mask=is_column)
    tl.store(to + 2 * num_columns, tl.load(depth + at, mask=is_column), mask=is_column)
    tl.store(to + 3 * num_columns, tl.load(rank + at, mask=is_column), mask=is_column)
    tl.store(to + 4 * num_columns, tl.load(source + at, mask=is_column), mask=is_column)
    to_float = floats + req * 2 * num_columns + column
    tl.store(to_float, tl.load(draft_prob + at, mask=is_column), mask=is_column)
    tl.store(to_float + num_columns, tl.load(path_prob + at, mask=is_column), mask=is_column)


@triton.jit(do_not_specialize=["stride"])
def _plant(
    cand_token,
    cand_parent,
    cand_depth,
    cand_rank,
    cand_draft_prob,
    stride: tl.int64,
    order,
    order_prob,
    num_available,
    num_chosen,
    weight,
    slot_of,
    kept_token,
    kept_parent,
    kept_depth,
    kept_mask,
    kept_value,
    ints,
    floats,
    BUDGET: tl.constexpr,
    MAX_NODES: tl.constexpr,
    DEPTH: tl.constexpr,
    WORDS: tl.constexpr,
    WORD_BITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    req = tl.program_id(0)
    node = tl.arange(0, BLOCK)
    is_room = node < MAX_NODES
    is_root = node == 0
    is_draft = (node > 0) & (node <= tl.minimum(tl.load(num_available + req), BUDGET))
    at = req * BUDGET + node - 1
    column = tl.load(order + at, mask=is_draft, other=-1)
    from_cand = req * stride + column
    token = tl.load(cand_token + from_cand, mask=is_draft, other=-1)
    above = tl.load(cand_parent + from_cand, mask=is_draft, other=-1)
    # A parent's place in its tree; candidates of the first level, roots and inert ones match nobody.
    is_parent = (column[None, :] == above[:, None]) & is_draft[None, :]
    parent = tl.sum(tl.where(is_parent, node[None, :], 0), axis=1)
    stored_parent = tl.where(is_root, -1, parent).to(tl.int32)
    depth = tl.load(cand_depth + from_cand, mask=is_draft, other=0)
    rank = tl.load(cand_rank + from_cand, mask=is_draft, other=0)
    prob = tl.load(order_prob + at, mask=is_draft, other=0.0)
    prob = tl.where(is_root, 1.0, prob)
    drafted = tl.load(cand_draft_prob + from_cand, mask=is_draft, other=0.0)
    drafted = tl.where(is_root, 1.0, drafted)

    kept = tl.load(slot_of + req) * MAX_NODES + node
    tl.store(kept_token + kept, token, mask=is_room)
    tl.store(kept_parent + kept, stored_parent, mask=is_room)
    tl.store(kept_depth + kept, depth, mask=is_room)
    tl.store(kept_value + kept, prob * tl.load(weight + req), mask=is_room)
    first = ints + req * (4 * MAX_NODES + 1)
    tl.store(first + node, token.to(tl.int32), mask=is_room)
    tl.store(first + MAX_NODES + node, stored_parent, mask=is_room)
    tl.store(first + 2 * MAX_NODES + node, depth, mask=is_room)
    tl.store(first + 3 * MAX_NODES + node, rank, mask=is_room)
    tl.store(first + 4 * MAX_NODES, tl.load(num_chosen + req) + 1)
    first_float = floats + req * 2 * MAX_NODES
    tl.store(first_float + node, prob, mask=is_room)
    tl.store(first_float + MAX_NODES + node, drafted, mask=is_room)

    above_kept = tl.load(slot_of + req) * MAX_NODES + parent
    for word in tl.static_range(WORDS):
        bit = tl.where(node // WORD_BITS == word, 1 << (node % WORD_BITS), 0)
        own = bit | (1 if word == 0 else 0)  # the root is everybody's ancestor
        seen = own
        tl.store(kept_mask + kept * WORDS + word, seen, mask=is_room)
        for _ in range(1, DEPTH):
            # Ancestors of a parent are known to one more generation; stored by other threads.
            tl.debug_barrier()
            seen = own | tl.load(kept_mask + above_kept * WORDS + word, mask=is_room, other=0)
            tl.debug_barrier()
            tl.store(kept_mask + kept * WORDS + word, seen, mask=is_room)

"""Tree attention over a paged KV cache in the layout of vLLM's CUDA backends.

One program per tile of rows, KV head and split of the keys. Rows of a tile are nodes times the
query heads that share the KV head, so that one load of keys serves a whole tree. Keys before the
tree are attended without a mask, those of the tree under ancestor bits. Everything that differs
from step to step lies on the device, so that a captured launch replays with other trees.
"""

import math

import torch
import triton
import triton.language as tl

from vllm_smart.kernels.tree_attention import MASK_WORD_BITS, PagedTreeBatch
from vllm_smart.kernels.tree_attention.gpu.online_softmax import accumulate, load_keys, scores

_WORD_BITS = tl.constexpr(MASK_WORD_BITS)
_LOG2_E = math.log2(math.e)
_MAX_SPLITS = 16
_LEAST_KEYS_PER_SPLIT = 256  # shorter ones cost more in the reduction than they save


def num_splits_for(
    num_reqs: int, num_kv_heads: int, max_query_len: int, group: int, max_seq_len: int, num_sms: int
) -> int:
    """How many programs should share a sequence so that the device is busy: a power of two.

    Args:
        num_reqs, max_query_len: rows of the batch are at most their product.
        group: query heads per KV head.
        max_seq_len: most keys of a request; an upper bound will do.
        num_sms: multiprocessors of the device.
    """
    tiles = num_reqs * num_kv_heads * -(-max_query_len * group // _block_m(max_query_len * group))
    wanted = min(2 * num_sms // tiles, max_seq_len // _LEAST_KEYS_PER_SPLIT, _MAX_SPLITS)
    return 1 << (max(wanted, 1).bit_length() - 1)


def tree_attention(
    query: torch.Tensor,
    kv_cache: torch.Tensor,
    output: torch.Tensor,
    batch: PagedTreeBatch,
    scale: float,
    softcap: float = 0.0,
) -> None:
    """Attend the rows of `batch`; write their rows of `output` and no others. Does not synchronise.

    Args:
        query: [num_rows, num_heads, head_size]; heads contiguous, rows may be strided.
        kv_cache: [num_blocks, num_kv_heads, block_size, 2 * head_size], a slot's keys before its
            values; any strides but a contiguous last dimension, and the dtype of `query`.
        output: [num_rows, num_heads, head_size], written in place.
        scale: factor on the scores.
        softcap: if positive, scores become `softcap * tanh(score / softcap)`.
    """
    assert kv_cache.dtype == query.dtype, "a quantised cache has no kernel"
    assert query.stride(-1) == kv_cache.stride(-1) == output.stride(-1) == 1, "contiguous heads"
    num_heads, head_size = query.shape[1:]
    num_kv_heads, block_size = kv_cache.shape[1:3]
    group, splits = num_heads // num_kv_heads, batch.num_splits
    padded = max(16, triton.next_power_of_2(head_size))
    is_float32, wide = query.dtype == torch.float32, padded > 128
    # The tensor cores do not serve exact float32, whose products would not fit the registers.
    block_m = 16 if is_float32 else _block_m(batch.max_query_len * group)
    tiles = triton.cdiv(batch.max_query_len * group, block_m)
    num_reqs = len(batch.seq_lens)
    partial, lse = output, output
    if splits > 1:
        partial = query.new_empty(len(query), num_heads, splits, head_size, dtype=torch.float32)
        lse = query.new_empty(len(query), num_heads, splits, dtype=torch.float32)
    _attend[(num_reqs * tiles, num_kv_heads, splits)](
        query,
        kv_cache,
        output,
        partial,
        lse,
        batch.block_table,
        batch.query_start_loc,
        batch.seq_lens,
        batch.tail_lens,
        batch.ancestor_mask,
        scale / softcap if softcap > 0 else scale * _LOG2_E,
        softcap * _LOG2_E,
        *query.stride()[:2],
        *kv_cache.stride()[:3],
        *output.stride()[:2],
        batch.block_table.stride(0),
        batch.ancestor_mask.stride(0),
        tiles,
        num_heads,
        splits,
        GROUP=group,
        HEAD_SIZE=head_size,
        PADDED_HEAD_SIZE=padded,
        BLOCK_SIZE=block_size,
        BLOCK_M=block_m,
        BLOCK_N=32 if is_float32 or wide else 64,
        IS_SPLIT=splits > 1,
        SOFTCAP=softcap > 0,
        PRECISION="ieee" if is_float32 else "tf32",
        num_warps=8 if wide else 4,
        num_stages=2 if wide or block_m == 64 else 3,  # what the registers of an SM90 hold
    )
    if splits > 1:
        _reduce[(len(query), num_heads)](
            partial,
            lse,
            output,
            batch.query_start_loc,
            num_reqs,
            *output.stride()[:2],
            num_heads,
            splits,
            HEAD_SIZE=head_size,
            PADDED_HEAD_SIZE=padded,
            MAX_SPLITS=_MAX_SPLITS,
            num_warps=4,
        )


def _block_m(num_tile_rows: int) -> int:
    """Rows of a tile: as many as there are, within what the tensor cores and registers take."""
    return int(min(64, max(16, triton.next_power_of_2(num_tile_rows))))


# What varies from step to step must not be compiled into the kernel: compiling takes seconds.
@triton.jit(do_not_specialize=["block_table_stride", "mask_row_stride", "num_tiles", "num_splits"])
def _attend(
    query,
    kv_cache,
    output,
    partial,
    lse,
    block_table,
    query_start_loc,
    seq_lens,
    tail_lens,
    ancestor_mask,
    score_scale,
    score_cap,
    query_row_stride: tl.int64,
    query_head_stride: tl.int64,
    cache_block_stride: tl.int64,
    cache_head_stride: tl.int64,
    cache_slot_stride: tl.int64,
    output_row_stride: tl.int64,
    output_head_stride: tl.int64,
    block_table_stride: tl.int64,
    mask_row_stride,
    num_tiles,
    num_heads,
    num_splits,
    GROUP: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    PADDED_HEAD_SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    IS_SPLIT: tl.constexpr,
    SOFTCAP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    req = tl.program_id(0) // num_tiles
    first = tl.program_id(0) % num_tiles * BLOCK_M
    kv_head, split = tl.program_id(1), tl.program_id(2)
    start = tl.load(query_start_loc + req)
    num_rows = tl.load(query_start_loc + req + 1) - start
    if first >= num_rows * GROUP:
        return

    seq_len = tl.load(seq_lens + req)
    tail_len = tl.load(tail_lens + req)
    causal = tail_len == 0
    context = seq_len - tl.where(causal, num_rows, tail_len)

    at = first + tl.arange(0, BLOCK_M)
    node = at // GROUP
    head = kv_head * GROUP + at % GROUP
    is_row = node < num_rows
    row = (start + node).to(tl.int64)
    dim = tl.arange(0, PADDED_HEAD_SIZE)
    is_dim = dim < HEAD_SIZE
    inside = is_row[:, None] & is_dim[None, :]
    q = tl.load(
        query + row[:, None] * query_row_stride + head[:, None] * query_head_stride + dim[None, :],
        mask=inside,
        other=0.0,
    )

    best = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, PADDED_HEAD_SIZE], tl.float32)
    # A causal tile needs no keys after its last row's own.
    last_node = tl.minimum((first + BLOCK_M - 1) // GROUP, num_rows - 1)
    num_keys = tl.where(causal, context + last_node + 1, seq_len)
    num_blocks = tl.cdiv(num_keys, BLOCK_N)
    per_split = tl.cdiv(num_blocks, num_splits)
    begin = tl.minimum(split * per_split, num_blocks)
    end = tl.minimum(begin + per_split, num_blocks)
    masked_from = tl.minimum(tl.maximum(context // BLOCK_N, begin), end)
    cache = kv_cache + kv_head * cache_head_stride
    table = block_table + req * block_table_stride
    # Two loops, so that the first one, over all but the last few keys, can be pipelined.
    for block in range(begin, masked_from):
        k, v = load_keys(
            cache, table, block, num_keys, cache_block_stride, cache_slot_stride,
            HEAD_SIZE, PADDED_HEAD_SIZE, BLOCK_SIZE, BLOCK_N, MASKED=False,
        )  # fmt: skip
        score = scores(q, k, score_scale, score_cap, SOFTCAP, PRECISION)
        best, total, acc = accumulate(best, total, acc, score, v, PRECISION)
    for block in range(masked_from, end):
        k, v = load_keys(
            cache, table, block, num_keys, cache_block_stride, cache_slot_stride,
            HEAD_SIZE, PADDED_HEAD_SIZE, BLOCK_SIZE, BLOCK_N, MASKED=True,
        )  # fmt: skip
        score = scores(q, k, score_scale, score_cap, SOFTCAP, PRECISION)
        key = block * BLOCK_N + tl.arange(0, BLOCK_N)
        slot = tl.maximum(key - context, 0)
        in_tree = (key >= context) & (key < context + tail_len)
        word = tl.load(
            ancestor_mask + (start + node)[:, None] * mask_row_stride + (slot // _WORD_BITS)[None, :],
            mask=is_row[:, None] & in_tree[None, :],
            other=0,
        )
        is_ancestor = ((word >> (slot % _WORD_BITS)[None, :]) & 1) != 0
        # A causal request's rows are its last keys; one with a tree has none after the tree.
        is_before = (slot[None, :] <= node[:, None]) & causal
        visible = (key < context)[None, :] | is_ancestor | is_before
        score = tl.where(visible & (key < num_keys)[None, :], score, float("-inf"))
        best, total, acc = accumulate(best, total, acc, score, v, PRECISION)

    # Nothing seen, in an empty split or by padding: zero, with a weight of 2 ** -inf.
    total = tl.where(total == 0.0, 1.0, total)
    result = acc / total[:, None]
    if not IS_SPLIT:
        target = output + row[:, None] * output_row_stride + head[:, None] * output_head_stride
        tl.store(target + dim[None, :], result.to(output.dtype.element_ty), mask=inside)
    else:
        part = (row * num_heads + head) * num_splits + split
        tl.store(partial + part[:, None] * HEAD_SIZE + dim[None, :], result, mask=inside)
        tl.store(lse + part, best + tl.log2(total), mask=is_row)


@triton.jit(do_not_specialize=["num_reqs", "num_splits"])
def _reduce(
    partial,
    lse,
    output,
    query_start_loc,
    num_reqs,
    output_row_stride: tl.int64,
    output_head_stride: tl.int64,
    num_heads,
    num_splits,
    HEAD_SIZE: tl.constexpr,
    PADDED_HEAD_SIZE: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
):
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    if row >= tl.load(query_start_loc + num_reqs):
        return
    split = tl.arange(0, MAX_SPLITS)
    is_split = split < num_splits
    part = (row * num_heads + head) * num_splits + split
    weight = tl.load(lse + part, mask=is_split, other=float("-inf"))
    weight = tl.exp2(weight - tl.max(weight, 0))
    dim = tl.arange(0, PADDED_HEAD_SIZE)
    is_dim = dim < HEAD_SIZE
    inside = is_split[:, None] & is_dim[None, :]
    parts = tl.load(partial + part[:, None] * HEAD_SIZE + dim[None, :], mask=inside, other=0.0)
    result = tl.sum(parts * weight[:, None], 0) / tl.sum(weight, 0)
    target = output + row * output_row_stride + head * output_head_stride
    tl.store(target + dim, result.to(output.dtype.element_ty), mask=is_dim)

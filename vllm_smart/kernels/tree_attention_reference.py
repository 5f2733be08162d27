"""What tree attention over a paged KV cache means, in plain torch float32.

The cache of one layer is `[num_blocks, num_kv_heads, block_size, 2 * head_size]`, and the inside
of a (block, head) is vLLM's `vec` CPU layout: keys `[head_size, block_size]` (transposed), then
values `[block_size, head_size]`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

MASK_WORD_BITS = 64


@dataclass(frozen=True)
class TreeAttentionBatch:
    """The requests of a batch that attend through a tree.

    The last `tail_lens[r]` tokens of a sequence are its tree slots. A row sees all tokens before
    them, and tree slot `j` iff bit `j` of its mask is set. The row's own bit must be set. Slots of
    the tail must hold finite keys and values, seen or not.

    Attributes:
        requests: [num_tree_reqs] int, the requests to process; the arrays below cover the batch.
        query_start_loc: [num_reqs + 1] int, first row of each request.
        seq_lens: [num_reqs] int, tokens in the cache, the tail included.
        tail_lens: [num_reqs] int, tree slots at the end of the sequence.
        block_table: [num_reqs, max_blocks] int32.
        ancestor_mask: [num_rows, words] uint64, bit `j % 64` of word `j // 64` for tree slot `j`.
    """

    requests: npt.NDArray[np.integer]
    query_start_loc: npt.NDArray[np.integer]
    seq_lens: npt.NDArray[np.integer]
    tail_lens: npt.NDArray[np.integer]
    block_table: npt.NDArray[np.int32]
    ancestor_mask: npt.NDArray[np.uint64]


def split_kv_cache(kv_cache: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Views of one layer's cache.

    Args:
        kv_cache: [num_blocks, num_kv_heads, block_size, 2 * head_size].

    Returns:
        Keys `[num_blocks, num_kv_heads, head_size, block_size]` and values
        `[num_blocks, num_kv_heads, block_size, head_size]`.
    """
    num_blocks, num_kv_heads, block_size, double_head_size = kv_cache.shape
    head_size = double_head_size // 2
    halves = kv_cache.view(num_blocks, num_kv_heads, 2, block_size * head_size)
    keys = halves[:, :, 0].unflatten(-1, (head_size, block_size))
    values = halves[:, :, 1].unflatten(-1, (block_size, head_size))
    return keys, values


def tree_attention_reference(
    query: torch.Tensor,
    kv_cache: torch.Tensor,
    output: torch.Tensor,
    batch: TreeAttentionBatch,
    scale: float,
    softcap: float = 0.0,
) -> None:
    """Attend the rows of `batch.requests`; write their rows of `output` and no others.

    Args:
        query: [num_rows, num_heads, head_size].
        kv_cache: [num_blocks, num_kv_heads, block_size, 2 * head_size].
        output: [num_rows, num_heads, head_size], written in place.
        batch: Which rows see which tokens.
        scale: Factor on the scores.
        softcap: If positive, scores become `softcap * tanh(score / softcap)`.
    """
    group = query.shape[1] // kv_cache.shape[1]
    for rows, keys, values, visible in _requests(kv_cache, batch):
        scores = torch.einsum("nhd,thd->hnt", query[rows].float(), keys.repeat_interleave(group, 1))
        scores *= scale
        if softcap > 0:
            scores = softcap * torch.tanh(scores / softcap)
        probs = scores.masked_fill(~visible, float("-inf")).softmax(-1)
        result = torch.einsum("hnt,thd->nhd", probs, values.repeat_interleave(group, 1))
        output[rows] = result.to(output.dtype)


def _requests(
    kv_cache: torch.Tensor, batch: TreeAttentionBatch
) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Per request: its rows, keys and values [seq_len, num_kv_heads, head_size], visibility."""
    all_keys, all_values = split_kv_cache(kv_cache)
    block_size = kv_cache.shape[2]
    for request in batch.requests.tolist():
        rows = slice(*batch.query_start_loc[request : request + 2].tolist())
        seq_len = int(batch.seq_lens[request])
        blocks = torch.from_numpy(batch.block_table[request, : -(-seq_len // block_size)]).long()
        keys = all_keys[blocks].permute(0, 3, 1, 2).flatten(0, 1)[:seq_len]
        values = all_values[blocks].permute(0, 2, 1, 3).flatten(0, 1)[:seq_len]
        tail_len = int(batch.tail_lens[request])
        visible = np.ones((rows.stop - rows.start, seq_len), dtype=bool)
        visible[:, seq_len - tail_len :] = unpack_mask(batch.ancestor_mask[rows])[:, :tail_len]
        yield rows, keys.float(), values.float(), torch.from_numpy(visible)


def unpack_mask(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """[num_rows, words] mask words -> [num_rows, words * 64] booleans."""
    bits = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=1, bitorder="little")
    return bits.astype(bool)


def pack_mask(visible: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint64]:
    """[num_rows, num_slots] booleans -> [num_rows, ceil(num_slots / 64)] mask words."""
    num_rows, num_slots = visible.shape
    padded = np.zeros((num_rows, -(-num_slots // MASK_WORD_BITS) * MASK_WORD_BITS), dtype=bool)
    padded[:, :num_slots] = visible
    return np.packbits(padded, axis=1, bitorder="little").view(np.uint64)

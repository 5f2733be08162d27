"""Attention of draft trees over a paged KV cache.

The tree slots of a request are the last tokens of its sequence. A row sees all tokens before them,
and tree slots as its mask says: its node, the node's ancestors, and nothing else of the tree. Where a
layer forgets or goes by distance (`LayerRules`), positions are those that the tokens would have if the
row's path were all that there is.

The cache of one layer is `[num_blocks, num_kv_heads, block_size, 2 * head_size]`. On CPUs the inside of
a (block, head) is keys, then values, laid out as vLLM's kernels for this host read them (`stock.isa`):

- `vec` and `vec16`: keys `[head_size, block_size]` (transposed), values `[block_size, head_size]`;
- `amx`: keys `[block_size / 16, head_size / 2, 16, 2]`, the last two a token of a group and an
  element of a pair; values `[head_size / 16, block_size / 2, 16, 2]`, the last two an element of a
  group and a token of a pair.

On GPUs a slot's keys lie before its values, with any strides.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from vllm_smart.kernels.cpu import stock

MASK_WORD_BITS = 32  # of masks on devices
CPU_MASK_WORD_BITS = 64


@dataclass(frozen=True, eq=False)
class LayerRules:
    """What a layer makes of its scores, in this order; the defaults are plain attention.

    Attributes:
        softcap: if positive, scores become `softcap * tanh(score / softcap)`.
        alibi_slopes: [num_heads] float32, times the key's position less the row's, added to scores.
        window: so many tokens a row sees, itself included; None: all.
        chunk: a row sees nothing before the chunk of so many positions in which it lies; a multiple of
            the cache's blocks. None: all.
        sinks: [num_heads] scores that take part in the softmax and bring no value.
    """

    softcap: float = 0.0
    alibi_slopes: torch.Tensor | None = None
    window: int | None = None
    chunk: int | None = None
    sinks: torch.Tensor | None = None

    def first_seen(self, position: npt.NDArray[np.int64]) -> npt.NDArray[np.int64] | None:
        """[num_rows] first position that rows at `position` [num_rows] see; None: 0 of all."""
        if self.window is not None:
            return np.maximum(position - self.window + 1, 0)
        if self.chunk is not None:
            return position // self.chunk * self.chunk
        return None


PLAIN = LayerRules()


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

    def positions(self) -> npt.NDArray[np.int64]:
        """[num_rows] of each row, which are as many as the tokens that it sees, less one."""
        num_rows = np.diff(self.query_start_loc)
        tail_len = np.repeat(self.tail_lens, num_rows)
        context = np.repeat(self.seq_lens, num_rows).astype(np.int64) - tail_len
        visible = unpack_mask(self.ancestor_mask[: len(context)])
        in_tail = np.arange(visible.shape[1]) < tail_len[:, None]
        positions: npt.NDArray[np.int64] = context + (visible & in_tail).sum(axis=1) - 1
        return positions


@dataclass(frozen=True)
class PagedTreeBatch:
    """Which rows see which keys; tensors are int32 on the device of the query.

    The last `tail_lens[r]` tokens of a sequence are its tree slots. A row sees all tokens before
    them, and tree slot `j` iff bit `j` of its mask is set; its own bit must be. Tree slots must
    hold finite keys and values, seen or not. A tail length of 0 means a causal request: its rows
    are the last tokens of the sequence, its masks are not read.

    Attributes:
        query_start_loc: [num_reqs + 1] first row of each request, then the number of rows.
        seq_lens: [num_reqs] tokens in the cache, the rows included.
        tail_lens: [num_reqs] tree slots at the end of the sequence, 0 for causal requests.
        block_table: [>= num_reqs, max_blocks].
        ancestor_mask: [>= num_rows, words] bit `j % 32` of word `j // 32` for tree slot `j`.
        max_query_len: most rows of a request; an upper bound will do.
        num_splits: parts into which each sequence is cut; see `gpu.num_splits_for`.
    """

    query_start_loc: torch.Tensor
    seq_lens: torch.Tensor
    tail_lens: torch.Tensor
    block_table: torch.Tensor
    ancestor_mask: torch.Tensor
    max_query_len: int
    num_splits: int = 1


def unpack_kv(kv_cache: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of one layer's cache on a CPU; for checks and tests.

    Args:
        kv_cache: [num_blocks, num_kv_heads, block_size, 2 * head_size].

    Returns:
        Each `[num_blocks, num_kv_heads, block_size, head_size]`, of which some are views.
    """
    block_size, head_size = kv_cache.shape[2], kv_cache.shape[3] // 2
    keys, values = kv_cache.reshape(*kv_cache.shape[:2], 2, block_size * head_size).unbind(2)
    if stock.isa(kv_cache.dtype, head_size) == "amx":
        keys = keys.unflatten(-1, (block_size // 16, head_size // 2, 16, 2)).transpose(3, 4)
        values = values.unflatten(-1, (head_size // 16, block_size // 2, 16, 2)).permute(
            0, 1, 3, 5, 2, 4
        )
    else:
        keys = keys.unflatten(-1, (head_size, block_size)).transpose(-1, -2)
    return keys.reshape(*kv_cache.shape[:3], head_size), values.reshape(*kv_cache.shape[:3], head_size)


def pack_kv(keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """The cache that has them, the reverse of `unpack_kv`."""
    block_size, head_size = keys.shape[2:]
    if stock.isa(keys.dtype, head_size) == "amx":
        keys = (
            keys.unflatten(3, (head_size // 2, 2)).unflatten(2, (block_size // 16, 16)).transpose(3, 4)
        )
        values = values.unflatten(3, (head_size // 16, 16)).unflatten(2, (block_size // 2, 2))
        values = values.permute(0, 1, 4, 2, 5, 3)
    else:
        keys = keys.transpose(-1, -2)
    halves = torch.cat([keys.flatten(2), values.flatten(2)], dim=-1)
    return halves.view(*halves.shape[:2], block_size, 2 * head_size)


def unpack_mask(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """[num_rows, words] mask words -> [num_rows, words * 64] booleans."""
    bits = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=1, bitorder="little")
    return bits.astype(bool)


def pack_mask(visible: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint64]:
    """[num_rows, num_slots] booleans -> [num_rows, ceil(num_slots / 64)] mask words."""
    num_rows, num_slots = visible.shape
    padded = np.zeros((num_rows, -(-num_slots // CPU_MASK_WORD_BITS) * CPU_MASK_WORD_BITS), dtype=bool)
    padded[:, :num_slots] = visible
    return np.packbits(padded, axis=1, bitorder="little").view(np.uint64)

"""Whether tree attention has the bits of vLLM's own kernel on this host, and a word if it has not.

The tree kernel follows the arithmetic of the binaries in vLLM's wheel and of glibc (see
`kernels.cpu.stock`). Another build, C library or processor may round otherwise, which no test of ours
would see.
"""

import functools
import platform
from dataclasses import dataclass, replace

import numpy as np
import torch
from vllm.logger import init_logger

from vllm_smart.attention.stock import stock_attention, store
from vllm_smart.kernels.cpu.stock import BINARY
from vllm_smart.kernels.tree_attention import (
    PLAIN,
    LayerRules,
    TreeAttentionBatch,
    pack_mask,
    unpack_kv,
    unpack_mask,
)
from vllm_smart.kernels.tree_attention.cpu import CpuTreeAttention, TreeAttentionLayer

logger = init_logger("vllm.smart")

_CONTEXT, _NODES = 53, 24  # more than a few vectors of keys, and some left over
# Shorter than the context: what rows see first lies before and after a multiple of `key_alignment`.
_WINDOW = 24


@dataclass(frozen=True)
class LayerShape:
    """What the bits of a layer's attention depend on."""

    num_heads: int
    num_kv_heads: int
    head_size: int
    block_size: int
    dtype: torch.dtype
    softcap: float = 0.0
    has_window: bool = False
    has_chunks: bool = False
    has_sinks: bool = False
    has_slopes: bool = False

    def __str__(self) -> str:
        names = ("has_window", "a window"), ("has_chunks", "chunks"), ("has_sinks", "sinks")
        names += (("softcap", "a soft cap"), ("has_slopes", "position biases"))
        beside = [name for field, name in names if getattr(self, field)]
        heads = f"{self.num_heads} heads of {self.head_size}"
        return f"{self.dtype}, {heads}{' with ' if beside else ''}{', '.join(beside)}"

    def rules(self) -> LayerRules:
        """Of a layer like this; the arithmetic is the same for windows and chunks of all sizes."""
        generator = torch.Generator().manual_seed(1)
        sinks, slopes = torch.randn(2, self.num_heads, generator=generator)
        return LayerRules(
            softcap=self.softcap,
            alibi_slopes=slopes.abs() if self.has_slopes else None,
            window=_WINDOW if self.has_window else None,
            chunk=self.block_size if self.has_chunks else None,
            sinks=sinks if self.has_sinks else None,
        )


@functools.cache
def check_bits(attention: CpuTreeAttention, shape: LayerShape) -> int:
    """Compare both kernels on a random tree, once per process; log a line, a warning if they differ.

    Returns:
        How many of the outputs differ.
    """
    query, kv_cache, batch = _random_tree(shape)
    scale, rules = shape.head_size**-0.5, shape.rules()
    attention.warm_up(
        shape.dtype, shape.head_size
    )  # asks for tiles, which vLLM's kernel takes for granted
    alone, ours = torch.empty_like(query), torch.empty_like(query)
    decode_each_alone(query, kv_cache, alone, batch, scale, rules)
    layer = TreeAttentionLayer(query, kv_cache, ours, scale, rules)
    attention.plan(batch).run(layer, query, ours)
    num_different = int((alone != ours).sum())
    what = f"{shape}, vLLM's {BINARY.value}"
    if num_different:
        logger.warning(
            "vllm_smart: on this host (%s) tree attention differs from vLLM's own kernel in the last "
            "bits of %d of %d numbers (%s). Text may differ from plain decoding where two tokens are "
            "about equally likely. If it must not, serve without speculation; please report this line.",
            torch.cpu.get_capabilities().get("cpu_name", platform.machine()),
            num_different,
            ours.numel(),
            what,
        )
    else:
        logger.info("vllm_smart: tree attention has the bits of vLLM's own kernel (%s).", what)
    return num_different


def decode_each_alone(
    query: torch.Tensor,
    kv_cache: torch.Tensor,
    output: torch.Tensor,
    batch: TreeAttentionBatch,
    scale: float,
    rules: LayerRules = PLAIN,
) -> None:
    """What plain vLLM computes: each node as a request of one row over the tokens that it sees.

    Arguments as of `kernels.tree_attention.reference`. Works on a copy of the cache.
    """
    keys, values = unpack_kv(kv_cache)
    block_size = kv_cache.shape[2]
    for request in batch.requests.tolist():
        first, end = batch.query_start_loc[request : request + 2].tolist()
        seq_len, tail_len = int(batch.seq_lens[request]), int(batch.tail_lens[request])
        context = seq_len - tail_len
        token = np.arange(seq_len)
        block = torch.from_numpy(batch.block_table[request, token // block_size]).long()
        offset = torch.from_numpy(token % block_size)
        key, value = keys[block, :, offset], values[block, :, offset]
        # vLLM's kernel multiplies what lies beyond the sequence by zero: it must be finite.
        copy = kv_cache.new_zeros(-(-seq_len // block_size), *kv_cache.shape[1:])
        store(copy, key[:context], value[:context], 0)
        for row, visible in enumerate(unpack_mask(batch.ancestor_mask[first:end]), first):
            seen = context + torch.from_numpy(np.flatnonzero(visible[:tail_len]))
            store(copy, key[seen], value[seen], context)
            only = slice(row, row + 1)
            num_tokens = context + len(seen)
            # vLLM makes a request of its own of the chunk that a row lies in.
            before = 0 if rules.chunk is None else (num_tokens - 1) // rules.chunk * rules.chunk
            stock_attention(
                query[only],
                copy,
                output[only],
                query_start_loc=np.array([0, 1], np.int32),
                seq_lens=np.array([num_tokens - before], np.int32),
                block_table=np.arange(before // block_size, len(copy), dtype=np.int32)[None],
                scale=scale,
                rules=replace(rules, chunk=None),
            )()


def _random_tree(shape: LayerShape) -> tuple[torch.Tensor, torch.Tensor, TreeAttentionBatch]:
    """Queries, a cache and a tree in which hidden nodes lie between ancestors."""
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    visible = np.eye(_NODES, dtype=bool)
    for node in range(1, _NODES):
        visible[node] |= visible[rng.integers(node)]
    context = shape.block_size - 3 if shape.has_chunks else _CONTEXT
    seq_len = context + _NODES
    num_blocks = -(-seq_len // shape.block_size)
    batch = TreeAttentionBatch(
        requests=np.array([0]),
        query_start_loc=np.array([0, _NODES]),
        seq_lens=np.array([seq_len]),
        tail_lens=np.array([_NODES]),
        block_table=np.arange(num_blocks, dtype=np.int32)[None],
        ancestor_mask=pack_mask(visible),
    )
    cache_shape = (num_blocks, shape.num_kv_heads, shape.block_size, 2 * shape.head_size)
    query = torch.randn(_NODES, shape.num_heads, shape.head_size, generator=generator)
    kv_cache = torch.randn(cache_shape, generator=generator)
    return query.to(shape.dtype), kv_cache.to(shape.dtype), batch

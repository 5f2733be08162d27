"""vLLM's own attention on CPUs, called without an engine: what ours is compared with."""

from collections.abc import Callable

import numpy as np
import torch
from vllm import _custom_ops as ops

from vllm_smart.kernels.cpu.stock import isa
from vllm_smart.kernels.tree_attention import PLAIN, LayerRules


def stock_attention(
    query: torch.Tensor,
    kv_cache: torch.Tensor,
    output: torch.Tensor,
    query_start_loc: np.ndarray,
    seq_lens: np.ndarray,
    block_table: np.ndarray,
    scale: float,
    rules: LayerRules = PLAIN,
    splits_kv: bool = False,
) -> Callable[[], None]:
    """A call of vLLM's kernel, causal; its metadata are built once, as they are once per step.

    Args:
        query: [num_rows, num_heads, head_size].
        kv_cache: [num_blocks, num_kv_heads, block_size, 2 * head_size].
        output: [num_rows, num_heads, head_size], written by the call.
        query_start_loc: [num_reqs + 1] int32 first row of each request, then num_rows.
        seq_lens: [num_reqs] int32 tokens that the last row of each sees.
        block_table: [num_reqs, max_num_blocks] int32.
        scale, rules: of the scores; chunks are none of the operator's.
        splits_kv: whether the keys of a request may be shared out to several threads.
    """
    keys, values = _views(kv_cache)
    window = -1 if rules.window is None else rules.window
    row_start, lengths = torch.from_numpy(query_start_loc), torch.from_numpy(seq_lens)
    metadata = ops.cpu_attn_get_scheduler_metadata(
        num_reqs=len(seq_lens),
        num_heads=query.shape[1],
        num_kv_heads=kv_cache.shape[1],
        head_dim=query.shape[2],
        seq_lens=lengths,
        dtype=query.dtype,
        query_start_loc=row_start,
        causal=True,
        sliding_window_size=window,
        isa=isa(query.dtype, query.shape[2]),
        enable_kv_split=splits_kv,
    )
    blocks = torch.from_numpy(block_table)
    assert rules.chunk is None

    def call() -> None:
        ops.cpu_attention_with_kv_cache(
            query=query,
            key_cache=keys,
            value_cache=values,
            output=output,
            query_start_loc=row_start,
            seq_lens=lengths,
            scale=scale,
            causal=True,
            alibi_slopes=rules.alibi_slopes,
            sliding_window=window,
            block_table=blocks,
            softcap=rules.softcap,
            scheduler_metadata=metadata,
            s_aux=rules.sinks,
        )

    return call


def store(kv_cache: torch.Tensor, key: torch.Tensor, value: torch.Tensor, first_slot: int) -> None:
    """Keys and values [num_tokens, num_kv_heads, head_size] into slots from `first_slot` on."""
    slots = first_slot + torch.arange(len(key))
    ops.cpu_attn_reshape_and_cache(key, value, *_views(kv_cache), slots, isa(key.dtype, key.shape[2]))


def _views(kv_cache: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values as vLLM hands them to its operators."""
    num_blocks, num_kv_heads, block_size, _ = kv_cache.shape
    keys, values = kv_cache.view(num_blocks, num_kv_heads, 2 * block_size, -1).chunk(2, dim=2)
    return keys, values

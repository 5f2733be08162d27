"""Rotary positions of multi-head latent attention: all heads of a token turn by its position.

vLLM's layer hands queries over as [num_tokens, num_heads, size]. Its kernel for CPUs takes every head
of these for a token, so it turns most by positions of other rows, or by what lies behind them.
"""

import functools
from typing import Any

import torch


@functools.cache
def rotate_whole_tokens() -> None:
    """Hand the kernel rows with all heads side by side, in this process. Idempotent."""
    from vllm import _custom_ops as ops

    rotary_embedding = ops.rotary_embedding

    @functools.wraps(rotary_embedding)
    def by_token(
        positions: torch.Tensor,
        query: torch.Tensor,
        key: torch.Tensor | None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        if query.dim() <= positions.dim() + 1:
            rotary_embedding(positions, query, key, *args, **kwargs)
            return
        rows = [heads.flatten(-2) for heads in (query, key) if heads is not None]
        rotary_embedding(positions, rows[0], rows[1] if key is not None else None, *args, **kwargs)
        # Heads that lie apart were copied.
        for heads, of_heads in zip((query, key), rows, strict=False):
            if heads is not None and heads.data_ptr() != of_heads.data_ptr():
                heads.copy_(of_heads.view_as(heads))

    ops.rotary_embedding = by_token

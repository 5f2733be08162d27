"""Tree attention compiled by numba, with the bits of vLLM's own operator."""

from vllm_smart.kernels.tree_attention.cpu.attention import (
    CpuTreeAttention,
    TreeAttentionLayer,
    TreeAttentionPlan,
)
from vllm_smart.kernels.tree_attention.cpu.layout import MAX_HEAD_SIZE

__all__ = ["MAX_HEAD_SIZE", "CpuTreeAttention", "TreeAttentionLayer", "TreeAttentionPlan"]

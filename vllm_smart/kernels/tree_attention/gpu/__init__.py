"""Tree attention in Triton."""

from vllm_smart.kernels.tree_attention.gpu.attention import num_splits_for, tree_attention

__all__ = ["num_splits_for", "tree_attention"]

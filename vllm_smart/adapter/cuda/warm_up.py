"""Compiles what trees need of a GPU before the first request comes."""

import itertools

import torch
from vllm.config import VllmConfig

from vllm_smart.attention.gpu import TreeImpl
from vllm_smart.kernels.share_rows.gpu import row_starts, share_out
from vllm_smart.kernels.tree_attention import PagedTreeBatch
from vllm_smart.kernels.tree_attention.gpu import tree_attention
from vllm_smart.kernels.walk.gpu import walk_trees


def warm_up(vllm_config: VllmConfig, max_query_len: int) -> None:
    """Compile what vLLM's own warm-up does not run, for all layers and numbers of rows.

    Requests would wait for it.

    Args:
        max_query_len: rows of the largest tree.
    """
    rows = [*(1 << power for power in range(max_query_len.bit_length())), max_query_len]
    device = torch.device(vllm_config.device_config.device)
    _share_nothing(max_query_len, device)
    for width in rows:
        _walk_nothing(width, device)
    for layer in vllm_config.compilation_config.static_forward_context.values():
        impl = getattr(layer, "impl", None)
        if isinstance(impl, TreeImpl):
            for query_len, num_splits in itertools.product(rows, (1, 2)):
                _attend_nothing(impl, layer.kv_cache, query_len, num_splits)


def _attend_nothing(impl: TreeImpl, kv_cache: torch.Tensor, query_len: int, num_splits: int) -> None:
    """Launch the kernel for a request of up to `query_len` rows that has none."""
    zeros = torch.zeros(2, 1, dtype=torch.int32, device=kv_cache.device)
    query = kv_cache.new_zeros(1, impl.num_heads, impl.head_size)
    batch = PagedTreeBatch(
        query_start_loc=zeros[:, 0],
        seq_lens=zeros[0],
        tail_lens=zeros[0],
        block_table=zeros,
        ancestor_mask=zeros,
        max_query_len=query_len,
        num_splits=num_splits,
    )
    tree_attention(query, kv_cache, query, batch, impl.scale, impl.logits_soft_cap)


def _share_nothing(max_nodes: int, device: torch.device) -> None:
    """Launch the sharing out of rows for a request without any."""
    room = torch.zeros(1, dtype=torch.int32, device=device)
    value = torch.zeros(1, max_nodes, dtype=torch.float32, device=device)
    row_starts(share_out(value, room.long(), room, 0), room, room.new_zeros(2))


def _walk_nothing(width: int, device: torch.device) -> None:
    """Launch the walk for a request without rows, in a batch of trees of up to `width` nodes."""
    ints = torch.zeros(1, width, dtype=torch.int32, device=device)
    tokens = ints.long()
    walk_trees(ints, tokens, ints.new_zeros(2), tokens[0], ints.clone(), ints[0, :1], tokens.clone())

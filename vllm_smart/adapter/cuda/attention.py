"""vLLM's FlashAttention and Triton attention, with trees.

Requests that have drafts lead a batch; where one of them is a real tree, their rows go through
our kernel and the rest of the batch through vLLM's own. Batches of chains never come here.

Attention stays outside CUDA graphs for now: a captured graph would replay the causal kernel it was
captured with. So the builders promise vLLM no full graphs, and it captures piecewise ones.
"""

import itertools
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from vllm.config import VllmConfig
from vllm.v1.attention.backend import AttentionCGSupport, AttentionMetadataBuilder, AttentionType
from vllm.v1.attention.backends.flash_attn import (
    FlashAttentionBackend,
    FlashAttentionImpl,
    FlashAttentionMetadataBuilder,
)
from vllm.v1.attention.backends.triton_attn import (
    TritonAttentionBackend,
    TritonAttentionImpl,
    TritonAttentionMetadataBuilder,
)

from vllm_smart.adapter.arrays import to_device
from vllm_smart.adapter.step_plan import TreeRows
from vllm_smart.errors import UnsupportedError
from vllm_smart.kernels.triton_tree_attention import (
    PagedTreeBatch,
    num_splits_for,
    tree_attention,
)


@dataclass
class TreeMetadata:
    """One step's metadata for the layers that see trees."""

    tree: PagedTreeBatch
    num_tree_rows: int
    # vLLM's own metadata of the requests without drafts, whose rows follow; None if there are none.
    rest: Any


class _TreeBuilder(AttentionMetadataBuilder):
    """Adds trees to one of vLLM's metadata builders."""

    _cudagraph_support: ClassVar[AttentionCGSupport] = AttentionCGSupport.NEVER

    @classmethod
    def get_cudagraph_support(cls, vllm_config: Any, kv_cache_spec: Any) -> AttentionCGSupport:
        return cls._cudagraph_support

    def with_trees(self, metadata: Any, rows: TreeRows) -> TreeMetadata:
        """`metadata` of a whole batch, with its leading requests' rows under `rows`' masks."""
        tree = self.tree_metadata(rows, metadata.block_table)
        if tree.num_tree_rows < metadata.num_actual_tokens:
            tree.rest = _without_first(metadata, len(rows.seq_lens), tree.num_tree_rows)
        return tree

    def tree_metadata(self, rows: TreeRows, block_table: torch.Tensor) -> TreeMetadata:
        """Metadata of a batch that consists of `rows` alone.

        Args:
            rows: all query rows.
            block_table: [>= num_reqs, max_num_blocks] int32.
        """
        max_query_len = int(np.diff(rows.query_start_loc).max())
        num_kv_heads = self.kv_cache_spec.num_kv_heads
        tree = PagedTreeBatch(
            query_start_loc=to_device(rows.query_start_loc, self.device),
            seq_lens=to_device(rows.seq_lens, self.device),
            tail_lens=to_device(rows.tail_lens, self.device),
            block_table=block_table,
            ancestor_mask=to_device(rows.ancestor_mask.view(np.int32), self.device),
            max_query_len=max_query_len,
            num_splits=num_splits_for(
                len(rows.seq_lens),
                num_kv_heads,
                max_query_len,
                self.num_heads_q // num_kv_heads,
                int(rows.seq_lens.max()),
                _num_sms(self.device),
            ),
        )
        return TreeMetadata(tree, int(rows.query_start_loc[-1]), rest=None)


def _without_first(metadata: Any, num_reqs: int, num_rows: int) -> Any:
    """vLLM's `metadata` without its first requests; rows are counted from `num_rows` on."""
    return replace(
        metadata,
        num_actual_tokens=metadata.num_actual_tokens - num_rows,
        query_start_loc=metadata.query_start_loc[num_reqs:] - num_rows,
        seq_lens=metadata.seq_lens[num_reqs:],
        block_table=metadata.block_table[num_reqs:],
        slot_mapping=metadata.slot_mapping[num_rows:],
        # Made ahead for the whole batch; without it the kernel schedules itself.
        scheduler_metadata=None,
    )


def _num_sms(device: torch.device) -> int:
    """Multiprocessors of a GPU; where Triton's interpreter plays one, it has one."""
    if device.type == "cpu":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


class _TreeImpl:
    """Adds trees to one of vLLM's attention implementations, which comes next in the bases."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.attn_type != AttentionType.DECODER:
            return
        for name, value in (
            ("sliding window", None if self.sliding_window[0] < 0 else self.sliding_window),
            ("ALiBi slopes", self.alibi_slopes),
            ("attention sinks", self.sinks),
        ):
            if value is not None:
                raise UnsupportedError(
                    f"vllm_smart: the tree attention kernel for GPUs has no {name} ({value}). "
                    "Serve this model with one of vLLM's own speculative methods."
                )

    def fused_output_quant_supported(self, quant_key: Any) -> bool:
        """Our kernel writes the query's dtype."""
        return False

    def forward(
        self,
        layer: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: Any,
        output: torch.Tensor,
        output_scale: torch.Tensor | None = None,
        output_block_scale: torch.Tensor | None = None,
    ) -> torch.Tensor:
        stock = super().forward
        if not isinstance(attn_metadata, TreeMetadata):
            return stock(
                layer,
                query,
                key,
                value,
                kv_cache,
                attn_metadata,
                output,
                output_scale,
                output_block_scale,
            )
        split = attn_metadata.num_tree_rows
        tree_attention(
            query[:split],
            kv_cache,
            output[:split],
            attn_metadata.tree,
            self.scale,
            self.logits_soft_cap,
        )
        if attn_metadata.rest is not None:
            rest = attn_metadata.rest
            stock(layer, query[split:], key, value, kv_cache, rest, output[split:])
        return output


def warm_up(vllm_config: VllmConfig, max_query_len: int) -> None:
    """Compile the tree kernel for all layers and numbers of rows, not while requests wait.

    Args:
        max_query_len: rows of the largest tree.
    """
    rows = [1 << power for power in range(max_query_len.bit_length())]
    for layer in vllm_config.compilation_config.static_forward_context.values():
        impl = getattr(layer, "impl", None)
        if isinstance(impl, _TreeImpl):
            for query_len, num_splits in itertools.product([*rows, max_query_len], (1, 2)):
                _attend_nothing(impl, layer.kv_cache, query_len, num_splits)


def _attend_nothing(impl: "_TreeImpl", kv_cache: torch.Tensor, query_len: int, num_splits: int) -> None:
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


class FlashTreeMetadataBuilder(_TreeBuilder, FlashAttentionMetadataBuilder):
    pass


class FlashTreeAttentionImpl(_TreeImpl, FlashAttentionImpl):
    pass


class FlashTreeAttentionBackend(FlashAttentionBackend):
    @staticmethod
    def get_impl_cls() -> type[FlashTreeAttentionImpl]:
        return FlashTreeAttentionImpl

    @staticmethod
    def get_builder_cls() -> type[FlashTreeMetadataBuilder]:
        return FlashTreeMetadataBuilder


class TritonTreeMetadataBuilder(_TreeBuilder, TritonAttentionMetadataBuilder):
    pass


class TritonTreeAttentionImpl(_TreeImpl, TritonAttentionImpl):
    pass


class TritonTreeAttentionBackend(TritonAttentionBackend):
    @staticmethod
    def get_impl_cls() -> type[TritonTreeAttentionImpl]:
        return TritonTreeAttentionImpl

    @staticmethod
    def get_builder_cls() -> type[TritonTreeMetadataBuilder]:
        return TritonTreeMetadataBuilder

"""vLLM's FlashAttention and Triton attention, with trees.

Requests that have drafts lead a batch; where one of them is a real tree, their rows go through
our kernel and the rest of the batch through vLLM's own. Batches of chains never come here, but in full
graphs (`graphs`), which are captured for all shapes of trees at once: there all rows are ours.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
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

from vllm_smart.arrays import to_device
from vllm_smart.errors import UnsupportedError
from vllm_smart.kernels.grow.device import DeviceLevel
from vllm_smart.kernels.tree_attention import PagedTreeBatch
from vllm_smart.kernels.tree_attention.gpu import num_splits_for, tree_attention
from vllm_smart.step import TreeRows, TreeSizes
from vllm_smart.step.device_tree_store import DeviceTreeStore


@dataclass
class TreeMetadata:
    """One step's metadata for the layers that see trees."""

    tree: PagedTreeBatch
    num_tree_rows: int
    # vLLM's own metadata of the requests without drafts, whose rows follow; None if there are none.
    rest: Any


class TreeBuilder(AttentionMetadataBuilder):
    """Adds trees to one of vLLM's metadata builders."""

    # Decoding steps of any shapes, as `graphs` captures them; no prefills.
    _cudagraph_support: ClassVar[AttentionCGSupport] = AttentionCGSupport.UNIFORM_BATCH

    @classmethod
    def get_cudagraph_support(cls, vllm_config: Any, kv_cache_spec: Any) -> AttentionCGSupport:
        return cls._cudagraph_support

    def with_trees(self, metadata: Any, sizes: TreeSizes, trees: DeviceTreeStore) -> TreeMetadata:
        """`metadata` of a whole batch, with its leading requests' rows under their masks.

        Args:
            sizes: of the requests that have drafts.
            trees: which arranges the batch before its forward.
        """
        num_splits = self._num_splits(sizes.num_reqs, sizes.max_query_len, sizes.max_seq_len)
        tree = self._of_leading(metadata, sizes.num_reqs, sizes.max_query_len, num_splits, trees)
        rest = None
        if sizes.num_rows < metadata.num_actual_tokens:
            rest = _without_first(metadata, sizes.num_reqs, sizes.num_rows)
        return TreeMetadata(tree, sizes.num_rows, rest)

    def for_graph(self, metadata: Any, max_query_len: int, trees: DeviceTreeStore) -> TreeMetadata:
        """`metadata` of a batch to capture, for replays with whatever is arranged then.

        Args:
            metadata: its tensors are where vLLM writes each step's.
            max_query_len: most rows of a request in a replay.
        """
        num_reqs, num_rows = len(metadata.seq_lens), metadata.num_actual_tokens
        longest = self.vllm_config.model_config.max_model_len
        # Few long requests may fill the graph, and need splits most; of more requests than that,
        # programs without rows end at once.
        fewest = -(-num_rows // max_query_len)
        num_splits = self._num_splits(fewest, min(max_query_len, num_rows), longest)
        tree = self._of_leading(metadata, num_reqs, max_query_len, num_splits, trees)
        return TreeMetadata(tree, num_rows, rest=None)

    def _of_leading(
        self,
        metadata: Any,
        num_reqs: int,
        max_query_len: int,
        num_splits: int,
        trees: DeviceTreeStore,
    ) -> PagedTreeBatch:
        """The first `num_reqs` requests of `metadata`; nothing is copied."""
        return PagedTreeBatch(
            query_start_loc=metadata.query_start_loc[: num_reqs + 1],
            seq_lens=metadata.seq_lens[:num_reqs],
            tail_lens=trees.tail_lens[:num_reqs],
            block_table=metadata.block_table,
            ancestor_mask=trees.row_mask,
            max_query_len=max_query_len,
            num_splits=num_splits,
        )

    def tree_metadata(self, rows: TreeRows, block_table: torch.Tensor) -> TreeMetadata:
        """Metadata of a batch that consists of `rows` alone.

        Args:
            rows: all query rows.
            block_table: [>= num_reqs, max_num_blocks] int32.
        """
        tree = PagedTreeBatch(
            query_start_loc=to_device(rows.query_start_loc, self.device),
            seq_lens=to_device(rows.seq_lens, self.device),
            tail_lens=to_device(rows.tail_lens, self.device),
            block_table=block_table,
            ancestor_mask=to_device(rows.ancestor_mask.view(np.int32), self.device),
            max_query_len=rows.max_query_len,
            num_splits=self._num_splits(
                len(rows.seq_lens), rows.max_query_len, int(rows.seq_lens.max())
            ),
        )
        return TreeMetadata(tree, int(rows.query_start_loc[-1]), rest=None)

    def level_metadata(
        self, level: DeviceLevel, block_table: torch.Tensor, max_query_len: int, max_seq_len: int
    ) -> TreeMetadata:
        """Metadata of a draft level whose rows were chosen on the device.

        Args:
            level: rows of padding included.
            block_table: [>= num_reqs, max_num_blocks] int32.
            max_query_len: most rows of a request.
            max_seq_len: no sequence is longer.
        """
        tree = PagedTreeBatch(
            query_start_loc=level.row_start,
            seq_lens=level.seq_lens,
            tail_lens=level.tail_lens,
            block_table=block_table,
            ancestor_mask=level.ancestor_mask,
            max_query_len=max_query_len,
            num_splits=self._num_splits(len(level.seq_lens), max_query_len, max_seq_len),
        )
        return TreeMetadata(tree, len(level.token), rest=None)

    def _num_splits(self, num_reqs: int, max_query_len: int, max_seq_len: int) -> int:
        num_kv_heads = self.kv_cache_spec.num_kv_heads
        group = self.num_heads_q // num_kv_heads
        num_sms = _num_sms(self.device)
        return num_splits_for(num_reqs, num_kv_heads, max_query_len, group, max_seq_len, num_sms)


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


class TreeImpl:
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


class FlashTreeMetadataBuilder(TreeBuilder, FlashAttentionMetadataBuilder):
    pass


class FlashTreeAttentionImpl(TreeImpl, FlashAttentionImpl):
    pass


class FlashTreeAttentionBackend(FlashAttentionBackend):
    @staticmethod
    def get_impl_cls() -> type[FlashTreeAttentionImpl]:
        return FlashTreeAttentionImpl

    @staticmethod
    def get_builder_cls() -> type[FlashTreeMetadataBuilder]:
        return FlashTreeMetadataBuilder


class TritonTreeMetadataBuilder(TreeBuilder, TritonAttentionMetadataBuilder):
    pass


class TritonTreeAttentionImpl(TreeImpl, TritonAttentionImpl):
    pass


class TritonTreeAttentionBackend(TritonAttentionBackend):
    @staticmethod
    def get_impl_cls() -> type[TritonTreeAttentionImpl]:
        return TritonTreeAttentionImpl

    @staticmethod
    def get_builder_cls() -> type[TritonTreeMetadataBuilder]:
        return TritonTreeMetadataBuilder

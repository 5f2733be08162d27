"""vLLM's CPU attention, with trees.

Where some request has drafts, all that decode go through our kernel, and prompts through vLLM's own.
Chains go through ours, too: it gives each row the bits that the row has when it decodes alone, which
vLLM's own kernel does not for chains of more than 8 rows and long contexts.
"""

import functools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from vllm import _custom_ops as ops
from vllm import envs
from vllm.config import VllmConfig, get_current_vllm_config, get_layers_from_vllm_config
from vllm.forward_context import get_forward_context
from vllm.logger import init_logger
from vllm.model_executor.layers.attention import Attention
from vllm.v1.attention.backend import AttentionType
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadata,
    CPUAttentionMetadataBuilder,
)
from vllm.v1.kv_cache_interface import AttentionSpec

from vllm_smart.attention.backends import is_of_chunks
from vllm_smart.attention.stock_check import LayerShape, check_bits
from vllm_smart.errors import UnsupportedError
from vllm_smart.kernels.cpu.stock import isa
from vllm_smart.kernels.tree_attention import LayerRules, TreeAttentionBatch
from vllm_smart.kernels.tree_attention.cpu import (
    MAX_HEAD_SIZE,
    CpuTreeAttention,
    TreeAttentionLayer,
    TreeAttentionPlan,
)
from vllm_smart.step import TreeRows

logger = init_logger("vllm.smart")


@functools.cache
def tree_attention() -> CpuTreeAttention:
    """The kernel of this process, on the threads that vLLM has bound by the first call."""
    return CpuTreeAttention()


@dataclass
class CPUTreeMetadata:
    """One step's metadata for the layers that see trees."""

    tree: TreeAttentionPlan
    num_tree_rows: int
    # The other requests, whose rows follow; None where there are none.
    rest: CPUAttentionMetadata | None


class CPUTreeMetadataBuilder(CPUAttentionMetadataBuilder):
    def __init__(
        self,
        kv_cache_spec: AttentionSpec,
        layer_names: list[str],
        vllm_config: VllmConfig,
        device: torch.device,
    ) -> None:
        """Compiles the kernel, and compares it with vLLM's own.

        Raises:
            UnsupportedError: A subclass, or a processor whose kernel keeps keys in another layout.
        """
        # vLLM wraps the builders of some layers (static sinks, fast prefill) in subclasses whose block
        # tables are not of the requests that we know. Of those for chunks we do without the tables.
        if type(self) is not CPUTreeMetadataBuilder and not is_of_chunks(type(self)):
            raise UnsupportedError(
                f"vllm_smart: draft trees cannot be verified by layers whose attention vLLM wraps "
                f"({type(self).__name__} of {layer_names[0]}). Serve this model without speculation."
            )
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        self._check_bits(layer_names)

    def _check_bits(self, layer_names: list[str]) -> None:
        layers = get_layers_from_vllm_config(self.vllm_config, Attention, layer_names)
        heads = self.num_heads, self.num_kv_heads, self.head_dim
        # In float32, too, which shows differences that most outputs of a lower precision hide.
        for dtype in {self.dtype, torch.float32}:
            shape = LayerShape(*heads, self.block_size, dtype)
            for layer in layers.values():
                check_bits(tree_attention(), layer.impl.shaped(shape, layer))

    def _set_isa_to_layers(self, layer_names: list[str]) -> None:
        if self.isa != isa(self.dtype, self.head_dim):
            raise UnsupportedError(
                f"vllm_smart: the tree attention kernel for CPUs cannot read the keys of vLLM's "
                f"{self.isa!r} kernels. Serve without speculation on this processor."
            )
        super()._set_isa_to_layers(layer_names)
        tree_attention().warm_up(self.dtype, self.head_dim)

    def with_trees(
        self, metadata: CPUAttentionMetadata, block_table: torch.Tensor, rows: TreeRows
    ) -> CPUTreeMetadata:
        """`metadata` of a whole batch, with its leading requests' rows under `rows`' masks.

        Args:
            metadata: with chunks its requests are parts of the batch's, of a chunk each.
            block_table: [>= num_reqs, max_num_blocks] int32 of the batch's requests.
            rows: of the first of these.
        """
        num_tree_rows = int(rows.query_start_loc[-1])
        tree = self.tree_metadata(rows, block_table)
        if num_tree_rows < metadata.num_actual_tokens:
            tree.rest = self._without_first(metadata, num_tree_rows)
        return tree

    def tree_metadata(self, rows: TreeRows, block_table: torch.Tensor) -> CPUTreeMetadata:
        """Metadata of a batch that consists of `rows` alone.

        Args:
            rows: all query rows.
            block_table: [>= num_reqs, max_num_blocks] int32.
        """
        num_reqs = len(rows.seq_lens)
        plan = tree_attention().plan(
            TreeAttentionBatch(
                requests=np.flatnonzero(np.diff(rows.query_start_loc)),
                query_start_loc=rows.query_start_loc,
                seq_lens=rows.seq_lens,
                tail_lens=rows.tail_lens,
                block_table=block_table.numpy()[:num_reqs],
                ancestor_mask=rows.ancestor_mask,
            )
        )
        return CPUTreeMetadata(plan, int(rows.query_start_loc[-1]), rest=None)

    def _without_first(self, metadata: CPUAttentionMetadata, num_rows: int) -> CPUAttentionMetadata:
        """`metadata` without its first requests, which have `num_rows` rows together."""
        num_reqs = int(np.searchsorted(metadata.query_start_loc.numpy(), num_rows))
        query_start_loc = metadata.query_start_loc[num_reqs:] - num_rows
        seq_lens = metadata.seq_lens[num_reqs:]
        scheduler_metadata = ops.cpu_attn_get_scheduler_metadata(
            num_reqs=len(seq_lens),
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            seq_lens=seq_lens,
            dtype=self.dtype,
            query_start_loc=query_start_loc,
            causal=True,
            sliding_window_size=self.window_size,
            isa=self.isa,
            enable_kv_split=envs.VLLM_CPU_ATTN_SPLIT_KV,
            dynamic_causal=None,
            kv_cache_dtype=self.kv_cache_dtype,
        )
        return CPUAttentionMetadata(
            num_actual_tokens=metadata.num_actual_tokens - num_rows,
            max_query_len=int(np.diff(query_start_loc.numpy()).max()),
            query_start_loc=query_start_loc,
            max_seq_len=metadata.max_seq_len,
            seq_lens=seq_lens,
            block_table=metadata.block_table[num_reqs:],
            slot_mapping=metadata.slot_mapping[num_rows:],
            scheduler_metadata=scheduler_metadata,
        )


class CPUTreeAttentionImpl(CPUAttentionBackendImpl):
    # Of the KV cache that the layer had last.
    _of_trees: TreeAttentionLayer | None = None
    _cache: torch.Tensor | None = None
    _halves: tuple[torch.Tensor, ...] = ()
    _window: int | None = None  # None where it hides nothing

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.attn_type != AttentionType.DECODER:
            return
        if self.head_size % 16 != 0 or self.head_size > MAX_HEAD_SIZE:
            raise UnsupportedError(
                f"vllm_smart: the tree attention kernel for CPUs has no such head size "
                f"({self.head_size}). Serve this model without speculation."
            )
        longest = get_current_vllm_config().model_config.max_model_len
        self._window = self.sliding_window if 0 < self.sliding_window < longest else None

    def shaped(self, shape: LayerShape, layer: torch.nn.Module) -> LayerShape:
        """`shape` with what is special about `layer`, which is ours."""
        rules = self._rules(layer)
        return replace(
            shape,
            softcap=rules.softcap,
            has_window=rules.window is not None,
            has_chunks=rules.chunk is not None,
            has_sinks=rules.sinks is not None,
            has_slopes=rules.alibi_slopes is not None,
        )

    def _rules(self, layer: torch.nn.Module) -> LayerRules:
        return LayerRules(
            softcap=self.logits_soft_cap,
            alibi_slopes=self.alibi_slopes,
            window=self._window,
            chunk=getattr(layer, "attention_chunk_size", None),
            sinks=self.sinks,
        )

    def forward(
        self,
        layer: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: CPUAttentionMetadata | CPUTreeMetadata | None,
        output: torch.Tensor,
        output_scale: torch.Tensor | None = None,
        output_block_scale: torch.Tensor | None = None,
    ) -> torch.Tensor:
        # Layers that share another one's cache write nothing.
        if key is not None and layer.kv_sharing_target_layer_name is None:
            slot_mapping = get_forward_context().slot_mapping.get(layer.layer_name)
            if slot_mapping is not None:
                self.do_kv_cache_update(layer, key, value, kv_cache, slot_mapping)
        if not isinstance(attn_metadata, CPUTreeMetadata):
            return super().forward(
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
        of_trees = self._of_trees
        if of_trees is None or of_trees.kv_cache is not kv_cache:
            of_trees = self._of_trees = TreeAttentionLayer(
                query, kv_cache, output, self.scale, self._rules(layer)
            )
        attn_metadata.tree.run(of_trees, query, output)
        if attn_metadata.rest is not None:
            split = attn_metadata.num_tree_rows
            super().forward(
                layer, query[split:], key, value, kv_cache, attn_metadata.rest, output[split:]
            )
        return output

    def do_kv_cache_update(
        self,
        layer: torch.nn.Module,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        slot_mapping: torch.Tensor,
    ) -> None:
        """vLLM's own, with views of the cache that are made once instead of in each step."""
        if self.attn_type != AttentionType.DECODER:
            super().do_kv_cache_update(layer, key, value, kv_cache, slot_mapping)
            return
        if self._cache is not kv_cache:
            self._cache, halves = kv_cache, kv_cache.view(*kv_cache.shape[:2], -1, self.head_size)
            self._halves = halves.chunk(2, dim=2)
        ops.cpu_attn_reshape_and_cache(
            key,
            value,
            *self._halves,
            slot_mapping,
            layer.isa,
            layer._k_scale_float,
            layer._v_scale_float,
            self.kv_cache_dtype,
        )


class CPUTreeAttentionBackend(CPUAttentionBackend):
    # Compiled code calls back into Python once a layer instead of twice.
    forward_includes_kv_cache_update = True

    @staticmethod
    def get_impl_cls() -> type[CPUTreeAttentionImpl]:
        return CPUTreeAttentionImpl

    @staticmethod
    def get_builder_cls() -> type[CPUTreeMetadataBuilder]:
        return CPUTreeMetadataBuilder

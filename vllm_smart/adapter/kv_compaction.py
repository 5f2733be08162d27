"""Moves the KV of accepted nodes to where plain decoding would have written it."""

from typing import TYPE_CHECKING

import torch
from vllm.config import VllmConfig
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.worker.gpu.block_table import BlockTables

from vllm_smart.errors import UnsupportedError
from vllm_smart.seams.host import runs_on_triton
from vllm_smart.step import StepPlan

if TYPE_CHECKING:
    from vllm_smart.step.device_compaction import GPUGroupCompaction
    from vllm_smart.step.host_compaction import CPUGroupCompaction


def _of_group(kv_caches: list[torch.Tensor]) -> "GPUGroupCompaction | CPUGroupCompaction":
    if runs_on_triton():
        from vllm_smart.step.device_compaction import GPUGroupCompaction

        return GPUGroupCompaction(kv_caches)
    from vllm_smart.attention.cpu import tree_attention
    from vllm_smart.step.host_compaction import CPUGroupCompaction

    return CPUGroupCompaction(kv_caches, tree_attention().team)


def _check_block_size(of_attention: int, of_tables: int) -> None:
    if of_attention != of_tables:
        raise UnsupportedError(
            f"vllm_smart does not support attention blocks of {of_attention} tokens in KV cache blocks "
            f"of {of_tables}. Pass --block-size {of_attention}."
        )


class KVCompaction:
    """Compacts every KV cache group of the target, each with its own block size."""

    def __init__(
        self,
        vllm_config: VllmConfig,
        kv_cache_config: KVCacheConfig,
        block_tables: BlockTables,
        draft_layer_names: set[str],
    ) -> None:
        """The KV caches must be bound to their layers.

        Args:
            draft_layer_names: layers left out; their next prefill rewrites the accepted KV.
        """
        layers = vllm_config.compilation_config.static_forward_context
        # Of each group with layers of the target: its block tables and its kernel.
        self.groups: list[tuple[torch.Tensor, GPUGroupCompaction | CPUGroupCompaction]] = []
        for number, group in enumerate(kv_cache_config.kv_cache_groups):
            names = [name for name in group.layer_names if name not in draft_layer_names]
            if names:
                # Layers may share a cache; what is moved twice is lost.
                by_place = {layers[name].kv_cache.data_ptr(): layers[name].kv_cache for name in names}
                caches = list(by_place.values())
                _check_block_size(caches[0].shape[2], block_tables.block_sizes[number])
                self.groups.append((block_tables.input_block_tables[number], _of_group(caches)))

    def run(self, plan: StepPlan) -> None:
        """Move what the walk of `plan` accepted; along chains all of it is in place."""
        if plan.walk is None or not plan.branching:
            return
        for block_table, kernel in self.groups:
            kernel.run(plan, block_table)

"""Moves the KV of accepted nodes to where plain decoding would have written it."""

from dataclasses import dataclass

import numpy as np
from vllm.config import VllmConfig
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.worker.gpu.block_table import BlockTables

from vllm_smart.adapter.cpu.attention import tree_attention
from vllm_smart.adapter.step_plan import StepPlan
from vllm_smart.kernels.cpu_kv_compaction import CpuKVCompaction


@dataclass
class _Group:
    """The target's layers of one KV cache group."""

    number: int
    block_size: int
    kernel: CpuKVCompaction

    def slots(self, block_table: np.ndarray, req: np.ndarray, position: np.ndarray) -> np.ndarray:
        """[n] int64: KV slots of `position` [n] of the requests `req` [n]."""
        blocks = block_table[req, position // self.block_size].astype(np.int64)
        return blocks * self.block_size + position % self.block_size


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
        team = tree_attention().team
        self.block_tables = block_tables
        self.groups: list[_Group] = []
        for number, group in enumerate(kv_cache_config.kv_cache_groups):
            names = [name for name in group.layer_names if name not in draft_layer_names]
            if names:
                caches = [layers[name].kv_cache for name in names]
                self.groups.append(_Group(number, caches[0].shape[2], CpuKVCompaction(caches, team)))

    def run(self, plan: StepPlan) -> None:
        """Move what the walk of `plan` accepted; does nothing where all of it is in place."""
        req, node, index = plan.moves()
        if not len(req):
            return
        source, target = plan.root_pos[req] + node, plan.root_pos[req] + index
        for group in self.groups:
            table = self.block_tables.input_block_tables[group.number].numpy()
            group.kernel.run(*(group.slots(table, req, at) for at in (source, target)))

"""KV compaction of one cache group on CPU cores."""

import numpy as np
import torch

from vllm_smart.kernels.cpu.openmp import OpenMPTeam
from vllm_smart.kernels.kv_compaction.cpu import CpuKVCompaction
from vllm_smart.step.plan import StepPlan


class CPUGroupCompaction:
    """Moves what a walk accepted, in all layers of a group."""

    def __init__(self, kv_caches: list[torch.Tensor], team: OpenMPTeam) -> None:
        """Args:
        kv_caches: [num_blocks, num_kv_heads, block_size, 2 * head_size] of each layer.
        team: the threads to run on.
        """
        self._block_size = kv_caches[0].shape[2]
        self._kernel = CpuKVCompaction(kv_caches, team)

    def run(self, plan: StepPlan, block_table: torch.Tensor) -> None:
        """`block_table`: [>= num_reqs, max_num_blocks] int32, requests in batch order."""
        req, node, index = plan.moves()
        if not len(req):
            return
        table = block_table.numpy()
        source, target = plan.root_pos[req] + node, plan.root_pos[req] + index
        self._kernel.run(*(self._slots(table, req, at) for at in (source, target)))

    def _slots(self, block_table: np.ndarray, req: np.ndarray, position: np.ndarray) -> np.ndarray:
        """[n] int64: KV slots of `position` [n] of the requests `req` [n]."""
        blocks = block_table[req, position // self._block_size].astype(np.int64)
        slots: np.ndarray = blocks * self._block_size + position % self._block_size
        return slots

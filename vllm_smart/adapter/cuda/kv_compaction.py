"""KV compaction of one cache group on a GPU: one launch over all layers."""

import torch

from vllm_smart.adapter.arrays import to_device
from vllm_smart.adapter.step_plan import StepPlan
from vllm_smart.kernels.triton_kv_compaction import KVCompaction


class GPUGroupCompaction:
    """Moves what a walk accepted, in all layers of a group."""

    def __init__(self, kv_caches: list[torch.Tensor]) -> None:
        """Args:
        kv_caches: [num_blocks, num_kv_heads, block_size, 2 * head_size] of each layer.
        """
        self._kernel = KVCompaction(kv_caches)

    def run(self, plan: StepPlan, block_table: torch.Tensor) -> None:
        """`block_table`: [>= num_reqs, max_num_blocks] int32, requests in batch order."""
        assert plan.path is not None
        path, root_pos = (to_device(a, block_table.device) for a in (plan.path, plan.root_pos))
        self._kernel.run(path, root_pos, block_table)

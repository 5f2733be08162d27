"""KV compaction of one cache group on a GPU: one launch over all layers."""

import torch

from vllm_smart.kernels.kv_compaction.gpu import KVCompaction
from vllm_smart.step.plan import StepPlan


class GPUGroupCompaction:
    """Moves what a walk accepted, in all layers of a group."""

    def __init__(self, kv_caches: list[torch.Tensor]) -> None:
        """Args:
        kv_caches: [num_blocks, num_kv_heads, block_size, 2 * head_size] of each layer.
        """
        self._kernel = KVCompaction(kv_caches)
        # Moves nothing, and is compiled by it: no request should wait for that.
        zero = torch.zeros(1, 1, dtype=torch.int32, device=kv_caches[0].device)
        self._kernel.run(zero, zero[0].long(), zero)

    def run(self, plan: StepPlan, block_table: torch.Tensor) -> None:
        """`block_table`: [>= num_reqs, max_num_blocks] int32, requests in batch order."""
        assert plan.walk is not None
        assert plan.nodes is not None
        self._kernel.run(plan.walk.path, plan.nodes.root_position, block_table)

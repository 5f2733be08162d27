"""KV compaction in plain torch; for tests."""

import numpy as np
import numpy.typing as npt
import torch

from vllm_smart.kernels.tree_attention import split_kv_cache


def compact_kv(
    kv_caches: list[torch.Tensor],
    source_slots: npt.NDArray[np.int64],
    target_slots: npt.NDArray[np.int64],
) -> None:
    """What `CpuKVCompaction.run` does."""
    source, target = torch.from_numpy(source_slots), torch.from_numpy(target_slots)
    for kv_cache in kv_caches:
        size = kv_cache.shape[2]
        keys, values = split_kv_cache(kv_cache)
        keys[target // size, :, :, target % size] = keys[source // size, :, :, source % size]
        values[target // size, :, target % size] = values[source // size, :, source % size]

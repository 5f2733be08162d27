"""KV compaction in plain torch; for tests."""

import numpy as np
import numpy.typing as npt
import torch

from vllm_smart.kernels.tree_attention import pack_kv, unpack_kv


def compact_kv(
    kv_caches: list[torch.Tensor],
    source_slots: npt.NDArray[np.int64],
    target_slots: npt.NDArray[np.int64],
) -> None:
    """What `CpuKVCompaction.run` does."""
    source, target = torch.from_numpy(source_slots), torch.from_numpy(target_slots)
    for kv_cache in kv_caches:
        size = kv_cache.shape[2]
        keys, values = (of.clone() for of in unpack_kv(kv_cache))
        for of in (keys, values):
            of[target // size, :, target % size] = of[source // size, :, source % size]
        kv_cache.copy_(pack_kv(keys, values))

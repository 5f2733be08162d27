"""What differs between the supported versions of vLLM: the file of the one that is installed."""

import vllm

if vllm.__version_tuple__[:2] < (0, 33):
    from vllm_smart.seams.v0_32 import (
        has_old_ray_executor,
        kv_cache_of,
        masks_of,
        num_masks,
        reallocated,
    )
else:
    # Of another type: that is what differs.
    from vllm_smart.seams.v0_33 import (  # type: ignore[assignment]
        has_old_ray_executor,
        kv_cache_of,
        masks_of,
        num_masks,
        reallocated,
    )

__all__ = ["has_old_ray_executor", "kv_cache_of", "masks_of", "num_masks", "reallocated"]

"""All places where we touch vLLM."""

import vllm

from vllm_smart.seams import (
    of_cpu_drafters,
    of_devices,
    of_front_end,
    of_workers,
    v0_32,
    v0_33,
)
from vllm_smart.seams.seam import Seam

ALL_SEAMS: tuple[Seam, ...] = (
    *of_front_end.SEAMS,
    *of_workers.SEAMS,
    *of_cpu_drafters.SEAMS,
    *of_devices.SEAMS,
    *v0_32.SEAMS,
    *v0_33.SEAMS,
)


def seams_of_this_version() -> list[Seam]:
    """Those that the installed vLLM must have."""
    version = vllm.__version_tuple__[:2]
    return [seam for seam in ALL_SEAMS if seam.since <= version < seam.until]

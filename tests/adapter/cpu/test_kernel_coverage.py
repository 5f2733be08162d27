"""Every Triton kernel that Model Runner V2 launches has a CPU version, or never runs on a CPU."""

import ast
import functools
import importlib
import json
import os
import pkgutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import vllm

from vllm_smart.mrv2_cpu.registry import cpu_kernels

pytestmark = pytest.mark.vllm

# Why no CPU comes to these: kernel, or the module of several -> reason.
UNREACHABLE = {
    "cp_utils": "context parallelism is refused, and vLLM has none on CPUs",
    "model_states.recoverssm": "recurrent layers of that kind are refused",
    "sample.batch_shard": "batch-sharded sampling is refused",
    "sample.output._compact_sampling_mask_kernel": "return_sampling_mask is refused",
    "sample.trace_replay": "enable_trace_replay is refused",
    "sample.watermark": "watermarking is refused",
    "spec_decode.acceptance_estimator": "enable_adaptive_verification is refused",
    "spec_decode.dflash2.speculator": "a drafter that no setting of ours names",
    "spec_decode.rejection_sampler_utils._compute_cumulative_log_p_kernel": "verifies chains in blocks",
    "spec_decode.rejection_sampler_utils._compute_local_residual_mass_kernel": "of random drafts",
    "vllm.v1.worker.mamba_utils": "the prefix cache is refused beside recurrent layers",
}
if vllm.__version_tuple__[:2] >= (0, 33):
    UNREACHABLE["spec_decode.xpress.kernels"] = "a drafter that no setting of ours names"
_PACKAGE = "vllm.v1.worker.gpu."


class _Kernel:
    """What `triton.jit` has decorated."""

    def __init__(self, function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function)


def _mark(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Stands in for `triton.jit`, with or without options."""
    return _mark if function is None else _Kernel(function)


def kernels_launched() -> list[str]:
    """Qualified names of the kernels that V2's modules launch, and those of `vllm.v1.worker` they use.

    A launch reads `kernel[grid](...)`. Run it in a process of its own, which it spoils.
    """
    from vllm.triton_utils import triton

    triton.jit = _mark
    import vllm.v1.worker.cpu.shm  # noqa: F401
    import vllm.v1.worker.gpu as package

    for module in pkgutil.walk_packages(package.__path__, _PACKAGE):
        importlib.import_module(module.name)
    helpers = ("vllm.v1.worker.utils", "vllm.v1.worker.mamba_utils")
    found = set()
    for name, module in list(sys.modules.items()):
        if not name.startswith((_PACKAGE, *helpers)):
            continue
        for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
            match node:
                case ast.Call(func=ast.Subscript(value=ast.Name(id=launched))):
                    kernel = getattr(module, launched, None)
                    if isinstance(kernel, _Kernel):
                        found.add(f"{kernel.__module__}.{kernel.__name__}")
    return sorted(found)


@pytest.fixture(scope="module")
def launched() -> set[str]:
    program = (
        "import json; from tests.adapter.cpu.test_kernel_coverage import kernels_launched; "
        "print(json.dumps(kernels_launched()))"
    )
    process = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[3],
        env={**os.environ, "VLLM_PLUGINS": "none"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr[-4000:]
    return set(json.loads(process.stdout.splitlines()[-1]))


def _reason(kernel: str) -> str | None:
    name = kernel.removeprefix(_PACKAGE)
    return UNREACHABLE.get(name) or UNREACHABLE.get(name.rpartition(".")[0])


def test_kernels_are_found_where_they_are_launched(launched):
    assert set(cpu_kernels()) <= launched


def test_every_kernel_has_a_cpu_version_or_is_never_launched_there(launched):
    missing = {kernel for kernel in launched - set(cpu_kernels()) if _reason(kernel) is None}
    assert not missing


def test_no_reason_outlives_its_kernel(launched):
    names = {kernel.removeprefix(_PACKAGE) for kernel in launched - set(cpu_kernels())}
    assert set(UNREACHABLE) <= names | {name.rpartition(".")[0] for name in names}

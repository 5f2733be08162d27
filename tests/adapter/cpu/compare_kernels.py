"""Runs vLLM's own Triton kernels in Triton's interpreter beside our CPU versions.

A program of its own, because the interpreter has to be chosen before Triton is imported:
`python -m tests.adapter.cpu.compare_kernels REPORT`. The report maps each kernel to its complaint, or
to an empty string.
"""

import importlib
import inspect
import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from tests.adapter.cpu.kernel_cases import cases
from tests.adapter.cpu.launches import Launch

NUM_SEEDS = 4
_OPTIONS = ("num_warps", "num_stages")  # of a launch, which CPUs have no use for


def use_triton_interpreter() -> None:
    """Make vLLM believe in a Triton that compiles for the CPU; the interpreter runs it."""
    os.environ["TRITON_INTERPRET"] = "1"
    from triton.backends import backends

    driver = SimpleNamespace(is_active=lambda: True)
    backends["cpu"] = SimpleNamespace(driver=driver, compiler=None)
    _work_around_the_interpreter()
    from tests.quick_interpreter import replace_once

    replace_once()


def _work_around_the_interpreter() -> None:
    import triton.language as tl
    from torch._inductor.runtime import triton_helpers
    from triton.language.extra import libdevice
    from triton.runtime.interpreter import InterpreterBuilder

    # A scalar mask combined with a block may come out as integers, which it refuses.
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def load_with_any_mask(self: Any, ptrs: Any, mask: Any, *rest: Any) -> Any:
        mask.data = mask.data.astype(bool)
        return load(self, ptrs, mask, *rest)

    def store_with_any_mask(self: Any, ptrs: Any, value: Any, mask: Any, cache_policy: Any) -> Any:
        mask.data = mask.data.astype(bool)
        return store(self, ptrs, value, mask, cache_policy)

    InterpreterBuilder.create_masked_load = load_with_any_mask
    InterpreterBuilder.create_masked_store = store_with_any_mask

    # Device libraries exist only on devices.
    libdevice.log1p = lambda value: tl.log(1.0 + value)
    triton_helpers.libdevice.isnan = lambda value: value != value


def complaint_about(name: str, kernel: Any, ours: Callable[..., None]) -> str:
    """Why our version differs from the kernel, or nothing."""
    expected = [argument.removesuffix("_ptr") for argument in kernel.arg_names]
    parameters = [p for p in inspect.signature(ours).parameters if p not in _OPTIONS]
    if parameters != expected:
        return f"arguments are now {expected}, we take {parameters}"
    for build in cases()[name]:
        arguments = list(build(np.random.default_rng(0)).arguments)
        if arguments != expected:
            return f"{build.__name__} passes {arguments}, the kernel takes {expected}"
        for seed in range(NUM_SEEDS):
            complaint = _compare(kernel, ours, lambda: build(np.random.default_rng(seed)))  # noqa: B023
            if complaint:
                return f"{build.__name__}, seed {seed}: {complaint}"
    return ""


def _compare(kernel: Any, ours: Callable[..., None], build: Callable[[], Launch]) -> str:
    theirs_launch, ours_launch = build(), build()
    kernel[theirs_launch.grid](*theirs_launch.arguments.values())
    constexprs = {k: v for k, v in ours_launch.arguments.items() if k.isupper()}
    plain = [v for k, v in ours_launch.arguments.items() if not k.isupper()]
    ours(*plain, **constexprs)
    return _difference(theirs_launch, ours_launch.tensors())


def _difference(launch: Launch, actual: Mapping[str, torch.Tensor]) -> str:
    for name, expected in launch.tensors().items():
        ignored = launch.unspecified.get(name, torch.tensor(False))
        specified = ~ignored.expand(expected.shape)
        try:
            torch.testing.assert_close(
                actual[name][specified],
                expected[specified],
                rtol=launch.tolerance,
                atol=launch.tolerance,
                equal_nan=True,
            )
        except AssertionError as error:
            return f"{name}: {error}"
    return ""


def main(report: Path) -> None:
    use_triton_interpreter()
    import vllm.v1.worker.cpu.shm  # noqa: F401

    from vllm_smart.mrv2_cpu.registry import cpu_kernels

    complaints = {}
    for qualified_name, ours in cpu_kernels().items():
        name = qualified_name.removeprefix("vllm.v1.worker.gpu.")
        module, _, attribute = qualified_name.rpartition(".")
        try:
            kernel = getattr(importlib.import_module(module), attribute)
            complaints[name] = complaint_about(name, kernel, ours)
        except Exception:
            complaints[name] = traceback.format_exc()
    report.write_text(json.dumps(complaints))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Opens the gates that keep Model Runner V2 off the CPU, for the engines that ask for it.

vLLM refuses V2 where Triton cannot compile. Everything V2 needs from Triton on a
CPU is its kernels, and vLLM lets a platform replace those. To be dropped when vLLM
ships CPU versions of its own.

An engine asks by naming our proposer, or by VLLM_USE_V2_MODEL_RUNNER=1, with which vLLM would
not start without us. Every other engine keeps vLLM's own runner for CPUs and its kernels, in the
same process, too.
"""

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import vllm

_V2_PACKAGE = "vllm.v1.worker.gpu"


def enable_cpu_host(asks_for_it: Callable[[Any], bool] = lambda vllm_config: False) -> None:
    """Let engines that ask for Model Runner V2 have it on CPUs.

    Call it in every process before a `VllmConfig` is built or read. Idempotent. Does nothing on other
    platforms, and where Triton can compile for the CPU.

    Args:
        asks_for_it: whether the engine of a `VllmConfig` asks by more than VLLM_USE_V2_MODEL_RUNNER=1.
    """
    from vllm.platforms import current_platform
    from vllm.triton_utils import HAS_TRITON

    if not current_platform.is_cpu() or HAS_TRITON:
        return
    platform = type(current_platform)
    register = inspect.getattr_static(platform, "register_triton_kernel_overrides").__func__
    if hasattr(register, "__wrapped__"):
        return

    def asks(vllm_config: Any) -> bool:
        return asks_for_it(vllm_config) or _v2_is_asked_for()

    platform.register_triton_kernel_overrides = classmethod(_also_register_ours(register, asks))

    from vllm.config import VllmConfig

    chosen, validate = VllmConfig.use_v2_model_runner.fget, VllmConfig._validate_v2_model_runner
    chosen_here, validate_here = as_with_triton(chosen), as_with_triton(validate)

    @functools.wraps(chosen)
    def use_v2_model_runner(self: VllmConfig) -> bool:
        return (chosen_here if asks_for_it(self) else chosen)(self)

    @functools.wraps(validate)
    def _validate_v2_model_runner(self: VllmConfig) -> None:
        (validate_here if asks(self) else validate)(self)

    VllmConfig.use_v2_model_runner = property(use_v2_model_runner)
    VllmConfig._validate_v2_model_runner = _validate_v2_model_runner


def provide_v2_kernels() -> None:
    """Give this process the kernels that V2 needs on a CPU; call before it builds a V2 runner.

    No other runner uses them. Idempotent; does nothing where `enable_cpu_host` does nothing.
    """
    from vllm.platforms import current_platform
    from vllm.triton_utils import HAS_TRITON

    if current_platform.is_cpu() and not HAS_TRITON:
        _provide_v2_kernels()


def _v2_is_asked_for() -> bool:
    import vllm.envs as envs

    return bool(envs.VLLM_USE_V2_MODEL_RUNNER)


def as_with_triton(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, to which HAS_TRITON is True; nobody else sees another value."""
    return FunctionType(
        function.__code__,
        {**function.__globals__, "HAS_TRITON": True},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )


def _also_register_ours(
    register: Callable[[type], None], asks: Callable[[Any], bool]
) -> Callable[[type], None]:
    """Called in each worker process before its worker is made, whoever the engine belongs to."""

    @functools.wraps(register)
    def register_triton_kernel_overrides(cls: type) -> None:
        with _hidden_from_module_scans("llvmlite.binding.ffi"):
            register(cls)
        if vllm.__version_tuple__[:2] >= (0, 33):
            from vllm_smart.mrv2_cpu.v0_33 import open_gates

            open_gates(asks)
        if _v2_is_asked_for():
            provide_v2_kernels()

    return register_triton_kernel_overrides


@functools.cache
def _provide_v2_kernels() -> None:
    from vllm.triton_utils import triton

    triton.next_power_of_2 = _next_power_of_2  # which vLLM's stand-in for Triton lacks
    triton.jit = _with_clear_refusals(triton.jit)
    # Its patches of torch and vLLM must precede the first import of a V2 module.
    import vllm.v1.worker.cpu.shm  # noqa: F401
    from vllm.triton_utils.dispatcher import register_kernels

    from vllm_smart.mrv2_cpu.grouped_norms import norm_each_layer
    from vllm_smart.mrv2_cpu.latent_rope import rotate_whole_tokens
    from vllm_smart.mrv2_cpu.registry import cpu_kernels

    norm_each_layer()
    rotate_whole_tokens()
    kernels = cpu_kernels()
    with _hidden_from_module_scans("llvmlite.binding.ffi"):
        register_kernels(kernels)
    from vllm.v1.worker.gpu.spec_decode.ngram.speculator import NgramGPUSpeculator

    NgramGPUSpeculator.__init__ = as_with_triton(NgramGPUSpeculator.__init__)


@contextmanager
def _hidden_from_module_scans(name: str) -> Iterator[None]:
    """Keep a module out of `sys.modules` for a while.

    `register_kernels` looks for kernels in the `__dict__` of everything in every module.
    llvmlite, which numba imports, has an object there that takes `__dict__` for a symbol
    of its library, and the search dies.
    """
    module = sys.modules.pop(name, None)
    try:
        yield
    finally:
        if module is not None:
            sys.modules[name] = module


def _next_power_of_2(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


class UnsupportedKernel:
    """A Triton kernel without a CPU version; launching it says so.

    vLLM's own stand-in leaves the plain function, whose launch fails with an error
    about subscripting.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function)
        self.func = function
        self.arg_names = tuple(inspect.signature(function).parameters)

    def __getitem__(self, grid: Any) -> Callable[..., Any]:
        name = f"{self.func.__module__}.{self.func.__name__}"
        raise NotImplementedError(f"{name} has no CPU version: this feature needs a GPU")


def _with_clear_refusals(stock_jit: Callable[..., Any]) -> Callable[..., Any]:
    """`triton.jit`, with or without options, that says which of V2's kernels we lack."""

    def jit(function: Callable[..., Any] | None = None, **options: Any) -> Any:
        if function is None:
            return jit
        is_v2 = function.__module__.startswith(_V2_PACKAGE)
        return UnsupportedKernel(function) if is_v2 else stock_jit(function)

    return jit

"""Opens the gates that keep Model Runner V2 off the CPU.

vLLM 0.32 refuses V2 where Triton cannot compile. Everything V2 needs from Triton on a
CPU is its kernels, and vLLM lets a platform replace those. To be dropped when vLLM
ships CPU versions of its own.
"""

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def enable_cpu_host() -> None:
    """Make Model Runner V2 the runner for CPU, unless VLLM_USE_V2_MODEL_RUNNER=0.

    Call it in every process before a `VllmConfig` is built. Idempotent. Does nothing
    on other platforms, and where Triton can compile for the CPU. Kernels are registered
    later, in the process and at the moment that vLLM asks its platform for them.
    """
    from vllm.platforms import current_platform
    from vllm.triton_utils import HAS_TRITON, triton

    if not current_platform.is_cpu() or HAS_TRITON:
        return

    import vllm.config.vllm as vllm_config

    vllm_config.HAS_TRITON = True
    triton.next_power_of_2 = _next_power_of_2
    triton.jit = _jit

    platform = type(current_platform)
    register = inspect.getattr_static(platform, "register_triton_kernel_overrides").__func__
    if not hasattr(register, "__wrapped__"):
        platform.register_triton_kernel_overrides = classmethod(_also_register_ours(register))


def _also_register_ours(register: Callable[[type], None]) -> Callable[[type], None]:
    @functools.wraps(register)
    def register_triton_kernel_overrides(cls: type) -> None:
        with _hidden_from_module_scans("llvmlite.binding.ffi"):
            register(cls)
        import vllm.envs as envs

        if envs.VLLM_USE_V2_MODEL_RUNNER is not False:
            _register_ours()

    return register_triton_kernel_overrides


@functools.cache
def _register_ours() -> None:
    # Its patches of torch and vLLM must precede the first import of a V2 module.
    import vllm.v1.worker.cpu.shm  # noqa: F401
    from vllm.triton_utils.dispatcher import register_kernels

    from vllm_smart.adapter.cpu.registry import cpu_kernels

    kernels = cpu_kernels()
    with _hidden_from_module_scans("llvmlite.binding.ffi"):
        register_kernels(kernels)


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


def _jit(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Stands in for `triton.jit`, with or without options."""
    return _jit if function is None else UnsupportedKernel(function)

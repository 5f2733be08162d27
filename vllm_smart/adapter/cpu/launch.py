"""What the CPU kernels share: compiled loops over numpy views of vLLM's tensors."""

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numba
import numpy as np
import torch

# Compiled at the first call of each argument type, then kept on disk.
compiled = numba.njit(cache=True, nogil=True, error_model="numpy")


def on_numpy(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Hand a kernel numpy views of its tensor arguments.

    The views share memory, so writes reach vLLM's tensors.
    """

    @functools.wraps(kernel)
    def launch(*args: Any, **constexprs: Any) -> Any:
        return kernel(
            *[arg.numpy() if isinstance(arg, torch.Tensor) else arg for arg in args],
            **constexprs,
        )

    return launch


def compiled_kernel(kernel: Callable[..., None]) -> Callable[..., None]:
    """Compile a kernel that is written as loops over requests and rows.

    A step launches a dozen kernels over a few dozen integers: there, a vectorised
    version costs several times as much in calls as a compiled loop.
    """
    return on_numpy(compiled(kernel))


@compiled
def argmax(values):
    """The first largest value; NaN never wins."""
    best = 0
    for i in range(1, len(values)):
        if values[i] > values[best] or np.isnan(values[best]):
            best = i
    return best


@functools.lru_cache(maxsize=4096)
def int32_at(address: int, *shape: int) -> np.ndarray:
    """The int32 array of this shape that starts at a raw address.

    vLLM hands block tables to its kernels as pointers, and keeps them alive.
    """
    interface = {"data": (address, False), "shape": shape, "typestr": "<i4", "version": 3}
    return np.asarray(SimpleNamespace(__array_interface__=interface))

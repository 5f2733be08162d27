"""What stands in for vLLM's kernels: with their signatures, on their tensors."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from vllm_smart.kernels.cpu.launch import compiled, numpy_view


def on_numpy(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Hand a kernel numpy views of its tensor arguments.

    The views share memory, so writes reach vLLM's tensors.
    """

    @functools.wraps(kernel)
    def launch(*args: Any, **constexprs: Any) -> Any:
        return kernel(*map(numpy_view, args), **constexprs)

    return launch


def taking(stock: Callable[..., None], **replaced: tuple[str, ...]) -> Callable[..., Any]:
    """Give a kernel the signature of `stock`, with others in place of the named parameters.

    vLLM's kernels take dozens, and versions of them differ in a few.
    """

    def decorate(kernel: Callable[..., None]) -> Callable[..., None]:
        parameters = []
        for name, parameter in inspect.signature(stock).parameters.items():
            parameters += [parameter.replace(name=new) for new in replaced.get(name, (name,))]
        kernel.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return kernel

    return decorate


@compiled
def argmax(values):
    """The first largest value; NaN never wins."""
    best = 0
    for i in range(1, len(values)):
        if values[i] > values[best] or np.isnan(values[best]):
            best = i
    return best

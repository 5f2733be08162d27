"""Loops over tensors, compiled, and called at the price of a few numbers."""

import functools
import hashlib
import inspect
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from numba import types
from numba.extending import intrinsic

# Compiled at the first call of each argument type, then kept on disk.
compiled = numba.njit(cache=True, nogil=True, error_model="numpy")

_LONGEST_NAME = 150  # of an entry, which becomes part of a file's

# What compiled kernels can be handed by address.
_NUMPY_DTYPES = {
    torch.bool: np.bool_,
    torch.int16: np.int16,
    torch.int32: np.int32,
    torch.int64: np.int64,
    torch.uint64: np.uint64,
    torch.float32: np.float32,
    torch.float64: np.float64,
}


def numpy_view(arg: Any) -> Any:
    """`arg`, as an array that shares its memory where it is a tensor."""
    return arg.numpy() if isinstance(arg, torch.Tensor) else arg


@intrinsic
def _pointer(typing_context, address, dtype):
    pointer = types.CPointer(dtype.dtype)

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(pointer))

    return pointer(types.int64, dtype), generate


@compiled
def array_at(address, shape, dtype):
    """The array that starts at a raw address, in compiled code.

    Its caller keeps it alive; so does vLLM, which hands block tables to its kernels as pointers.
    """
    return numba.carray(_pointer(np.int64(address), dtype), shape)


class compiled_kernel:
    """Compile a kernel that is written as loops over requests and rows.

    A step launches a dozen kernels over a few dozen integers: there, a vectorised version costs
    several times as much in calls as a compiled loop. So does a numpy view of each argument, which
    is why tensors are handed over as addresses and sizes, to an entry that is made for their types.
    """

    def __init__(self, kernel: Callable[..., None]) -> None:
        functools.update_wrapper(self, kernel)
        self._kernel, self.with_arrays = kernel, compiled(kernel)
        self._signature = inspect.signature(kernel)
        self._parameters = list(self._signature.parameters.values())
        self._entries: dict[tuple[Any, ...], Callable[..., None]] = {}

    def __call__(self, *args: Any, **constexprs: Any) -> None:
        """Run the kernel on tensors, arrays, numbers and None; compile it for their types first."""
        given = args
        for parameter in self._parameters[len(args) :]:
            args += (constexprs.get(parameter.name, parameter.default),)
        kinds: list[Any] = []
        flat: list[Any] = []
        for arg in args:
            if isinstance(arg, torch.Tensor):
                shape = arg.shape
                kinds += arg.dtype, len(shape)
                flat.append(arg.data_ptr())
                flat += shape
                if not shape or not arg.is_contiguous() or arg.dtype not in _NUMPY_DTYPES:
                    self.with_arrays(*map(numpy_view, args))
                    return
            elif arg is None:
                kinds.append(None)
            else:
                kinds.append(int)
                flat.append(arg)
        key = tuple(kinds)
        entry = self._entries.get(key)
        if entry is None:
            self._signature.bind(*given, **constexprs)  # complains of unknown and missing ones
            entry = self._entries[key] = self.entry(" ".join(map(_kind, args)))
        entry(*flat)

    def entry(self, kinds: str) -> Any:
        """A compiled function of addresses and sizes that calls the kernel with arrays.

        Args:
            kinds: a word for each argument: "none", "value", or a tensor's dtype and number of axes, as
                "int32_2".
        """
        parameters, arrays = [], []
        scope: dict[str, Any] = {"kernel": self.with_arrays, "array_at": array_at}
        name = "entry"
        for number, kind in enumerate(kinds.split()):
            if kind == "none":
                arrays.append("None")
                continue
            at = f"a{number}"
            parameters.append(at)
            if kind == "value":
                arrays.append(at)
                continue
            dtype, _, num_axes = kind.rpartition("_")
            sizes = [f"{at}_{axis}" for axis in range(int(num_axes))]
            parameters += sizes
            scope[dtype] = getattr(np, dtype)
            arrays.append(f"array_at({at}, ({', '.join(sizes)},), {dtype})")
            name += f"_{kind}"
        if len(name) > _LONGEST_NAME:
            name = f"entry_{hashlib.sha256(name.encode()).hexdigest()[:16]}"
        source = f"def {name}({', '.join(parameters)}):\n    kernel({', '.join(arrays)})"
        # numba's cache goes by file and name: the kernel's.
        exec(compile(source, inspect.getfile(self._kernel), "exec"), scope)
        scope[name].__qualname__ = f"{self._kernel.__qualname__}.{name}"
        scope[name].__module__ = self.__module__
        scope[name].kinds = kinds
        return compiled(scope[name])


def _kind(arg: Any) -> str:
    """The word for an argument in `compiled_kernel.entry`."""
    if isinstance(arg, torch.Tensor):
        return f"{_NUMPY_DTYPES[arg.dtype].__name__}_{arg.dim()}"
    return "none" if arg is None else "value"

"""Device kernels are tested where they run: on a GPU, else in Triton's interpreter on the CPU."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings

pytest.importorskip("triton")

import triton.language as tl
from triton.runtime import interpreter

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def examples(count: int) -> Callable[[Any], Any]:
    """How many random examples a test takes: few on GPUs, where each shape has to be compiled."""
    return settings(max_examples=max(4, count // 8) if DEVICE.type == "cuda" else count, deadline=None)


def _dot_of_bfloat16(create_dot: Any) -> Any:
    """The interpreter keeps bfloat16 as bits and would multiply those; widening them is exact."""

    def widen(handle: Any) -> Any:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        widened = interpreter._convert_float(handle.data, tl.bfloat16, tl.float32, None)
        return interpreter.TensorHandle(widened.view(np.float32), tl.float32)

    def dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return create_dot(self, widen(a), widen(b), *rest)

    return dot


interpreter.InterpreterBuilder.create_dot = _dot_of_bfloat16(interpreter.InterpreterBuilder.create_dot)

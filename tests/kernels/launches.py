"""Counts what a GPU would launch, where Triton's interpreter plays one."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime import interpreter

# Memory, and other names for it.
_NO_LAUNCH = ("empty", "new_empty", "empty_like", "empty_strided", "detach", "alias", "lift_fresh")


@dataclass
class Launches:
    """How many so far."""

    ours: int = 0  # Triton kernels
    torchs: int = 0  # at least one for each operator that computes or copies

    @property
    def total(self) -> int:
        return self.ours + self.torchs


class _Operators(TorchDispatchMode):
    def __init__(self, launches: Launches) -> None:
        super().__init__()
        self.launches = launches

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name not in _NO_LAUNCH and not func.is_view and name != "_unsafe_view":
            self.launches.torchs += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def counted() -> Iterator[Launches]:
    """Count while the context is open."""
    launches, run = Launches(), interpreter.GridExecutor.__call__

    def counting(self: Any, *args: Any, **kwargs: Any) -> Any:
        launches.ours += 1
        with torch.utils._python_dispatch._disable_current_modes():
            return run(self, *args, **kwargs)

    with mock.patch.object(interpreter.GridExecutor, "__call__", counting), _Operators(launches):
        yield launches

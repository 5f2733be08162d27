"""Counts what is compiled while requests wait: nothing should be."""

import sys
from collections.abc import Callable
from typing import Any

from numba.core import event

Note = Callable[[str], None]  # takes the name of what was compiled


class CompilationWatch:
    """Tells of every function that numba, torch or Triton compiles in this process from now on.

    Not of what a cache on disk has already.
    """

    def __init__(self, note: Note) -> None:
        """Args:
        note: called after each compilation.
        """
        self._listener = _NumbaListener(note)
        event.register("numba:compile", self._listener)
        if "torch._dynamo" in sys.modules:  # otherwise nothing compiles by it
            from torch._dynamo.callback import on_compile_end

            on_compile_end(lambda args: note(f"torch graph {args.compile_id}"))
        if "triton" in sys.modules:
            _watch_triton(note)

    def close(self) -> None:
        """Hear of numba's compilations no more."""
        event.unregister("numba:compile", self._listener)


class _NumbaListener(event.Listener):  # type: ignore[misc]  # numba has no types
    def __init__(self, note: Note) -> None:
        self._note = note

    def on_start(self, event: Any) -> None:
        pass

    def on_end(self, event: Any) -> None:
        function = event.data["dispatcher"].py_func
        self._note(f"{function.__module__}.{function.__qualname__}{event.data['args']}")


def _watch_triton(note: Note) -> None:
    from triton import knobs

    before = knobs.runtime.jit_post_compile_hook

    def hook(*args: Any, **kwargs: Any) -> Any:
        note(f"Triton kernel {getattr(kwargs.get('fn'), 'name', '?')}")
        return before(*args, **kwargs) if before is not None else None

    knobs.runtime.jit_post_compile_hook = hook

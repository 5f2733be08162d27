"""A start without what Python does beside it.

Python keeps the frames of calls in chunks of 16 KiB. A call that does not fit into its chunk maps
another one, and its return unmaps it. A loop that happens to run where a chunk ends does so at each
call, and then most of its time goes there. Where that is depends on the callers, and we are among them.
And a compiler makes millions of objects that live on, at which the garbage collector looks again and
again, as at all that was imported.
"""

import functools
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

# Python takes a power of two in which this frame fits. The rest, nearly as much, is for what it calls:
# more than the frames of a compiler take.
_FRAME_BYTES = 512 * 1024
_SLOT_BYTES = 8


def compiling(function: Callable[P, T]) -> Callable[P, T]:
    """`function`, which compiles for long: its frames are in one chunk, and nothing is collected."""

    @functools.wraps(function)
    def compiles(*args: P.args, **kwargs: P.kwargs) -> T:
        with without_collections():
            return in_one_chunk(function, args, kwargs)

    return compiles


def _call(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return function(*args, **kwargs)


# As large a frame as its code says that it needs. Nothing is written to it.
in_one_chunk = FunctionType(_call.__code__.replace(co_stacksize=_FRAME_BYTES // _SLOT_BYTES), globals())


@contextmanager
def without_collections() -> Iterator[None]:
    """Collect garbage only where it is asked for, as vLLM does when it has profiled a model."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def set_aside(collect: bool) -> None:
    """Let later collections pass over all objects that there are.

    Args:
        collect: garbage first, which would stay otherwise.
    """
    if collect:
        gc.collect()
    gc.freeze()

"""Entry points compiled by numba, kept in its cache."""

import ctypes
import hashlib
import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba
from numba import types

logger = logging.getLogger(__name__)

_KERNELS = Path(__file__).parents[1]
_NOT_OF_CPUS = {"gpu", "reference"}


def sources(folder: Path = _KERNELS) -> list[Path]:
    """The modules below `folder` of which code for CPUs may be made."""
    return [p for p in sorted(folder.rglob("*.py")) if not _NOT_OF_CPUS & {p.stem, p.parent.name}]


@cache
def source_version(folder: Path = _KERNELS) -> str:
    """A hash of all of `sources`, for the closures of entry points.

    numba's cache notices changes of the file that holds an entry point, and of what its closure
    holds, but not of the other files that its code is made of.
    """
    digest = hashlib.sha256()
    for path in sources(folder):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def compiled_as(name: str) -> Callable[[Callable[..., Any]], Any]:
    """`numba.njit` for one of several functions that the same lines make, each under a name of its own.

    What is loaded from numba's cache finds its parts by name and types, and may find those of another
    function that this process has compiled.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        function.__qualname__ = f"{function.__qualname__}.{name}"
        return numba.njit(function)

    return decorate


def compile_entry(function: Callable[[Any], None]) -> Any:
    """Compiles `function(pointer to int64)`, or loads it from numba's cache, as a ctypes function."""
    signature = types.void(types.CPointer(types.int64))
    try:
        compiled = numba.cfunc(signature, cache=True)(function)
    except Exception as error:  # no directory to write to, a full disk, a damaged file
        logger.warning("numba's cache is of no use, compiling each time: %s", error)
        compiled = numba.cfunc(signature)(function)
    entry: Any = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(compiled.address)
    entry.keep_alive = compiled
    return entry

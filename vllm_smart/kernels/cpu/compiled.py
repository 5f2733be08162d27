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


@cache
def source_version(folder: Path = Path(__file__).parent) -> str:
    """A hash of all modules in `folder`, for the closures of entry points.

    numba's cache notices changes of the file that holds an entry point, and of what its closure
    holds, but not of the other files that its code is made of.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def compile_entry(function: Callable[[Any], None]) -> Any:
    """Compiles `function(pointer to int64)`, or loads it from numba's cache, as a ctypes function."""
    signature = types.void(types.CPointer(types.int64))
    try:
        compiled = numba.cfunc(signature, cache=True)(function)
    except Exception as error:  # no directory to write to, a full disk, a damaged file
        logger.warning("numba's cache is of no use, compiling each time: %s", error)
        compiled = numba.cfunc(signature)(function)
    entry = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(compiled.address)
    entry.keep_alive = compiled
    return entry

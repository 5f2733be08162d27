"""Triton's interpreter without work that it does again and again.

It replaces what `triton.language` has by what it interprets: for a kernel, and again for each function
that the kernel calls, although nothing has been put back meanwhile.
"""

from functools import cache, wraps
from types import FunctionType
from typing import Any

import triton.language as tl
from triton.runtime import interpreter


def replace_once() -> None:
    """For the rest of the process, replace each module of the language once in each run of a kernel."""
    replace, run = interpreter._patch_lang, interpreter.GridExecutor.__call__
    replaced: set[str] = set()  # of the kernel that runs

    @cache
    def languages_of(function: FunctionType) -> frozenset[str]:
        values = function.__globals__.values()
        return frozenset(value.__name__ for value in values if value is tl or value is tl.core)

    @wraps(replace)
    def patch_lang(function: FunctionType) -> Any:
        languages = languages_of(function)
        if languages and languages <= replaced:
            return interpreter._LangPatchScope()  # has nothing to put back
        replaced.update(languages)
        return replace(function)

    @wraps(run)
    def run_kernel(*args: Any, **kwargs: Any) -> Any:
        try:
            return run(*args, **kwargs)
        finally:
            replaced.clear()

    interpreter._patch_lang = patch_lang
    interpreter.GridExecutor.__call__ = run_kernel

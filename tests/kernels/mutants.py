"""Compiled functions with a fault put in, to show that a check would notice it."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np


def mutant(function: Any, *faults: tuple[str, str], **within: Any) -> Callable[..., Any]:
    """`function` and what it calls in plain Python, with some of its source replaced.

    Args:
        function: compiled by numba.
        faults: (text, what it becomes); the text stands in the source once.
        within: functions that it calls instead of its own, by name.
    """
    plain = function.py_func
    source = inspect.getsource(plain)
    for right, wrong in faults:
        assert source.count(right) == 1, f"{right!r} stands {source.count(right)} times in the source"
        source = source.replace(right, wrong)
    namespace = {name: getattr(value, "py_func", value) for name, value in plain.__globals__.items()}
    namespace |= within
    exec(source[source.index("def ") :], namespace)

    def run(*args: Any) -> Any:
        with np.errstate(over="ignore"):  # hashes overflow on purpose
            return namespace[plain.__name__](*args)

    return run

"""Compiled functions with a fault put in, to show that a check would notice it."""

import inspect
from collections.abc import Callable
from typing import Any


def mutant(function: Any, *faults: tuple[str, str], **within: Any) -> Callable[..., Any]:
    """`function` in plain Python with some of its source replaced; what it calls stays compiled.

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
    namespace = plain.__globals__ | within
    exec(source[source.index("def ") :], namespace)
    return namespace[plain.__name__]

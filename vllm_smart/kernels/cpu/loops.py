"""Compiled loops by name and types, as text: what a start compiles can be known before it does."""

import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numba import types

from vllm_smart.kernels.cpu.launch import compiled_kernel

# Loops, and the engines that need them before they are ready.
LOOPS = Path(__file__).with_name("loops.json")
_LAST_AXIS = {"C": "::1", "A": ":"}  # by layout


@dataclass(frozen=True)
class Loop:
    """A function, compiled for arguments of some types."""

    module: str
    function: str
    types: str  # in numba's own notation of signatures
    kinds: str = ""  # of a `compiled_kernel`, if it is an entry of one

    @classmethod
    def of(cls, dispatcher: Any, argument_types: Sequence[Any]) -> "Loop":
        """Args:
            dispatcher: numba's, of the function.
            argument_types: numba's, of one call.

        Raises:
            TypeError: a type has no notation.
        """
        function = dispatcher.py_func
        name, _, _ = function.__qualname__.partition(".entry_")
        kinds = getattr(function, "kinds", "")
        return cls(function.__module__, name, ", ".join(map(_notation, argument_types)), kinds)

    @classmethod
    def parse(cls, content: dict[str, Any]) -> "Loop":
        """From JSON, as `dataclasses.asdict` makes it."""
        return cls(**{name: content[name] for name in ("module", "function", "types", "kinds")})

    def compile(self) -> None:
        """Compile it, or load it from numba's cache.

        Raises:
            AttributeError: there is no such function any more.
        """
        function = getattr(importlib.import_module(self.module), self.function)
        if isinstance(function, compiled_kernel):
            function = function.entry(self.kinds) if self.kinds else function.with_arrays
        function.compile(eval(f"({self.types},)", vars(types)))


def loops_of(engine: str, path: Path = LOOPS) -> list[Loop]:
    """What an engine needs before it is ready; of one that is not in the file, what all of them need.

    Args:
        engine: drafters and size of the elements of the model's dtype, as "eagle3+ngram 16-bit".
        path: of the file.
    """
    rows = json.loads(path.read_text(encoding="utf-8"))
    known = {name for row in rows for name in row["engines"]}
    wanted = {engine} if engine in known else known
    return [Loop.parse(row) for row in rows if wanted <= set(row["engines"])]


def _notation(of: Any) -> str:
    if isinstance(of, types.Array) and of.mutable and of.aligned and of.layout in _LAST_AXIS:
        return f"{_notation(of.dtype)}[{':,' * (of.ndim - 1)}{_LAST_AXIS[of.layout]}]"
    if isinstance(of, types.Boolean):
        return "boolean"
    if isinstance(of, types.Number):
        return str(of)
    if isinstance(of, types.CPointer):
        return f"CPointer({_notation(of.dtype)})"
    if isinstance(of, types.NoneType):
        return "none"
    if isinstance(of, types.Tuple | types.UniTuple):
        return f"Tuple(({''.join(f'{_notation(each)}, ' for each in of)}))"
    raise TypeError(f"numba's type {of} has no notation here")

"""One place where we touch vLLM, as data, and whether the vLLM that runs still has it.

Tests check every seam, and so does every engine with trees before it is built: a vLLM that has changed
is refused by the name of what is missing, not found out by a wrong text.
"""

import dis
import functools
import importlib
import inspect
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from types import FunctionType
from typing import Any, Literal

from vllm_smart.errors import UnsupportedError
from vllm_smart.seams.host import SUPPORTED, TESTED, vllm_version

Version = tuple[int, int]
# rebind: we put something else in its place. override: a class of ours extends it.
# replace: a class of ours stands in for the whole class, and is called like it.
How = Literal["rebind", "override", "replace", "call", "read"]


class Where(Enum):
    """The process, and on which device, that has to have a seam."""

    FRONT_END = "front end"
    WORKER = "worker"
    GPU_WORKER = "worker on a GPU"
    CPU_WORKER = "worker on a CPU"


@dataclass(frozen=True)
class Seam:
    """Something of vLLM that we rely on.

    Attributes:
        target: `module:name` or `module:Class.name`.
        how: what we do with it.
        where: who needs it.
        signature: parameters in order and, after `->`, what is returned, modules left out. `=` after a
            parameter: it has a default. `...` at the end: vLLM may have more, which are optional where
            we call. Empty: it is no function, or its signature does not matter.
        names: of a class or module: what it must have, in the class or set by its methods. `name: type`
            compares the annotation, too.
        uses: names that the function's own code must read: so what we rebind or set is what it takes.
        since: first version that is so.
        until: first version that is not.
        remove_when: when we shall not need it any more.
    """

    target: str
    how: How
    where: Where
    signature: str = ""
    names: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()
    since: Version = SUPPORTED[0]
    until: Version = SUPPORTED[1]
    remove_when: str = ""

    def complaints(self) -> Iterator[str]:
        """What vLLM lacks of it, each to be read after `vllm_smart needs`."""
        try:
            found = _find(self.target)
        except (ImportError, AttributeError):
            yield self.target
            return
        if self.signature:
            actual = signature_of(found)
            if not _fits(self.signature, actual, self.how):
                yield f"{self.target}{self.signature}, but finds {actual}"
        missing = [name for name in self.names if not _has(found, name)]
        if missing:
            yield f"{', '.join(missing)} of {self.target}"
        unused = sorted(set(self.uses) - _names_read(_function(found)))
        if unused:
            yield f"{self.target} to look up {', '.join(unused)}"


def check_seams(seams: Iterable[Seam], where: set[Where]) -> None:
    """Refuse a vLLM that lacks something that the processes `where` need.

    Raises:
        UnsupportedError: it names the first thing that is missing, and versions that have it.
    """
    for seam in seams:
        if seam.where in where:
            for complaint in seam.complaints():
                tested = " or ".join(f"vllm=={version}" for version in TESTED)
                raise UnsupportedError(
                    f"vllm_smart needs {complaint}, and vLLM {vllm_version()} has changed there. "
                    f"Install a version that it was tested with: {tested}."
                )


def signature_of(function: Any) -> str:
    """As `Seam.signature` says it."""
    signature = inspect.signature(_function(function))
    parts = []
    for parameter in signature.parameters.values():
        before: dict[Any, str] = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}
        stars = before.get(parameter.kind, "")
        default = "" if parameter.default is parameter.empty else "="
        parts.append(f"{stars}{parameter.name}{default}")
    returned = signature.return_annotation
    arrow = "" if returned is signature.empty else f" -> {_plain(returned)}"
    return f"({', '.join(parts)}){arrow}"


def _fits(expected: str, actual: str, how: How) -> bool:
    expected_parameters, _, expected_return = expected.partition(")")
    parameters, _, returned = actual.partition(")")
    if expected_return and expected_return != returned:
        return False
    wanted, given = (text[1:].split(", ") for text in (expected_parameters, parameters))
    if wanted[-1] != "...":
        return wanted == given
    wanted.pop()
    more = given[len(wanted) :]
    is_optional = all(name.endswith("=") or name.startswith("*") for name in more)
    return wanted == given[: len(wanted)] and (how != "call" or is_optional)


def _find(target: str) -> Any:
    module_name, _, path = target.partition(":")
    found = importlib.import_module(module_name)
    for name in filter(None, path.split(".")):
        found = inspect.getattr_static(found, name)
    return found


def _function(found: Any) -> Any:
    """The function itself, without what it is wrapped in: properties, methods, and our own wrappers."""
    if isinstance(found, property):
        found = found.fget
    return inspect.unwrap(getattr(found, "__func__", found))


def _has(owner: Any, name: str) -> bool:
    name, _, kind = name.partition(": ")
    if kind:
        return _annotation(owner, name) == kind
    if not isinstance(owner, type):
        return hasattr(owner, name)
    return any(
        name in vars(cls) or name in getattr(cls, "__annotations__", {}) or name in _names_set(cls)
        for cls in owner.__mro__
    )


def _annotation(owner: type, name: str) -> str | None:
    for cls in owner.__mro__:
        if name in getattr(cls, "__annotations__", {}):
            return _plain(cls.__annotations__[name])
    return None


@functools.cache
def _names_set(cls: type) -> set[str]:
    """Attributes that methods of `cls` set."""
    functions = [value for value in vars(cls).values() if isinstance(value, FunctionType)]
    return {
        instruction.argval
        for function in functions
        for instruction in dis.get_instructions(inspect.unwrap(function))
        if instruction.opname == "STORE_ATTR"
    }


def _names_read(function: Any) -> set[str]:
    return set(getattr(getattr(function, "__code__", None), "co_names", ()))


def _plain(annotation: Any) -> str:
    """An annotation without modules and quotes."""
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", text).replace("'", "").replace('"', "")

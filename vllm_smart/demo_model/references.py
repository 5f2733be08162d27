"""Where prompts stand in the standard library of the Python that runs; its text is not shipped.

A reference names a file, or a topic of `pydoc_data`, and a text's first line, length and hash. The
text is looked for at that line and then at all others, so other releases of Python may move it. Each
text found is the one referred to, to the letter. What a release changed or lacks is replaced by a
spare of the same length class, in the order of the file, and a warning says how many were.
"""

import ast
import hashlib
import json
import logging
import platform
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from itertools import accumulate
from pathlib import Path

from vllm_smart.errors import SmartError

logger = logging.getLogger("vllm.smart")

TOPICS = "pydoc_data/topics.py"
LONG = 400  # tokens from which on a prompt is a long one
_HASH_DIGITS = 16
_LEAST_SHARE = 1 / 4  # of the prompts of a class that must be found


@dataclass(frozen=True)
class Reference:
    """One piece of text, and the prompt that is made of it."""

    source: str  # a path in the standard library, or "pydoc_data/topics.py: TOPIC"
    line: int  # the piece starts there; the first is 1
    chars: int
    sha256: str  # of the piece in UTF-8, its first digits
    tokens: int  # of the prompt
    name: str | None = None  # what the prompt asks to rename
    spare: bool = False  # only used where another is missing

    @property
    def is_long(self) -> bool:
        """The length class."""
        return self.tokens >= LONG


@dataclass(frozen=True)
class Found:
    """The pieces of one file of references in this Python, in the file's order."""

    made_on: str  # the version of Python that was referred to
    pieces: list[tuple[Reference, str]]
    num_replaced: int
    num_missing: int  # and no spare left for them

    @property
    def difference(self) -> str | None:
        """What is not as in the Python referred to, in words; None if all is."""
        if not self.num_replaced and not self.num_missing:
            return None
        total = len(self.pieces) + self.num_missing
        return (
            f"{self.num_replaced} of {total} prompts are replaced and {self.num_missing} left out: "
            f"this Python {platform.python_version()} lacks texts of a complete Python {self.made_on}"
        )


def standard_library() -> Path:
    """The folder of its source, also for a virtual environment."""
    return Path(sysconfig.get_paths()["stdlib"])


@cache
def topics(library: Path) -> dict[str, str]:
    """The language reference's text by topic, from `pydoc_data`.

    Raises:
        OSError: it is not there.
        SyntaxError, ValueError: it is not the dictionary that CPython 3.10 to 3.13 ship.
    """
    source = (library / TOPICS).read_text(encoding="utf-8")
    found: dict[str, str] = ast.literal_eval(source.partition("topics = ")[2])
    return found


@cache
def find_pieces(file: Path, library: Path | None = None) -> Found:
    """Look up the references in `file`, and warn if this Python differs.

    Args:
        file: as `write_references` wrote it.
        library: folder of Python source; None takes the standard library that runs.

    Raises:
        SmartError: too little of the source is there.
    """
    made_on, references = _read(file)
    library = library or standard_library()
    look_up = _LookUp(library)
    spares = {
        is_long: look_up.all_of([r for r in references if r.spare and r.is_long == is_long])
        for is_long in (True, False)
    }
    pieces: list[tuple[Reference, str]] = []
    num_replaced = 0
    wanted = [reference for reference in references if not reference.spare]
    for reference in wanted:
        piece = next(look_up.all_of([reference]), None)
        if piece is None:
            piece = next(spares[reference.is_long], None)
            num_replaced += piece is not None
        if piece is not None:
            pieces.append(piece)
    name = f"{file.parent.name}/{file.name}"
    _require_enough(wanted, pieces, name, made_on, library)
    found = Found(made_on, pieces, num_replaced, len(wanted) - len(pieces))
    if found.difference:
        logger.warning("%s: %s.", name, found.difference)
    return found


def refer(source: str, text: str, start: int, chars: int, tokens: int) -> Reference:
    """The reference to `text[start : start + chars]`; `start` must begin a line."""
    line = _line_starts(text).index(start) + 1
    return Reference(source, line, chars, _hash(text[start : start + chars]), tokens)


def write_references(file: Path, references: Iterable[Reference]) -> None:
    """One JSON object per line, after one that names the running version of Python."""
    rows: list[dict[str, object]] = [{"python": platform.python_version()}]
    for reference in references:
        rows.append({key: value for key, value in asdict(reference).items() if value})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _read(file: Path) -> tuple[str, list[Reference]]:
    head, *rows = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    return head["python"], [Reference(**row) for row in rows]


def _require_enough(
    wanted: list[Reference], pieces: list[tuple[Reference, str]], name: str, made_on: str, library: Path
) -> None:
    for is_long in (True, False):
        total = sum(reference.is_long == is_long for reference in wanted)
        found = sum(reference.is_long == is_long for reference, _ in pieces)
        if found < _LEAST_SHARE * total:
            raise SmartError(
                f"{name}: only {found} of {total} {'long' if is_long else 'short'} prompts were found. "
                "They are pieces of the standard library's source and of pydoc_data, which "
                f"Python {platform.python_version()} should have as .py files in {library}. "
                f"Use a Python that was installed with them, best a complete {made_on}."
            )


class _LookUp:
    """Finds pieces; reads each source once."""

    def __init__(self, library: Path) -> None:
        self._library = library
        self._sources: dict[str, tuple[str, list[int]]] = {}

    def all_of(self, references: Iterable[Reference]) -> Iterator[tuple[Reference, str]]:
        """Those that are there, with their texts."""
        for reference in references:
            text = self._find(reference)
            if text is not None:
                yield reference, text

    def _find(self, reference: Reference) -> str | None:
        if reference.source not in self._sources:
            text = _text_of(reference.source, self._library)
            self._sources[reference.source] = text, _line_starts(text)
        text, starts = self._sources[reference.source]
        for start in [*starts[reference.line - 1 : reference.line], *starts]:
            piece = text[start : start + reference.chars]
            if len(piece) == reference.chars and _hash(piece) == reference.sha256:
                return piece
        return None


def _text_of(source: str, library: Path) -> str:
    """The text of a file or topic; empty if there is none."""
    path, _, topic = source.partition(": ")
    try:
        if topic:
            return topics(library).get(topic, "")
        return (library / path).read_text(encoding="utf-8")
    except (OSError, SyntaxError, ValueError):  # as good as missing
        return ""


def _line_starts(text: str) -> list[int]:
    return [0, *accumulate(map(len, text.splitlines(keepends=True)))]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_HASH_DIGITS]

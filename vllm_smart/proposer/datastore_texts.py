"""Texts that a datastore is built from: `.txt`, `.jsonl` and `.npy`, read piece by piece."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vllm_smart.errors import DatastoreError

SUFFIXES = (".txt", ".jsonl", ".npy")
_PIECE_CHARS = 1 << 20
_PIECE_TOKENS = 1 << 20
_BLANK_LINES = re.compile(r"(?<=\n)(?=\n+[^\n])")
_SHORT_CHARS = 64  # a shorter paragraph, like a closing bracket, may well stand twice


@dataclass(frozen=True)
class Piece:
    """Some of a text: characters, or tokens that are ready."""

    content: str | npt.NDArray[np.integer[Any]]
    num_bytes: int  # of the file that it was read from
    ends_document: bool


def check_texts(paths: list[Path]) -> int:
    """See that all texts are there before the first is read.

    Returns:
        Their size in bytes.

    Raises:
        DatastoreError: one is missing, empty, or of another kind.
    """
    for path in paths:
        if not path.is_file():
            raise DatastoreError(f"TEXT {str(path)!r} is no file. Name files of {', '.join(SUFFIXES)}.")
        if path.suffix not in SUFFIXES:
            raise DatastoreError(
                f"TEXT {str(path)!r}: a {path.suffix or 'nameless'} file is not known. Plain text is "
                ".txt, one document a line is .jsonl, tokens are .npy."
            )
        if not path.stat().st_size:
            raise DatastoreError(f"TEXT {str(path)!r} is empty. Leave it out.")
    return sum(path.stat().st_size for path in paths)


def pieces(path: Path, vocabulary_size: int) -> Iterator[Piece]:
    """A text piece by piece.

    Args:
        path: that `check_texts` has seen.
        vocabulary_size: tokens of .npy files are below it.

    Raises:
        DatastoreError: the file is not what its name says.
    """
    try:
        if path.suffix == ".npy":
            yield from _of_npy(path, vocabulary_size)
        else:
            yield from _of_jsonl(path) if path.suffix == ".jsonl" else _of_txt(path)
    except OSError as error:
        raise DatastoreError(
            f"TEXT {str(path)!r} cannot be read: {error.strerror}. Leave it out."
        ) from error
    except UnicodeDecodeError as error:
        raise DatastoreError(
            f"TEXT {str(path)!r} is binary or not in UTF-8. Convert it, or leave it out."
        ) from error


class Seen:
    """Leaves out what stood before: lines of .jsonl, .npy files, paragraphs of .txt files."""

    def __init__(self) -> None:
        self._digests: set[bytes] = set()

    def without_repeats(self, piece: Piece, is_prose: bool) -> Piece | None:
        """The piece without paragraphs that are known, if `is_prose`; else whole, or None if known."""
        if is_prose and isinstance(piece.content, str):
            kept = [each for each in _BLANK_LINES.split(piece.content) if self._is_new(each)]
            return Piece("".join(kept), piece.num_bytes, piece.ends_document)
        return piece if self._is_new(piece.content) else None

    def _is_new(self, content: str | npt.NDArray[np.integer[Any]]) -> bool:
        if isinstance(content, str):
            if len(content.strip()) < _SHORT_CHARS:
                return True
            content_bytes = content.strip().encode("utf-8", "surrogatepass")
        else:
            content_bytes = content.astype("<u4").tobytes()
        digest = blake2b(content_bytes, digest_size=16).digest()
        if digest in self._digests:
            return False
        self._digests.add(digest)
        return True


def _of_txt(path: Path) -> Iterator[Piece]:
    with path.open(encoding="utf-8", newline="") as file:
        rest = ""
        while chars := file.read(_PIECE_CHARS):
            if "\0" in chars:
                raise DatastoreError(f"TEXT {str(path)!r} is binary. Convert it, or leave it out.")
            chars = rest + chars
            cut = chars.rfind("\n") + 1 or len(chars)
            rest = chars[cut:]
            yield Piece(chars[:cut], len(chars[:cut].encode()), ends_document=False)
        yield Piece(rest, len(rest.encode()), ends_document=True)


def _of_jsonl(path: Path) -> Iterator[Piece]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                document = json.loads(line)
            except UnicodeDecodeError:
                raise
            except ValueError as error:
                raise DatastoreError(
                    f"TEXT {str(path)!r}, line {number} is not JSON: {error}. Correct or remove it."
                ) from error
            text = document.get("text") if isinstance(document, dict) else document
            if not isinstance(text, str):
                raise DatastoreError(
                    f"TEXT {str(path)!r}, line {number} is neither a string nor an object with a "
                    "string named 'text'. Correct or remove it."
                )
            yield Piece(text, len(line), ends_document=True)


def _of_npy(path: Path, vocabulary_size: int) -> Iterator[Piece]:
    try:
        tokens = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DatastoreError(
            f"TEXT {str(path)!r} is no array of numpy: {error}. Write it with numpy.save."
        ) from error
    if tokens.ndim not in (1, 2) or not np.issubdtype(tokens.dtype, np.integer):
        raise DatastoreError(
            f"TEXT {str(path)!r} has {tokens.dtype} of shape {tokens.shape}. Tokens are integers, in "
            "one row for each document or in one for all."
        )
    for document in tokens if tokens.ndim == 2 else (tokens,):
        for begin in range(0, len(document), _PIECE_TOKENS):
            piece = np.asarray(document[begin : begin + _PIECE_TOKENS])
            if piece.min() < 0 or piece.max() >= vocabulary_size:
                wrong = piece.min() if piece.min() < 0 else piece.max()
                raise DatastoreError(
                    f"TEXT {str(path)!r} has token {wrong} and the tokenizer knows {vocabulary_size}. "
                    "Name the tokenizer that made these tokens with --tokenizer."
                )
            yield Piece(piece, piece.nbytes, begin + _PIECE_TOKENS >= len(document))

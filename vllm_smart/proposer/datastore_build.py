"""Building datastores: `vllm-smart datastore build`.

Memory is bounded by a segment: about 25 bytes for each of its tokens while they are sorted.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from vllm_smart.errors import DatastoreError
from vllm_smart.proposer.datastore import KIND, VERSION, places_offset, token_dtype
from vllm_smart.proposer.datastore_texts import Piece, Seen, check_texts, pieces
from vllm_smart.proposer.token_file import HEADER_BYTES, vocabulary_hash, write_header

SEGMENT_TOKENS = 1 << 25
_BATCH_CHARS = 1 << 20

# (what is done, how much of it, of how much); called again and again.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Built:
    """What has become of the texts."""

    num_tokens: int
    num_documents: int
    num_bytes: int


class _Tokenizer:
    """A tokenizer of transformers, by folder or hub id."""

    def __init__(self, name: str) -> None:
        try:
            from transformers import AutoTokenizer
        except ImportError as error:
            raise DatastoreError(
                "Building a datastore needs transformers: run `pip install transformers`."
            ) from error
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(name)
        except Exception as error:  # whatever its many parts raise for a wrong name
            raise DatastoreError(
                f"--tokenizer {name!r} cannot be loaded: {str(error).splitlines()[0]} Name the folder "
                "or hub id of the target."
            ) from error
        vocabulary: dict[str, int] = self._tokenizer.get_vocab()
        self.vocabulary = vocabulary_hash(vocabulary)
        self.size = max(vocabulary.values()) + 1
        self.end: int | None = self._tokenizer.eos_token_id

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Tokens of some texts, without any that the texts do not have."""
        rows: list[list[int]] = self._tokenizer(texts, add_special_tokens=False, verbose=False)[
            "input_ids"
        ]
        return rows


def build_datastore(
    texts: list[Path],
    tokenizer: str,
    out: Path,
    dedupe: bool,
    progress: Progress,
    segment_tokens: int = SEGMENT_TOKENS,
) -> Built:
    """Write a datastore of some texts; `out` is replaced at once or not at all.

    Args:
        texts: .txt (one document each), .jsonl (one a line) or .npy (tokens, a document a row).
        tokenizer: folder or hub id.
        out: the file.
        dedupe: leave out what stood before, see `datastore_texts.Seen`.
        progress: is told.
        segment_tokens: that are sorted together.

    Raises:
        DatastoreError: something is missing or not what it should be.
    """
    num_text_bytes = check_texts(texts)
    suffix_sort = _suffix_sort()
    reader = _Tokenizer(tokenizer)
    dtype = np.dtype(token_dtype(reader.size)).newbyteorder("<")
    aside = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        with aside.open("w+b") as file:
            file.seek(HEADER_BYTES)
            writer = _TokenWriter(file, dtype, reader)
            done = 0
            seen = Seen() if dedupe else None
            for path in texts:
                for piece in pieces(path, reader.size):
                    done += piece.num_bytes
                    progress("reading", done, num_text_bytes)
                    writer.add(
                        piece if seen is None else seen.without_repeats(piece, path.suffix == ".txt")
                    )
            writer.flush()
            if not writer.num_tokens:
                raise DatastoreError("The TEXTs have no tokens at all. Name others.")
            segments = _write_places(
                file, writer.num_tokens, dtype, segment_tokens, suffix_sort, progress
            )
            fields = {
                "version": VERSION,
                "vocabulary": reader.vocabulary,
                "tokenizer": tokenizer,
                "max_token": writer.max_token,
                "token_bytes": dtype.itemsize,
                "segments": segments,
                "documents": writer.num_documents,
            }
            write_header(file, KIND, fields)
        num_bytes = aside.stat().st_size
        os.replace(aside, out)
    except OSError as error:
        raise DatastoreError(
            f"--out {str(out)!r} cannot be written: {error.strerror}. Name a file in a folder that "
            "exists, may be written and has room."
        ) from error
    finally:
        aside.unlink(missing_ok=True)
    return Built(writer.num_tokens, writer.num_documents, num_bytes)


class _TokenWriter:
    """Writes pieces as tokens, and the tokenizer's end of text after each document."""

    def __init__(self, file: BinaryIO, dtype: np.dtype[Any], tokenizer: _Tokenizer) -> None:
        self._file, self._dtype, self._tokenizer = file, dtype, tokenizer
        self._texts: list[Piece] = []
        self._num_chars = 0
        self._last = tokenizer.end
        self.num_tokens = self.num_documents = 0
        self.max_token = 0

    def add(self, piece: Piece | None) -> None:
        """Write a piece, now or with those that follow; None is none."""
        if piece is None:
            return
        if isinstance(piece.content, str):
            self._texts.append(piece)
            self._num_chars += len(piece.content)
            if self._num_chars >= _BATCH_CHARS:
                self.flush()
            return
        self.flush()
        self._write(piece.content, piece.ends_document)

    def flush(self) -> None:
        """Write the pieces that wait to be tokenised together."""
        texts, self._texts, self._num_chars = self._texts, [], 0
        if texts:
            rows = self._tokenizer.encode([str(piece.content) for piece in texts])
            for piece, row in zip(texts, rows, strict=True):
                self._write(np.array(row, np.int64), piece.ends_document)

    def _write(self, tokens: npt.NDArray[np.integer[Any]], ends_document: bool) -> None:
        if len(tokens):
            self._last = int(tokens[-1])
        if ends_document:
            self.num_documents += 1
            if self._tokenizer.end is not None and self._last != self._tokenizer.end:
                self._last = self._tokenizer.end
                tokens = np.append(tokens, self._last)
        if len(tokens):
            self.max_token = max(self.max_token, int(tokens.max()))
            self.num_tokens += len(tokens)
            self._file.write(tokens.astype(self._dtype).tobytes())


def _write_places(
    file: BinaryIO,
    num_tokens: int,
    dtype: np.dtype[Any],
    segment_tokens: int,
    suffix_sort: Callable[[Any], npt.NDArray[np.integer[Any]]],
    progress: Progress,
) -> list[int]:
    """Sort the tokens that were written; returns how many each segment has."""
    segments = []
    for begin in range(0, num_tokens, segment_tokens):
        progress("sorting", begin, num_tokens)
        count = min(segment_tokens, num_tokens - begin)
        file.seek(HEADER_BYTES + begin * dtype.itemsize)
        text = np.frombuffer(file.read(count * dtype.itemsize), dtype)
        places = count - 1 - suffix_sort(np.ascontiguousarray(text[::-1]))
        file.seek(places_offset(num_tokens, dtype.itemsize) + 4 * begin)
        file.write(places.astype("<u4").tobytes())
        segments.append(count)
    progress("sorting", num_tokens, num_tokens)
    return segments


def _suffix_sort() -> Callable[[Any], npt.NDArray[np.integer[Any]]]:
    try:
        from pydivsufsort import divsufsort
    except ImportError as error:
        raise DatastoreError(
            "Building a datastore needs pydivsufsort, an extra that serving does not need: run "
            "`pip install 'vllm-smart[datastore]'`."
        ) from error
    sort: Callable[[Any], npt.NDArray[np.integer[Any]]] = divsufsort
    return sort

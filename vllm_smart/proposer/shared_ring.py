"""What finished responses offer to later requests: the latest tokens of them, by tenant.

A request finds only what its own tenant's requests have left. Overwriting is the only eviction.
"""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vllm_smart.errors import DatastoreError
from vllm_smart.kernels.ngram.cpu.chains import MIN_HEADS, empty_rows, find_in_chains, index_tokens
from vllm_smart.proposer.ngram import SHARED, Contexts, NgramLimits, Occurrences
from vllm_smart.proposer.token_file import HEADER_BYTES, read_header, write_header

NOBODY = -1  # a tenant that neither reads nor writes
KIND, VERSION = "shared ring", 1
_END = -1  # stands between responses; no context matches it, and it is never proposed
_TOKEN_BYTES = 4 + 8 + 12 + 7  # token, owner, three links, heads
_LAST_POSITION = 2**31 - 2


class SharedRing:
    """An `NgramStore` of finished responses.

    Attributes:
        capacity: tokens that there is room for, a power of two.
        num_written: tokens that were written so far, those overwritten included; positions start
            anew before they outgrow 32 bits.
    """

    most_found = 64

    def __init__(
        self, max_mb: float, barriers: Sequence[int] = (), last_position: int = _LAST_POSITION
    ) -> None:
        """Args:
        max_mb: most memory in megabytes (10^6 bytes); the ring takes what fits of a power of two.
        barriers: tokens that are neither matched nor proposed.
        last_position: from which positions start anew.
        """
        fitting = max(int(max_mb * 1e6 / _TOKEN_BYTES), MIN_HEADS)
        self.capacity = 1 << (fitting.bit_length() - 1)
        assert last_position >= 3 * self.capacity
        self._barriers = np.array(barriers, np.int64)
        self._last_position = last_position
        self._text = np.zeros((1, self.capacity), np.int32)
        self._owner = np.full(self.capacity, NOBODY, np.int64)
        self._links = np.zeros((1, self.capacity * 7 // 4 + 3 * self.capacity), np.int32)
        self._num_heads = np.full(1, MIN_HEADS, np.int64)
        self._num_indexed = np.zeros(1, np.int64)
        self._row = np.zeros(1, np.int64)

    @property
    def num_written(self) -> int:
        """See above."""
        return int(self._num_indexed[0])

    @property
    def num_bytes(self) -> int:
        """Memory that the ring may take."""
        return self._text.nbytes + self._owner.nbytes + self._links.nbytes

    def clear(self) -> None:
        """Forget all responses."""
        empty_rows(self._links, self._num_indexed, self._num_heads, self.capacity, self._row)

    def add(self, tokens: npt.NDArray[np.integer[Any]], tenant: int) -> None:
        """Keep a finished response, as much of its end as there is room for.

        Args:
            tokens: [num_tokens] none negative.
            tenant: whose requests may find it; NOBODY keeps nothing.
        """
        if tenant == NOBODY or len(tokens) == 0:
            return
        tokens = tokens[-(self.capacity - 1) :]
        begin, end = self.num_written, self.num_written + len(tokens) + 1
        if end > self._last_position:
            begin, end = self._start_anew(begin, end)
        places = np.arange(begin, end) & (self.capacity - 1)
        self._text[0, places[0]] = _END
        self._text[0, places[1:]] = tokens
        self._owner[places] = tenant
        index_tokens(
            self._links,
            self._num_indexed,
            self._num_heads,
            self.capacity,
            self.capacity,
            self.capacity - 1,
            self._text,
            self._owner,
            self._row,
            np.array([end]),
            self._barriers,
        )

    def find(self, contexts: Contexts, limits: NgramLimits, found: Occurrences) -> None:
        """Add where the last tokens of requests stand in responses of their tenants."""
        num = len(contexts.slots)
        find_in_chains(
            self._links,
            self._num_indexed,
            self._num_heads,
            self.capacity,
            self.capacity,
            self.capacity - 1,
            self._text,
            self._owner,
            np.where(contexts.tenant == NOBODY, -1, 0),
            np.full(num, self.num_written),
            contexts.tenant,
            contexts.history,
            contexts.slots,
            contexts.end,
            limits.max_match,
            limits.min_match,
            self.most_found,
            SHARED,
            self._barriers,
            found,
        )

    def save(self, path: Path, tenant: int, vocabulary: str) -> None:
        """Write one tenant's responses to a file that only its owner can read (mode 0600).

        Args:
            path: of the file, replaced at once or not at all.
            tenant: whose.
            vocabulary: `vocabulary_hash` of the tokenizer.

        Raises:
            DatastoreError: the file cannot be written.
        """
        places = np.arange(max(self.num_written - self.capacity, 0), self.num_written)
        places &= self.capacity - 1
        tokens = self._text[0, places[self._owner[places] == tenant]]
        try:
            handle, aside = tempfile.mkstemp(dir=path.parent, prefix=".")  # of mode 0600
            try:
                with os.fdopen(handle, "w+b") as file:
                    file.seek(HEADER_BYTES)
                    file.write(tokens.astype("<i4").tobytes())
                    write_header(file, KIND, {"version": VERSION, "vocabulary": vocabulary})
                os.replace(aside, path)
            finally:
                Path(aside).unlink(missing_ok=True)
        except OSError as error:
            raise DatastoreError(
                f"ngram.shared.path={str(path)!r} cannot be written: {error.strerror}. "
                "Name a file in a folder that exists and may be written, or set it to null."
            ) from error

    def load(self, path: Path, tenant: int, vocabulary: str) -> None:
        """Add the responses of a file, if it is there.

        Args:
            path, tenant, vocabulary: as for `save`.

        Raises:
            DatastoreError: the file is none, damaged, or of another tokenizer.
        """
        if not path.exists():
            return
        way_out = "Delete it, or set ngram.shared.path to another file."
        fields = read_header(path, KIND, VERSION, way_out)
        if fields["vocabulary"] != vocabulary:
            raise DatastoreError(
                f"ngram.shared.path={str(path)!r} has tokens of another tokenizer. {way_out}"
            )
        tokens = np.fromfile(path, "<i4", offset=HEADER_BYTES)
        for response in np.split(tokens, np.flatnonzero(tokens == _END)):
            self.add(response[response != _END], tenant)

    def _start_anew(self, begin: int, end: int) -> tuple[int, int]:
        """Move positions down by a multiple of the capacity, so that every token keeps its place."""
        shift = (begin - self.capacity) // self.capacity * self.capacity
        self._links -= shift
        np.maximum(self._links, 0, out=self._links)
        self._num_indexed -= shift
        return begin - shift, end - shift

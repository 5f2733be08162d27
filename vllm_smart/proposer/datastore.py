"""A datastore: text of any origin, memory-mapped, whose places are sorted by what stands before them.

Engines on one machine share its pages. `datastore_build` makes it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vllm_smart.errors import DatastoreError
from vllm_smart.kernels.ngram.cpu.contexts import find_in_contexts
from vllm_smart.proposer.ngram import DATASTORE, Contexts, NgramLimits, Occurrences
from vllm_smart.proposer.token_file import HEADER_BYTES, read_header

KIND, VERSION = "datastore", 1
_WAY_OUT = "Build it with `vllm-smart datastore build`, or leave out ngram.datastore."


def token_dtype(vocabulary_size: int) -> type[np.unsignedinteger[Any]]:
    """What tokens are kept as: unsigned, or those from 32,768 on would come back negative."""
    return np.uint16 if vocabulary_size <= 1 << 16 else np.uint32


def places_offset(num_tokens: int, token_bytes: int) -> int:
    """Where a file's sorted places begin: after its tokens, aligned."""
    return HEADER_BYTES + -(-num_tokens * token_bytes // 64) * 64


@dataclass(frozen=True)
class Datastore:
    """An `NgramStore` of settled text."""

    text: npt.NDArray[np.unsignedinteger[Any]]  # [num_tokens]
    places: npt.NDArray[np.uint32]  # [num_tokens] of each segment, from its start, sorted
    segment_start: npt.NDArray[np.int64]  # [num_segments + 1]
    barriers: npt.NDArray[np.int64]  # tokens that end a context
    most_found: int = 32  # occurrences of a request that it adds at most

    @classmethod
    def open(
        cls, path: Path, vocabulary: str, vocabulary_size: int, barriers: Sequence[int] = ()
    ) -> "Datastore":
        """Map a file into memory, having read it once: so it is whole, and in the page cache.

        Args:
            path: made by `vllm-smart datastore build`.
            vocabulary: `vocabulary_hash` of the tokenizer in use.
            vocabulary_size: tokens that the target knows.
            barriers: tokens that end a context.

        Raises:
            DatastoreError: there is no such file, it is none, damaged, or of another tokenizer.
        """
        fields = read_header(path, KIND, VERSION, _WAY_OUT)
        if fields["vocabulary"] != vocabulary:
            raise DatastoreError(
                f"ngram.datastore={str(path)!r} was built with another tokenizer "
                f"({fields['tokenizer']!r}): its tokens mean something else here. Build it anew with "
                "--tokenizer set to the target's."
            )
        if fields["max_token"] >= vocabulary_size:
            raise DatastoreError(
                f"ngram.datastore={str(path)!r} has token {fields['max_token']} and the target knows "
                f"{vocabulary_size} tokens. Build it anew from text of the target's tokenizer."
            )
        segments = np.array(fields["segments"], np.int64)
        dtype = np.dtype(f"<u{fields['token_bytes']}")
        num_tokens = int(segments.sum())
        file = np.memmap(path, np.uint8, "r")
        places = file[places_offset(num_tokens, dtype.itemsize) :].view("<u4")
        text = file[HEADER_BYTES : HEADER_BYTES + num_tokens * dtype.itemsize].view(dtype)
        return cls(
            np.asarray(text),
            np.asarray(places),
            np.concatenate(([0], np.cumsum(segments))),
            np.array(barriers, np.int64),
        )

    def find(self, contexts: Contexts, limits: NgramLimits, found: Occurrences) -> None:
        """Add where the last tokens of requests stand in the datastore."""
        find_in_contexts(
            self.text,
            self.places,
            self.segment_start,
            contexts.history,
            contexts.slots,
            contexts.end,
            limits.max_match,
            limits.min_match,
            self.most_found,
            DATASTORE,
            self.barriers,
            found,
        )

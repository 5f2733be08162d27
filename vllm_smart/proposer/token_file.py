"""Files of tokens: one page of header, then arrays. What is damaged or not ours is refused."""

import json
import zlib
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

from vllm_smart.errors import DatastoreError

HEADER_BYTES = 4096  # a page, so that the arrays can be mapped
_BLOCK = 1 << 22


def vocabulary_hash(vocabulary: Mapping[str, int]) -> str:
    """SHA-256 of a tokenizer's tokens and their ids, as `get_vocab()` has them."""
    by_id = sorted((number, token) for token, number in vocabulary.items())
    return sha256(json.dumps(by_id).encode()).hexdigest()


def write_header(file: BinaryIO, kind: str, fields: Mapping[str, Any]) -> None:
    """Write the header of a file that holds its arrays already, with a checksum of them."""
    file.flush()
    size = file.seek(0, 2) - HEADER_BYTES
    header = {**fields, "size": size, "crc32": _checksum(file)}
    line = f"vllm_smart {kind}\n{json.dumps(header)}\n".encode()
    assert len(line) <= HEADER_BYTES
    file.seek(0)
    file.write(line.ljust(HEADER_BYTES, b"\0"))


def read_header(path: Path, kind: str, version: int, way_out: str) -> dict[str, Any]:
    """The fields that were written, once all of the file has been read and found whole.

    Args:
        path: of the file.
        kind: that it has to be.
        version: that its fields have to say.
        way_out: what the user can do, as the last sentence of errors.

    Raises:
        DatastoreError: it cannot be read, is another kind of file or version, or is damaged.
    """
    try:
        with path.open("rb") as file:
            head = file.read(HEADER_BYTES)
            start = f"vllm_smart {kind}\n".encode()
            if not head.startswith(start):
                raise DatastoreError(f"{str(path)!r} is no {kind} of vllm_smart. {way_out}")
            size = file.seek(0, 2) - HEADER_BYTES
            try:
                fields: dict[str, Any] = json.loads(head[len(start) :].rstrip(b"\0"))
                found, whole, checksum = fields["version"], fields["size"], fields["crc32"]
            except (ValueError, KeyError, TypeError) as error:
                raise DatastoreError(f"The header of {str(path)!r} is damaged. {way_out}") from error
            if found != version:
                raise DatastoreError(
                    f"{str(path)!r} has version {found} and this vllm_smart reads {version}. {way_out}"
                )
            if size != whole:
                raise DatastoreError(
                    f"{str(path)!r} has {size} bytes after its header instead of {whole}. {way_out}"
                )
            if _checksum(file) != checksum:
                raise DatastoreError(f"{str(path)!r} is damaged: its checksum is wrong. {way_out}")
    except OSError as error:
        raise DatastoreError(f"{str(path)!r} cannot be read: {error.strerror}. {way_out}") from error
    return fields


def _checksum(file: BinaryIO) -> int:
    file.seek(HEADER_BYTES)
    checksum = 0
    while block := file.read(_BLOCK):
        checksum = zlib.crc32(block, checksum)
    return checksum

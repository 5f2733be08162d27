"""Memory that two processes share. It has no name: nothing is left of it once both have ended."""

import mmap
import os
import weakref
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt


class SharedMemory:
    """Anonymous memory behind a file descriptor, which a child inherits.

    Attributes:
        fd: to hand to the child.
    """

    def __init__(self, num_bytes: int, fd: int | None = None) -> None:
        """Args:
        num_bytes: of it, zeros at first.
        fd: of memory that another process has made; None makes some.
        """
        if fd is None:
            fd = os.memfd_create("vllm_smart", os.MFD_CLOEXEC)
            os.ftruncate(fd, num_bytes)
            weakref.finalize(self, os.close, fd)
        self.fd = fd
        self._bytes = np.frombuffer(mmap.mmap(fd, num_bytes), np.uint8)
        self._num_taken = 0

    def take(self, shape: tuple[int, ...], dtype: Any) -> npt.NDArray[Any]:
        """The next array of it; both sides take the same ones in the same order."""
        dtype = np.dtype(dtype)
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        begin, self._num_taken = self._num_taken, self._num_taken + rounded(size)
        taken: npt.NDArray[Any] = self._bytes[begin : begin + size].view(dtype).reshape(shape)
        return taken


def rounded(num_bytes: int) -> int:
    """`num_bytes` up to the next cache line."""
    return -(-num_bytes // 64) * 64


def checksum(of: npt.NDArray[Any], before: int = 0) -> int:
    """By which a reader tells what was written whole: memory has no order that all processors keep.

    Args:
        of: contiguous.
        before: the checksum of what comes before it.
    """
    return zlib.crc32(of.view(np.uint8).data, before)

"""Rows of numbers that take memory only where they are written."""

import mmap
from typing import Any

import numpy as np
import numpy.typing as npt

_PAGE_ITEMS = mmap.PAGESIZE // 4


class LazyRows:
    """Zeros, of which the system hands out a page when it is first written.

    numpy's own zeros are handed out 2 MB at a time where there are huge pages, and cannot be given
    back one by one.

    Attributes:
        array: [num_rows, >= row_length] int32; rows begin at pages.
    """

    def __init__(self, num_rows: int, row_length: int) -> None:
        """All zeros."""
        width = -(-row_length // _PAGE_ITEMS) * _PAGE_ITEMS
        self._row_bytes = 4 * width
        num_bytes = num_rows * self._row_bytes
        self._map = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._advise("MADV_NOHUGEPAGE", 0, num_bytes)
        self.array: npt.NDArray[np.int32] = np.frombuffer(self._map, np.int32).reshape(num_rows, width)

    def give_back(self, row: int) -> bool:
        """Make a row zeros again and return its memory; False if this system cannot."""
        return self._advise("MADV_DONTNEED", row * self._row_bytes, self._row_bytes)

    def _advise(self, advice: str, *where: Any) -> bool:
        # Linux has both, other systems may lack them.
        if not hasattr(mmap, advice):
            return False
        self._map.madvise(getattr(mmap, advice), *where)
        return True

"""The shapes that growth on the device runs in: few enough that each can have its graph."""

from collections.abc import Iterator
from dataclasses import dataclass

_MOST_CAPTURED_REQS = 256
_MOST_CAPTURED_ROWS = 512


@dataclass(frozen=True)
class GrowthSizes:
    """Requests and rows are padded to powers of two, as far as there is room."""

    max_num_reqs: int
    most_rows: int  # that a draft level may have, at least max_num_reqs
    width: int  # most rows of a request

    def reqs(self, num_reqs: int) -> int:
        """To how many requests a batch is padded."""
        return min(1 << (num_reqs - 1).bit_length(), self.max_num_reqs)

    def rows(self, num_reqs: int, num_rows: int) -> int:
        """How many rows a level has that needs `num_rows`, of a batch padded to `num_reqs`."""
        each = 1 << (-(-num_rows // num_reqs) - 1).bit_length()
        return min(num_reqs * min(each, self.width), self.most_rows)

    def captured_reqs(self) -> Iterator[int]:
        """Sizes of batches that have graphs, the largest first."""
        sizes = {self.reqs(num) for num in range(1, min(self.max_num_reqs, _MOST_CAPTURED_REQS) + 1)}
        yield from sorted((size for size in sizes if size <= _MOST_CAPTURED_REQS), reverse=True)

    def captured_levels(self) -> Iterator[tuple[int, int]]:
        """(requests, rows) of levels that have graphs, the largest first."""
        for num_reqs in self.captured_reqs():
            sizes = {self.rows(num_reqs, num_reqs * each) for each in range(1, self.width + 1)}
            for num_rows in sorted(sizes, reverse=True):
                if num_rows <= _MOST_CAPTURED_ROWS:
                    yield num_reqs, num_rows

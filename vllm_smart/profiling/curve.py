"""A monotone cost curve through measured points."""

from collections.abc import Sequence
from copy import copy
from typing import Any

import numpy as np
import numpy.typing as npt


class CostCurve:
    """Milliseconds as a function of a count, never decreasing.

    Between measured points the curve is linear: `measure` puts points on both sides of every
    jump, so stairs stay stairs. Above the largest point it goes on with the slope of the upper
    half of the range; below the smallest it is flat.
    """

    def __init__(self, points: Sequence[tuple[int, float]]) -> None:
        """Args:
        points: (count, ms), at least one, in any order; equal counts are averaged.
        """
        assert points, "a curve needs a point"
        counts, inverse = np.unique([count for count, _ in points], return_inverse=True)
        total = np.bincount(inverse, weights=[ms for _, ms in points])
        ms = _never_decreasing(total / np.bincount(inverse))
        self.counts: npt.NDArray[np.int64] = counts.astype(np.int64)  # ascending
        self.largest = int(counts[-1])
        self._dense = np.interp(np.arange(self.largest + 1), counts, ms)
        middle = (self.largest + 1) // 2
        rise = float(self._dense[-1] - self._dense[middle])
        self._slope = rise / max(self.largest - middle, 1)

    def scaled(self, factor: npt.NDArray[np.float64]) -> "CostCurve":
        """This curve times a factor, still never decreasing.

        Args:
            factor: [num_counts] at each measured count; linear between them.
        """
        curve = copy(self)
        at_each = np.interp(np.arange(self.largest + 1), self.counts, factor)
        curve._dense = np.maximum.accumulate(self._dense * at_each)
        curve._slope = self._slope * float(at_each[-1])
        return curve

    def at(self, count: int) -> float:
        """Milliseconds at one count >= 0."""
        if count <= self.largest:
            return float(self._dense[count])
        return float(self._dense[-1] + self._slope * (count - self.largest))

    def at_each(self, counts: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.float64]:
        """Milliseconds at each count >= 0: float64 of the same shape."""
        known = np.minimum(counts, self.largest)
        ms: npt.NDArray[np.float64] = self._dense[known]
        if counts.max(initial=0) > self.largest:
            ms += self._slope * (counts - known)
        return ms


def _never_decreasing(ms: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The closest non-decreasing values (least squares), which leaves genuine stairs as they are.

    Source: pool adjacent violators.
    """
    blocks: list[tuple[float, int]] = []  # (mean, length)
    for value in ms.tolist():
        mean, length = value, 1
        while blocks and blocks[-1][0] > mean:
            other, other_length = blocks.pop()
            mean = (mean * length + other * other_length) / (length + other_length)
            length += other_length
        blocks.append((mean, length))
    return np.repeat([mean for mean, _ in blocks], [length for _, length in blocks])

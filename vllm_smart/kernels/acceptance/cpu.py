"""Acceptance of a level's candidates, compiled."""

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

_Array = npt.NDArray[Any]

SMALLEST_PROB = np.float32(1e-4)  # a probability this far from 0 or 1 is as extreme as it gets


@numba.njit(cache=True)
def level_acceptance(
    prob: _Array,
    first: _Array,
    row: _Array,
    offset: _Array,
    intercept: _Array,
    slope: _Array,
    smallest: float,
) -> _Array:
    """Probabilities that the children of nodes are accepted if the nodes are.

    Args:
        prob: [num_rows, children] in [0, 1], the draft's top choice first; 0 rules a child out.
        first: [num_rows] from where on the intercepts and slopes of each row are counted.
        row: [children] which of them each column has, counted from there.
        offset: [num_rows].
        smallest: shares are kept this far from 0 and 1; NaN is taken for 0.

    Returns:
        [num_rows, children] float32.
    """
    num_rows, children = prob.shape
    result = np.zeros((num_rows, children), np.float32)
    for i in range(num_rows):
        left, rejected, before = 1.0, 1.0, 1.0
        for j in range(children):
            p = np.float64(prob[i, j])
            if not p > 0.0:
                continue
            share = p / left if left > p else 1.0
            share = min(max(share, smallest), 1.0 - smallest)
            at = first[i] + row[j]
            z = intercept[at] + offset[i] + slope[at] * np.log(share / (1.0 - share))
            asked = 1.0 / (1.0 + np.exp(-z))
            before = min(rejected * asked, before)
            result[i, j] = before
            rejected *= 1.0 - asked
            left -= p
    return result

"""The arithmetic of `CostLearner`, compiled: every step of the engine is an observation, and numpy's
calls would cost more than the sums."""

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

_Array = npt.NDArray[Any]


@numba.njit(cache=True)
def features(
    num_sizes: int,
    num_tokens: int,
    verify_ms: float,
    drafting_ms: float,
    context_ms: float,
    num_requests: int,
    drafts: bool,
    branches: bool,
) -> _Array:
    """What each coefficient is multiplied with: milliseconds by the table, or a count.

    Returns:
        [num_sizes + 8]: the forward, shared by the two sizes (powers of 2) next to it; the drafter's
        forwards; context; steps and requests, of all steps, of those that draft, and that branch.
    """
    x = np.zeros(num_sizes + 8)
    place = min(np.log2(max(num_tokens, 1)), num_sizes - 1.0)
    below = int(place)
    x[below] = (below + 1 - place) * verify_ms
    if place > below:
        x[below + 1] = (place - below) * verify_ms
    x[num_sizes], x[num_sizes + 1] = drafting_ms, context_ms
    x[num_sizes + 2], x[num_sizes + 3] = 1.0, num_requests
    if drafts:
        x[num_sizes + 4], x[num_sizes + 5] = 1.0, num_requests
    if branches:
        x[num_sizes + 6], x[num_sizes + 7] = 1.0, num_requests
    return x


@numba.njit(cache=True)
def dot(x: _Array, y: _Array) -> float:
    """Sum of products."""
    total = 0.0
    for i in range(len(x)):
        total += x[i] * y[i]
    return total


@numba.njit(cache=True)
def add_observation(
    information: _Array, evidence: _Array, x: _Array, residual: float, weight: float, kept: float
) -> None:
    """Update what was seen, in place.

    Args:
        information: [size, size] weighted sum of outer products.
        evidence: [size] weighted sum of residuals times x.
        x: [size] features.
        residual: of the observation, from what the prior mean says.
        weight: its own, one over a variance.
        kept: share of what was seen before that still counts.
    """
    for i in range(len(x)):
        evidence[i] = kept * evidence[i] + weight * residual * x[i]
        for j in range(len(x)):
            information[i, j] = kept * information[i, j] + weight * x[i] * x[j]

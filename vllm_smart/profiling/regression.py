"""The arithmetic of `CostLearner`, compiled: every step of the engine is an observation, and numpy's
calls would cost more than the sums."""

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

_Array = npt.NDArray[Any]


@numba.njit(cache=True)
def features(
    sizes: _Array,
    num_tokens: int,
    verify_ms: float,
    drafting_ms: float,
    context_ms: float,
    num_requests: int,
    num_drafting: int,
    branches: bool,
) -> _Array:
    """What each coefficient is multiplied with: milliseconds by the table, or a count.

    Args:
        sizes: [num_sizes] of the table, ascending.

    Returns:
        [num_sizes + 8]: the forward, shared by the two sizes next to it; the drafter's forwards;
        context; steps and requests: all, those that draft, and those of steps that branch.
    """
    num_sizes = len(sizes)
    x = np.zeros(num_sizes + 8)
    above = int(np.searchsorted(sizes, num_tokens))
    if above == 0 or above == num_sizes:
        x[min(above, num_sizes - 1)] = verify_ms
    else:
        share = (num_tokens - sizes[above - 1]) / (sizes[above] - sizes[above - 1])
        x[above - 1], x[above] = (1.0 - share) * verify_ms, share * verify_ms
    x[num_sizes], x[num_sizes + 1] = drafting_ms, context_ms
    x[num_sizes + 2], x[num_sizes + 3] = 1.0, num_requests
    if num_drafting:
        x[num_sizes + 4], x[num_sizes + 5] = 1.0, num_drafting
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
    information: _Array,
    evidence: _Array,
    kept: _Array,
    kind: int,
    x: _Array,
    residual: float,
    weight: float,
) -> None:
    """Update what was seen, in place.

    Args:
        information: [num_kinds, size, size] weighted sums of outer products, by kind of observation.
        evidence: [num_kinds, size] weighted sums of residuals times x.
        kept: [num_kinds] share of what was seen before that still counts.
        kind: of the observation.
        x: [size] features.
        residual: of the observation, from what the prior mean says.
        weight: its own, one over a variance.
    """
    for i in range(len(kept)):
        information[i] *= kept[i]
        evidence[i] *= kept[i]
    for i in np.flatnonzero(x):
        evidence[kind, i] += weight * residual * x[i]
        for j in range(len(x)):
            information[kind, i, j] += weight * x[i] * x[j]

"""The loops of deciding, compiled: they run several times a step on arrays of a few numbers."""

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

_Array = npt.NDArray[Any]

# What `best_prefix_of` is to find. In this file, as numba's cache notices changes of no other.
BY_RATE, FIRST_DROP, BY_WORTH = 0, 1, 2


@numba.njit(cache=True)
def best_prefix_of(
    values: _Array,
    verify_ms: _Array,
    num_served: int,
    spent_ms: float,
    branching_value: float,
    branching_ms: float,
    goal: int,
    price: float,
) -> tuple[int, float, float]:
    """The number of best candidates to verify, the tokens it promises, and the milliseconds.

    Args:
        values: [>= num_candidates] never increasing; zeros at the end are no candidates.
        verify_ms: [> num_candidates] of a step that verifies 0, 1, ... of them.
        num_served: requests that the step brings on anyway: each is worth a token.
        spent_ms: added to every time.
        branching_value: from the first value that is no larger on, `branching_ms` is added, too.
        goal: BY_RATE, FIRST_DROP (the last before the rate first falls), or BY_WORTH.
        price: of a millisecond, in tokens; for BY_WORTH.
    """
    best = 0
    tokens = best_tokens = float(num_served)
    best_ms = verify_ms[0] + spent_ms
    best_score = tokens - price * best_ms if goal == BY_WORTH else tokens / best_ms
    extra_ms = 0.0
    for place in range(len(values)):
        value = values[place]
        if not value > 0:
            break
        if value <= branching_value:
            extra_ms = branching_ms
        tokens += value
        ms = verify_ms[place + 1] + spent_ms + extra_ms
        score = tokens - price * ms if goal == BY_WORTH else tokens / ms
        if goal == FIRST_DROP and score < best_score:
            break
        if score > best_score or goal == FIRST_DROP:
            best, best_score = place + 1, score
            best_tokens, best_ms = tokens, ms
    return best, best_tokens, best_ms


@numba.njit(cache=True)
def best_level_size(
    now: _Array,
    frontier: _Array,
    acceptance: _Array,
    sizes: _Array,
    level_ms: _Array,
    verify_ms: _Array,
    num_served: int,
    spent_ms: float,
    branching_value: float,
    branching_ms: float,
    goal: int,
    price: float,
) -> tuple[int, int, float, float]:
    """How many of the best frontier nodes to expand, if any, and the best prefix to expect then.

    Args:
        now: [num_candidates] values of the candidates there are, in any order.
        frontier: [num_rows] values of the nodes that may be expanded, never increasing.
        acceptance: [num_rows, children] expected of each such node's children.
        sizes: [num_sizes] numbers of nodes to consider.
        level_ms: [num_sizes] time of drafting so many.
        The others are as for `best_prefix_of`.

    Returns:
        Index into `sizes`, and the number of candidates, tokens and milliseconds.
    """
    best, best_nodes, best_tokens, best_ms, best_score = 0, 0, 0.0, 1.0, -np.inf
    children, most = acceptance.shape[1], len(verify_ms) - 1
    together = np.empty(len(now) + sizes.max() * children, np.float32)
    together[: len(now)] = now
    for index in range(len(sizes)):
        at = len(now)
        for row in range(sizes[index]):
            for rank in range(children):
                together[at] = frontier[row] * acceptance[row, rank]
                at += 1
        values = np.ascontiguousarray(np.sort(together[:at])[::-1][:most])
        ms = spent_ms + level_ms[index]
        nodes, tokens, total_ms = best_prefix_of(
            values, verify_ms, num_served, ms, branching_value, branching_ms, goal, price
        )
        score = tokens - price * total_ms if goal == BY_WORTH else tokens / total_ms
        if score > best_score:
            best, best_nodes, best_score = index, nodes, score
            best_tokens, best_ms = tokens, total_ms
    return best, best_nodes, best_tokens, best_ms

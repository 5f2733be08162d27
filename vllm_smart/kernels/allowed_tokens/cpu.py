"""Masks of allowed tokens, compiled."""

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

_Array = npt.NDArray[Any]


@dataclass(frozen=True)
class RowMasks:
    """What may come after some of the rows of a level; the others are not masked."""

    rows: npt.NDArray[np.int64]  # [num_masked] ascending
    masks: npt.NDArray[np.int32]  # [num_masked, num_words]


def sole_token(mask: npt.NDArray[np.int32]) -> int:
    """The one token that a mask allows; -1 where it allows none, or several."""
    return int(_sole_token(mask.view(np.uint32)))


def count_forbidden(
    token: npt.NDArray[np.int64],
    parent: npt.NDArray[np.int32],
    is_draft: npt.NDArray[np.bool_],
    masks: npt.NDArray[np.int32],
) -> int:
    """How many drafts of a tree are not allowed, or come after one that is not.

    Args:
        token, parent, is_draft: [num_nodes], the root first.
        masks: [num_nodes, num_words] of what may come after each.
    """
    if not masks.flags.writeable:  # as from another process: of another type to numba
        masks = masks.copy()
    return int(_count_forbidden(token, parent, is_draft, masks))


@numba.njit(cache=True)
def _count_forbidden(token: _Array, parent: _Array, is_draft: _Array, masks: _Array) -> int:
    is_forbidden = np.zeros(len(token), np.bool_)
    count = 0
    for node in range(1, len(token)):
        above, word = parent[node], token[node] >> 5
        is_allowed = word < masks.shape[1] and (masks[above, word] >> (token[node] & 31)) & 1
        is_forbidden[node] = is_forbidden[above] or not is_allowed
        count += is_draft[node] and is_forbidden[node]
    return count


@numba.njit(cache=True)
def rule_out(logits: _Array, rows: _Array, masks: _Array) -> None:
    """Write -inf where [num_masked] `rows` of [num_rows, vocab_size] logits are not allowed to go."""
    for at in range(len(rows)):
        rule_out_of_row(logits[rows[at]], masks[at], -np.inf)
        logits[rows[at], 32 * masks.shape[1] :] = -np.inf


@numba.njit
def rule_out_of_row(row: _Array, mask: _Array, lowest: float) -> None:
    """Write `lowest` where a row of logits [vocab_size] is not allowed to go, as far as a mask says."""
    for word in range(len(mask)):
        bits = mask[word]
        if bits == -1:
            continue
        first = 32 * word
        for token in range(first, min(first + 32, len(row))):
            if not (bits >> (token - first)) & 1:
                row[token] = lowest


@numba.njit(cache=True)
def _sole_token(mask: _Array) -> int:
    found = -1
    for word in range(len(mask)):
        bits = mask[word]
        if not bits:
            continue
        if found >= 0 or bits & (bits - np.uint32(1)):
            return -1
        found = 32 * word
        while bits > np.uint32(1):
            bits = bits >> np.uint32(1)
            found += 1
    return found

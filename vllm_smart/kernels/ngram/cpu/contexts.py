"""Settled texts, whose places are sorted by what stands before them, the nearest token first.

That is the order of the suffixes of the reversed text. The places that agree most with a context lie
beside where it would stand, so one binary search finds them, and outwards from there matches only
become shorter.
"""

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

_Array = npt.NDArray[Any]


@numba.njit(cache=True)
def _compared(text, first, place, context, stop, most):
    """How many tokens agree up to `most`, and -1, 0 or 1: whether the text's context comes before."""
    same = 0
    while same < most:
        if place - same < first:
            return same, -1
        token, wanted = np.int64(text[place - same]), np.int64(context[stop - 1 - same])
        if token != wanted:
            return same, -1 if token < wanted else 1
        same += 1
    return same, 0


@numba.njit(cache=True)
def _at(text, places, first, last, index, context, stop, most):
    """How many tokens agree at a sorted place; -1 beyond the first or last."""
    if index < first or index >= last:
        return -1
    return _compared(text, first, first + np.int64(places[index]), context, stop, most)[0]


@numba.njit(cache=True)
def find_in_contexts(
    text: _Array,
    places: _Array,
    segment_start: _Array,
    contexts: _Array,
    context_rows: _Array,
    context_end: _Array,
    max_match: int,
    min_match: int,
    most: int,
    store: int,
    barriers: _Array,
    found: tuple[_Array, ...],
) -> None:
    """Add the occurrences of contexts to `found`, the longest matches first.

    Args:
        text: [num_tokens] unsigned.
        places: [num_tokens] uint32, of each segment by themselves, from its start, sorted.
        segment_start: [num_segments + 1] int64, the first token of each and the end of the last.
        contexts: [num_contexts, max_len] int32.
        context_rows, context_end: [n] int64 row of each request's context and one past its last token.
        max_match, min_match: at least 1; matches are measured up to, and kept from.
        most: occurrences of a request that are added.
        store: bit that says whose they are.
        barriers: [k] int64 tokens that end a context; negative tokens do, too.
        found: match, store, num_ahead, ahead, num, as the package says; added to.
    """
    matches, stores, num_aheads, aheads, nums = found
    max_depth, num_segments = aheads.shape[2], len(segment_start) - 1
    cursor = np.empty((2, num_segments), np.int64)  # the next place to the left and right
    same_at = np.empty((2, num_segments), np.int64)
    for i in range(len(context_rows)):
        context, stop = contexts[context_rows[i]], context_end[i]
        longest = 0
        while longest < min(max_match, stop):
            token, ends = context[stop - 1 - longest], False
            for barrier in barriers:
                ends |= token == barrier
            if ends or token < 0:
                break
            longest += 1
        if longest < min_match:
            continue
        for segment in range(num_segments):
            first, last = segment_start[segment], segment_start[segment + 1]
            low, high = first, last
            while low < high:
                middle = (low + high) // 2
                place = first + np.int64(places[middle])
                if _compared(text, first, place, context, stop, longest)[1] < 0:
                    low = middle + 1
                else:
                    high = middle
            cursor[0, segment], cursor[1, segment] = low - 1, low
            for side in range(2):
                index = cursor[side, segment]
                same_at[side, segment] = _at(text, places, first, last, index, context, stop, longest)
        taken, kept = 0, nums[i]
        while taken < most:
            side, segment = 0, 0
            for other in range(num_segments):
                for which in range(2):
                    if same_at[which, other] > same_at[side, segment]:
                        side, segment = which, other
            same = same_at[side, segment]
            if same < min_match:
                break
            first, last = segment_start[segment], segment_start[segment + 1]
            place = first + np.int64(places[cursor[side, segment]])
            num_ahead = min(max_depth, last - 1 - place)
            if num_ahead > 0:
                matches[i, kept], stores[i, kept], num_aheads[i, kept] = same, store, num_ahead
                for ahead in range(num_ahead):
                    aheads[i, kept, ahead] = text[place + 1 + ahead]
                kept += 1
                taken += 1
            cursor[side, segment] += 2 * side - 1
            index = cursor[side, segment]
            same_at[side, segment] = _at(text, places, first, last, index, context, stop, longest)
        nums[i] = kept

"""The smallest logit that top-k and top-p leave, found without ordering a vocabulary.

The largest logit of each run of tokens says where large ones are. Mostly only those runs have to be
looked at, and of what is in them the last one kept is found by partition.
"""

import numba
import numpy as np

from vllm_smart.kernels.cpu.launch import compiled

RUN = 128  # tokens of which the largest logit is known
_FEW_RUNS = 64  # that are looked at, or as many as top-k keeps tokens
_HALVINGS, _WEIGHTLESS = 12, np.float32(64)  # of the range of logits; how far below the largest it ends
_BLOCK = 1024  # tokens at a time, so that what is computed of them stays in the first cache
_LOG2_E = np.float32(1.4426950408889634)
_LEAST_EXPONENT = np.float32(-125.0)
# 2 ** x for x in (-1, 0], fitted at Chebyshev points: off by 2e-7 at most, relative.
_POWERS = np.polynomial.chebyshev.Chebyshev.interpolate(np.exp2, 6, domain=[-1, 0])
_C0, _C1, _C2, _C3, _C4, _C5, _C6 = _POWERS.convert(
    kind=np.polynomial.Polynomial, domain=[-1, 1], window=[-1, 1]
).coef.astype(np.float32)

# Sums and maxima in any order, so that they are vectorised; infinities stay what they are.
vectorised = numba.njit(
    cache=True, nogil=True, error_model="numpy", fastmath={"nnan", "nsz", "reassoc", "contract"}
)


@compiled
def largest_of(logits):
    """[num_runs] float32 the largest logit of each `RUN` tokens."""
    largest = np.empty((len(logits) + RUN - 1) // RUN, np.float32)
    for run in range(len(largest)):
        largest[run] = _largest(logits[run * RUN : (run + 1) * RUN])
    return largest


@compiled
def least_kept(logits, largest, scale, top_k, top_p):
    """The smallest logit that top-k and then top-p leave; all that are as large stay.

    Args:
        logits: [vocab_size] of a row.
        largest: as `largest_of` has it.
        scale: 1 / temperature.
        top_k: at least 1; the vocabulary's size where it has no say.
        top_p: in (0, 1]; 1 where it has no say.
    """
    top, has_k = _largest(largest), top_k < len(logits)
    # As many tokens as runs are at least as large as the smallest of their maxima.
    runs, floor = max(_FEW_RUNS, top_k if has_k else 0), np.float32(-np.inf)
    if runs < len(largest):
        floor = _last_of(largest.copy(), np.ones(len(largest), np.float32), np.float64(runs))
    values = _at_least(logits, largest, floor)
    weights, kept = np.ones(len(values), np.float32), np.float32(-np.inf)
    if has_k and top_k <= len(values):
        kept = _last_of(values, weights, np.float64(top_k))
        values = values[values >= kept]
        weights = weights[: len(values)]
    if top_p == 1 or not len(values):
        return kept
    shift = np.empty(len(values), np.int32)
    found = _weigh(values, top, scale, weights, weights.view(np.int32), shift)
    wanted = top_p * (found if has_k else _mass_of(logits, top, scale))
    if found < wanted and floor > -np.inf:
        return _last_of_many(logits, top, floor, scale, wanted)
    return _last_of(values, weights, wanted)


@compiled
def _at_least(logits, largest, floor):
    """[n] the logits that are at least `floor`, and more than -inf."""
    values, count = np.empty(len(logits), np.float32), 0
    for run in range(len(largest)):
        if not largest[run] >= floor:
            continue
        for value in logits[run * RUN : (run + 1) * RUN]:
            if value >= floor and value > -np.inf:
                values[count] = value
                count += 1
    return values[:count]


@compiled
def _last_of(values, weights, wanted):
    """The smallest of some values that the larger ones leave room for: they weigh less than `wanted`.

    Args:
        values: [n >= 1], reordered.
        weights: [n] >= 0, reordered alike.
        wanted: > 0.
    """
    first, last = 0, len(values)
    while last - first > 1:
        pivot = values[(first + last) // 2]
        place, above, below = first, first, last
        mass_above, mass_equal = 0.0, 0.0
        while place < below:
            value = values[place]
            if value > pivot:
                mass_above += weights[place]
                _swap(values, weights, place, above)
                above += 1
                place += 1
            elif value < pivot:
                below -= 1
                _swap(values, weights, place, below)
            else:
                mass_equal += weights[place]
                place += 1
        if mass_above >= wanted:
            last = above
        elif mass_above + mass_equal >= wanted or below == last:
            return pivot
        else:
            wanted -= mass_above + mass_equal
            first = below
    return values[first]


@compiled
def _last_of_many(logits, top, high, scale, wanted):
    """The same of all logits, where more than a few are kept: most are only compared.

    Args:
        top: the largest.
        high: above it less than `wanted` lies, of exp((logit - top) * scale).
    """
    weights, shift = np.empty(len(logits), np.float32), np.empty(len(logits), np.int32)
    _weigh(logits, top, scale, weights, weights.view(np.int32), shift)
    low = top - _WEIGHTLESS / scale
    for _ in range(_HALVINGS):
        middle = (low + high) / np.float32(2)
        if _mass_above(logits, weights, middle) < wanted:
            high = middle
        else:
            low = middle
    wanted -= _mass_above(logits, weights, high)
    is_between = (logits > low) & (logits <= high)
    values = logits[is_between]
    return _last_of(values, weights[is_between], wanted) if len(values) else high


@vectorised
def _mass_above(logits, weights, floor):
    mass = 0.0
    for at in range(len(logits)):
        if logits[at] > floor:
            mass += weights[at]
    return mass


@compiled
def _swap(values, weights, one, other):
    values[one], values[other] = values[other], values[one]
    weights[one], weights[other] = weights[other], weights[one]


@vectorised
def _largest(logits):
    largest = np.float32(-np.inf)
    for at in range(len(logits)):
        largest = max(largest, logits[at])
    return largest


@compiled
def _mass_of(logits, top, scale):
    """The sum of exp((logit - top) * scale) of all logits, a block at a time."""
    weights, shift, mass = np.empty(_BLOCK, np.float32), np.empty(_BLOCK, np.int32), 0.0
    for first in range(0, len(logits), _BLOCK):
        block = logits[first : first + _BLOCK]
        mass += _weigh(block, top, scale, weights, weights.view(np.int32), shift)
    return mass


@vectorised
def _weigh(logits, top, scale, weights, bits, shift):
    """Write exp((logit - top) * scale) of each logit, and return the sum.

    Args:
        logits: [n], none above `top`.
        weights: [>= n] float32, written.
        bits: the same memory as int32.
        shift: [>= n] int32, written.
    """
    for at in range(len(logits)):
        exponent = max((logits[at] - top) * scale * _LOG2_E, _LEAST_EXPONENT)
        whole = np.int32(exponent)  # towards zero
        x = exponent - np.float32(whole)
        weights[at] = _C0 + x * (_C1 + x * (_C2 + x * (_C3 + x * (_C4 + x * (_C5 + x * _C6)))))
        shift[at] = whole << np.int32(23)
    total = np.float64(0)
    for at in range(len(logits)):
        bits[at] += shift[at]
    for at in range(len(logits)):
        total += weights[at]
    return total

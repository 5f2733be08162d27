"""The online softmax of tree attention: masks scores, turns them into weights, keeps the totals."""

import math

import numba
import numpy as np

from vllm_smart.kernels.cpu import layout, simd

HIDDEN = -1e30  # the score of an unseen token; finite, or exp(HIDDEN - HIDDEN) would be NaN


@numba.njit
def _exp(x):
    """exp(x) for x <= 0, to a relative error of 3e-7; 0 below -88."""
    power = simd.maximum(simd.multiply(x, simd.splat(math.log2(math.e))), simd.splat(-127.0))
    whole = simd.round_to_whole(power)
    f = simd.subtract(power, whole)
    # The polynomial of degree 5 nearest to 2 ** f on -0.5..0.5, by relative error.
    p = simd.splat(1.327647e-3)
    p = simd.multiply_add(p, f, simd.splat(9.675541e-3))
    p = simd.multiply_add(p, f, simd.splat(5.5507131e-2))
    p = simd.multiply_add(p, f, simd.splat(2.402212e-1))
    p = simd.multiply_add(p, f, simd.splat(6.9314694e-1))
    p = simd.multiply_add(p, f, simd.splat(1.0000001))
    return simd.multiply(p, simd.power_of_two(whole))


@numba.njit
def _cap(score, softcap):
    """softcap * tanh(score / softcap), by exp(-2|x|)."""
    x = simd.multiply(score, simd.splat(np.float32(1.0) / softcap))
    magnitude = simd.maximum(x, simd.subtract(simd.splat(0.0), x))
    decay = _exp(simd.multiply(magnitude, simd.splat(-2.0)))
    one = simd.splat(1.0)
    tanh = simd.divide(simd.subtract(one, decay), simd.multiply_add(decay, one, one))
    sign = simd.divide(x, simd.maximum(magnitude, simd.splat(1e-30)))
    return simd.multiply(simd.multiply(tanh, sign), simd.splat(softcap))


@numba.njit
def _visible_bits(mask, num_words, slot, limit):
    """Bit i: is tree slot `slot + i` visible? Slots below 0 are context; `limit` and above, no."""
    ones = ~np.uint64(0)
    if slot <= -simd.LANES:
        bits = ones
    elif slot < 0:
        bits = (mask[0] << np.uint64(-slot)) | ~(ones << np.uint64(-slot))
    else:
        word, shift = slot >> 6, slot & 63
        bits = mask[word] >> np.uint64(shift) if word < num_words else np.uint64(0)
        if shift > 64 - simd.LANES and word + 1 < num_words:
            bits |= mask[word + 1] << np.uint64(64 - shift)
    if limit - slot < simd.LANES:
        bits &= ~(ones << np.uint64(max(limit - slot, 0)))
    return bits


@numba.njit
def _mask_line(scores, num_columns, bits, masked_from, softcap):
    """Caps and masks the scores of a line; returns their maximum."""
    hidden = simd.splat(HIDDEN)
    top = hidden
    if softcap > 0:
        for column in range(0, num_columns, simd.LANES):
            score = _cap(simd.load(scores + column * 4, np.float32(0)), softcap)
            simd.store(scores + column * 4, score, np.float32(0))
    for column in range(0, masked_from, simd.LANES):
        top = simd.maximum(simd.load(scores + column * 4, np.float32(0)), top)
    for column in range(masked_from, num_columns, simd.LANES):
        score = simd.load(scores + column * 4, np.float32(0))
        score = simd.select(bits[column // simd.LANES], score, hidden)
        simd.store(scores + column * 4, score, np.float32(0))
        top = simd.maximum(score, top)
    return simd.horizontal_max(top)


@numba.njit
def _weigh_line(scores, num_columns, maximum):
    """Turns the scores of a line into weights; returns their sum."""
    shift = simd.splat(maximum)
    total = simd.splat(0.0)
    for column in range(0, num_columns, simd.LANES):
        weight = _exp(simd.subtract(simd.load(scores + column * 4, np.float32(0)), shift))
        simd.store(scores + column * 4, weight, np.float32(0))
        total = simd.add(total, weight)
    return simd.horizontal_sum(total)


@numba.njit
def weigh(args, first_row, num_rows, scratch, num_columns, slot, tail_len, softcap):
    """The softmax step of all lines for a chunk whose first token is tree slot `slot` (or < 0).

    In passes over the lines, each short enough for the processor to overlap several lines.
    """
    group, num_words = args[layout.GROUP], args[layout.MASK_WORDS]
    tops = simd.cast_address(scratch + layout.TOPS * 4, np.float32(0))
    maxima = simd.cast_address(scratch + layout.MAXIMA * 4, np.float32(0))
    totals = simd.cast_address(scratch + layout.TOTALS * 4, np.float32(0))
    bits = simd.cast_address(scratch + layout.BITS * 4, np.uint64(0))
    masked_from = min(max(-slot, 0) // simd.LANES * simd.LANES, num_columns)
    for row in range(num_rows):
        mask = simd.cast_address(args[layout.MASK] + (first_row + row) * num_words * 8, np.uint64(0))
        for column in range(masked_from, num_columns, simd.LANES):
            bits[column // simd.LANES] = _visible_bits(mask, num_words, slot + column, tail_len)
        for line in range(row * group, (row + 1) * group):
            scores = scratch + (layout.SCORES + line * layout.SCORE_STRIDE) * 4
            tops[line] = _mask_line(scores, num_columns, bits, masked_from, softcap)
    _raise_maxima(scratch, num_rows * group)
    for line in range(num_rows * group):
        scores = scratch + (layout.SCORES + line * layout.SCORE_STRIDE) * 4
        totals[line] += _weigh_line(scores, num_columns, maxima[line])


@numba.njit
def _raise_maxima(scratch, num_lines):
    """Running maxima take in `tops`; factors and running totals follow. simd.LANES lines at a time."""
    for line in range(0, num_lines, simd.LANES):
        address = scratch + line * 4
        old = simd.load(address + layout.MAXIMA * 4, np.float32(0))
        new = simd.maximum(simd.load(address + layout.TOPS * 4, np.float32(0)), old)
        factor = _exp(simd.subtract(old, new))
        total = simd.multiply(simd.load(address + layout.TOTALS * 4, np.float32(0)), factor)
        simd.store(address + layout.MAXIMA * 4, new, np.float32(0))
        simd.store(address + layout.FACTORS * 4, factor, np.float32(0))
        simd.store(address + layout.TOTALS * 4, total, np.float32(0))

"""The softmax of tree attention: turns the scores of a tile into weights, keeps maxima and totals.

A row's tokens are what it sees, in order. Its hidden slots lie between them, so the tail's scores are
packed first, which puts each token into the lane that it would have if the row decoded alone.
"""

from typing import Any

import numba
import numpy as np

from vllm_smart.kernels.cpu import simd
from vllm_smart.kernels.cpu.compiled import compiled_as
from vllm_smart.kernels.cpu.stock import RESCALE_ABOVE
from vllm_smart.kernels.tree_attention.cpu import layout
from vllm_smart.kernels.tree_attention.cpu.exponential import cap, exp, scalar_exp

LOWEST = float(np.finfo(np.float32).min)  # the maximum of no score at all
_HIDDEN = -1e30  # a score whose weight is 0; finite, or HIDDEN - HIDDEN would be NaN

_LANES = simd.LANES


@numba.njit
def _visible_bits(mask, num_words, slot, limit):
    """Bit i: is tree slot `slot + i` visible? Slots below 0 are context; `limit` and above, no."""
    ones = ~np.uint64(0)
    if slot <= -_LANES:
        bits = ones
    elif slot < 0:
        bits = (mask[0] << np.uint64(-slot)) | ~(ones << np.uint64(-slot))
    else:
        word, shift = slot >> 6, slot & 63
        bits = mask[word] >> np.uint64(shift) if word < num_words else np.uint64(0)
        if shift > 64 - _LANES and word + 1 < num_words:
            bits |= mask[word + 1] << np.uint64(64 - shift)
    bits &= np.uint64((1 << _LANES) - 1)
    if limit - slot < _LANES:
        bits &= ~(ones << np.uint64(max(limit - slot, 0)))
    return bits


@numba.njit
def _tail_bits(mask, num_words, bits, slot, num_columns, tail_len, first, last):
    """Which of the columns from tree slot `slot` on are among a row's visible tokens `first..last`.

    Args:
        bits: Written: a word for each LANES columns.
        slot: At or after the first slot whose rank may be `first`; or below 0, in the context.
        first: Rank of the tile's first token, counted from tree slot 0.
        last: Rank after its last token.
    """
    rank = min(slot, 0)
    for earlier in range(0, slot, _LANES):
        rank += simd.count_bits(_visible_bits(mask, num_words, earlier, min(slot, tail_len)))
    for column in range(0, num_columns, _LANES):
        visible = _visible_bits(mask, num_words, slot + column, tail_len)
        count = simd.count_bits(visible)
        if rank < first or rank + count > last:
            for lane in range(_LANES):
                bit = np.uint64(1) << np.uint64(lane)
                if visible & bit:
                    if not first <= rank < last:
                        visible &= ~bit
                    rank += 1
        else:
            rank += count
        bits[column // _LANES] = visible


@numba.njit
def _top_score(address, num_columns, top):
    """Lanewise maximum of `top` and scores that lie together."""
    for column in range(0, num_columns, _LANES):
        top = simd.maximum(simd.load(address + column * 4, np.float32(0)), top)
    return top


@numba.njit
def _weigh_together(address, num_columns, shift, total):
    """Turns scores that lie together into weights; returns `total` and their lanewise sum."""
    for column in range(0, num_columns, _LANES):
        weight = exp(simd.subtract(simd.load(address + column * 4, np.float32(0)), shift))
        simd.store(address + column * 4, weight, np.float32(0))
        total = simd.add(total, weight)
    return total


@numba.njit
def _cap_line(scores, num_lines, line, num_columns, softcap):
    for column in range(0, num_columns, _LANES):
        address = layout.score_address(scores, num_lines, line, column)
        score = simd.load(address, np.float32(0))
        simd.store(address, cap(score, softcap), np.float32(0))


@numba.njit
def _pack(scores, num_lines, line, whole, num_columns, bits, packed):
    """The visible scores from column `whole` on, one after the other; returns how many columns."""
    position = 0
    for column in range(whole, num_columns, _LANES):
        visible = bits[(column - whole) // _LANES]
        score = simd.load(layout.score_address(scores, num_lines, line, column), np.float32(0))
        simd.store(packed + position * 4, simd.compress(visible, score), np.float32(0))
        position += simd.count_bits(visible)
    simd.store(packed + position * 4, simd.splat(_HIDDEN), np.float32(0))
    return -(-position // _LANES) * _LANES


@numba.njit
def unpack(scores, num_lines, line, whole, num_columns, bits, packed, num_packed):
    """Weights back to where their values are; 0 for hidden slots."""
    position = 0
    for column in range(whole, num_columns, _LANES):
        visible = bits[(column - whole) // _LANES]
        weight = simd.expand(visible, packed + position * 4)
        simd.store(layout.score_address(scores, num_lines, line, column), weight, np.float32(0))
        position += simd.count_bits(visible)


@numba.njit
def _add_bias(address, slope, distance):
    """Adds the position biases of LANES scores, the first of which is `distance` from its row."""
    distances = simd.add(simd.splat(np.float32(distance)), simd.lane_numbers())
    score = simd.load(address, np.float32(0))
    score = simd.multiply_add(simd.splat(slope), distances, score)
    simd.store(address, score, np.float32(0))


@numba.njit
def _bias_line(scores, num_lines, line, whole, packed, num_packed, slope, distance):
    for column in range(0, whole, _LANES):
        address = layout.score_address(scores, num_lines, line, column)
        _add_bias(address, slope, distance + column)
    for column in range(0, num_packed, _LANES):
        _add_bias(packed + column * 4, slope, distance + whole + column)


@numba.njit
def _hide_scores(address, count):
    scores = simd.cast_address(address, np.float32(0))
    for column in range(count):
        scores[column] = np.float32(_HIDDEN)


@numba.njit
def _hide_line(scores, num_lines, line, whole, packed, count):
    """Hides the first `count` tokens, which keep their lanes."""
    for column in range(0, min(count, whole), _LANES):
        address = layout.score_address(scores, num_lines, line, column)
        _hide_scores(address, min(count - column, _LANES))
    _hide_scores(packed, count - whole)


@numba.njit
def _weigh_line(scores, num_lines, line, whole, packed, num_packed, maxima, totals, outputs, head_size):
    """The softmax step of one line over `whole` columns of context and then the packed ones."""
    top = simd.splat(LOWEST)
    for column in range(0, whole, layout.CHUNK):
        address = layout.score_address(scores, num_lines, line, column)
        top = _top_score(address, min(layout.CHUNK, whole - column), top)
    top = _top_score(packed, num_packed, top)

    before, total_before = maxima[line], totals[line]
    maximum = max(simd.horizontal_max(top), before)
    change = np.float32(before - maximum)
    rescale = change < np.float32(-RESCALE_ABOVE)
    if not rescale:
        maximum = before
    maxima[line] = maximum

    shift, lanes = simd.splat(maximum), simd.splat(0.0)
    for column in range(0, whole, layout.CHUNK):
        address = layout.score_address(scores, num_lines, line, column)
        lanes = _weigh_together(address, min(layout.CHUNK, whole - column), shift, lanes)
    lanes = _weigh_together(packed, num_packed, shift, lanes)
    total = simd.horizontal_sum(lanes)

    if not rescale:
        totals[line] = np.float32(total + total_before)
    elif total_before == 0:  # the first tile: nothing to rescale
        totals[line] = total
    else:
        factor = scalar_exp(change)
        totals[line] = simd.scalar_multiply_add(factor, total_before, total)
        address = outputs + line * (layout.STATE_STRIDE * 4)
        for i in range(0, head_size, _LANES):
            vector = simd.multiply(simd.load(address + i * 4, np.float32(0)), simd.splat(factor))
            simd.store(address + i * 4, vector, np.float32(0))


@numba.njit
def whole_columns(args, piece, first_token, granule):
    """Columns of the tile from `first_token` on in which all rows see all tokens."""
    context = piece[2] - piece[3]
    return min(max(context - first_token, 0), args[layout.KEY_TILE]) // granule * granule


@numba.njit
def _bits_of_row(args, piece, row, first_token, whole, num_columns, bits):
    """Which of the columns from `whole` on are among a row's tokens of a tile: see `_tail_bits`."""
    num_words, context = args[layout.MASK_WORDS], piece[2] - piece[3]
    mask = simd.cast_address(args[layout.MASK] + (piece[0] + row) * num_words * 8, np.uint64(0))
    _tail_bits(
        mask,
        num_words,
        bits,
        first_token + whole - context,
        num_columns - whole,
        piece[3],
        first_token - context,
        first_token + args[layout.KEY_TILE] - context,
    )


@numba.njit
def visible_slots(args, piece, row, scratch, first_token, whole, end, slots):
    """A row's tokens of a tile from column `whole` on, in order; returns how many.

    Args:
        first_token: of the tile, which has columns up to slot `end` of the sequence.
        slots: Written: slots of the sequence, int32.
    """
    bits = simd.cast_address(scratch + layout.TAIL * 4, np.uint64(0))
    _bits_of_row(args, piece, row, first_token, whole, end - first_token, bits)
    count = 0
    for column in range(whole, end - first_token, _LANES):
        visible = bits[(column - whole) // _LANES]
        for lane in range(_LANES):
            if visible >> np.uint64(lane) & np.uint64(1):
                slots[count] = first_token + column + lane
                count += 1
    return count


def weighing(granule: int, keep: Any) -> Any:
    """Compiled code for the softmax step of one tile.

    Args:
        granule: columns of the context go together in so many.
        keep: what puts a line's weights where they meet values; arguments as of `unpack`.
    """

    @compiled_as(str(granule))
    def weigh(args, piece, head, scratch, scores, first_token, num_columns, softcap):
        """The softmax step of all lines over the tile of each row that begins with its `first_token`th.

        Args:
            piece: See `layout.PIECE_WORDS`.
            head: Of keys and values.
            scratch: Address of the worker's scratch memory.
            scores: Address of the scores, whose first column is slot `first_token` of the sequence.
            num_columns: Columns that hold some row's tokens of this tile.
        """
        group, num_rows = args[layout.GROUP], piece[1]
        num_lines = layout.padded(num_rows * group)
        maxima = simd.cast_address(scratch + layout.MAXIMA * 4, np.float32(0))
        totals = simd.cast_address(scratch + layout.TOTALS * 4, np.float32(0))
        bits = simd.cast_address(scratch + layout.TAIL * 4, np.uint64(0))
        packed = scratch + (layout.TAIL + args[layout.TAIL_FLOATS]) * 4
        outputs, head_size = scratch + layout.OUTPUTS * 4, args[layout.HEAD_SIZE]
        slopes = simd.cast_address(args[layout.SLOPES], np.float32(0))
        positions = simd.cast_address(args[layout.POSITIONS], np.int64(0))
        first_seen = simd.cast_address(args[layout.FIRST_SEEN], np.int64(0))

        whole = whole_columns(args, piece, first_token, granule)
        for row in range(num_rows):
            _bits_of_row(args, piece, row, first_token, whole, num_columns, bits)
            for line in range(row * group, (row + 1) * group):
                if softcap != 0:
                    _cap_line(scores, num_lines, line, num_columns, softcap)
                num_packed = _pack(scores, num_lines, line, whole, num_columns, bits, packed)
                if args[layout.SLOPES] != 0:
                    slope = slopes[head * group + line - row * group]
                    distance = first_token - positions[piece[0] + row]
                    _bias_line(scores, num_lines, line, whole, packed, num_packed, slope, distance)
                if args[layout.FIRST_SEEN] != 0:
                    count = first_seen[piece[0] + row] - first_token
                    _hide_line(scores, num_lines, line, whole, packed, count)
                _weigh_line(
                    scores,
                    num_lines,
                    line,
                    whole,
                    packed,
                    num_packed,
                    maxima,
                    totals,
                    outputs,
                    head_size,
                )
                keep(scores, num_lines, line, whole, num_columns, bits, packed, num_packed)

    return weigh

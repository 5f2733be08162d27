"""Tree attention of one worker: (piece of rows, head of keys and values) items until none is left.

Each tile of keys and then of values is read once for all rows of the piece and all query heads that
share it. The order of the arithmetic is the stock kernel's, see `stock`.
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from vllm_smart.kernels.cpu import simd
from vllm_smart.kernels.tree_attention.cpu import layout
from vllm_smart.kernels.tree_attention.cpu.softmax import LOWEST, weigh
from vllm_smart.kernels.tree_attention.cpu.tiles import (
    TILE_COLUMNS,
    add_last_values,
    add_values,
    multiply_scores,
)

_CACHE_LINE = 64


@numba.njit
def _begin(args, first_row, num_lines, head, scratch, scale, element):
    """Scaled queries as float32 and the initial softmax state; padding lines are zero.

    An attention sink is a weight of 1 that was met before all keys.
    """
    has_sinks = args[layout.SINKS] != 0
    sinks = simd.cast_address(args[layout.SINKS], np.float32(0))
    group, head_size, size = args[layout.GROUP], args[layout.HEAD_SIZE], simd.size_of(element)
    factor, zero = simd.splat(np.float32(scale)), simd.splat(0.0)
    maxima = simd.cast_address(scratch + layout.MAXIMA * 4, np.float32(0))
    totals = simd.cast_address(scratch + layout.TOTALS * 4, np.float32(0))
    for line in range(-(-num_lines // layout.ROW_ALIGNMENT) * layout.ROW_ALIGNMENT):
        maxima[line] = np.float32(LOWEST)
        totals[line] = np.float32(0)
        row, member = first_row + line // group, line % group
        if has_sinks and line < num_lines:
            maxima[line] = sinks[head * group + member]
            totals[line] = np.float32(1)
        source = (
            args[layout.QUERY]
            + row * args[layout.QUERY_STRIDE]
            + (head * group + member) * head_size * size
        )
        queries = scratch + (layout.QUERIES + line * layout.STATE_STRIDE) * 4
        outputs = scratch + (layout.OUTPUTS + line * layout.STATE_STRIDE) * 4
        for i in range(0, head_size, simd.LANES):
            vector = zero
            if line < num_lines:
                vector = simd.multiply(simd.load(source + i * size, element), factor)
            simd.store(queries + i * 4, vector, np.float32(0))
            simd.store(outputs + i * 4, zero, np.float32(0))


@numba.njit
def _finish(args, first_row, num_lines, head, scratch, element):
    group, head_size, size = args[layout.GROUP], args[layout.HEAD_SIZE], simd.size_of(element)
    totals = simd.cast_address(scratch + layout.TOTALS * 4, np.float32(0))
    for line in range(num_lines):
        row, member = first_row + line // group, line % group
        target = (
            args[layout.OUTPUT]
            + row * args[layout.OUTPUT_STRIDE]
            + (head * group + member) * head_size * size
        )
        outputs = scratch + (layout.OUTPUTS + line * layout.STATE_STRIDE) * 4
        factor = simd.splat(np.float32(1) / totals[line])
        for i in range(0, head_size, simd.LANES):
            simd.store(
                target + i * size,
                simd.multiply(simd.load(outputs + i * 4, np.float32(0)), factor),
                element,
            )


@numba.njit
def _prefetch(address, num_bytes):
    """Asks for memory that the next product reads: blocks are scattered, the hardware cannot know."""
    for offset in range(0, num_bytes, _CACHE_LINE):
        simd.prefetch_line(address + offset)


@numba.njit
def _run_length(args, token, column, end):
    """How many tokens from `token` on lie in one block, and their scores in one chunk."""
    in_block = args[layout.BLOCK_SIZE] - token % args[layout.BLOCK_SIZE]
    in_chunk = layout.CHUNK - column % layout.CHUNK
    return min(min(in_block, in_chunk), end - token)


@numba.njit
def _scores_of_run(scores, num_lines, column):
    """Address of the first line's score in `column`; `num_lines` as padded."""
    chunk = scores + column // layout.CHUNK * num_lines * (layout.SCORE_STRIDE * 4)
    return chunk + column % layout.CHUNK * 4


@numba.njit
def _score(args, cache, block_table, scratch, scores, num_lines, begin, end, element):
    """Scores of all lines with tokens begin..end; columns count from `begin`."""
    block_size, head_size, size = args[layout.BLOCK_SIZE], args[layout.HEAD_SIZE], simd.size_of(element)
    token = begin
    while token < end:
        num_tokens = _run_length(args, token, token - begin, end)
        block = cache + block_table[token // block_size] * args[layout.BLOCK_STRIDE]
        keys = block + token % block_size * size
        run = _scores_of_run(scores, num_lines, token - begin)
        for column in range(0, num_tokens, TILE_COLUMNS):
            multiply_scores(
                run + column * 4,
                scratch + layout.QUERIES * 4,
                keys + column * size,
                block_size * size,
                head_size,
                num_lines,
                element,
            )
        token += num_tokens


@numba.njit
def _add_values(args, cache, block_table, scratch, scores, num_lines, begin, end, element):
    """Adds the weighted values of tokens begin..end to the outputs of all lines."""
    block_size, head_size, size = args[layout.BLOCK_SIZE], args[layout.HEAD_SIZE], simd.size_of(element)
    outputs, value_bytes = scratch + layout.OUTPUTS * 4, head_size * size
    wide = head_size // TILE_COLUMNS * TILE_COLUMNS
    token = begin
    while token < end:
        num_tokens = _run_length(args, token, token - begin, end)
        block = cache + block_table[token // block_size] * args[layout.BLOCK_STRIDE]
        values = block + (block_size + token % block_size) * value_bytes
        weights = _scores_of_run(scores, num_lines, token - begin)
        for i in range(0, wide, TILE_COLUMNS):
            column, target = values + i * size, outputs + i * 4
            add_values(target, weights, column, value_bytes, num_tokens, num_lines, element)
        if wide < head_size:
            column, target = values + wide * size, outputs + wide * 4
            add_last_values(target, weights, column, value_bytes, num_tokens, num_lines, element)
        token += num_tokens


@numba.njit
def _attend(args, item, scratch, scale, softcap, element):
    num_kv_heads, key_tile = args[layout.NUM_KV_HEADS], args[layout.KEY_TILE]
    head = item % num_kv_heads
    piece = simd.cast_address(
        args[layout.PIECES] + item // num_kv_heads * (layout.PIECE_WORDS * 8), np.int64(0)
    )
    first_row, num_rows, seq_len, tail_len = piece[0], piece[1], piece[2], piece[3]
    block_table = simd.cast_address(piece[4], np.int32(0))
    num_lines = num_rows * args[layout.GROUP]
    padded = -(-num_lines // layout.ROW_ALIGNMENT) * layout.ROW_ALIGNMENT
    scores = scratch + (layout.TAIL + 2 * args[layout.TAIL_FLOATS]) * 4
    cache = args[layout.KV_CACHE] + head * args[layout.HEAD_STRIDE]

    _begin(args, first_row, num_lines, head, scratch, scale, element)
    # The `begin`th token of a row lies at slot `begin` or, after hidden slots, later.
    for begin in range(piece[5], seq_len, key_tile):
        in_context = begin + key_tile <= seq_len - tail_len
        end = begin + key_tile if in_context else seq_len
        _score(args, cache, block_table, scratch, scores, padded, begin, end, element)
        weigh(args, piece, head, scratch, scores, begin, end - begin, softcap)
        _add_values(args, cache, block_table, scratch, scores, padded, begin, end, element)
    _finish(args, first_row, num_lines, head, scratch, element)


@numba.njit
def work(args, element):
    """What one thread does: take items until none is left. `element` is a marker, see `simd`."""
    counters = args[layout.COUNTERS]
    worker = simd.fetch_and_increment(counters + 8)
    scratch = args[layout.SCRATCH] + worker * args[layout.SCRATCH_FLOATS] * 4
    scale, softcap = (
        simd.as_double(args[layout.SCALE]),
        np.float32(simd.as_double(args[layout.SOFTCAP])),
    )
    while True:
        item = simd.fetch_and_increment(counters)
        if item >= args[layout.NUM_ITEMS]:
            break
        _attend(args, item, scratch, scale, softcap, element)


def entry(element: Any, version: str) -> Callable[[Any], None]:
    """What is to be compiled for a cache of `element`; `version` tells numba's cache of changes."""

    def attend(args: Any) -> None:
        _ = version
        work(args, element)

    return attend

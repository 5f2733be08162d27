"""Tree attention of one worker: (piece of rows, head of keys and values) items until none is left.

Each block of keys and values is read once for all rows of the piece and all query heads that share it.
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from vllm_smart.kernels.cpu import layout, simd
from vllm_smart.kernels.cpu.softmax import HIDDEN, weigh
from vllm_smart.kernels.cpu.tiles import TILE_COLUMNS, multiply_scores, multiply_values

_CACHE_LINE = 64


@numba.njit
def _begin(args, first_row, num_lines, head, scratch, scale, element):
    """Scaled queries as float32 and the initial softmax state; padding lines are zero."""
    group, head_size, size = args[layout.GROUP], args[layout.HEAD_SIZE], simd.size_of(element)
    factor, zero = simd.splat(np.float32(scale)), simd.splat(0.0)
    maxima = simd.cast_address(scratch + layout.MAXIMA * 4, np.float32(0))
    totals = simd.cast_address(scratch + layout.TOTALS * 4, np.float32(0))
    factors = simd.cast_address(scratch + layout.FACTORS * 4, np.float32(0))
    for line in range(-(-num_lines // layout.ROW_ALIGNMENT) * layout.ROW_ALIGNMENT):
        maxima[line] = np.float32(HIDDEN)
        totals[line] = np.float32(0)
        factors[line] = np.float32(0)
        row, member = first_row + line // group, line % group
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
def _attend(args, item, scratch, scale, softcap, element):
    num_kv_heads, block_size, head_size = (
        args[layout.NUM_KV_HEADS],
        args[layout.BLOCK_SIZE],
        args[layout.HEAD_SIZE],
    )
    head = item % num_kv_heads
    piece = simd.cast_address(
        args[layout.PIECES] + item // num_kv_heads * (layout.PIECE_WORDS * 8), np.int64(0)
    )
    first_row, num_rows, seq_len, tail_len = piece[0], piece[1], piece[2], piece[3]
    block_table = simd.cast_address(piece[4], np.int32(0))
    num_lines, size = num_rows * args[layout.GROUP], simd.size_of(element)
    queries, outputs = scratch + layout.QUERIES * 4, scratch + layout.OUTPUTS * 4
    scores, factors = scratch + layout.SCORES * 4, scratch + layout.FACTORS * 4

    _begin(args, first_row, num_lines, head, scratch, scale, element)
    cache = args[layout.KV_CACHE] + head * args[layout.HEAD_STRIDE]
    token = 0
    while token < seq_len:
        offset = token % block_size
        num_tokens = min(min(layout.CHUNK, block_size - offset), seq_len - token)
        block = cache + block_table[token // block_size] * args[layout.BLOCK_STRIDE]
        keys, values = block + offset * size, block + (block_size + offset) * head_size * size
        next_token = min(token + num_tokens, seq_len - 1)
        next_keys = cache + block_table[next_token // block_size] * args[layout.BLOCK_STRIDE]
        num_columns = -(-num_tokens // TILE_COLUMNS) * TILE_COLUMNS
        for column in range(0, num_columns, TILE_COLUMNS):
            _prefetch(values + column * head_size * size, TILE_COLUMNS * head_size * size)
            multiply_scores(
                scores + column * 4,
                queries,
                keys + column * size,
                block_size * size,
                head_size,
                num_lines,
                element,
            )
        slot = token - (seq_len - tail_len)
        weigh(args, first_row, num_rows, scratch, num_columns, slot, tail_len, softcap)
        for column in range(0, head_size, TILE_COLUMNS):
            if next_keys != block:
                _prefetch(next_keys + column * block_size * size, TILE_COLUMNS * block_size * size)
            multiply_values(
                outputs + column * 4,
                factors,
                scores,
                values + column * size,
                head_size * size,
                num_tokens,
                num_lines,
                element,
            )
        token += num_tokens
    _finish(args, first_row, num_lines, head, scratch, element)


@numba.njit
def work(args, element):
    """What one thread does: take items until none is left. `element` is a marker, see `simd`."""
    counters = args[layout.COUNTERS]
    scratch = args[layout.SCRATCH] + simd.fetch_and_increment(counters + 8) * (
        layout.SCRATCH_FLOATS * 4
    )
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

"""Products of tree attention where vLLM's kernels are `vec` or `vec16`: all in float32.

Each element is one sum, in the order of the head's elements or of the tokens.
"""

import numba
import numpy as np

from vllm_smart.kernels.cpu import simd
from vllm_smart.kernels.tree_attention.cpu import layout, softmax
from vllm_smart.kernels.tree_attention.cpu.tiles import (
    TILE_COLUMNS,
    add_last_values,
    add_values,
    multiply_scores,
)

weigh = softmax.weighing(simd.LANES, softmax.unpack)


@numba.njit
def leave():
    """Nothing to tidy up."""


@numba.njit
def load_query(target, source, head_size, scale, element):
    """One line's query, scaled."""
    size, factor = simd.size_of(element), simd.splat(np.float32(scale))
    for i in range(0, head_size, simd.LANES):
        query = simd.multiply(simd.load(source + i * size, element), factor)
        simd.store(target + i * 4, query, np.float32(0))


@numba.njit
def score(args, cache, block_table, scratch, scores, num_lines, begin, end, scale, element):
    """Scores of all lines with tokens begin..end; columns count from `begin`."""
    block_size, head_size, size = args[layout.BLOCK_SIZE], args[layout.HEAD_SIZE], simd.size_of(element)
    padded, token = layout.padded(num_lines), begin
    while token < end:
        num_tokens = layout.run_length(args, token, token - begin, end)
        block = cache + block_table[token // block_size] * args[layout.BLOCK_STRIDE]
        keys = block + token % block_size * size
        run = layout.score_address(scores, padded, 0, token - begin)
        for column in range(0, num_tokens, TILE_COLUMNS):
            multiply_scores(
                run + column * 4,
                scratch + layout.QUERIES * 4,
                keys + column * size,
                block_size * size,
                head_size,
                padded,
                element,
            )
        token += num_tokens


@numba.njit
def add_weighted(args, piece, cache, block_table, scratch, scores, begin, end, element):
    """Adds the weighted values of tokens begin..end to the outputs of all lines."""
    block_size, head_size, size = args[layout.BLOCK_SIZE], args[layout.HEAD_SIZE], simd.size_of(element)
    outputs, value_bytes = scratch + layout.OUTPUTS * 4, head_size * size
    wide = head_size // TILE_COLUMNS * TILE_COLUMNS
    padded, token = layout.padded(piece[1] * args[layout.GROUP]), begin
    while token < end:
        num_tokens = layout.run_length(args, token, token - begin, end)
        block = cache + block_table[token // block_size] * args[layout.BLOCK_STRIDE]
        values = block + (block_size + token % block_size) * value_bytes
        weights = layout.score_address(scores, padded, 0, token - begin)
        for i in range(0, wide, TILE_COLUMNS):
            column, target = values + i * size, outputs + i * 4
            add_values(target, weights, column, value_bytes, num_tokens, padded, element)
        if wide < head_size:
            column, target = values + wide * size, outputs + wide * 4
            add_last_values(target, weights, column, value_bytes, num_tokens, padded, element)
        token += num_tokens

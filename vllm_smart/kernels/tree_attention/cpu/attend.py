"""Tree attention of one worker: (piece of rows, head of keys and values) items until none is left.

Each tile of keys and then of values is read once for all rows of the piece and all query heads that
share it. The order of the arithmetic is the stock kernel's, see `stock`.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numba
import numpy as np

from vllm_smart.kernels.cpu import simd
from vllm_smart.kernels.cpu.compiled import compiled_as
from vllm_smart.kernels.tree_attention.cpu import amx, layout, vec
from vllm_smart.kernels.tree_attention.cpu.softmax import LOWEST


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


def _worker(products: ModuleType) -> Any:
    """Compiled code of a worker with the products of one of our modules, `vec` or `amx`."""
    load_query, score, weigh, add_weighted = (
        products.load_query,
        products.score,
        products.weigh,
        products.add_weighted,
    )
    leave, compiled = products.leave, compiled_as(products.__name__)

    @compiled
    def begin(args, first_row, num_lines, head, scratch, scale, element):
        """Queries and the initial softmax state; padding lines are zero.

        An attention sink is a weight of 1 that was met before all keys.
        """
        has_sinks = args[layout.SINKS] != 0
        sinks = simd.cast_address(args[layout.SINKS], np.float32(0))
        group, head_size, size = args[layout.GROUP], args[layout.HEAD_SIZE], simd.size_of(element)
        zero = simd.splat(0.0)
        maxima = simd.cast_address(scratch + layout.MAXIMA * 4, np.float32(0))
        totals = simd.cast_address(scratch + layout.TOTALS * 4, np.float32(0))
        for line in range(layout.padded(num_lines)):
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
                simd.store(outputs + i * 4, zero, np.float32(0))
                if line >= num_lines:
                    simd.store(queries + i * 4, zero, np.float32(0))
            if line < num_lines:
                load_query(queries, source, head_size, scale, element)

    @compiled
    def attend(args, item, scratch, scale, softcap, element):
        num_kv_heads, key_tile = args[layout.NUM_KV_HEADS], args[layout.KEY_TILE]
        head = item % num_kv_heads
        piece = simd.cast_address(
            args[layout.PIECES] + item // num_kv_heads * (layout.PIECE_WORDS * 8), np.int64(0)
        )
        first_row, num_rows, seq_len, tail_len = piece[0], piece[1], piece[2], piece[3]
        block_table = simd.cast_address(piece[4], np.int32(0))
        num_lines = num_rows * args[layout.GROUP]
        scores = scratch + layout.scores(args) * 4
        cache = args[layout.KV_CACHE] + head * args[layout.HEAD_STRIDE]

        begin(args, first_row, num_lines, head, scratch, scale, element)
        # The `first`th token of a row lies at slot `first` or, after hidden slots, later.
        for first in range(piece[5], seq_len, key_tile):
            in_context = first + key_tile <= seq_len - tail_len
            end = first + key_tile if in_context else seq_len
            score(args, cache, block_table, scratch, scores, num_lines, first, end, scale, element)
            weigh(args, piece, head, scratch, scores, first, end - first, softcap)
            add_weighted(args, piece, cache, block_table, scratch, scores, first, end, element)
        _finish(args, first_row, num_lines, head, scratch, element)

    @compiled
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
            attend(args, item, scratch, scale, softcap, element)
        leave()

    return work


_work, _work_on_tiles = _worker(vec), _worker(amx)


def entry(isa: str, element: Any, version: str) -> Callable[[Any], None]:
    """What is to be compiled for a cache of `element`, laid out for vLLM's `isa`.

    `version` tells numba's cache of changes.
    """

    def attend(args: Any) -> None:
        _ = version
        _work(args, element)

    def attend_on_tiles(args: Any) -> None:
        _ = version
        _work_on_tiles(args, element)

    return attend_on_tiles if isa == "amx" else attend

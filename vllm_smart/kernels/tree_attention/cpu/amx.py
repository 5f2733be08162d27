"""Products of tree attention where vLLM's kernels are `amx`: bfloat16 on the processor's tiles.

A tile's instruction adds 32 products to each element of a float32 tile: sixteen of even and sixteen of
odd numbers, each one sum in order, and then both. So it matters which tokens make up a pair and a group
of 32. In the context all lines see all tokens, and the cache is read as it is. Behind it each row has
tokens of its own, with hidden ones between them, so their values are gathered into tiles first.
"""

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from vllm_smart.kernels.cpu import simd
from vllm_smart.kernels.cpu.compiled import compiled_as
from vllm_smart.kernels.tree_attention.cpu import layout, softmax

_ROWS = 16  # of a tile, each of 64 bytes: 32 bfloat16, or 16 float32
_ROW_BYTES = 64
_TILE_BYTES = _ROWS * _ROW_BYTES
_GROUP = 32  # elements of a head, or tokens, that one instruction multiplies

# Registers. The first set is for sixteen lines, the second for those that are left.
_LINES, _LEFT = 0, 1
_B, _B_NEXT = 2, 3
_SUMS, _SUMS_NEXT = 4, 5
_SUMS_LEFT, _SUMS_LEFT_NEXT = 6, 7

_I8, _VOID = ir.IntType(8), ir.VoidType()


def _call(builder: ir.IRBuilder, name: str, *args: ir.Value) -> None:
    function_type = ir.FunctionType(_VOID, [arg.type for arg in args])
    builder.call(
        cgutils.get_or_insert_function(builder.module, function_type, f"llvm.x86.{name}"), args
    )


def _register(number: int) -> ir.Constant:
    return ir.Constant(_I8, number)


@intrinsic
def _configure(typingctx, num_left):
    """Tells the processor the shape of the tiles; `num_left` lines are in those for the left ones."""

    def emit(context, builder, signature, args):
        # Palette 1; bytes of a row at 16, as 16 bits for each register; rows at 48.
        config = cgutils.alloca_once(builder, ir.ArrayType(_I8, 64))
        builder.store(ir.Constant(ir.ArrayType(_I8, 64), bytearray(64)), config)

        def put(offset, value):
            place = builder.gep(config, [ir.Constant(ir.IntType(32), i) for i in (0, offset)])
            builder.store(value, place)

        put(0, _register(1))
        of_left = (_LEFT, _SUMS_LEFT, _SUMS_LEFT_NEXT)
        for register in range(8):
            put(16 + 2 * register, _register(_ROW_BYTES))
            rows = builder.trunc(args[0], _I8) if register in of_left else _register(_ROWS)
            put(48 + register, rows)
        _call(builder, "ldtilecfg", builder.bitcast(config, _I8.as_pointer()))
        return context.get_dummy_value()

    return types.void(types.int64), emit


@intrinsic
def _release(typingctx):
    """Leaves the tiles to others of this thread."""

    def emit(context, builder, signature, args):
        _call(builder, "tilerelease")
        return context.get_dummy_value()

    return types.void(), emit


@intrinsic
def _interleave(typingctx, target, first, first_shift, second, second_shift):
    """A row of a tile from the values of two tokens, which lie in rows of the cache with other ones.

    Args:
        target, first, second: addresses of 64 bytes.
        first_shift, second_shift: int32, 16 if the token is the second of its pair, else 0.
    """

    def emit(context, builder, signature, args):
        row = ir.VectorType(ir.IntType(32), _ROWS)
        target, first, first_shift, second, second_shift = args

        def load(address, shift):
            pairs = builder.load(builder.inttoptr(address, row.as_pointer()), align=2)
            return builder.lshr(pairs, simd.splat_ir(builder, shift))

        low = builder.and_(load(first, first_shift), ir.Constant(row, [0xFFFF] * _ROWS))
        high = builder.shl(load(second, second_shift), ir.Constant(row, [16] * _ROWS))
        builder.store(builder.or_(low, high), builder.inttoptr(target, row.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 2, types.int32, types.int64, types.int32), emit


def _multiply(a: int, sums: tuple[int, int], accumulate: bool) -> Any:
    """Compiled code for `C = A @ B`, or with `accumulate` for `C += A @ B`, on two tiles of C.

    A is bfloat16, C float32, and B pairs of bfloat16 below each other, as the cache has them. The
    arguments are the addresses of C, A and both parts of B, the strides of C and A in bytes, and how
    many tiles A and each part of B have.
    """

    @intrinsic
    def multiply(typingctx, c, a_tiles, b_tiles, b_next, c_stride, a_stride, depth):
        def emit(context, builder, signature, args):
            c, a_tiles, b_tiles, b_next, c_stride, a_stride, depth = args

            def move(name, register, address, stride):
                pointer = builder.inttoptr(address, _I8.as_pointer())
                _call(builder, name, _register(register), pointer, stride)

            places = list(zip(sums, (c, builder.add(c, simd.I64(_ROW_BYTES))), strict=True))
            for register, address in places:
                if accumulate:
                    move("tileloadd64", register, address, c_stride)
                else:
                    _call(builder, "tilezero", _register(register))
            with cgutils.for_range(builder, depth) as loop:
                along_a = builder.mul(loop.index, simd.I64(_ROW_BYTES))
                along_b = builder.mul(loop.index, simd.I64(_TILE_BYTES))
                move("tileloadd64", a, builder.add(a_tiles, along_a), a_stride)
                for register, b, start in ((sums[0], _B, b_tiles), (sums[1], _B_NEXT, b_next)):
                    move("tileloadd64", b, builder.add(start, along_b), simd.I64(_ROW_BYTES))
                    _call(builder, "tdpbf16ps", _register(register), _register(a), _register(b))
            for register, address in places:
                move("tilestored64", register, address, c_stride)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 7), emit

    return multiply


def _product(accumulate: bool) -> Any:
    """`C = A @ B` or `C += A @ B` for any number of lines; the tiles are set up for those left over."""
    sixteen = _multiply(_LINES, (_SUMS, _SUMS_NEXT), accumulate)
    left = _multiply(_LEFT, (_SUMS_LEFT, _SUMS_LEFT_NEXT), accumulate)

    @compiled_as("add" if accumulate else "set")
    def multiply(c, a, b, b_next, c_stride, a_stride, depth, num_lines):
        whole = num_lines // _ROWS * _ROWS
        for line in range(0, whole, _ROWS):
            sixteen(c + line * c_stride, a + line * a_stride, b, b_next, c_stride, a_stride, depth)
        if whole < num_lines:
            left(c + whole * c_stride, a + whole * a_stride, b, b_next, c_stride, a_stride, depth)

    return multiply


_multiply_scores, _add_tiles = _product(accumulate=False), _product(accumulate=True)


@numba.njit
def _set_up(num_lines):
    """Sets tiles up for products of so many lines."""
    _configure(max(num_lines % _ROWS, 1))


@numba.njit
def _weight_address(scores, num_lines, line, column):
    """Of a line's weight, which is half as wide as its score was; `num_lines` as padded."""
    return layout.score_address(scores, num_lines, line, column) - column % layout.CHUNK * 2


@numba.njit
def _round_weights(scores, num_lines, line, begin, source, num_columns):
    """Weights from `source` on, as bfloat16, to a line's columns from `begin` on."""
    for column in range(0, num_columns, simd.LANES):
        weight = simd.load(source + column * 4, np.float32(0))
        simd.store(_weight_address(scores, num_lines, line, begin + column), weight, np.uint16(0))


@numba.njit
def _keep(scores, num_lines, line, whole, num_columns, bits, packed, num_packed):
    """Weights as bfloat16, those of the tail one after the other, up to a whole number of groups."""
    for column in range(0, whole, layout.CHUNK):
        source = layout.score_address(scores, num_lines, line, column)
        # In place: a chunk's weights move to the first half of where they are.
        _round_weights(scores, num_lines, line, column, source, min(layout.CHUNK, whole - column))
    if num_packed % _GROUP:
        simd.store(packed + num_packed * 4, simd.splat(0.0), np.float32(0))
        num_packed += simd.LANES
    _round_weights(scores, num_lines, line, whole, packed, num_packed)


weigh = softmax.weighing(_GROUP, _keep)


@numba.njit
def leave():
    """Leaves the tiles to what else runs on this thread."""
    _release()


@numba.njit
def load_query(target, source, head_size, scale, element):
    """One line's query as it is: scores are scaled."""
    for i in range(0, head_size, simd.LANES):
        simd.store(target + i * 2, simd.load(source + i * 2, element), element)


@numba.njit
def score(args, cache, block_table, scratch, scores, num_lines, begin, end, scale, element):
    """Scores of all lines with tokens begin..end; columns count from `begin`."""
    block_size, head_size = args[layout.BLOCK_SIZE], args[layout.HEAD_SIZE]
    group_bytes, factor = _ROWS * head_size * 2, simd.splat(np.float32(scale))
    padded, token = layout.padded(num_lines), begin
    _set_up(num_lines)
    while token < end:
        num_tokens = layout.run_length(args, token, token - begin, end)
        block = cache + block_table[token // block_size] * args[layout.BLOCK_STRIDE]
        keys = block + token % block_size // _ROWS * group_bytes
        run = layout.score_address(scores, padded, 0, token - begin)
        for column in range(0, num_tokens, _GROUP):
            b = keys + column // _ROWS * group_bytes
            _multiply_scores(
                run + column * 4,
                scratch + layout.QUERIES * 4,
                b,
                b + group_bytes,
                layout.SCORE_STRIDE * 4,
                layout.STATE_STRIDE * 4,
                head_size // _GROUP,
                num_lines,
            )
        for line in range(num_lines):
            for column in range(0, num_tokens, simd.LANES):
                place = run + (line * layout.SCORE_STRIDE + column) * 4
                scaled = simd.multiply(simd.load(place, np.float32(0)), factor)
                simd.store(place, scaled, np.float32(0))
        token += num_tokens


@numba.njit
def add_weighted(args, piece, cache, block_table, scratch, scores, begin, end, element):
    """Adds the weighted values of tokens begin..end to the outputs of all lines."""
    num_lines = piece[1] * args[layout.GROUP]
    whole = softmax.whole_columns(args, piece, begin, _GROUP)
    _add_context(args, num_lines, cache, block_table, scratch, scores, begin, begin + whole)
    if begin + whole < end:
        _add_tails(args, piece, cache, block_table, scratch, scores, begin, whole, end)


@numba.njit
def _add_context(args, num_lines, cache, block_table, scratch, scores, begin, end):
    """Of tokens that all lines see; a whole number of groups."""
    block_size, head_size = args[layout.BLOCK_SIZE], args[layout.HEAD_SIZE]
    outputs, padded, token = scratch + layout.OUTPUTS * 4, layout.padded(num_lines), begin
    _set_up(num_lines)
    while token < end:
        num_tokens = layout.run_length(args, token, token - begin, end)
        block = cache + block_table[token // block_size] * args[layout.BLOCK_STRIDE]
        weights = _weight_address(scores, padded, 0, token - begin)
        values = _values_of(block, block_size, head_size, 0, token % block_size)
        _add_values(outputs, weights, values, block_size, head_size, num_tokens // _GROUP, num_lines)
        token += num_tokens


@numba.njit
def _add_values(outputs, weights, values, block_size, head_size, depth, num_lines):
    """Adds weighted values that lie as in a block of `block_size` tokens, `depth` groups of tokens."""
    for i in range(0, head_size, 2 * _ROWS):
        b = values + i * block_size * 2
        _add_tiles(
            outputs + i * 4,
            weights,
            b,
            b + _ROWS * block_size * 2,
            layout.STATE_STRIDE * 4,
            layout.SCORE_STRIDE * 4,
            depth,
            num_lines,
        )


@numba.njit
def _values_of(block, block_size, head_size, element, offset):
    """Address of a block's values: sixteen elements from `element` on, of the pair that has a token."""
    return block + (block_size * head_size + element * block_size) * 2 + offset // 2 * _ROW_BYTES


@numba.njit
def _add_tails(args, piece, cache, block_table, scratch, scores, begin, whole, end):
    """Of the tokens behind the context, which are other ones for each row."""
    group, head_size = args[layout.GROUP], args[layout.HEAD_SIZE]
    padded = layout.padded(piece[1] * group)
    slots = simd.cast_address(scratch + (layout.TAIL + args[layout.TAIL_FLOATS]) * 4, np.int32(0))
    gathered = scratch + layout.gathered(args) * 4
    # What is not there weighs 0, but must be finite.
    for place in range(gathered, gathered + head_size * _ROW_BYTES, _ROW_BYTES):
        simd.store(place, simd.splat(0.0), np.float32(0))
    # All rows begin with what is left of the context.
    context_end = min(piece[2] - piece[3], begin + args[layout.KEY_TILE])
    pairs_of_context = max(context_end - begin - whole, 0) // 2
    num_kept = 0
    _set_up(group)
    for row in range(piece[1]):
        outputs = scratch + (layout.OUTPUTS + row * group * layout.STATE_STRIDE) * 4
        count = softmax.visible_slots(args, piece, row, scratch, begin, whole, end, slots)
        for first in range(0, count, _GROUP):
            num_tokens = min(_GROUP, count - first)
            _gather(args, cache, block_table, slots, first, num_tokens, num_kept, gathered)
            weights = _weight_address(scores, padded, row * group, whole + first)
            _add_values(outputs, weights, gathered, _GROUP, head_size, 1, group)
            num_kept = 0
        num_kept = pairs_of_context if count <= _GROUP else 0


@numba.njit
def _gather(args, cache, block_table, slots, first, num_tokens, num_kept, gathered):
    """The values of up to 32 tokens, as a block of so many has them.

    Args:
        slots: of the tokens, from the `first`th on.
        num_kept: the first pairs, which are there already.
    """
    block_size, head_size = args[layout.BLOCK_SIZE], args[layout.HEAD_SIZE]
    for pair in range(num_kept, (num_tokens + 1) // 2):
        slot = slots[first + 2 * pair]
        # An odd token has nothing beside it, which weighs 0: any value will do that is finite.
        other = slots[first + min(2 * pair + 1, num_tokens - 1)]
        block = cache + block_table[slot // block_size] * args[layout.BLOCK_STRIDE]
        next_block = cache + block_table[other // block_size] * args[layout.BLOCK_STRIDE]
        for i in range(0, head_size, _ROWS):
            _interleave(
                gathered + i // _ROWS * _TILE_BYTES + pair * _ROW_BYTES,
                _values_of(block, block_size, head_size, i, slot % block_size),
                np.int32(slot % 2 * 16),
                _values_of(next_block, block_size, head_size, i, other % block_size),
                np.int32(other % 2 * 16),
            )

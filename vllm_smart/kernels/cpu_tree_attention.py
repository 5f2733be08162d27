"""Attention of draft trees over vLLM's paged CPU KV cache, compiled by numba.

Each block of keys and values is read once for all tree rows and all query heads that share it.
Knows the `vec` layout of the cache (see `tree_attention_reference`); knows nothing of vLLM, and
leaves chains and prefills to vLLM's own kernel. Runs on torch's own threads (`OpenMPTeam`).

All compiled code is in this one file because numba's cache only notices changes of the file that
holds the entry point.
"""

import ctypes
import itertools
import logging
import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

from vllm_smart.errors import UnsupportedError
from vllm_smart.kernels.tree_attention_reference import TreeAttentionBatch

logger = logging.getLogger(__name__)

MAX_HEAD_SIZE = 256
_CHUNK = 128  # most tokens per step of the online softmax
# (row, query head) pairs per work item: their state should stay in the L2 cache, and should be
# worth another pass over the keys and values, which costs some of the time of the whole.
_MAX_LINES = 192
_MIN_LINES = 12
_PIECE_COST = 0.05

# Scratch strides in floats: odd multiples of a cache line, so that the rows of a tile fall into
# different cache sets; constants, so that one pointer register addresses all of them.
_STATE_STRIDE = MAX_HEAD_SIZE + 16
_SCORE_STRIDE = _CHUNK + 16
_CACHE_LINE = 64
_HIDDEN = -1e30  # the score of an unseen token; finite, or exp(_HIDDEN - _HIDDEN) would be NaN

_HAS_AVX512 = bool(binding.get_host_cpu_features().get("avx512f"))
LANES = 16 if _HAS_AVX512 else 8
_TILE_COLUMNS = 2 * LANES
_TILE_ROWS = (12, 8, 4) if _HAS_AVX512 else (4, 4, 4)
_ROW_ALIGNMENT = 4

_I16, _I32, _I64, _F32 = ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
_F32_VECTOR = ir.VectorType(_F32, LANES)
_I32_VECTOR = ir.VectorType(_I32, LANES)


class _VectorType(types.Type):
    def __init__(self) -> None:
        super().__init__(name=f"f32x{LANES}")


_vector = _VectorType()


@register_model(_VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, _F32_VECTOR)


# Functions that end in _ir emit LLVM instructions; the others are callable from compiled code.
# Addresses are int64. The type of a cache element is told by the type of a marker, any value of
# float32 for itself, uint16 for bfloat16, int16 for float16.


def _constant_ir(value: int) -> ir.Constant:
    return ir.Constant(_I32_VECTOR, [value] * LANES)


def _splat_ir(builder: ir.IRBuilder, scalar: ir.Value) -> ir.Value:
    vector = ir.Constant(ir.VectorType(scalar.type, LANES), ir.Undefined)
    vector = builder.insert_element(vector, scalar, _I32(0))
    return builder.shuffle_vector(vector, vector, _constant_ir(0))


def _load_ir(builder: ir.IRBuilder, address: ir.Value, element: types.Type) -> ir.Value:
    """LANES consecutive elements as float32."""
    stored = {types.float32: _F32, types.uint16: _I16, types.int16: ir.HalfType()}[element]
    pointer = builder.inttoptr(address, ir.VectorType(stored, LANES).as_pointer())
    vector = builder.load(pointer, align=element.bitwidth // 8)
    if element == types.int16:
        vector = builder.fpext(vector, _F32_VECTOR)
    elif element == types.uint16:
        bits = builder.shl(builder.zext(vector, _I32_VECTOR), _constant_ir(16))
        vector = builder.bitcast(bits, _F32_VECTOR)
    return vector


def _store_ir(builder: ir.IRBuilder, address: ir.Value, vector: ir.Value, element: types.Type) -> None:
    if element == types.int16:
        vector = builder.fptrunc(vector, ir.VectorType(ir.HalfType(), LANES))
    elif element == types.uint16:  # round to nearest, ties to even
        bits = builder.bitcast(vector, _I32_VECTOR)
        odd = builder.and_(builder.lshr(bits, _constant_ir(16)), _constant_ir(1))
        bits = builder.add(builder.add(bits, odd), _constant_ir(0x7FFF))
        vector = builder.trunc(builder.lshr(bits, _constant_ir(16)), ir.VectorType(_I16, LANES))
    pointer = builder.inttoptr(address, vector.type.as_pointer())
    builder.store(vector, pointer, align=element.bitwidth // 8)


def _llvm_ir(builder: ir.IRBuilder, name: str, *args: ir.Value) -> ir.Value:
    """An LLVM intrinsic from vectors to a vector."""
    function_type = ir.FunctionType(_F32_VECTOR, [_F32_VECTOR] * len(args))
    name = f"llvm.{name}.v{LANES}f32"
    return builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), args)


def _maximum_ir(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def _power_of_two_ir(builder: ir.IRBuilder, exponent: ir.Value) -> ir.Value:
    biased = builder.add(builder.fptosi(exponent, _I32_VECTOR), _constant_ir(127))
    return builder.bitcast(builder.shl(biased, _constant_ir(23)), _F32_VECTOR)


def _unary(emit: Callable[..., ir.Value]) -> Any:
    @intrinsic
    def operation(typingctx, a):
        return _vector(a), lambda context, builder, signature, args: emit(builder, *args)

    return operation


def _binary(emit: Callable[..., ir.Value]) -> Any:
    @intrinsic
    def operation(typingctx, a, b):
        return _vector(a, b), lambda context, builder, signature, args: emit(builder, *args)

    return operation


def _reduction(combine: Callable[..., ir.Value]) -> Any:
    def emit(context, builder, signature, args):
        (vector,) = args
        width = LANES
        while width > 1:
            width //= 2
            upper = ir.Constant(_I32_VECTOR, [(width + i) % LANES for i in range(LANES)])
            vector = combine(builder, vector, builder.shuffle_vector(vector, vector, upper))
        return builder.extract_element(vector, _I32(0))

    @intrinsic
    def operation(typingctx, vector):
        return types.float32(vector), emit

    return operation


_add = _binary(lambda builder, a, b: builder.fadd(a, b))
_subtract = _binary(lambda builder, a, b: builder.fsub(a, b))
_multiply = _binary(lambda builder, a, b: builder.fmul(a, b))
_divide = _binary(lambda builder, a, b: builder.fdiv(a, b))
_maximum = _binary(_maximum_ir)
_round = _unary(lambda builder, a: _llvm_ir(builder, "rint", a))
_power_of_two = _unary(_power_of_two_ir)  # of whole numbers in -127..127; 0 for -127
_horizontal_sum = _reduction(lambda builder, a, b: builder.fadd(a, b))
_horizontal_max = _reduction(_maximum_ir)


@intrinsic
def _multiply_add(typingctx, a, b, c):
    """a * b + c"""
    return _vector(a, b, c), lambda context, builder, signature, args: _llvm_ir(
        builder, "fmuladd", *args
    )


@intrinsic
def _splat(typingctx, scalar):
    return _vector(types.float32), lambda context, builder, signature, args: _splat_ir(builder, *args)


@intrinsic
def _select(typingctx, bits, seen, unseen):
    """Per lane, `seen` where the bit of the lane is set, else `unseen`."""

    def emit(context, builder, signature, args):
        mask = builder.trunc(args[0], ir.IntType(LANES))
        mask = builder.bitcast(mask, ir.VectorType(ir.IntType(1), LANES))
        return builder.select(mask, args[1], args[2])

    return _vector(types.uint64, seen, unseen), emit


@intrinsic
def _load(typingctx, address, element):
    """LANES elements as float32."""

    def emit(context, builder, signature, args):
        return _load_ir(builder, args[0], element)

    return _vector(address, element), emit


@intrinsic
def _store(typingctx, address, vector, element):
    """LANES elements from float32."""

    def emit(context, builder, signature, args):
        _store_ir(builder, args[0], args[1], element)
        return context.get_dummy_value()

    return types.void(address, vector, element), emit


@intrinsic
def _prefetch_line(typingctx, address):
    """Asks for a cache line, to be read, from the L2 cache on."""

    def emit(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], ir.IntType(8).as_pointer())
        function_type = ir.FunctionType(ir.VoidType(), [pointer.type, _I32, _I32, _I32])
        function = cgutils.get_or_insert_function(builder.module, function_type, "llvm.prefetch.p0")
        builder.call(function, (pointer, _I32(0), _I32(2), _I32(1)))
        return context.get_dummy_value()

    return types.void(types.int64), emit


@intrinsic
def _as_double(typingctx, word):
    """The float64 whose bits are in an int64."""
    return types.float64(types.int64), lambda context, builder, signature, args: builder.bitcast(
        args[0], ir.DoubleType()
    )


@intrinsic
def _size_of(typingctx, element):
    """Bytes of a cache element."""
    return types.int64(element), lambda context, builder, signature, args: _I64(element.bitwidth // 8)


@intrinsic
def cast_address(typingctx, address, element):
    """For compiled code: an address as a pointer to the type of `element`, any value of it."""
    pointer_type = types.CPointer(element)

    def emit(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(pointer_type))

    return pointer_type(address, element), emit


@intrinsic
def fetch_and_increment(typingctx, address):
    """For compiled code: the int64 at `address`, which grows by one, atomically."""

    def emit(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], _I64.as_pointer())
        return builder.atomic_rmw("add", pointer, _I64(1), "monotonic")

    return types.int64(types.int64), emit


def _tile(num_rows: int, rescale: bool) -> Any:
    """Compiled code for `C = A @ B`, or with `rescale` for `C = factor[:, None] * C + A @ B`.

    C is `[num_rows, _TILE_COLUMNS]` and lives in registers, A `[num_rows, depth]`, both float32
    with the strides of the scratch memory; B is `[depth, _TILE_COLUMNS]` of the marker's type. The
    arguments are the addresses of C, factor, A and B, the stride of B in bytes, depth, the marker.
    """
    a_stride, c_stride = _STATE_STRIDE * 4, _SCORE_STRIDE * 4
    if rescale:
        a_stride, c_stride = c_stride, a_stride
    cells = [(i, j) for i in range(num_rows) for j in range(_TILE_COLUMNS // LANES)]

    def scalar_ir(builder, address):
        return _splat_ir(builder, builder.load(builder.inttoptr(address, _F32.as_pointer())))

    def start_ir(builder, address, factor):
        if not rescale:
            return ir.Constant(_F32_VECTOR, [0.0] * LANES)
        return builder.fmul(_load_ir(builder, address, types.float32), scalar_ir(builder, factor))

    @intrinsic
    def tile(typingctx, c, factor, a, b, b_stride, depth, element):
        def emit(context, builder, signature, args):
            c, factor, a, b, b_stride, depth, _ = args
            sums = {}
            for i, j in cells:
                sums[i, j] = cgutils.alloca_once(builder, _F32_VECTOR)
                address = builder.add(c, _I64(i * c_stride + j * LANES * 4))
                start = start_ir(builder, address, builder.add(factor, _I64(4 * i)))
                builder.store(start, sums[i, j])
            with cgutils.for_range(builder, depth) as loop:
                b_row = builder.add(b, builder.mul(loop.index, b_stride))
                a_column = builder.add(a, builder.mul(loop.index, _I64(4)))
                vectors, scalars = {}, {}
                for i, j in cells:
                    if j not in vectors:
                        address = builder.add(b_row, _I64(j * LANES * element.bitwidth // 8))
                        vectors[j] = _load_ir(builder, address, element)
                    if i not in scalars:
                        scalars[i] = scalar_ir(builder, builder.add(a_column, _I64(i * a_stride)))
                    total = builder.load(sums[i, j])
                    total = _llvm_ir(builder, "fmuladd", scalars[i], vectors[j], total)
                    builder.store(total, sums[i, j])
            for i, j in cells:
                address = builder.add(c, _I64(i * c_stride + j * LANES * 4))
                _store_ir(builder, address, builder.load(sums[i, j]), types.float32)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 6, element), emit

    return tile


_score_large, _score_medium, _score_small = (_tile(rows, rescale=False) for rows in _TILE_ROWS)
_value_large, _value_medium, _value_small = (_tile(rows, rescale=True) for rows in _TILE_ROWS)
_LARGE, _MEDIUM, _SMALL = _TILE_ROWS


@numba.njit
def _multiply_scores(c, a, b, b_stride, depth, num_lines, element):
    line = 0
    while line < num_lines:
        left = num_lines - line
        c_line, a_line = c + line * (_SCORE_STRIDE * 4), a + line * (_STATE_STRIDE * 4)
        if left >= _LARGE and left != 2 * _MEDIUM:
            _score_large(c_line, 0, a_line, b, b_stride, depth, element)
            line += _LARGE
        elif left >= _MEDIUM:
            _score_medium(c_line, 0, a_line, b, b_stride, depth, element)
            line += _MEDIUM
        else:
            _score_small(c_line, 0, a_line, b, b_stride, depth, element)
            line += _SMALL


@numba.njit
def _multiply_values(c, factors, a, b, b_stride, depth, num_lines, element):
    line = 0
    while line < num_lines:
        left = num_lines - line
        c_line, a_line = c + line * (_STATE_STRIDE * 4), a + line * (_SCORE_STRIDE * 4)
        factor = factors + line * 4
        if left >= _LARGE and left != 2 * _MEDIUM:
            _value_large(c_line, factor, a_line, b, b_stride, depth, element)
            line += _LARGE
        elif left >= _MEDIUM:
            _value_medium(c_line, factor, a_line, b, b_stride, depth, element)
            line += _MEDIUM
        else:
            _value_small(c_line, factor, a_line, b, b_stride, depth, element)
            line += _SMALL


@numba.njit
def _exp(x):
    """exp(x) for x <= 0, to a relative error of 3e-7; 0 below -88."""
    power = _maximum(_multiply(x, _splat(math.log2(math.e))), _splat(-127.0))
    whole = _round(power)
    f = _subtract(power, whole)
    # The polynomial of degree 5 nearest to 2 ** f on -0.5..0.5, by relative error.
    p = _splat(1.327647e-3)
    p = _multiply_add(p, f, _splat(9.675541e-3))
    p = _multiply_add(p, f, _splat(5.5507131e-2))
    p = _multiply_add(p, f, _splat(2.402212e-1))
    p = _multiply_add(p, f, _splat(6.9314694e-1))
    p = _multiply_add(p, f, _splat(1.0000001))
    return _multiply(p, _power_of_two(whole))


@numba.njit
def _cap(score, softcap):
    """softcap * tanh(score / softcap), by exp(-2|x|)."""
    x = _multiply(score, _splat(np.float32(1.0) / softcap))
    magnitude = _maximum(x, _subtract(_splat(0.0), x))
    decay = _exp(_multiply(magnitude, _splat(-2.0)))
    one = _splat(1.0)
    tanh = _divide(_subtract(one, decay), _multiply_add(decay, one, one))
    sign = _divide(x, _maximum(magnitude, _splat(1e-30)))
    return _multiply(_multiply(tanh, sign), _splat(softcap))


@numba.njit
def _visible_bits(mask, num_words, slot, limit):
    """Bit i: is tree slot `slot + i` visible? Slots below 0 are context; `limit` and above, no."""
    ones = ~np.uint64(0)
    if slot <= -LANES:
        bits = ones
    elif slot < 0:
        bits = (mask[0] << np.uint64(-slot)) | ~(ones << np.uint64(-slot))
    else:
        word, shift = slot >> 6, slot & 63
        bits = mask[word] >> np.uint64(shift) if word < num_words else np.uint64(0)
        if shift > 64 - LANES and word + 1 < num_words:
            bits |= mask[word + 1] << np.uint64(64 - shift)
    if limit - slot < LANES:
        bits &= ~(ones << np.uint64(max(limit - slot, 0)))
    return bits


@numba.njit
def _mask_line(scores, num_columns, bits, masked_from, softcap):
    """Caps and masks the scores of a line; returns their maximum."""
    hidden = _splat(_HIDDEN)
    top = hidden
    if softcap > 0:
        for column in range(0, num_columns, LANES):
            score = _cap(_load(scores + column * 4, np.float32(0)), softcap)
            _store(scores + column * 4, score, np.float32(0))
    for column in range(0, masked_from, LANES):
        top = _maximum(_load(scores + column * 4, np.float32(0)), top)
    for column in range(masked_from, num_columns, LANES):
        score = _load(scores + column * 4, np.float32(0))
        score = _select(bits[column // LANES], score, hidden)
        _store(scores + column * 4, score, np.float32(0))
        top = _maximum(score, top)
    return _horizontal_max(top)


@numba.njit
def _weigh_line(scores, num_columns, maximum):
    """Turns the scores of a line into weights; returns their sum."""
    shift = _splat(maximum)
    total = _splat(0.0)
    for column in range(0, num_columns, LANES):
        weight = _exp(_subtract(_load(scores + column * 4, np.float32(0)), shift))
        _store(scores + column * 4, weight, np.float32(0))
        total = _add(total, weight)
    return _horizontal_sum(total)


# Words of the argument block: int64 (strides in bytes), the last two float64.
(
    _COUNTERS,
    _NUM_ITEMS,
    _SCRATCH,
    _PIECES,
    _MASK,
    _MASK_WORDS,
    _QUERY,
    _QUERY_STRIDE,
    _OUTPUT,
    _OUTPUT_STRIDE,
    _KV_CACHE,
    _BLOCK_STRIDE,
    _HEAD_STRIDE,
    _BLOCK_SIZE,
    _HEAD_SIZE,
    _NUM_KV_HEADS,
    _GROUP,
    _SCALE,
    _SOFTCAP,
    _NUM_ARGS,
) = range(20)
_PIECE_WORDS = 5  # first row, number of rows, sequence length, tail length, block table address

# Scratch of one worker, in floats.
_QUERIES = 0
_OUTPUTS = _QUERIES + _MAX_LINES * _STATE_STRIDE
_SCORES = _OUTPUTS + _MAX_LINES * _STATE_STRIDE
_MAXIMA = _SCORES + _MAX_LINES * _SCORE_STRIDE
_TOTALS = _MAXIMA + _MAX_LINES
_FACTORS = _TOTALS + _MAX_LINES
_TOPS = _FACTORS + _MAX_LINES
_BITS = _TOPS + _MAX_LINES
_SCRATCH_FLOATS = _BITS + 64


@numba.njit
def _begin(args, first_row, num_lines, head, scratch, scale, element):
    """Scaled queries as float32 and the initial softmax state; padding lines are zero."""
    group, head_size, size = args[_GROUP], args[_HEAD_SIZE], _size_of(element)
    factor, zero = _splat(np.float32(scale)), _splat(0.0)
    maxima = cast_address(scratch + _MAXIMA * 4, np.float32(0))
    totals = cast_address(scratch + _TOTALS * 4, np.float32(0))
    factors = cast_address(scratch + _FACTORS * 4, np.float32(0))
    for line in range(-(-num_lines // _ROW_ALIGNMENT) * _ROW_ALIGNMENT):
        maxima[line] = np.float32(_HIDDEN)
        totals[line] = np.float32(0)
        factors[line] = np.float32(0)
        row, member = first_row + line // group, line % group
        source = args[_QUERY] + row * args[_QUERY_STRIDE] + (head * group + member) * head_size * size
        queries = scratch + (_QUERIES + line * _STATE_STRIDE) * 4
        outputs = scratch + (_OUTPUTS + line * _STATE_STRIDE) * 4
        for i in range(0, head_size, LANES):
            vector = zero
            if line < num_lines:
                vector = _multiply(_load(source + i * size, element), factor)
            _store(queries + i * 4, vector, np.float32(0))
            _store(outputs + i * 4, zero, np.float32(0))


@numba.njit
def _finish(args, first_row, num_lines, head, scratch, element):
    group, head_size, size = args[_GROUP], args[_HEAD_SIZE], _size_of(element)
    totals = cast_address(scratch + _TOTALS * 4, np.float32(0))
    for line in range(num_lines):
        row, member = first_row + line // group, line % group
        target = args[_OUTPUT] + row * args[_OUTPUT_STRIDE] + (head * group + member) * head_size * size
        outputs = scratch + (_OUTPUTS + line * _STATE_STRIDE) * 4
        factor = _splat(np.float32(1) / totals[line])
        for i in range(0, head_size, LANES):
            _store(target + i * size, _multiply(_load(outputs + i * 4, np.float32(0)), factor), element)


@numba.njit
def _weigh(args, first_row, num_rows, scratch, num_columns, slot, tail_len, softcap):
    """The softmax step of all lines for a chunk whose first token is tree slot `slot` (or < 0).

    In passes over the lines, each short enough for the processor to overlap several lines.
    """
    group, num_words = args[_GROUP], args[_MASK_WORDS]
    tops = cast_address(scratch + _TOPS * 4, np.float32(0))
    maxima = cast_address(scratch + _MAXIMA * 4, np.float32(0))
    totals = cast_address(scratch + _TOTALS * 4, np.float32(0))
    bits = cast_address(scratch + _BITS * 4, np.uint64(0))
    masked_from = min(max(-slot, 0) // LANES * LANES, num_columns)
    for row in range(num_rows):
        mask = cast_address(args[_MASK] + (first_row + row) * num_words * 8, np.uint64(0))
        for column in range(masked_from, num_columns, LANES):
            bits[column // LANES] = _visible_bits(mask, num_words, slot + column, tail_len)
        for line in range(row * group, (row + 1) * group):
            scores = scratch + (_SCORES + line * _SCORE_STRIDE) * 4
            tops[line] = _mask_line(scores, num_columns, bits, masked_from, softcap)
    _raise_maxima(scratch, num_rows * group)
    for line in range(num_rows * group):
        scores = scratch + (_SCORES + line * _SCORE_STRIDE) * 4
        totals[line] += _weigh_line(scores, num_columns, maxima[line])


@numba.njit
def _raise_maxima(scratch, num_lines):
    """Running maxima take in `tops`; factors and running totals follow. LANES lines at a time."""
    for line in range(0, num_lines, LANES):
        address = scratch + line * 4
        old = _load(address + _MAXIMA * 4, np.float32(0))
        new = _maximum(_load(address + _TOPS * 4, np.float32(0)), old)
        factor = _exp(_subtract(old, new))
        total = _multiply(_load(address + _TOTALS * 4, np.float32(0)), factor)
        _store(address + _MAXIMA * 4, new, np.float32(0))
        _store(address + _FACTORS * 4, factor, np.float32(0))
        _store(address + _TOTALS * 4, total, np.float32(0))


@numba.njit
def _prefetch(address, num_bytes):
    """Asks for memory that the next product reads: blocks are scattered, the hardware cannot know."""
    for offset in range(0, num_bytes, _CACHE_LINE):
        _prefetch_line(address + offset)


@numba.njit
def _attend(args, item, scratch, scale, softcap, element):
    num_kv_heads, block_size, head_size = args[_NUM_KV_HEADS], args[_BLOCK_SIZE], args[_HEAD_SIZE]
    head = item % num_kv_heads
    piece = cast_address(args[_PIECES] + item // num_kv_heads * (_PIECE_WORDS * 8), np.int64(0))
    first_row, num_rows, seq_len, tail_len = piece[0], piece[1], piece[2], piece[3]
    block_table = cast_address(piece[4], np.int32(0))
    num_lines, size = num_rows * args[_GROUP], _size_of(element)
    queries, outputs = scratch + _QUERIES * 4, scratch + _OUTPUTS * 4
    scores, factors = scratch + _SCORES * 4, scratch + _FACTORS * 4

    _begin(args, first_row, num_lines, head, scratch, scale, element)
    cache = args[_KV_CACHE] + head * args[_HEAD_STRIDE]
    token = 0
    while token < seq_len:
        offset = token % block_size
        num_tokens = min(min(_CHUNK, block_size - offset), seq_len - token)
        block = cache + block_table[token // block_size] * args[_BLOCK_STRIDE]
        keys, values = block + offset * size, block + (block_size + offset) * head_size * size
        next_token = min(token + num_tokens, seq_len - 1)
        next_keys = cache + block_table[next_token // block_size] * args[_BLOCK_STRIDE]
        num_columns = -(-num_tokens // _TILE_COLUMNS) * _TILE_COLUMNS
        for column in range(0, num_columns, _TILE_COLUMNS):
            _prefetch(values + column * head_size * size, _TILE_COLUMNS * head_size * size)
            _multiply_scores(
                scores + column * 4,
                queries,
                keys + column * size,
                block_size * size,
                head_size,
                num_lines,
                element,
            )
        slot = token - (seq_len - tail_len)
        _weigh(args, first_row, num_rows, scratch, num_columns, slot, tail_len, softcap)
        for column in range(0, head_size, _TILE_COLUMNS):
            if next_keys != block:
                _prefetch(next_keys + column * block_size * size, _TILE_COLUMNS * block_size * size)
            _multiply_values(
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
def _work(args, element):
    """What one thread does: take items until none is left."""
    counters = args[_COUNTERS]
    scratch = args[_SCRATCH] + fetch_and_increment(counters + 8) * (_SCRATCH_FLOATS * 4)
    scale, softcap = _as_double(args[_SCALE]), np.float32(_as_double(args[_SOFTCAP]))
    while True:
        item = fetch_and_increment(counters)
        if item >= args[_NUM_ITEMS]:
            break
        _attend(args, item, scratch, scale, softcap, element)


def _work_float32(args):
    _work(args, np.float32(0))


def _work_bfloat16(args):
    _work(args, np.uint16(0))


def _work_float16(args):
    _work(args, np.int16(0))


_WORK = {
    torch.float32: _work_float32,
    torch.bfloat16: _work_bfloat16,
    torch.float16: _work_float16,
}


class OpenMPTeam:
    """Runs compiled functions on the OpenMP threads that torch (and vLLM) use.

    The functions are submitted to the very OpenMP runtime that torch is bound to, so they inherit
    its threads and the affinity that vLLM gave them: there is no second pool to compete for the
    cores while the first still spins. With one thread, or where no such runtime is found,
    everything runs on the calling thread.

    Attributes:
        num_threads: Threads that take part, the caller included.
    """

    def __init__(self, num_threads: int | None = None) -> None:
        """`num_threads` defaults to torch's; another number makes OpenMP restart its threads."""
        self._parallel = getattr(ctypes.CDLL(None), "GOMP_parallel", None)
        self.num_threads = torch.get_num_threads() if num_threads is None else num_threads
        if self._parallel is None:
            self.num_threads = 1
        else:
            self._parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
            self._parallel.restype = None

    def run(self, function: Any, argument: int, num_items: int) -> None:
        """Calls `function(argument)` on every thread, or only here if there is but one item.

        Args:
            function: A compiled function, see `compile_entry`.
            argument: Address of its argument block.
            num_items: How many pieces of work the threads share; with none, nothing happens.
        """
        if num_items == 0:
            return
        if self.num_threads == 1 or num_items == 1:
            function(argument)
        else:  # always the full team: libgomp ends the threads that a smaller one leaves out
            self._parallel(function, argument, self.num_threads, 0)


def compile_entry(function: Callable[[Any], None]) -> Any:
    """Compiles `function(pointer to int64)`, or loads it from numba's cache, as a ctypes function."""
    signature = types.void(types.CPointer(types.int64))
    try:
        compiled = numba.cfunc(signature, cache=True)(function)
    except Exception as error:  # no directory to write to, a full disk, a damaged file
        logger.warning("numba's cache is of no use, compiling each time: %s", error)
        compiled = numba.cfunc(signature)(function)
    entry = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(compiled.address)
    entry.keep_alive = compiled
    return entry


class CpuTreeAttention:
    """The compiled kernel with its threads and scratch memory.

    One per worker, for the thread that runs the model: not re-entrant.
    """

    def __init__(self, num_threads: int | None = None) -> None:
        """Compiles nothing yet; see `OpenMPTeam` for `num_threads`."""
        self.team = OpenMPTeam(num_threads)
        self.scratch = _aligned_zeros(self.team.num_threads * _SCRATCH_FLOATS)
        self._entries: dict[torch.dtype, Any] = {}

    def warm_up(self, dtype: torch.dtype) -> None:
        """Compiles the kernel for `dtype`, or loads it: seconds the first time on a machine."""
        self.entry(dtype)

    def entry(self, dtype: torch.dtype) -> Any:
        """The compiled kernel for `dtype`.

        Raises:
            UnsupportedError: There is no kernel for this dtype.
        """
        if dtype not in self._entries:
            if dtype not in _WORK:
                raise UnsupportedError(f"tree attention on CPU: dtype {dtype} is not one of {[*_WORK]}")
            self._entries[dtype] = compile_entry(_WORK[dtype])
        return self._entries[dtype]

    def plan(self, batch: TreeAttentionBatch) -> "TreeAttentionPlan":
        """Prepares one step; the result serves all layers of a KV cache group."""
        return TreeAttentionPlan(self, batch)


def _aligned_zeros(num_floats: int) -> npt.NDArray[np.float32]:
    array = np.zeros(num_floats + 16, dtype=np.float32)
    return array[(-array.ctypes.data // 4) % 16 :][:num_floats]


class TreeAttentionPlan:
    """What the layers of one step share.

    It may refer to the arrays of the batch: do not change them before the last layer has run.
    """

    def __init__(self, attention: CpuTreeAttention, batch: TreeAttentionBatch) -> None:
        num_rows = int(batch.query_start_loc[-1])
        assert batch.ancestor_mask.shape[0] >= num_rows
        self._attention = attention
        self._batch = batch
        self._num_rows = num_rows
        self._mask = np.ascontiguousarray(batch.ancestor_mask, dtype=np.uint64)
        self._block_table = np.ascontiguousarray(batch.block_table, dtype=np.int32)
        self._counters = np.zeros(2, dtype=np.int64)
        self._args = np.zeros(_NUM_ARGS, dtype=np.int64)
        self._args[_COUNTERS] = self._counters.ctypes.data
        self._args[_SCRATCH] = attention.scratch.ctypes.data
        self._args[_MASK] = self._mask.ctypes.data
        self._args[_MASK_WORDS] = self._mask.shape[1]
        self._args_address = self._args.ctypes.data
        self._floats = self._args.view(np.float64)
        self._signature: tuple[Any, ...] | None = None
        self._entry: Any = None
        self._num_items = 0

    def run(
        self,
        query: torch.Tensor,
        kv_cache: torch.Tensor,
        output: torch.Tensor,
        scale: float,
        softcap: float = 0.0,
    ) -> None:
        """One layer: see `tree_attention_reference` for the meaning of the arguments.

        Rows of `query` and `output` may be strided, and so may the heads of `kv_cache`.

        Raises:
            UnsupportedError: The dtype, head size or block size has no kernel.
        """
        signature = (
            query.dtype,
            kv_cache.dtype,
            output.dtype,
            query.shape,
            query.stride(),
            output.stride(),
            kv_cache.shape,
            kv_cache.stride(),
        )
        if signature != self._signature:
            self._bind(query, kv_cache, output)
            self._signature = signature
        args = self._args
        args[_QUERY], args[_OUTPUT] = query.data_ptr(), output.data_ptr()
        args[_KV_CACHE] = kv_cache.data_ptr()
        self._floats[_SCALE], self._floats[_SOFTCAP] = scale, softcap
        self._counters[:] = 0
        self._attention.team.run(self._entry, self._args_address, self._num_items)

    def _bind(self, query: torch.Tensor, kv_cache: torch.Tensor, output: torch.Tensor) -> None:
        """Everything that depends on the tensors' shapes and strides only."""
        _, num_kv_heads, block_size, double_head_size = kv_cache.shape
        head_size, size = double_head_size // 2, kv_cache.element_size()
        _check_layout(query, kv_cache, output)
        assert min(query.shape[0], output.shape[0]) >= self._num_rows
        group = query.shape[1] // num_kv_heads
        self._pieces = self._split(num_kv_heads, group)
        self._num_items = len(self._pieces) * num_kv_heads
        self._entry = self._attention.entry(query.dtype)
        self._args[_NUM_ITEMS] = self._num_items
        self._args[_PIECES] = self._pieces.ctypes.data
        self._args[_QUERY_STRIDE] = query.stride(0) * size
        self._args[_OUTPUT_STRIDE] = output.stride(0) * size
        self._args[_BLOCK_STRIDE] = kv_cache.stride(0) * size
        self._args[_HEAD_STRIDE] = kv_cache.stride(1) * size
        self._args[_BLOCK_SIZE], self._args[_HEAD_SIZE] = block_size, head_size
        self._args[_NUM_KV_HEADS], self._args[_GROUP] = num_kv_heads, group

    def _split(self, num_kv_heads: int, group: int) -> npt.NDArray[np.int64]:
        """[num_pieces, _PIECE_WORDS]: runs of rows that fit the scratch, the longest work first."""
        batch = self._batch
        pieces_per_request = self._pieces_per_request(len(batch.requests) * num_kv_heads)
        starts = batch.query_start_loc.tolist()
        seq_lens, tail_lens = batch.seq_lens.tolist(), batch.tail_lens.tolist()
        table, table_stride = self._block_table.ctypes.data, self._block_table.strides[0]
        pieces = []
        for request in batch.requests.tolist():
            first, num_rows = starts[request], starts[request + 1] - starts[request]
            wanted = min(pieces_per_request, num_rows, num_rows * group // _MIN_LINES)
            num_pieces = max(wanted, -(-num_rows // (_MAX_LINES // group)), 1)
            bounds = [first + num_rows * i // num_pieces for i in range(num_pieces + 1)]
            rest = (seq_lens[request], tail_lens[request], table + request * table_stride)
            pieces += [(begin, end - begin, *rest) for begin, end in itertools.pairwise(bounds)]
        pieces.sort(key=lambda piece: -piece[1] * piece[2])
        return np.array(pieces, dtype=np.int64).reshape(-1, _PIECE_WORDS)

    def _pieces_per_request(self, num_items: int) -> int:
        """Into how many pieces to cut requests so that all threads end at about the same time."""
        num_threads = self._attention.team.num_threads

        def relative_time(num_pieces: int) -> float:
            rounds = -(-num_items * num_pieces // num_threads)
            return rounds * num_threads / (num_items * num_pieces) + _PIECE_COST * num_pieces

        return min(range(1, num_threads + 1), key=relative_time) if num_items else 1


def _check_layout(query: torch.Tensor, kv_cache: torch.Tensor, output: torch.Tensor) -> None:
    _, num_kv_heads, block_size, double_head_size = kv_cache.shape
    _, num_heads, head_size = query.shape
    if head_size % 32 or head_size > MAX_HEAD_SIZE or block_size % 32:
        raise UnsupportedError(
            f"tree attention on CPU: head size {head_size} and block size {block_size} must be"
            f" multiples of 32, the head size at most {MAX_HEAD_SIZE}"
        )
    if query.dtype != kv_cache.dtype or query.dtype != output.dtype:
        raise UnsupportedError(
            f"tree attention on CPU: query {query.dtype}, KV cache {kv_cache.dtype} and output"
            f" {output.dtype} must have one dtype"
        )
    assert double_head_size == 2 * head_size
    assert num_heads % num_kv_heads == 0
    assert num_heads // num_kv_heads <= _MAX_LINES
    assert query.stride()[1:] == output.stride()[1:] == (head_size, 1)
    assert kv_cache.stride()[2:] == (double_head_size, 1)

"""Vectors of float32 and raw memory, for code compiled by numba.

Functions that end in _ir emit LLVM instructions; the others are called from compiled code. Addresses
are int64. The type of a cache element is told by the type of a marker, any value of float32 for
itself, uint16 for bfloat16, int16 for float16.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

from vllm_smart.kernels.cpu.stock import BINARY

# As many as the stock kernel's vectors have, which fixes the order of its sums. Where registers
# hold eight, the compiler makes two of each vector.
LANES = 16

_I16, _I32, I64, F32 = ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
F32_VECTOR = ir.VectorType(F32, LANES)
_I32_VECTOR = ir.VectorType(_I32, LANES)


class _VectorType(types.Type):
    def __init__(self) -> None:
        super().__init__(name=f"f32x{LANES}")


_vector = _VectorType()


@register_model(_VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, F32_VECTOR)


def _constant_ir(value: int) -> ir.Constant:
    return ir.Constant(_I32_VECTOR, [value] * LANES)


def multiply_add_ir(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
    """a * b + c, rounded once or twice as the stock kernel does."""
    if BINARY.has_avx512:
        return llvm_ir(builder, "fma", a, b, c)
    return builder.fadd(builder.fmul(a, b), c)


def splat_ir(builder: ir.IRBuilder, scalar: ir.Value) -> ir.Value:
    """LANES times the same number."""
    vector = ir.Constant(ir.VectorType(scalar.type, LANES), ir.Undefined)
    vector = builder.insert_element(vector, scalar, _I32(0))
    return builder.shuffle_vector(vector, vector, _constant_ir(0))


def load_ir(builder: ir.IRBuilder, address: ir.Value, element: types.Type) -> ir.Value:
    """LANES consecutive elements as float32."""
    stored = {types.float32: F32, types.uint16: _I16, types.int16: ir.HalfType()}[element]
    pointer = builder.inttoptr(address, ir.VectorType(stored, LANES).as_pointer())
    vector = builder.load(pointer, align=element.bitwidth // 8)
    if element == types.int16:
        vector = builder.fpext(vector, F32_VECTOR)
    elif element == types.uint16:
        bits = builder.shl(builder.zext(vector, _I32_VECTOR), _constant_ir(16))
        vector = builder.bitcast(bits, F32_VECTOR)
    return vector


def store_ir(builder: ir.IRBuilder, address: ir.Value, vector: ir.Value, element: types.Type) -> None:
    """LANES consecutive elements from float32."""
    if element == types.int16:
        vector = builder.fptrunc(vector, ir.VectorType(ir.HalfType(), LANES))
    elif element == types.uint16:
        bits = builder.bitcast(vector, _I32_VECTOR)
        if BINARY.rounds_bfloat16:
            bits = _round_to_bfloat16_ir(builder, bits)
        vector = builder.trunc(builder.lshr(bits, _constant_ir(16)), ir.VectorType(_I16, LANES))
    pointer = builder.inttoptr(address, vector.type.as_pointer())
    builder.store(vector, pointer, align=element.bitwidth // 8)


def _round_to_bfloat16_ir(builder: ir.IRBuilder, bits: ir.Value) -> ir.Value:
    """To nearest, ties to even; numbers too small for a full mantissa become zero, as in hardware."""
    odd = builder.and_(builder.lshr(bits, _constant_ir(16)), _constant_ir(1))
    rounded = builder.add(builder.add(bits, odd), _constant_ir(0x7FFF))
    exponent = builder.and_(bits, _constant_ir(0x7F800000))
    is_tiny = builder.icmp_unsigned("==", exponent, _constant_ir(0))
    return builder.select(is_tiny, builder.and_(bits, _constant_ir(0x80000000)), rounded)


def llvm_ir(builder: ir.IRBuilder, name: str, *args: ir.Value) -> ir.Value:
    """An LLVM intrinsic from vectors to a vector."""
    function_type = ir.FunctionType(F32_VECTOR, [F32_VECTOR] * len(args))
    name = f"llvm.{name}.v{LANES}f32"
    return builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), args)


def _maximum_ir(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def _minimum_ir(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
    return builder.select(builder.fcmp_ordered("<", a, b), a, b)


def _power_of_two_ir(builder: ir.IRBuilder, exponent: ir.Value) -> ir.Value:
    biased = builder.add(builder.fptosi(exponent, _I32_VECTOR), _constant_ir(127))
    return builder.bitcast(builder.shl(biased, _constant_ir(23)), F32_VECTOR)


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


def _halving(combine: Callable[..., ir.Value]) -> Callable[..., ir.Value]:
    def emit(builder: ir.IRBuilder, vector: ir.Value) -> ir.Value:
        width = LANES
        while width > 1:
            width //= 2
            upper = ir.Constant(_I32_VECTOR, [(width + i) % LANES for i in range(LANES)])
            vector = combine(builder, vector, builder.shuffle_vector(vector, vector, upper))
        return builder.extract_element(vector, _I32(0))

    return emit


def _two_runs_ir(builder: ir.IRBuilder, vector: ir.Value) -> ir.Value:
    half = LANES // 2
    sums = []
    for first in (0, half):
        total = builder.extract_element(vector, _I32(first))
        for lane in range(first + 1, first + half):
            total = builder.fadd(total, builder.extract_element(vector, _I32(lane)))
        sums.append(total)
    return builder.fadd(*sums)


def _reduction(emit: Callable[..., ir.Value]) -> Any:
    @intrinsic
    def operation(typingctx, vector):
        return types.float32(vector), lambda context, builder, signature, args: emit(builder, *args)

    return operation


add = _binary(lambda builder, a, b: builder.fadd(a, b))
subtract = _binary(lambda builder, a, b: builder.fsub(a, b))
multiply = _binary(lambda builder, a, b: builder.fmul(a, b))
divide = _binary(lambda builder, a, b: builder.fdiv(a, b))
maximum = _binary(_maximum_ir)
minimum = _binary(_minimum_ir)
floor = _unary(lambda builder, a: llvm_ir(builder, "floor", a))
power_of_two = _unary(_power_of_two_ir)  # of whole numbers in -127..127; 0 for -127
_add_by_halves_ir = _halving(lambda builder, a, b: builder.fadd(a, b))
horizontal_sum = _reduction(_add_by_halves_ir if BINARY.has_avx512 else _two_runs_ir)
horizontal_max = _reduction(_halving(_maximum_ir))


@intrinsic
def fused_multiply_add(typingctx, a, b, c):
    """a * b + c, rounded once"""
    return _vector(a, b, c), lambda context, builder, signature, args: llvm_ir(builder, "fma", *args)


@intrinsic
def multiply_add(typingctx, a, b, c):
    """a * b + c, rounded once or twice as the stock kernel does."""
    return _vector(a, b, c), lambda context, builder, signature, args: multiply_add_ir(builder, *args)


@intrinsic
def scalar_multiply_add(typingctx, a, b, c):
    """a * b + c of float32, rounded once or twice as the stock kernel does."""

    def emit(context, builder, signature, args):
        a, b, c = args
        if BINARY.has_avx512:
            return builder.fma(a, b, c)
        return builder.fadd(builder.fmul(a, b), c)

    return types.float32(types.float32, types.float32, types.float32), emit


@intrinsic
def splat(typingctx, scalar):
    """LANES times the same number."""
    return _vector(types.float32), lambda context, builder, signature, args: splat_ir(builder, *args)


@intrinsic
def lane_numbers(typingctx):
    """0, 1, 2, ..."""
    return _vector(), lambda context, builder, signature, args: ir.Constant(
        F32_VECTOR, [float(lane) for lane in range(LANES)]
    )


@intrinsic
def zero_below(typingctx, vector, x, least):
    """Per lane, 0 where x is less than `least`, else `vector`."""

    def emit(context, builder, signature, args):
        vector, x, least = args
        zero = ir.Constant(F32_VECTOR, [0.0] * LANES)
        return builder.select(builder.fcmp_ordered("<", x, least), zero, vector)

    return _vector(vector, x, least), emit


def _lanes_of_ir(builder: ir.IRBuilder, bits: ir.Value) -> ir.Value:
    mask = builder.trunc(bits, ir.IntType(LANES))
    return builder.bitcast(mask, ir.VectorType(ir.IntType(1), LANES))


@intrinsic
def compress(typingctx, bits, vector):
    """The lanes whose bit is set, moved to the front; what follows them is undefined."""

    def emit(context, builder, signature, args):
        lanes = _lanes_of_ir(builder, args[0])
        rest = ir.Constant(F32_VECTOR, ir.Undefined)
        function_type = ir.FunctionType(F32_VECTOR, [F32_VECTOR, lanes.type, F32_VECTOR])
        name = f"llvm.experimental.vector.compress.v{LANES}f32"
        function = cgutils.get_or_insert_function(builder.module, function_type, name)
        return builder.call(function, (args[1], lanes, rest))

    return _vector(types.uint64, vector), emit


@intrinsic
def expand(typingctx, bits, address):
    """The float32 from `address` on, in order, in the lanes whose bit is set; 0 in the others."""

    def emit(context, builder, signature, args):
        lanes = _lanes_of_ir(builder, args[0])
        pointer = builder.inttoptr(args[1], F32.as_pointer())
        function_type = ir.FunctionType(F32_VECTOR, [pointer.type, lanes.type, F32_VECTOR])
        name = f"llvm.masked.expandload.v{LANES}f32"
        function = cgutils.get_or_insert_function(builder.module, function_type, name)
        return builder.call(function, (pointer, lanes, ir.Constant(F32_VECTOR, [0.0] * LANES)))

    return _vector(types.uint64, types.int64), emit


@intrinsic
def count_bits(typingctx, bits):
    """How many bits are set."""
    return types.int64(types.uint64), lambda context, builder, signature, args: builder.ctpop(args[0])


@intrinsic
def load(typingctx, address, element):
    """LANES elements as float32."""

    def emit(context, builder, signature, args):
        return load_ir(builder, args[0], element)

    return _vector(address, element), emit


@intrinsic
def store(typingctx, address, vector, element):
    """LANES elements from float32."""

    def emit(context, builder, signature, args):
        store_ir(builder, args[0], args[1], element)
        return context.get_dummy_value()

    return types.void(address, vector, element), emit


@intrinsic
def as_double(typingctx, word):
    """The float64 whose bits are in an int64."""
    return types.float64(types.int64), lambda context, builder, signature, args: builder.bitcast(
        args[0], ir.DoubleType()
    )


@intrinsic
def size_of(typingctx, element):
    """Bytes of a cache element."""
    return types.int64(element), lambda context, builder, signature, args: I64(element.bitwidth // 8)


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
        pointer = builder.inttoptr(args[0], I64.as_pointer())
        return builder.atomic_rmw("add", pointer, I64(1), "monotonic")

    return types.int64(types.int64), emit

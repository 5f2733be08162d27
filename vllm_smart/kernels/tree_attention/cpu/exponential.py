"""The exponential and the soft cap as vLLM's stock kernel computes them, to the bit (see `stock`).

With AVX-512 it has a polynomial of its own. Without, it calls the C library for each number; glibc's
`expf` is done here for sixteen at once, the others are called as well.
"""

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from vllm_smart.kernels.cpu import simd
from vllm_smart.kernels.cpu.stock import BINARY

_F64_VECTOR = ir.VectorType(ir.DoubleType(), simd.LANES)
_I64_VECTOR = ir.VectorType(simd.I64, simd.LANES)


def _call_ir(builder: ir.IRBuilder, name: str, x: ir.Value) -> ir.Value:
    """The C library's own function, whatever a compiler may think that it knows of its name."""
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(simd.F32, [simd.F32]), name
    )
    function.attributes.add("nobuiltin")
    return builder.call(function, (x,))


@intrinsic
def scalar_exp(typingctx, x):
    """expf(x), which the stock kernel calls on all hosts to rescale."""
    return types.float32(types.float32), lambda context, builder, signature, args: _call_ir(
        builder, "expf", *args
    )


@intrinsic
def _tanhf(typingctx, vector):
    """The C library's tanhf of each lane."""

    def emit(context, builder, signature, args):
        (vector,) = args
        for lane in range(simd.LANES):
            index = ir.IntType(32)(lane)
            value = _call_ir(builder, "tanhf", builder.extract_element(vector, index))
            vector = builder.insert_element(vector, value, index)
        return vector

    return vector(vector), emit


# glibc since 2.28: exp(x) = 2 ** (k / 32) * 2 ** (r / 32), k whole and |r| <= 1/2, in float64: a table
# of the first factor's bits, the exponent taken out, and a cubic in r for the second. The products
# below are fused in the build that glibc picks where there is FMA.
_STEPS = 32
_TABLE = [int((np.float64(2.0) ** (i / _STEPS)).view(np.uint64)) - (i << 47) for i in range(_STEPS)]
_STEPS_PER_UNIT = float.fromhex("0x1.71547652b82fep+0") * _STEPS
_TO_WHOLE = float.fromhex("0x1.8p+52")  # adding it leaves the whole part in the lowest bits
_CUBIC = (
    float.fromhex("0x1.c6af84b912394p-5") / _STEPS**3,
    float.fromhex("0x1.ebfce50fac4f3p-3") / _STEPS**2,
    float.fromhex("0x1.62e42ff0c52d6p-1") / _STEPS,
)
_LEAST_EXPONENT = -float.fromhex("0x1.9fe368p6")  # below it, zero


@intrinsic
def _expf(typingctx, x):
    """glibc's expf of each lane; for x below 88."""

    def emit(context, builder, signature, args):
        def whole(value):
            return ir.Constant(_I64_VECTOR, [value] * simd.LANES)

        def real(value):
            return ir.Constant(_F64_VECTOR, [value] * simd.LANES)

        def fma(a, b, c):
            function_type = ir.FunctionType(_F64_VECTOR, [_F64_VECTOR] * 3)
            name = f"llvm.fma.v{simd.LANES}f64"
            return builder.call(
                cgutils.get_or_insert_function(builder.module, function_type, name), (a, b, c)
            )

        (x,) = args
        wide = builder.fpext(x, _F64_VECTOR)
        k = fma(wide, real(_STEPS_PER_UNIT), real(_TO_WHOLE))
        k_bits = builder.bitcast(k, _I64_VECTOR)
        r = fma(wide, real(_STEPS_PER_UNIT), builder.fneg(builder.fsub(k, real(_TO_WHOLE))))
        entry = _gather_ir(context, builder, builder.and_(k_bits, whole(_STEPS - 1)))
        factor = builder.add(entry, builder.shl(k_bits, whole(47)))
        high = fma(r, real(_CUBIC[0]), real(_CUBIC[1]))
        low = fma(r, real(_CUBIC[2]), real(1.0))
        power = fma(high, builder.fmul(r, r), low)
        result = builder.fmul(power, builder.bitcast(factor, _F64_VECTOR))
        result = builder.fptrunc(result, simd.F32_VECTOR)
        least = simd.splat_ir(builder, simd.F32(_LEAST_EXPONENT))
        zero = ir.Constant(simd.F32_VECTOR, [0.0] * simd.LANES)
        return builder.select(builder.fcmp_ordered("<", x, least), zero, result)

    return x(x), emit


def _gather_ir(context, builder: ir.IRBuilder, index: ir.Value) -> ir.Value:
    """_TABLE[index], per lane."""
    array = ir.Constant(ir.ArrayType(simd.I64, _STEPS), _TABLE)
    table = cgutils.global_constant(builder, "expf_table", array)
    bytes_in = builder.shl(index, ir.Constant(_I64_VECTOR, [3] * simd.LANES))
    base = simd.splat_ir(builder, builder.ptrtoint(table, simd.I64))
    pointers = ir.VectorType(simd.I64.as_pointer(), simd.LANES)
    addresses = builder.inttoptr(builder.add(base, bytes_in), pointers)
    lanes = ir.VectorType(ir.IntType(1), simd.LANES)
    function_type = ir.FunctionType(_I64_VECTOR, [pointers, ir.IntType(32), lanes, _I64_VECTOR])
    name = f"llvm.masked.gather.v{simd.LANES}i64.v{simd.LANES}p0"
    function = cgutils.get_or_insert_function(builder.module, function_type, name)
    every = ir.Constant(lanes, [1] * simd.LANES)
    unused = ir.Constant(_I64_VECTOR, ir.Undefined)
    return builder.call(function, (addresses, ir.IntType(32)(8), every, unused))


def _float(bits: int) -> float:
    return float(np.uint32(bits).view(np.float32))


_LOG2_E, _LN_2 = _float(0x3FB8AA3B), _float(0x3F317218)
_LN_SMALLEST, _LN_LARGEST = _float(0xC2AEAC50), _float(0x42B17218)
_QUINTIC = (0.00828929059, 0.0418978221, 0.166676521, 0.499991506, 0.999999701, 1.0)


@numba.njit
def _polynomial_exp(x):
    """exp(x) to a relative error of 1e-5; 0 below -87.3."""
    bounded = simd.minimum(x, simd.splat(_LN_LARGEST))
    bounded = simd.maximum(bounded, simd.splat(_LN_SMALLEST))
    half, one = simd.splat(0.5), simd.splat(1.0)
    power = simd.floor(simd.fused_multiply_add(bounded, simd.splat(_LOG2_E), half))
    minus = simd.subtract(simd.splat(0.0), power)
    rest = simd.fused_multiply_add(minus, simd.splat(_LN_2), bounded)
    p = simd.splat(_QUINTIC[0])
    p = simd.fused_multiply_add(rest, p, simd.splat(_QUINTIC[1]))
    p = simd.fused_multiply_add(rest, p, simd.splat(_QUINTIC[2]))
    p = simd.fused_multiply_add(rest, p, simd.splat(_QUINTIC[3]))
    p = simd.fused_multiply_add(rest, p, simd.splat(_QUINTIC[4]))
    p = simd.fused_multiply_add(rest, p, simd.splat(_QUINTIC[5]))
    # In two factors, as 2 ** 128 is none that float32 has; the first is 0 for the smallest power.
    p = simd.multiply(p, simd.power_of_two(simd.subtract(power, one)))
    p = simd.multiply(p, simd.splat(2.0))
    return simd.zero_below(p, x, simd.splat(_LN_SMALLEST))


@numba.njit
def _cap_by_exp(score, inverse):
    rising = _polynomial_exp(simd.multiply(score, inverse))
    falling = simd.divide(simd.splat(1.0), rising)
    return simd.divide(simd.subtract(rising, falling), simd.add(rising, falling))


@numba.njit
def _cap_by_tanh(score, inverse):
    return _tanhf(simd.multiply(score, inverse))


exp = _polynomial_exp if BINARY.has_avx512 else _expf
_tanh_of_product = _cap_by_exp if BINARY.has_avx512 else _cap_by_tanh


@numba.njit
def cap(score, softcap):
    """softcap * tanh(score / softcap)"""
    inverse = simd.splat(np.float32(1.0) / softcap)
    return simd.multiply(_tanh_of_product(score, inverse), simd.splat(softcap))

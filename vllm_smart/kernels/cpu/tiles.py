"""Small matrix products in registers: scores from queries and keys, outputs from weights and values."""

from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from vllm_smart.kernels.cpu import layout, simd

TILE_COLUMNS = 2 * simd.LANES
_TILE_ROWS = (12, 8, 4) if simd.HAS_AVX512 else (4, 4, 4)


def _tile(num_rows: int, rescale: bool) -> Any:
    """Compiled code for `C = A @ B`, or with `rescale` for `C = factor[:, None] * C + A @ B`.

    C is `[num_rows, TILE_COLUMNS]` and lives in registers, A `[num_rows, depth]`, both float32
    with the strides of the scratch memory; B is `[depth, TILE_COLUMNS]` of the marker's type. The
    arguments are the addresses of C, factor, A and B, the stride of B in bytes, depth, the marker.
    """
    a_stride, c_stride = layout.STATE_STRIDE * 4, layout.SCORE_STRIDE * 4
    if rescale:
        a_stride, c_stride = c_stride, a_stride
    cells = [(i, j) for i in range(num_rows) for j in range(TILE_COLUMNS // simd.LANES)]

    def scalar_ir(builder, address):
        return simd.splat_ir(builder, builder.load(builder.inttoptr(address, simd.F32.as_pointer())))

    def start_ir(builder, address, factor):
        if not rescale:
            return ir.Constant(simd.F32_VECTOR, [0.0] * simd.LANES)
        return builder.fmul(simd.load_ir(builder, address, types.float32), scalar_ir(builder, factor))

    @intrinsic
    def tile(typingctx, c, factor, a, b, b_stride, depth, element):
        def emit(context, builder, signature, args):
            c, factor, a, b, b_stride, depth, _ = args
            sums = {}
            for i, j in cells:
                sums[i, j] = cgutils.alloca_once(builder, simd.F32_VECTOR)
                address = builder.add(c, simd.I64(i * c_stride + j * simd.LANES * 4))
                start = start_ir(builder, address, builder.add(factor, simd.I64(4 * i)))
                builder.store(start, sums[i, j])
            with cgutils.for_range(builder, depth) as loop:
                b_row = builder.add(b, builder.mul(loop.index, b_stride))
                a_column = builder.add(a, builder.mul(loop.index, simd.I64(4)))
                vectors, scalars = {}, {}
                for i, j in cells:
                    if j not in vectors:
                        address = builder.add(b_row, simd.I64(j * simd.LANES * element.bitwidth // 8))
                        vectors[j] = simd.load_ir(builder, address, element)
                    if i not in scalars:
                        scalars[i] = scalar_ir(builder, builder.add(a_column, simd.I64(i * a_stride)))
                    total = builder.load(sums[i, j])
                    total = simd.llvm_ir(builder, "fmuladd", scalars[i], vectors[j], total)
                    builder.store(total, sums[i, j])
            for i, j in cells:
                address = builder.add(c, simd.I64(i * c_stride + j * simd.LANES * 4))
                simd.store_ir(builder, address, builder.load(sums[i, j]), types.float32)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 6, element), emit

    return tile


_score_large, _score_medium, _score_small = (_tile(rows, rescale=False) for rows in _TILE_ROWS)
_value_large, _value_medium, _value_small = (_tile(rows, rescale=True) for rows in _TILE_ROWS)
_LARGE, _MEDIUM, _SMALL = _TILE_ROWS


@numba.njit
def multiply_scores(c, a, b, b_stride, depth, num_lines, element):
    """`C = A @ B` for TILE_COLUMNS columns, [num_lines, depth] by [depth, TILE_COLUMNS]; by address."""
    line = 0
    while line < num_lines:
        left = num_lines - line
        c_line, a_line = c + line * (layout.SCORE_STRIDE * 4), a + line * (layout.STATE_STRIDE * 4)
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
def multiply_values(c, factors, a, b, b_stride, depth, num_lines, element):
    """The same for `C = factors[:, None] * C + A @ B`."""
    line = 0
    while line < num_lines:
        left = num_lines - line
        c_line, a_line = c + line * (layout.STATE_STRIDE * 4), a + line * (layout.SCORE_STRIDE * 4)
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

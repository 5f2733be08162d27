"""Small matrix products in registers: scores from queries and keys, outputs from weights and values.

Each element is one sum, in the order of the inner dimension, as in the stock kernel.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from vllm_smart.kernels.cpu import simd
from vllm_smart.kernels.cpu.compiled import compiled_as
from vllm_smart.kernels.cpu.stock import BINARY
from vllm_smart.kernels.tree_attention.cpu import layout

# What fits the registers: 32 of 16 floats, or 16 of 8.
TILE_VECTORS = 2 if BINARY.has_avx512 else 1
_TILE_ROWS = (12, 8, 4) if BINARY.has_avx512 else (4, 4, 4)
TILE_COLUMNS = TILE_VECTORS * simd.LANES


def _tile(num_rows: int, num_vectors: int, a_stride: int, c_stride: int, accumulate: bool) -> Any:
    """Compiled code for `C = A @ B`, or with `accumulate` for `C += A @ B`.

    C is `[num_rows, num_vectors * LANES]` and lives in registers, A `[num_rows, depth]`, both float32;
    B is `[depth, num_vectors * LANES]` of the marker's type. The arguments are the addresses of C, A
    and B, the stride of B in bytes, depth, the marker.
    """
    cells = [(i, j) for i in range(num_rows) for j in range(num_vectors)]

    def scalar_ir(builder, address):
        return simd.splat_ir(builder, builder.load(builder.inttoptr(address, simd.F32.as_pointer())))

    def address_ir(builder, c, i, j):
        return builder.add(c, simd.I64((i * c_stride + j * simd.LANES) * 4))

    @intrinsic
    def tile(typingctx, c, a, b, b_stride, depth, element):
        def emit(context, builder, signature, args):
            c, a, b, b_stride, depth, _ = args
            sums = {}
            for i, j in cells:
                sums[i, j] = cgutils.alloca_once(builder, simd.F32_VECTOR)
                start = ir.Constant(simd.F32_VECTOR, [0.0] * simd.LANES)
                if accumulate:
                    start = simd.load_ir(builder, address_ir(builder, c, i, j), types.float32)
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
                        scalars[i] = scalar_ir(
                            builder, builder.add(a_column, simd.I64(i * a_stride * 4))
                        )
                    total = builder.load(sums[i, j])
                    total = simd.multiply_add_ir(builder, scalars[i], vectors[j], total)
                    builder.store(total, sums[i, j])
            for i, j in cells:
                total = builder.load(sums[i, j])
                simd.store_ir(builder, address_ir(builder, c, i, j), total, types.float32)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 5, element), emit

    return tile


def _product(num_vectors: int, a_stride: int, c_stride: int, accumulate: bool) -> Any:
    """`C = A @ B` or `C += A @ B` for any number of lines, [num_lines, depth] by [depth, columns].

    Lines are padded to `layout.ROW_ALIGNMENT`.
    """
    large, medium, small = _TILE_ROWS
    tile_large, tile_medium, tile_small = (
        _tile(rows, num_vectors, a_stride, c_stride, accumulate) for rows in _TILE_ROWS
    )

    @compiled_as(f"{num_vectors}_{'add' if accumulate else 'set'}")
    def multiply(c, a, b, b_stride, depth, num_lines, element):
        line = 0
        while line < num_lines:
            left = num_lines - line
            c_line, a_line = c + line * (c_stride * 4), a + line * (a_stride * 4)
            if left >= large and left != 2 * medium:
                tile_large(c_line, a_line, b, b_stride, depth, element)
                line += large
            elif left >= medium:
                tile_medium(c_line, a_line, b, b_stride, depth, element)
                line += medium
            else:
                tile_small(c_line, a_line, b, b_stride, depth, element)
                line += small

    return multiply


_SCORES = (layout.STATE_STRIDE, layout.SCORE_STRIDE)
_OUTPUTS = (layout.SCORE_STRIDE, layout.STATE_STRIDE)

# Scores of TILE_COLUMNS keys; outputs of as many elements, or of LANES where no more are left.
multiply_scores = _product(TILE_VECTORS, *_SCORES, accumulate=False)
add_values = _product(TILE_VECTORS, *_OUTPUTS, accumulate=True)
add_last_values = _product(1, *_OUTPUTS, accumulate=True)

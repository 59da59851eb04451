"""Pieces that kernels on tiles share: the order of tiles, products in each precision, masks.

Operands are packed rows (`_rows`): "fast" has one bfloat16 plane, "high" two, whose sum holds 16 bits of each value and
whose product takes three products of planes, "exact" one plane of float64. Sums of products are float32, of float64
operands float64.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .launch import interpreting

# the interpreter computes with the bits of bfloat16 as if they were whole numbers
_WIDEN = tl.constexpr(interpreting())


@triton.jit
def to_bfloat16(value):
    """Round float32 to the nearest bfloat16, which the interpreter's own conversion does not."""
    if _WIDEN:
        bits = value.to(tl.int32, bitcast=True)
        value = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -65536).to(tl.float32, bitcast=True)
    return value.to(tl.bfloat16)


@triton.jit
def multiply(a_tile, b_tile, acc):  # [M, K], [K, N], [M, N]
    """Add a b to acc; a product of bfloat16 is exact in float32."""
    if _WIDEN and a_tile.dtype == tl.bfloat16:
        return tl.dot(a_tile.to(tl.float32), b_tile.to(tl.float32), acc)
    return tl.dot(a_tile, b_tile, acc, input_precision="ieee", out_dtype=acc.dtype)


@triton.jit
def grouped(pid, tiles_i, tiles_j, GROUP: tl.constexpr):
    """Tile (i, j) of a rectangle, in groups of rows of tiles that share their columns in the cache."""
    in_group = GROUP * tiles_j
    first = (pid // in_group) * GROUP
    rows = tl.minimum(tiles_i - first, GROUP)
    return first + (pid % in_group) % rows, (pid % in_group) // rows


@triton.jit
def grouped_triangle(pid, tiles, GROUP: tl.constexpr):
    """Tile (i, j), i <= j, of a triangle, in groups of columns of tiles, row after row in each."""
    _, column = triangle(pid)
    first = (column // GROUP) * GROUP
    place = pid - first * (first + 1) // 2
    columns = tl.minimum(tiles - first, GROUP)
    above = place < first * columns
    i, j = triangle(tl.where(above, 0, place - first * columns))
    return tl.where(above, place // columns, first + i), first + tl.where(above, place % columns, j)


@triton.jit
def triangle(pid):
    """Tile (i, j), i <= j, of a triangle of any size, column after column."""
    j = ((tl.sqrt((8 * pid + 1).to(tl.float32)) - 1) * 0.5).to(tl.int32)
    # the root is rounded
    j = tl.where(j * (j + 1) // 2 > pid, j - 1, j)
    j = tl.where((j + 1) * (j + 2) // 2 <= pid, j + 1, j)
    return pid - j * (j + 1) // 2, j

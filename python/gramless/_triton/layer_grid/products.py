"""Products of the kernel values of every layer with every other one, and their row sums: what HSIC is made of.

products[x, y] = sum over i < j of (k_ij - a) (l_ij - b), rows[x, i] = sum over j != i of k_ij, a and b the means of k
and l: HSIC_1 does not change when a constant is taken off, but for its rounding.
Cost: l1 l2 m multiply-adds for m pairs of rows, half for layers of one model, 70 Mflop for 32 x 32 layers of 256 rows,
and l m for squares; values are read once for each block of layers and once more, 17 MB from the cache.
Parts of the pairs of rows are partials.
Numerics: float64, of values in float32 or float64. Of a batch that goes by bands of rows, all sums are carried on from
band to band, and a and b are the means of the first.
Rejected: float32 multiply-adds: no faster than float64 on matrix units, and squares of values leave its range.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..tiles.order import multiply, triangle
from .kernel_values import place_of


@triton.jit(do_not_specialize=["n", "blocks", "tile", "tiles", "pairs", "centres"])
def _rows_kernel(
    parts_ptr,
    sums_ptr,
    rows_ptr,
    shifts_ptr,
    bads_ptr,
    state_ptr,
    before_ptr,
    n,
    blocks,
    tile,
    tiles,
    pairs,
    centres,
    LIMIT: tl.constexpr,
    FIRST: tl.constexpr,
    BLOCK: tl.constexpr,
    STRIPS: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    pid_b = tl.program_id(0)
    layer = tl.program_id(1).to(tl.int64)
    offs = tl.arange(0, BLOCK)
    offs_o = tl.arange(0, BLOCK_T)
    parts = tl.zeros((BLOCK_T, BLOCK), dtype=tl.float64)
    for start in range(0, blocks, BLOCK_T):
        other = start + offs_o
        t = place_of(tl.minimum(other, pid_b), tl.maximum(other, pid_b), blocks) - tile
        held = (other < blocks) & (t >= 0) & (t < tiles)
        at = parts_ptr + ((layer * tiles + t) * ((STRIPS + 1) * BLOCK))[:, None] + offs[None, :]
        # the sums along the rows of a tile are those of its first block, along its columns those of its second
        parts += tl.load(at, mask=(held & (other >= pid_b))[:, None], other=0.0)
        for strip in tl.static_range(STRIPS):
            parts += tl.load(at + (strip + 1) * BLOCK, mask=(held & (other <= pid_b))[:, None], other=0.0)
    total = tl.sum(parts, axis=0)
    rows = rows_ptr + (layer * blocks + pid_b) * BLOCK + offs
    if not FIRST:
        total += tl.load(rows)
    tl.store(rows, total)
    if pid_b == 0:
        of_values = tl.zeros((BLOCK_T,), dtype=tl.float64)
        of_squares = tl.zeros((BLOCK_T,), dtype=tl.float64)
        for start in range(0, tiles * STRIPS, BLOCK_T):
            at = sums_ptr + (layer * tiles * STRIPS + start + offs_o) * 2
            of_values += tl.load(at, mask=start + offs_o < tiles * STRIPS, other=0.0)
            of_squares += tl.load(at + 1, mask=start + offs_o < tiles * STRIPS, other=0.0)
        square = tl.sum(of_squares, axis=0)
        beyond = tl.where(2 * square / n.to(tl.float64) / n <= LIMIT, n, -1).to(tl.int64)
        bad = bads_ptr + layer * (blocks + 1) + blocks
        if FIRST:
            tl.store(shifts_ptr + layer, tl.sum(of_values, axis=0) / pairs)
            # what the moments were, for programs that change them side by side
            tl.store(before_ptr + 4 + layer, tl.load(state_ptr + centres + layer))
            if layer == 0:
                offs_4 = tl.arange(0, 4)
                tl.store(before_ptr + offs_4, tl.load(state_ptr + offs_4))
        else:
            beyond = tl.minimum(beyond, tl.load(bad))
        tl.store(bad, beyond)


@triton.jit
def _shifted(values_ptr, shifts_ptr, offs_l, layers, offs_m, m, stride):
    """Values of some layers less their shift, [BLOCK_L, BLOCK_M]; 0 beyond the last."""
    layer = tl.minimum(offs_l, layers - 1).to(tl.int64)
    # rows of values are longer than m, so that loads need no mask
    value = tl.load(values_ptr + layer[:, None] * stride + offs_m[None, :]).to(tl.float64)
    mask = (offs_l < layers)[:, None] & (offs_m < m)[None, :]
    return tl.where(mask, value - tl.load(shifts_ptr + layer)[:, None], 0.0)


@triton.jit(do_not_specialize=["m", "layers", "count_x", "count_y", "tiles", "tiles_y", "steps"])
def _products_kernel(
    values_ptr,
    shifts_ptr,
    products_ptr,
    selfs_ptr,
    stride,
    m,
    layers,
    count_x,
    count_y,
    tiles,
    tiles_y,
    steps,
    FIRST: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    pid = tl.program_id(0)
    split = tl.program_id(1).to(tl.int64)
    start = split * steps * BLOCK_M
    stop = tl.minimum(start + steps * BLOCK_M, m)
    offs = tl.arange(0, BLOCK_L)
    offs_m = tl.arange(0, BLOCK_M)
    if pid < tiles:
        if SYMMETRIC:
            pid_x, pid_y = triangle(pid)
        else:
            pid_x, pid_y = pid // tiles_y, pid % tiles_y
        offs_x = pid_x * BLOCK_L + offs
        offs_y = pid_y * BLOCK_L + offs
        first_y = layers - count_y
        total = tl.zeros((BLOCK_L, BLOCK_L), dtype=tl.float64)
        for at in range(start, stop, BLOCK_M):
            x = _shifted(values_ptr, shifts_ptr, offs_x, layers, at + offs_m, stop, stride)
            y = _shifted(values_ptr, shifts_ptr, first_y + offs_y, layers, at + offs_m, stop, stride)
            total = multiply(x, tl.trans(y), total)
        inside = (offs_x < count_x)[:, None] & (offs_y < count_y)[None, :]
        products = products_ptr + (split * count_x + offs_x)[:, None] * count_y + offs_y[None, :]
        if not FIRST:
            total += tl.load(products, mask=inside, other=0.0)
        tl.store(products, total, mask=inside)
    else:
        offs_l = (pid - tiles) * BLOCK_L + offs
        squares = tl.zeros((BLOCK_L,), dtype=tl.float64)
        for at in range(start, stop, BLOCK_M):
            x = _shifted(values_ptr, shifts_ptr, offs_l, layers, at + offs_m, stop, stride)
            squares += tl.sum(x * x, axis=1)
        selfs = selfs_ptr + split * layers + offs_l
        if not FIRST:
            squares += tl.load(selfs, mask=offs_l < layers, other=0.0)
        tl.store(selfs, squares, mask=offs_l < layers)

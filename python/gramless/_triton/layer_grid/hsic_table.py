"""HSIC of a batch, and the moments of those of batches, changed in place: `GridSums.hsic` and `BatchTable.merge`.

state: n, batches, sum w and sum w^2; then the arrays of `KEYS`, flat, of pairs (l1, l2) or layers (l,); then of the
first row that was not finite the number of its update, from 1, its layer and its row.
Cost: for each pair a read of the row sums of both, 16 n bytes, and of its partials, from the cache; 96 bytes of
moments. 32 x 32 layers of 256 rows take 68 programs of about 4,000 instructions: a few microseconds, most of them
waiting.
Numerics: float64. Programs change their own moments alone, and take those of layers as they were from a copy.
Rejected: the same in torch: thirty launches.
"""

from __future__ import annotations

import triton
import triton.language as tl

# the arrays, of two dimensions for pairs and of one for layers, in their order
KEYS = {
    "pairs": 2,
    "centre_pairs": 2,
    "pair_pair": 2,
    "pair_x": 2,
    "pair_y": 2,
    "x_y": 2,
    "selfs": 1,
    "centre_selfs": 1,
    "self_self": 1,
    "rounding": 1,
    "means": 1,
    "below_one": 1,
    "lacking": 1,
}
OF_PAIRS = sum(dims == 2 for dims in KEYS.values())
# numbers before the arrays, and behind them
COUNTERS, RECORD = 4, 3
_COUNTERS = tl.constexpr(COUNTERS)
_OF_PAIRS = tl.constexpr(OF_PAIRS)
# pairs or layers of a program, rows and partials that it reads at a time
BLOCK_Q, BLOCK_N, BLOCK_S = 16, 64, 64


@triton.jit
def _row_sums(rows_ptr, shift, layer, offs_n, n, stride):
    """Row sums of the values of some layers less a shift, [BLOCK_Q, BLOCK_N]; 0 beyond the last row."""
    mask = (offs_n < n)[None, :]
    rows = tl.load(rows_ptr + (layer * stride)[:, None] + offs_n[None, :], mask=mask, other=0.0)
    return tl.where(mask, rows - shift[:, None], 0.0)


@triton.jit
def _row_products(rows_ptr, shifts_ptr, x, y, n, stride, BLOCK_Q: tl.constexpr, BLOCK_N: tl.constexpr):
    """Products of the row sums of layers x and y, x and x, y and y, and their totals."""
    shift_x = tl.load(shifts_ptr + x) * (n - 1)
    shift_y = tl.load(shifts_ptr + y) * (n - 1)
    xy = tl.zeros((BLOCK_Q, BLOCK_N), dtype=tl.float64)
    xx, yy, of_x, of_y = xy, xy, xy, xy
    for start in range(0, n, BLOCK_N):
        offs_n = start + tl.arange(0, BLOCK_N)
        rows_x = _row_sums(rows_ptr, shift_x, x, offs_n, n, stride)
        rows_y = _row_sums(rows_ptr, shift_y, y, offs_n, n, stride)
        xy += rows_x * rows_y
        xx += rows_x * rows_x
        yy += rows_y * rows_y
        of_x += rows_x
        of_y += rows_y
    return tl.sum(xy, axis=1), tl.sum(xx, axis=1), tl.sum(yy, axis=1), tl.sum(of_x, axis=1), tl.sum(of_y, axis=1)


@triton.jit
def _partials(partials_ptr, offs_q, count, splits, BLOCK_Q: tl.constexpr, BLOCK_S: tl.constexpr):
    """Add partials (splits, count) at some places, [BLOCK_Q]."""
    total = tl.zeros((BLOCK_S, BLOCK_Q), dtype=tl.float64)
    for start in range(0, splits, BLOCK_S):
        split = start + tl.arange(0, BLOCK_S)
        partials_ptrs = partials_ptr + split.to(tl.int64)[:, None] * count + offs_q[None, :]
        total += tl.load(partials_ptrs, mask=(split < splits)[:, None], other=0.0)
    return tl.sum(total, axis=0)


@triton.jit
def _hsic(products, by_rows, by_totals, n):
    """HSIC_1 of sums over i < j, products of row sums and of totals."""
    return (2 * products - 2 * by_rows / (n - 2) + by_totals / ((n - 1) * (n - 2))) / (n * (n - 3))


@triton.jit
def _record(bads_ptr, record_ptr, batch, n, layers, blocks, BLOCK: tl.constexpr):
    """Keep the first row that is not finite, or -1 for values beyond range, unless an earlier update has one."""
    count = layers * (blocks + 1)
    first = count
    for start in range(0, count, BLOCK):
        offs = start + tl.arange(0, BLOCK)
        bad = tl.load(bads_ptr + offs, mask=offs < count, other=n) < n
        first = tl.minimum(first, tl.min(tl.where(bad, offs, count), axis=0))
    if (first < count) & (tl.load(record_ptr) == 0):
        tl.store(record_ptr, batch)
        tl.store(record_ptr + 1, (first // (blocks + 1)).to(tl.float64))
        tl.store(record_ptr + 2, tl.load(bads_ptr + first).to(tl.float64))


@triton.jit
def _moved(ptrs, value, share, mask):
    """Move a weighted mean towards a value, and return the difference that there was."""
    mean = tl.load(ptrs, mask=mask, other=0.0)
    tl.store(ptrs, mean + share * (value - mean), mask=mask)
    return value - mean


@triton.jit
def _added(ptrs, value, mask):
    tl.store(ptrs, tl.load(ptrs, mask=mask, other=0.0) + value, mask=mask)


@triton.jit(do_not_specialize=["n", "layers", "count_x", "count_y", "splits", "blocks", "programs", "record"])
def _merge_kernel(
    weight_ptr,
    state_ptr,
    before_ptr,
    products_ptr,
    selfs_ptr,
    rows_ptr,
    shifts_ptr,
    offsets_ptr,
    lacking_ptr,
    bads_ptr,
    n,
    layers,
    count_x,
    count_y,
    splits,
    blocks,
    programs,
    record,
    stride,
    NOISE: tl.constexpr,
    LEAST: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    pid = tl.program_id(0)
    weight = tl.load(weight_ptr).to(tl.float64, bitcast=True)
    batches = tl.load(before_ptr + 1)
    weights = tl.load(before_ptr + 2)
    square = tl.load(before_ptr + 3)
    share = weight / (weights + weight)
    share_of_squares = weight * weight / (square + weight * weight)
    between = square * share_of_squares
    count = n.to(tl.float64)
    offs = tl.arange(0, BLOCK_Q).to(tl.int64)
    pairs = count_x.to(tl.int64) * count_y
    old_ptr = before_ptr + _COUNTERS
    if pid < programs:
        at = pid * BLOCK_Q + offs
        mask = at < pairs
        at_x, at_y = at // count_y, at % count_y
        x = tl.where(mask, at_x, 0)
        y = tl.where(mask, layers - count_y + at_y, 0)
        xy, xx, yy, total_x, total_y = _row_products(rows_ptr, shifts_ptr, x, y, n, stride, BLOCK_Q, BLOCK_N)
        own_x = _hsic(_partials(selfs_ptr, x, layers, splits, BLOCK_Q, BLOCK_S), xx, total_x * total_x, count)
        own_y = _hsic(_partials(selfs_ptr, y, layers, splits, BLOCK_Q, BLOCK_S), yy, total_y * total_y, count)
        place = tl.where(mask, at, 0)
        if SYMMETRIC:
            # of the two orders of a pair one has been computed
            place = tl.minimum(x, y) * count_y + tl.maximum(x, y)
        hsic = _hsic(_partials(products_ptr, place, pairs, splits, BLOCK_Q, BLOCK_S), xy, total_x * total_y, count)
        ptrs = state_ptr + _COUNTERS + at
        _moved(ptrs, hsic, share, mask)
        pair = _moved(ptrs + pairs, hsic, share_of_squares, mask)
        of_x = own_x - tl.load(old_ptr + x)
        of_y = own_y - tl.load(old_ptr + y)
        _added(ptrs + 2 * pairs, between * pair * pair, mask)
        _added(ptrs + 3 * pairs, between * pair * of_x, mask)
        _added(ptrs + 4 * pairs, between * pair * of_y, mask)
        _added(ptrs + 5 * pairs, between * of_x * of_y, mask)
    else:
        at = (pid - programs) * BLOCK_Q + offs
        mask = at < layers
        layer = tl.where(mask, at, 0)
        _, squares, _, total, _ = _row_products(rows_ptr, shifts_ptr, layer, layer, n, stride, BLOCK_Q, BLOCK_N)
        products = _partials(selfs_ptr, layer, layers, splits, BLOCK_Q, BLOCK_S)
        own = _hsic(products, squares, total * total, count)
        terms = _hsic(products, -squares, total * total, count)
        mean = total / (count * (count - 1)) + tl.load(shifts_ptr + layer)
        offset = tl.load(offsets_ptr + layer)
        ptrs = state_ptr + _COUNTERS + _OF_PAIRS * pairs + at
        _moved(ptrs, own, share, mask)
        of_own = _moved(ptrs + layers, own, share_of_squares, mask)
        _added(ptrs + 2 * layers, between * of_own * of_own, mask)
        _moved(ptrs + 3 * layers, tl.maximum(NOISE * terms, LEAST), share, mask)
        _moved(ptrs + 4 * layers, mean + offset, share, mask)
        _moved(ptrs + 5 * layers, (1 - offset) - mean, share, mask)
        _added(ptrs + 6 * layers, tl.load(lacking_ptr + layer), mask)
    if pid == 0:
        tl.store(state_ptr, tl.load(before_ptr) + count)
        tl.store(state_ptr + 1, batches + 1)
        tl.store(state_ptr + 2, weights + weight)
        tl.store(state_ptr + 3, square + weight * weight)
        _record(bads_ptr, state_ptr + record, batches + 1, n, layers, blocks, BLOCK_Q * BLOCK_N)

"""Kernel values of many layers over one batch of rows, above the diagonal, in grouped launches over (layer, tile).

values (l, m) hold k(x_i, x_j), i < j, row by row, of rows less a sampled centre; k is as in `reference.gram_sums`.
Cost: n^2 sum p flops, three times that for "high" of float32. Centres read 7 rows. Products read the rows of a tile of
B rows once for each tile beside it, twice at n = 2 B, and write B^2 numbers for each layer, tile and 1024 features,
which values read once. By arithmetic, not measured, 64 layers of 256 x 4096 bfloat16 on an H200: 134 MB are 31 us,
26 Gflop 33 us, twice that read from the cache 50 us, 50 MB of parts 12 us each way at most.
Numerics: 16-bit rows take one product in their own type. The centre of a feature is one of its values where all sampled
ones are near it, so that x - c is exact within a factor of 2 of c, and else 0; where it is not exact it is off by half
a unit in the last place of x, c or x - c. float32 takes bfloat16 planes, one for "fast", two for "high"; "exact" takes
float64 for all. Sums over 1024 features are float32 or float64. A norm that is not finite tells of its row.
Rejected: rows packed in advance, as those of a pair of arrays: twice the memory traffic of all that is done here.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..gram.kernel_functions import exp2_less
from ..tiles import packed_rows
from ..tiles.launch import Config, Configs
from ..tiles.order import multiply, to_bfloat16, triangle

# rows that a centre is the median of, and how many the tiles of these hold
SAMPLED_ROWS = tl.constexpr(packed_rows.SAMPLED_ROWS)
SAMPLE = tl.constexpr(8)
# numbers of a layer in a table: address, strides of rows and features, features, and which layer it is
COLUMNS = tl.constexpr(5)
# what stands before them: the bits of the weight of the batch
HEAD = tl.constexpr(1)
# what the values kernel makes: dot products, squared distances, or exp(-d^2 / (2 s^2)) - o
LINEAR = tl.constexpr(0)
SQUARES = tl.constexpr(1)
RBF = tl.constexpr(2)
# a centre is taken where the sampled values differ from it by less than this share of it
_NEAR = tl.constexpr(0.125)
_LOG2_E = tl.constexpr(1.4426950408889634)
_LARGEST = tl.constexpr(3.4028234663852886e38)

# tiles for more than 64 rows, and for fewer; the sides are the same
CONFIGS: dict[str, Configs] = {
    "fast": {
        "interpret": (Config(64, 64, 64, 4, 1),),
        "sm_80": (Config(128, 128, 32, 8, 3),),
        "sm_90": (Config(128, 128, 32, 8, 4),),
        "sm_100": (Config(128, 128, 64, 8, 3),),
        "gfx942": (Config(128, 128, 32, 8, 2),),
    },
    "high": {
        "interpret": (Config(64, 64, 64, 4, 1),),
        "sm_80": (Config(128, 128, 32, 8, 2),),
        "sm_90": (Config(128, 128, 32, 8, 3),),
        "sm_100": (Config(128, 128, 32, 8, 3),),
        "gfx942": (Config(128, 128, 32, 8, 2),),
    },
    "exact": {
        "interpret": (Config(64, 64, 64, 4, 1),),
        "sm_80": (Config(64, 64, 16, 4, 3),),
        "sm_90": (Config(64, 64, 16, 4, 3),),
        "sm_100": (Config(64, 64, 16, 4, 3),),
        "gfx942": (Config(64, 64, 16, 4, 2),),
    },
}


@triton.jit
def tile_of(t, blocks):
    """Tile (i, j), i <= j, of a triangle of blocks x blocks, row after row."""
    a, b = triangle(blocks * (blocks + 1) // 2 - 1 - t)
    return blocks - 1 - b, blocks - 1 - a


@triton.jit
def place_of(i, j, blocks):
    """Where that tile comes."""
    b = blocks - 1 - i
    return blocks * (blocks + 1) // 2 - 1 - (b * (b + 1) // 2 + blocks - 1 - j)


@triton.jit
def _sampled(n):
    """Return the step between sampled rows, and how many there are."""
    step = tl.maximum(n // SAMPLED_ROWS, 1)
    return step, tl.minimum(tl.cdiv(n, step), SAMPLED_ROWS)


@triton.jit
def _is_median(rank, count):
    """Whether this is the place of the middle one, the lower of two."""
    return rank == (count - 1) // 2


@triton.jit
def _features(row_ptrs, stride_p, offs_p, p, EVEN: tl.constexpr, WHOLE: tl.constexpr):  # [rows, 1], [features]
    """Load features of rows; EVEN rows are 64 k features from multiples of 16 bytes on, WHOLE if all are there."""
    if EVEN:
        x_ptrs = tl.multiple_of(row_ptrs + offs_p[None, :], [1, 16])
        if WHOLE:
            return tl.load(x_ptrs)
        # the same as below, told in a way that a load can take many
        return tl.load(x_ptrs, mask=(offs_p // 64 * 64 < p)[None, :], other=0.0)
    x_ptrs = row_ptrs + offs_p.to(tl.int64)[None, :] * stride_p
    return tl.load(x_ptrs, mask=(offs_p < p)[None, :], other=0.0)


@triton.jit(do_not_specialize=["n", "pieces", "first"])
def _centre_kernel(
    table_ptr,
    centre_ptr,
    deviations_ptr,
    n,
    width,
    pieces,
    first,
    X: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    pid_p = tl.program_id(0)
    row_ptr = table_ptr + HEAD + (first + tl.program_id(1)) * COLUMNS
    x_ptr = tl.load(row_ptr).to(tl.pointer_type(X))
    stride_n = tl.load(row_ptr + 1)
    stride_p = tl.load(row_ptr + 2)
    p = tl.load(row_ptr + 3).to(tl.int32)
    layer = tl.load(row_ptr + 4)
    kind: tl.constexpr = centre_ptr.dtype.element_ty
    step, count = _sampled(n)
    offs_s = tl.arange(0, SAMPLE)
    offs_p = pid_p * BLOCK_P + tl.arange(0, BLOCK_P)
    mask_p = offs_p < p
    mask = (offs_s < count)[:, None] & mask_p[None, :]
    rows = tl.minimum(offs_s, count - 1) * step
    x = _features(x_ptr + rows.to(tl.int64)[:, None] * stride_n, stride_p, offs_p, p, EVEN, False).to(kind)
    rank = tl.zeros((SAMPLE, BLOCK_P), dtype=tl.int32)
    for s in range(count):
        row_ptrs = x_ptr + (s * step + tl.zeros((1, 1), dtype=tl.int64)) * stride_n
        other = _features(row_ptrs, stride_p, offs_p, p, EVEN, False).to(kind)
        rank += ((other < x) | ((other == x) & (offs_s > s)[:, None])).to(tl.int32)
    centre = tl.sum(tl.where(mask & _is_median(rank, count), x, 0.0), axis=0)
    apart = tl.where(mask, tl.abs(x - centre[None, :]), 0.0)
    tl.store(deviations_ptr + (layer * pieces + pid_p) * SAMPLE + offs_s, tl.sum(apart * apart, axis=1))
    if X.primitive_bitwidth == 16 and kind != tl.float64:
        centre = tl.where(tl.max(apart, axis=0) <= tl.abs(centre) * _NEAR, centre, 0.0)
    tl.store(centre_ptr + layer * width + offs_p, centre, mask=mask_p)


@triton.jit
def _narrow(d, PLANE: tl.constexpr):
    """Round to the type that is multiplied."""
    if tl.bfloat16 == PLANE:
        return to_bfloat16(d)
    return d.to(PLANE)


@triton.jit
def _differences(row_ptrs, stride_p, centre_ptr, k, p, EVEN: tl.constexpr, BLOCK_K: tl.constexpr):
    """Rows less their centre from feature k on, [rows, BLOCK_K]; 0 beyond the last."""
    kind: tl.constexpr = centre_ptr.dtype.element_ty
    offs_k = k + tl.arange(0, BLOCK_K)
    x = _features(row_ptrs, stride_p, offs_k, p, EVEN, EVEN)
    if EVEN:
        centre = tl.load(centre_ptr + offs_k)
    else:
        centre = tl.load(centre_ptr + offs_k, mask=offs_k < p, other=0.0)
    return x.to(kind) - centre[None, :]


@triton.jit
def _products(
    i_ptrs,
    j_ptrs,
    stride_p,
    centre_ptr,
    p,
    start,
    stop,
    PLANE: tl.constexpr,
    TERMS: tl.constexpr,
    SAME: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # [BLOCK, 1], [BLOCK, 1]
    """Dot products of rows i and j over some features, [BLOCK, BLOCK]."""
    kind: tl.constexpr = centre_ptr.dtype.element_ty
    acc = tl.zeros((BLOCK, BLOCK), dtype=kind)
    for k in range(start, stop, BLOCK_K):
        acc = _step(i_ptrs, j_ptrs, stride_p, centre_ptr, k, p, acc, PLANE, TERMS, SAME, EVEN, BLOCK_K)
    return acc


@triton.jit
def _step(
    i_ptrs,
    j_ptrs,
    stride_p,
    centre_ptr,
    k,
    p,
    acc,
    PLANE: tl.constexpr,
    TERMS: tl.constexpr,
    SAME: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Add the products of some features; of two planes each, all but those of the lower ones."""
    d_i = _differences(i_ptrs, stride_p, centre_ptr, k, p, EVEN, BLOCK_K)
    a = _narrow(d_i, PLANE)
    if SAME:
        b = a
    else:
        d_j = _differences(j_ptrs, stride_p, centre_ptr, k, p, EVEN, BLOCK_K)
        b = _narrow(d_j, PLANE)
    if TERMS == 2:
        a_rest = _narrow(d_i - a.to(d_i.dtype), PLANE)
        if SAME:
            b_rest = a_rest
        else:
            b_rest = _narrow(d_j - b.to(d_j.dtype), PLANE)
        acc = multiply(a_rest, tl.trans(b), acc)
        acc = multiply(a, tl.trans(b_rest), acc)
    return multiply(a, tl.trans(b), acc)


@triton.jit(
    do_not_specialize=["n", "blocks", "tile", "tiles", "splits", "layers", "first", "base", "spacing"],
)
def _grams_kernel(
    table_ptr,
    centre_ptr,
    grams_ptr,
    norms_ptr,
    n,
    width,
    blocks,
    tile,
    tiles,
    splits,
    layers,
    first,
    base,
    spacing,
    X: tl.constexpr,
    PLANE: tl.constexpr,
    TERMS: tl.constexpr,
    EVEN: tl.constexpr,
    DIAGONAL: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    # the tiles of a layer run side by side, and find its rows in the cache
    pid = tl.program_id(0)
    t = pid % tiles
    split = pid // tiles % splits
    row_ptr = table_ptr + HEAD + (first + pid // (tiles * splits)) * COLUMNS
    x_ptr = tl.load(row_ptr).to(tl.pointer_type(X))
    stride_n = tl.load(row_ptr + 1) * spacing
    stride_p = tl.load(row_ptr + 2)
    p = tl.load(row_ptr + 3).to(tl.int32)
    layer = tl.load(row_ptr + 4)
    if DIAGONAL:
        pid_i, pid_j = t, t
    else:
        pid_i, pid_j = tile_of(tile + t, blocks)
    offs = tl.arange(0, BLOCK)
    # the last row again, where there are no more: no value of it is kept
    i_ptrs = x_ptr + tl.minimum(pid_i * BLOCK + offs, n - 1).to(tl.int64)[:, None] * stride_n
    j_ptrs = x_ptr + tl.minimum(pid_j * BLOCK + offs, n - 1).to(tl.int64)[:, None] * stride_n
    per_split = tl.cdiv(tl.cdiv(p, BLOCK_K), splits) * BLOCK_K
    start = split * per_split
    stop = tl.minimum(start + per_split, p)
    c_ptr = centre_ptr + layer * width
    part = split * layers + layer - base
    if pid_i == pid_j:
        k = _products(i_ptrs, i_ptrs, stride_p, c_ptr, p, start, stop, PLANE, TERMS, True, EVEN, BLOCK, BLOCK_K)
        norms = tl.sum(tl.where(offs[:, None] == offs[None, :], k, 0.0), axis=1)
        tl.store(norms_ptr + part * (blocks * BLOCK) + pid_i * BLOCK + offs, norms)
    else:
        k = _products(i_ptrs, j_ptrs, stride_p, c_ptr, p, start, stop, PLANE, TERMS, False, EVEN, BLOCK, BLOCK_K)
    if not DIAGONAL:
        tl.store(grams_ptr + (part * tiles + t) * (BLOCK * BLOCK) + offs[:, None] * BLOCK + offs[None, :], k)


@triton.jit
def _norms_of(norms_ptr, offs, splits, stride):
    """Squared norms of rows, of all parts of the features."""
    norms = tl.load(norms_ptr + offs)
    for split in range(1, splits):
        norms += tl.load(norms_ptr + split * stride + offs)
    return norms


@triton.jit
def _offset(deviations_ptr, width, n, pieces):
    """1 where most squared distances are below 2 width^2, so that k is near 1 and its digits are in 1 - k; else 0."""
    offs_s = tl.arange(0, SAMPLE)
    deviations = tl.zeros((SAMPLE,), dtype=deviations_ptr.dtype.element_ty)
    for piece in range(pieces):
        deviations += tl.load(deviations_ptr + piece * SAMPLE + offs_s)
    _, count = _sampled(n)
    wider = deviations.to(tl.float64) < width * width
    # so for the median of these, from which distances are about twice theirs
    return tl.where(2 * tl.sum((wider & (offs_s < count)).to(tl.int32), axis=0) > count, 1.0, 0.0)


@triton.jit(do_not_specialize=["n", "blocks", "tile", "tiles", "splits", "layers", "pieces", "origin"])
def _values_kernel(
    grams_ptr,
    norms_ptr,
    values_ptr,
    widths_ptr,
    deviations_ptr,
    offsets_ptr,
    parts_ptr,
    sums_ptr,
    bads_ptr,
    n,
    blocks,
    tile,
    tiles,
    splits,
    layers,
    pieces,
    origin,
    stride_values,
    FUNCTION: tl.constexpr,
    AGAIN: tl.constexpr,
    BLOCK: tl.constexpr,
    STRIP: tl.constexpr,
):
    pid = tl.program_id(0)
    layer = tl.program_id(1).to(tl.int64)
    strips: tl.constexpr = BLOCK // STRIP
    t = pid // strips
    strip = pid % strips
    pid_i, pid_j = tile_of(tile + t, blocks)
    kind: tl.constexpr = values_ptr.dtype.element_ty
    rows = blocks * BLOCK
    stride_part = layers.to(tl.int64) * rows
    offs_r = strip * STRIP + tl.arange(0, STRIP)
    offs_c = tl.arange(0, BLOCK)
    offs_i = pid_i * BLOCK + offs_r
    offs_j = pid_j * BLOCK + offs_c
    mask = (offs_i[:, None] < offs_j[None, :]) & (offs_j < n)[None, :]
    wide_i = offs_i.to(tl.int64)
    places = wide_i * (2 * n - wide_i - 1) // 2 - wide_i - 1 - origin  # [STRIP]
    values_ptrs = values_ptr + layer * stride_values + places[:, None] + offs_j[None, :]
    if AGAIN:
        k = tl.load(values_ptrs, mask=mask, other=0.0)
    else:
        norms_j = _norms_of(norms_ptr + layer * rows, offs_j, splits, stride_part)
        if (pid_i == pid_j) & (strip == 0):
            # true of no NaN and no infinity
            bad = (offs_j < n) & ~(tl.abs(norms_j) < float("inf"))
            tl.store(bads_ptr + layer * (blocks + 1) + pid_j, tl.min(tl.where(bad, offs_j, n), axis=0).to(tl.int64))
        k = tl.zeros((STRIP, BLOCK), dtype=kind)
        # four columns at a time, so that a load takes them together
        some = offs_i[:, None] < (offs_j // 4 * 4 + 4)[None, :]
        for split in range(splits):
            part = (split * layers.to(tl.int64) + layer) * tiles + t
            grams = grams_ptr + part * (BLOCK * BLOCK) + offs_r[:, None] * BLOCK + offs_c[None, :]
            k += tl.load(grams, mask=some, other=0.0)
        if FUNCTION != LINEAR:
            norms_i = _norms_of(norms_ptr + layer * rows, offs_i, splits, stride_part)
            both = norms_i[:, None] + norms_j[None, :]
            # what rounding leaves of rows that are equal; NaN stays
            noise = both * (2.0**-21 if kind == tl.float32 else 2.0**-48)
            k = both - 2.0 * k
            k = tl.where(k <= noise, 0.0, k)
    if FUNCTION == RBF:
        width = tl.load(widths_ptr + layer)
        offset = _offset(deviations_ptr + layer * pieces * SAMPLE, width, n, pieces)
        # an infinite factor would make NaN of a distance of 0
        factor = tl.minimum(0.5 / (width * width) * _LOG2_E, _LARGEST)
        k = exp2_less(k * -factor.to(kind), offset.to(kind))
        if tile + pid == 0:
            tl.store(offsets_ptr + layer, offset)
    k = tl.where(mask, k, 0.0)
    tl.store(values_ptrs, k, mask=mask)
    if FUNCTION != SQUARES:
        wide = k.to(tl.float64)
        columns = tl.sum(wide, axis=0)
        parts = parts_ptr + (layer * tiles + t) * ((strips + 1) * BLOCK)
        tl.store(parts + offs_r, tl.sum(wide, axis=1))
        tl.store(parts + (strip + 1) * BLOCK + offs_c, columns)
        sums = sums_ptr + (layer * tl.num_programs(0) + pid) * 2
        tl.store(sums, tl.sum(columns, axis=0))
        tl.store(sums + 1, tl.sum(tl.sum(wide * wide, axis=0), axis=0))

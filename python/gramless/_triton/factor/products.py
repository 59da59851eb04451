"""Squared lengths of the products of packed rows with a factor, tile by tile: the products are never held.

partials[j, n] = sum over rows i of tile j of R of (sum_k R_ik u_nk)^2. R is upper triangular, or has columns of zeros:
a tile takes its columns from the first to the last one that is not zero, which skips half of the work.
Cost: at N = 16384, D = 8192, 1.1e12 flops a product of planes; three for "high", and two for what bfloat16 holds, as h2
is of bfloat16: 2.5e12 flops and 3e10 bytes of the cache. Each 128 rows of R write 8 bytes for each row.
Numerics: a product of planes is exact in float32; matrix units cut off the last digits of its sums, 1.4e-9 of them for
each column and product, so that "high" adds sums of 1024 columns in plain float32. Squares are summed in float32 within
a tile, in float64 for "exact".
Rejected: cuBLAS, which does not leave out the zeros, writes N D products and reads them again.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..tiles import launch
from ..tiles.launch import Config, Configs, cdiv
from ..tiles.order import grouped, multiply
from .pack import Planes

# columns of a factor are padded to whole steps, its rows to whole tiles
FEATURES = 64
FACTOR_ROWS = 256
# columns in one sum of a matrix unit, 0 for all
_STEPS = {"fast": 0, "high": 1024, "exact": 0}
_ALIGNED = tl.constexpr(FEATURES)
# rows of tiles that share the factor in the cache
_GROUP = tl.constexpr(16)

CONFIGS: dict[str, Configs] = {
    "fast": {
        "interpret": (Config(128, 128, 64, 4, 1),),
        "sm_80": (Config(128, 256, 32, 8, 4), Config(128, 128, 64, 8, 3)),
        "sm_90": (Config(128, 256, 64, 8, 4), Config(128, 256, 64, 8, 3), Config(128, 128, 64, 8, 4)),
        "sm_100": (Config(128, 256, 64, 8, 4),),
        "gfx942": (Config(128, 256, 64, 8, 2),),
    },
    "high": {
        "interpret": (Config(128, 128, 64, 4, 1),),
        "sm_80": (Config(64, 128, 32, 4, 4),),
        "sm_90": (Config(128, 128, 64, 8, 3), Config(128, 128, 32, 8, 5)),
        "sm_100": (Config(128, 128, 64, 8, 2),),
        "gfx942": (Config(128, 128, 32, 8, 2),),
    },
    "exact": {
        "interpret": (Config(128, 128, 64, 4, 1),),
        "sm_80": (Config(128, 128, 16, 8, 3),),
        "sm_90": (Config(128, 128, 16, 8, 3), Config(64, 128, 16, 8, 3)),
        "sm_100": (Config(128, 128, 16, 8, 3),),
        "gfx942": (Config(128, 128, 16, 8, 2),),
    },
}


def partials_of(
    planes: Planes,
    factor: torch.Tensor,  # (terms, rows, width)
    spans: torch.Tensor,  # (2, rows) int32, the first column of a row that is not zero, and the one after the last
    count: int,
    split: int,
    precision: str,
    wanted: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return partials (tiles, rows), float32 or for "exact" float64, for this many rows of the factor.

    With rows that are wanted, tiles with none are left as they are.
    """
    rows, width = planes.upper.shape
    number = torch.float64 if precision == "exact" else torch.float32
    second = 2 if planes.lower is not None and planes.lower.shape[1] == width else 1
    first = 1 if planes.lower is None else 2

    def run(config: Config) -> torch.Tensor:
        tiles_i, tiles_j = cdiv(rows, config.block_i), cdiv(count, config.block_j)
        partials = torch.empty((tiles_j, rows), dtype=number, device=factor.device)
        launch.launch(
            _factor_product_kernel,
            (tiles_i * tiles_j,),
            planes.upper,
            planes.upper if planes.lower is None else planes.lower,
            factor,
            spans,
            wanted,
            partials,
            tiles_i,
            tiles_j,
            rows,
            split,
            planes.upper.stride(0),
            0 if planes.lower is None else planes.lower.stride(0),
            spans.stride(0),
            factor.stride(0),
            factor.stride(1),
            FIRST=first,
            SECOND=second,
            TERMS=factor.shape[0],
            STEPS=_STEPS[precision],
            **config.constants,
            **config.options,
        )
        return partials

    return run(launch.config(CONFIGS[precision], factor.device))


@triton.jit(do_not_specialize=["tiles_i", "tiles_j", "rows"])
def _factor_product_kernel(
    upper_ptr,
    lower_ptr,
    factor_ptr,
    spans_ptr,
    wanted_ptr,
    partials_ptr,
    tiles_i,
    tiles_j,
    rows,
    split,
    stride_upper,
    stride_lower,
    stride_span,
    stride_term,
    stride_factor,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    TERMS: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    i, j = grouped(tl.program_id(0), tiles_i, tiles_j, _GROUP)
    start = i.to(tl.int64) * BLOCK_I
    offs_i = tl.arange(0, BLOCK_I)
    offs_j = tl.arange(0, BLOCK_J)
    any_wanted = 1
    if wanted_ptr is not None:
        any_wanted = tl.max(tl.load(wanted_ptr + start + offs_i), axis=0)
    if any_wanted != 0:
        span_ptrs = spans_ptr + j * BLOCK_J + offs_j
        begin = tl.min(tl.load(span_ptrs), axis=0) // _ALIGNED * _ALIGNED
        end = (tl.max(tl.load(span_ptrs + stride_span), axis=0) + _ALIGNED - 1) // _ALIGNED * _ALIGNED
        offs_k = tl.arange(0, BLOCK_K)
        upper_ptr += start * stride_upper
        lower_ptr += start * stride_lower
        factor_ptr += (j * BLOCK_J).to(tl.int64) * stride_factor
        # of the planes of both, and of rows and columns in a tile of each
        planes = (upper_ptr, lower_ptr, factor_ptr)
        offs_a = offs_i[:, None] * stride_upper + offs_k[None, :]
        offs_l = offs_i[:, None] * stride_lower + offs_k[None, :]
        offs_b = offs_k[:, None] + offs_j[None, :] * stride_factor
        offs = (offs_a, offs_l, offs_b)
        total = tl.zeros((BLOCK_I, BLOCK_J), dtype=partials_ptr.dtype.element_ty)
        if FIRST == SECOND:
            total = _columns(total, planes, offs, begin, end, stride_term, FIRST, TERMS, STEPS, BLOCK_K)
        else:
            left, right = tl.minimum(end, split), tl.maximum(begin, split)
            total = _columns(total, planes, offs, begin, left, stride_term, FIRST, TERMS, STEPS, BLOCK_K)
            total = _columns(total, planes, offs, right, end, stride_term, SECOND, TERMS, STEPS, BLOCK_K)
        tl.store(partials_ptr + j.to(tl.int64) * rows + start + offs_i, tl.sum(total * total, axis=1))


@triton.jit
def _columns(
    total,
    planes,
    offs,
    begin,
    end,
    stride_term,
    LOWER: tl.constexpr,
    TERMS: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Add the products of some columns."""
    begin = tl.multiple_of(begin, _ALIGNED)
    upper_ptr, lower_ptr, factor_ptr = planes
    upper_ptr += begin
    lower_ptr += begin
    factor_ptr += begin
    if STEPS > 0:
        for block in range(begin, end, STEPS):
            acc = tl.zeros(total.shape, dtype=total.dtype)
            for _ in range(block, tl.minimum(block + STEPS, end), BLOCK_K):
                acc = _step((upper_ptr, lower_ptr, factor_ptr), offs, stride_term, acc, LOWER, TERMS)
                upper_ptr += BLOCK_K
                lower_ptr += BLOCK_K
                factor_ptr += BLOCK_K
            total += acc
    else:
        for _ in range(begin, end, BLOCK_K):
            total = _step((upper_ptr, lower_ptr, factor_ptr), offs, stride_term, total, LOWER, TERMS)
            upper_ptr += BLOCK_K
            lower_ptr += BLOCK_K
            factor_ptr += BLOCK_K
    return total


@triton.jit
def _step(planes, offs, stride_term, acc, LOWER: tl.constexpr, TERMS: tl.constexpr):
    """Add the products of BLOCK_K columns: of planes, all but that of the lower ones."""
    upper_ptr, lower_ptr, factor_ptr = planes
    offs_a, offs_l, offs_b = offs
    a_tile = tl.load(upper_ptr + offs_a)  # [BLOCK_I, BLOCK_K]
    b_tile = tl.load(factor_ptr + offs_b)  # [BLOCK_K, BLOCK_J]
    if LOWER == 2:
        acc = multiply(tl.load(lower_ptr + offs_l), b_tile, acc)
    if TERMS == 2:
        acc = multiply(a_tile, tl.load(factor_ptr + stride_term + offs_b), acc)
    return multiply(a_tile, b_tile, acc)

"""Rows, less a pivot, packed for products: the one read of the data.

d = x - pivot, for NORMALISE of rows of length 1; planes hold d in bfloat16 ("fast"), as a sum of two bfloat16 ("high"),
or in float64 ("exact"), and squares |d|^2 of what the planes hold, so that all that follows is exact for data that are
rounded once. Rows and features are padded with zeros, so that no product needs a mask.
Cost: reads each value once (twice if NORMALISE); holds (n + 128) (p + 64) values of 2, 4 or 8 bytes.
Numerics: d is taken in float32 (float64 for "exact" and float64 data), |d|^2 summed in float64; NaN and infinity are
kept, and the first row that has one is told without a wait for the device. Zero rows are told if NORMALISE.
Rejected: products of x itself, corrected for the pivot afterwards: what is left of large means are no digits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from . import launch
from .launch import cdiv
from .order import to_bfloat16

# padded rows fill tiles, padded features the steps of a product
ROWS = 128
FEATURES = 64
# rows that a pivot is taken from
PIVOT_ROWS = 64
# rows that the centre of a Gram matrix is taken from
SAMPLED_ROWS = 7


@dataclass(frozen=True)
class PackedRows:
    """Rows less a pivot, in planes that products take."""

    n: int
    p: int
    planes: torch.Tensor  # (terms, rows, width)
    squares: torch.Tensor  # (rows,) float64
    first_bad: torch.Tensor  # () int64, the first row that is not finite, n if all are
    first_zero: torch.Tensor  # () int64, the first row of zeros, n if there is none; looked for if normalised

    @property
    def rows(self) -> int:
        """Rows, padded."""
        return int(self.planes.shape[1])

    @property
    def width(self) -> int:
        """Features, padded."""
        return int(self.planes.shape[2])


def packed_bytes(n: int, p: int, precision: str) -> int:
    """Return the bytes of such rows."""
    item = {"fast": 2, "high": 4, "exact": 8}[precision]
    return cdiv(n, ROWS) * ROWS * (cdiv(p, FEATURES) * FEATURES * item + 8)


def pack(
    x: torch.Tensor,
    pivot: torch.Tensor,
    precision: str,
    *,
    normalise: bool = False,
    unit: torch.Tensor | None = None,
    into: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> PackedRows:
    """Return rows of x (n, p), with any strides, less a float64 pivot (p,) on the same device.

    With a unit, a power of 2, d is multiplied by it. With planes (terms, rows, width) and squares (rows,) to write
    into, rows are padded to theirs.
    """
    n, p = x.shape
    if into is None:
        rows, width = cdiv(n, ROWS) * ROWS, cdiv(p, FEATURES) * FEATURES
        planes = torch.empty((terms_of(precision), rows, width), dtype=dtype_of(precision), device=x.device)
        into = planes, torch.empty(rows, dtype=torch.float64, device=x.device)
    planes, squares = into
    terms, rows, width = planes.shape
    block_p = min(1024 if launch.interpreting() else 256, triton.next_power_of_2(width))
    # few programs in the interpreter
    block_n = max(64, min(2**18 // block_p, triton.next_power_of_2(rows))) if launch.interpreting() else 8
    programs = cdiv(rows, block_n)
    bad, zero = torch.empty((2, programs), dtype=torch.int64, device=x.device)
    launch.launch(
        _pack_kernel,
        (programs,),
        x,
        pivot,
        unit,
        planes,
        squares,
        bad,
        zero,
        n,
        p,
        rows,
        width,
        *x.stride(),
        planes.stride(0),
        planes.stride(1),
        WIDE=precision == "exact" or x.dtype == torch.float64,
        TERMS=terms,
        NORMALISE=normalise,
        BLOCK_N=block_n,
        BLOCK_P=block_p,
        num_warps=4,
    )
    return PackedRows(n, p, planes, squares, bad.amin(), zero.amin())


def terms_of(precision: str) -> int:
    """Return how many planes hold d."""
    return 2 if precision == "high" else 1


def dtype_of(precision: str) -> torch.dtype:
    """Return the number of these planes."""
    return torch.float64 if precision == "exact" else torch.bfloat16


@triton.jit
def _pack_kernel(
    x_ptr,
    pivot_ptr,
    unit_ptr,
    planes_ptr,
    squares_ptr,
    bad_ptr,
    zero_ptr,
    n,
    p,
    rows,
    width,
    stride_xn,
    stride_xp,
    stride_term,
    stride_row,
    WIDE: tl.constexpr,
    TERMS: tl.constexpr,
    NORMALISE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    pid = tl.program_id(0)
    offs_n = pid.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < n
    kind: tl.constexpr = tl.float64 if WIDE else tl.float32
    row_ptrs = x_ptr + offs_n[:, None] * stride_xn  # [BLOCK_N, 1]
    length = tl.zeros((BLOCK_N,), dtype=tl.float64) + 1
    if NORMALISE:
        total = tl.zeros((BLOCK_N,), dtype=tl.float64)
        for start in range(0, p, BLOCK_P):
            offs_p = start + tl.arange(0, BLOCK_P).to(tl.int64)
            mask = mask_n[:, None] & (offs_p < p)[None, :]
            value = tl.load(row_ptrs + offs_p[None, :] * stride_xp, mask=mask, other=0.0).to(tl.float64)
            total += tl.sum(value * value, axis=1)
        # a row of zeros stays one
        length = tl.where(total > 0, tl.sqrt(total), 1.0)
        zero = mask_n & (total == 0)
        tl.store(zero_ptr + pid, tl.min(tl.where(zero, offs_n, n), axis=0))
    else:
        tl.store(zero_ptr + pid, n)
    squares = tl.zeros((BLOCK_N,), dtype=tl.float64)
    finite = tl.zeros((BLOCK_N,), dtype=tl.int32) + 1
    for start in range(0, width, BLOCK_P):
        offs_p = start + tl.arange(0, BLOCK_P).to(tl.int64)
        mask_p = offs_p < p
        mask = mask_n[:, None] & mask_p[None, :]
        value = tl.load(row_ptrs + offs_p[None, :] * stride_xp, mask=mask, other=0.0).to(kind)
        # true of no NaN and no infinity
        is_finite = tl.abs(value) < float("inf")
        finite = tl.minimum(finite, tl.min(is_finite.to(tl.int32), axis=1))
        if NORMALISE:
            value = (value.to(tl.float64) / length[:, None]).to(kind)
        pivot = tl.load(pivot_ptr + offs_p, mask=mask_p, other=0.0).to(kind)
        d = tl.where(mask, value - pivot[None, :], 0.0)  # [BLOCK_N, BLOCK_P]
        if unit_ptr is not None:
            d = d * tl.load(unit_ptr).to(kind)
        plane_ptrs = planes_ptr + offs_n[:, None] * stride_row + offs_p[None, :]
        inside = (offs_p < width)[None, :] & (offs_n < rows)[:, None]
        if planes_ptr.dtype.element_ty == tl.bfloat16:
            d = d.to(tl.float32)
            held = tl.zeros((BLOCK_N, BLOCK_P), dtype=tl.float32)
            for term in tl.static_range(TERMS):
                part = to_bfloat16(d - held)
                tl.store(plane_ptrs + term * stride_term, part, mask=inside)
                held += part.to(tl.float32)
            squares += tl.sum(held * held, axis=1).to(tl.float64)
        else:
            tl.store(plane_ptrs, d, mask=inside)
            squares += tl.sum(d * d, axis=1).to(tl.float64)
    tl.store(squares_ptr + offs_n, squares, mask=offs_n < rows)
    tl.store(bad_ptr + pid, tl.min(tl.where(mask_n & (finite == 0), offs_n, n), axis=0))


def unit_of(x: torch.Tensor, pivot: torch.Tensor) -> torch.Tensor:
    """Return the power of 2 that brings the largest |x - pivot| of the first rows to [1, 2), 1 where that is 0."""
    unit = torch.empty((), dtype=torch.float64, device=x.device)
    n, p = x.shape
    launch.launch(
        _unit_kernel,
        (1,),
        x,
        pivot,
        unit,
        min(n, PIVOT_ROWS),
        p,
        *x.stride(),
        BLOCK_N=PIVOT_ROWS,
        BLOCK_P=512,
        num_warps=8,
    )
    return unit


@triton.jit
def _unit_kernel(x_ptr, pivot_ptr, unit_ptr, n, p, stride_xn, stride_xp, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr):
    offs_n = tl.arange(0, BLOCK_N).to(tl.int64)
    row_ptrs = x_ptr + offs_n[:, None] * stride_xn
    largest = tl.zeros((BLOCK_P,), dtype=tl.float32)
    for start in range(0, p, BLOCK_P):
        offs_p = start + tl.arange(0, BLOCK_P).to(tl.int64)
        mask = (offs_n < n)[:, None] & (offs_p < p)[None, :]
        value = tl.load(row_ptrs + offs_p[None, :] * stride_xp, mask=mask, other=0.0).to(tl.float32)
        pivot = tl.load(pivot_ptr + offs_p, mask=offs_p < p, other=0.0).to(tl.float32)
        size = tl.abs(value - pivot[None, :])
        # comparisons with NaN are false
        size = tl.where(mask & (size < float("inf")), size, 0.0)
        largest = tl.maximum(largest, tl.max(size, axis=0))
    size = tl.max(largest, axis=0)
    # 2^-e of 2^e m has 127 - e in its bits of the exponent, those of 2^e have e + 127
    exponent = tl.minimum(tl.maximum(254 - (size.to(tl.int32, bitcast=True) >> 23), 1), 253)
    unit = (exponent << 23).to(tl.float32, bitcast=True)
    tl.store(unit_ptr, tl.where(size > 0, unit, 1.0).to(tl.float64))


def median(rows: torch.Tensor) -> torch.Tensor:
    """Return the medians of the columns of a few rows, in float64: means of the two middle ones of an even number."""
    ordered = rows.to(torch.float64).sort(dim=0).values
    count = rows.shape[0]
    return (ordered[(count - 1) // 2] + ordered[count // 2]) / 2


def pivot_of(x: torch.Tensor) -> torch.Tensor:
    """Return the medians of the first rows, rounded to float32 unless x is float64."""
    return rounded(median(x[:PIVOT_ROWS]), x.dtype == torch.float64)


def sample_of(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the medians of up to 7 rows, evenly spaced, and the median of their squared distances from these."""
    rows = x[:: max(1, x.shape[0] // SAMPLED_ROWS)][:SAMPLED_ROWS]
    centre = rounded(median(rows), x.dtype == torch.float64)
    return centre, median(((rows.to(torch.float64) - centre) ** 2).sum(dim=1))


def rounded(pivot: torch.Tensor, wide: bool) -> torch.Tensor:
    """Return a float64 pivot as it is, or rounded to float32, so that d is the same in both."""
    return pivot if wide else pivot.to(torch.float32).to(torch.float64)

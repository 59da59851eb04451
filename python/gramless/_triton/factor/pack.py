"""Hidden states of two models in the basis of a factor, packed for its product: the one read of them.

u = (h1 - h2, h2[, 1]) or (h1, h2[, 1]), each column in the unit of its column of the factor, each row in a unit near
its largest value; both units are powers of 2, so that bfloat16 and float32 neither overflow nor lose what is small.
Beside the planes: the units of the rows, sums of (u_j c_j)^2 for the lengths c_j of the columns, and the first row of
either array that is not finite. Rows that do not count are zero, whatever they hold.
Cost: reads both arrays twice, the second time from the cache, and h2 once more for differences; writes 2, 4 or 8 bytes
of each value. The lower plane ends where all that follows is given in bfloat16.
Numerics: differences and units in float64, rounded once.
Rejected: differences in float32, which may overflow; one unit of all rows, under which those far below the longest
would lose their digits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from ..tiles import launch
from ..tiles.launch import cdiv
from ..tiles.order import to_bfloat16

# of no row
NO_ROW = 2**63 - 1


@dataclass(frozen=True)
class Basis:
    """The columns of a factor: where those of either model are, padded, and their units."""

    d1: int
    d2: int
    biased: bool
    split: int  # the column of the first one of h2
    width: int
    units: torch.Tensor  # (width,) float64, powers of 2
    squares: torch.Tensor  # (width,) float64, of the lengths of columns in these units

    @property
    def differences(self) -> bool:
        """Whether u has h1 - h2 in place of h1."""
        return self.d1 == self.d2


@dataclass(frozen=True)
class States:
    """Hidden states of both models."""

    h1: torch.Tensor  # (N, d1)
    h2: torch.Tensor  # (N, d2)
    mask: torch.Tensor | None  # (N,) bool

    def __getitem__(self, rows: slice) -> States:
        return States(self.h1[rows], self.h2[rows], None if self.mask is None else self.mask[rows])


@dataclass(frozen=True)
class Planes:
    """Where packed rows go."""

    upper: torch.Tensor  # (rows, width)
    lower: torch.Tensor | None  # (rows, columns), of the first columns; None where one plane holds all values
    units: torch.Tensor  # (rows,) float64, powers of 2
    terms: torch.Tensor  # (rows,) float64


def pack(
    states: States, basis: Basis, planes: Planes, wanted: torch.Tensor | None = None, first: int = 0
) -> torch.Tensor:
    """Write rows, padded with zeros, and return the first row (2,) of either array that is not finite, on the device.

    Rows are counted from the first; NO_ROW if all are finite. With rows that are wanted (rows,), groups of rows with
    none are left as they are.
    """
    n, (rows, _) = int(states.h1.shape[0]), planes.upper.shape
    interpreting = launch.interpreting()
    block_p = min(1024 if interpreting else 256, triton.next_power_of_2(basis.width))
    block_n = max(64, min(2**18 // block_p, triton.next_power_of_2(rows))) if interpreting else 4
    programs = cdiv(rows, block_n)
    # a thread has 8 values, where warps have 32 threads, and where they have 64
    warps = 2 if launch.architecture(states.h1.device).startswith("gfx") else 4
    bad = torch.empty((2, programs), dtype=torch.int64, device=states.h1.device)
    launch.launch(
        _factor_pack_kernel,
        (programs,),
        states.h1,
        states.h2,
        states.mask,
        wanted,
        basis.units,
        basis.squares,
        planes.upper,
        planes.lower,
        planes.units,
        planes.terms,
        bad,
        first,
        n,
        rows,
        basis.d1,
        basis.d2,
        basis.split,
        basis.width,
        *states.h1.stride(),
        *states.h2.stride(),
        planes.upper.stride(0),
        0 if planes.lower is None else planes.lower.stride(0),
        DIFFERENCES=basis.differences,
        BIASED=basis.biased,
        BLOCK_N=block_n,
        BLOCK_P=block_p,
        num_warps=warps,
    )
    return bad.amin(dim=1)


@triton.jit(do_not_specialize=["first", "n", "rows"])
def _factor_pack_kernel(
    h1_ptr,
    h2_ptr,
    mask_ptr,
    wanted_ptr,
    column_units_ptr,
    column_squares_ptr,
    upper_ptr,
    lower_ptr,
    units_ptr,
    terms_ptr,
    bad_ptr,
    first,
    n,
    rows,
    d1,
    d2,
    split,
    width,
    stride_h1n,
    stride_h1p,
    stride_h2n,
    stride_h2p,
    stride_upper,
    stride_lower,
    DIFFERENCES: tl.constexpr,
    BIASED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    pid = tl.program_id(0)
    offs_n = pid.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_p = tl.arange(0, BLOCK_P).to(tl.int64)
    inside = offs_n < rows
    mask_n = offs_n < n
    if mask_ptr is not None:
        mask_n = mask_n & (tl.load(mask_ptr + offs_n, mask=mask_n, other=0) != 0)
    any_wanted = 1
    if wanted_ptr is not None:
        any_wanted = tl.max(tl.load(wanted_ptr + offs_n, mask=inside, other=0), axis=0)
    if any_wanted != 0:
        h1_ptrs = h1_ptr + offs_n[:, None] * stride_h1n  # [BLOCK_N, 1]
        h2_ptrs = h2_ptr + offs_n[:, None] * stride_h2n
        largest = tl.zeros((BLOCK_N,), dtype=tl.float64)
        finite1 = tl.zeros((BLOCK_N,), dtype=tl.int32) + 1
        finite2 = tl.zeros((BLOCK_N,), dtype=tl.int32) + 1
        for start in range(0, split, BLOCK_P):
            u, is_finite = _left(h1_ptrs, h2_ptrs, mask_n, start + offs_p, d1, stride_h1p, stride_h2p, DIFFERENCES)
            finite1 = tl.minimum(finite1, tl.min(is_finite.to(tl.int32), axis=1))
            unit = tl.load(column_units_ptr + start + offs_p, mask=start + offs_p < split, other=0.0)
            largest = tl.maximum(largest, tl.max(tl.abs(u * unit[None, :]), axis=1))
        for start in range(0, width - split, BLOCK_P):
            u, is_finite = _right(h2_ptrs, mask_n, start + offs_p, d2, stride_h2p, BIASED)
            finite2 = tl.minimum(finite2, tl.min(is_finite.to(tl.int32), axis=1))
            unit = tl.load(column_units_ptr + split + start + offs_p, mask=start + offs_p < width - split, other=0.0)
            largest = tl.maximum(largest, tl.max(tl.abs(u * unit[None, :]), axis=1))
        # 2^-e of 2^e m has 2046 - e in its bits of the exponent
        exponent = tl.minimum(tl.maximum(2046 - (largest.to(tl.int64, bitcast=True) >> 52), 1), 2045)
        row_unit = (exponent << 52).to(tl.float64, bitcast=True)
        row_unit = tl.where(largest > 0, row_unit, 1.0)
        terms = tl.zeros((BLOCK_N,), dtype=tl.float64)
        upper_ptrs = upper_ptr + offs_n[:, None] * stride_upper
        lower_ptrs = upper_ptrs
        if lower_ptr is not None:
            lower_ptrs = lower_ptr + offs_n[:, None] * stride_lower
        for start in range(0, split, BLOCK_P):
            offs = start + offs_p
            u, _ = _left(h1_ptrs, h2_ptrs, mask_n, offs, d1, stride_h1p, stride_h2p, DIFFERENCES)
            terms += _packed(
                u,
                row_unit,
                offs,
                column_units_ptr,
                column_squares_ptr,
                upper_ptrs,
                lower_ptrs,
                inside,
                split,
                stride_lower,
                lower_ptr is not None,
            )
        for start in range(0, width - split, BLOCK_P):
            u, _ = _right(h2_ptrs, mask_n, start + offs_p, d2, stride_h2p, BIASED)
            terms += _packed(
                u,
                row_unit,
                split + start + offs_p,
                column_units_ptr,
                column_squares_ptr,
                upper_ptrs,
                lower_ptrs,
                inside,
                width,
                stride_lower,
                lower_ptr is not None,
            )
        tl.store(units_ptr + offs_n, row_unit, mask=inside)
        tl.store(terms_ptr + offs_n, terms, mask=inside)
        none: tl.constexpr = 2**63 - 1
        bad1 = tl.min(tl.where(finite1 == 0, first + offs_n, none), axis=0)
        bad2 = tl.min(tl.where(finite2 == 0, first + offs_n, none), axis=0)
        tl.store(bad_ptr + pid, bad1)
        tl.store(bad_ptr + tl.num_programs(0) + pid, bad2)


@triton.jit
def _left(h1_ptrs, h2_ptrs, mask_n, offs, d1, stride_h1p, stride_h2p, DIFFERENCES: tl.constexpr):
    """Return the first columns of u, and where those of h1 are finite."""
    mask = mask_n[:, None] & (offs < d1)[None, :]
    u = tl.load(h1_ptrs + offs[None, :] * stride_h1p, mask=mask, other=0.0).to(tl.float64)
    # true of no NaN and no infinity
    is_finite = tl.abs(u) < float("inf")
    if DIFFERENCES:
        u -= tl.load(h2_ptrs + offs[None, :] * stride_h2p, mask=mask, other=0.0).to(tl.float64)
    return u, is_finite


@triton.jit
def _right(h2_ptrs, mask_n, offs, d2, stride_h2p, BIASED: tl.constexpr):
    """Return the other columns of u, and where they are finite."""
    mask = mask_n[:, None] & (offs < d2)[None, :]
    u = tl.load(h2_ptrs + offs[None, :] * stride_h2p, mask=mask, other=0.0).to(tl.float64)
    is_finite = tl.abs(u) < float("inf")
    if BIASED:
        u = tl.where(mask_n[:, None] & (offs == d2)[None, :], 1.0, u)
    return u, is_finite


@triton.jit
def _packed(
    u,
    row_unit,
    offs,
    column_units_ptr,
    column_squares_ptr,
    upper_ptrs,
    lower_ptrs,
    inside,
    stop,
    stride_lower,
    LOWER: tl.constexpr,
):
    """Write some columns of u, and return sums over them of (u_j c_j)^2, in the unit of the row."""
    mask = offs < stop
    unit = tl.load(column_units_ptr + offs, mask=mask, other=0.0)
    value = u * unit[None, :] * row_unit[:, None]  # [BLOCK_N, BLOCK_P]
    square = tl.load(column_squares_ptr + offs, mask=mask, other=0.0)
    store = inside[:, None] & mask[None, :]
    if upper_ptrs.dtype.element_ty == tl.bfloat16:
        rounded = value.to(tl.float32)
        part = to_bfloat16(rounded)
        tl.store(upper_ptrs + offs[None, :], part, mask=store)
        if LOWER:
            part = to_bfloat16(rounded - part.to(tl.float32))
            # a lower plane is as wide as its rows are apart
            tl.store(lower_ptrs + offs[None, :], part, mask=store & (offs < stride_lower)[None, :])
    else:
        tl.store(upper_ptrs + offs[None, :], value, mask=store)
    return tl.sum(value * value * square[None, :], axis=1)

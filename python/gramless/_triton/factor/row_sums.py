"""What is made of the products of rows with a factor: squared distances, what cancels in them, and their mean.

Cost: reads 8 bytes of each row for each 128 rows of the factor, some 100 times less than the products do.
Numerics: float64 throughout, in a fixed order; means merge as Chan, Golub and LeVeque (1979) have it.
Rejected: these sums as operations of torch, some twenty launches for each batch of a stream.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..tiles import launch
from ..tiles.launch import cdiv
from .pack import Planes

# numbers of a stream: rows, mean, sum of squares about it, rows whose rounding may matter, the most it may do, and the
# first row of h1 and of h2 that is not finite
NUMBERS = 7


def settle(
    partials: torch.Tensor,  # (tiles, rows)
    planes: Planes,
    squares: torch.Tensor,  # (n,)
    cancelled: torch.Tensor,  # (n,)
    wanted: torch.Tensor,  # (rows,) int32
    most: float | None,
) -> None:
    """Write the squared distance of each row, and the root of what cancels in it over that.

    With the most that may cancel, rows are wanted where more does; with none, only rows that are wanted are written.
    """
    n, (tiles, rows) = int(squares.shape[0]), partials.shape
    block = 1024 if launch.interpreting() else 128
    launch.launch(
        _factor_settle_kernel,
        (cdiv(rows, block),),
        partials,
        planes.units,
        planes.terms,
        squares,
        cancelled,
        wanted,
        0.0 if most is None else most,
        n,
        rows,
        tiles,
        FIRST=most is not None,
        BLOCK_N=block,
        num_warps=1,
    )


@triton.jit(do_not_specialize=["most", "n", "tiles"])
def _factor_settle_kernel(
    partials_ptr,
    units_ptr,
    terms_ptr,
    squares_ptr,
    cancelled_ptr,
    wanted_ptr,
    most,
    n,
    rows,
    tiles,
    FIRST: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    offs = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = offs < rows
    store = offs < n
    any_wanted = 1
    if not FIRST:
        wanted = tl.load(wanted_ptr + offs, mask=inside, other=0)
        any_wanted = tl.max(wanted, axis=0)
        store = store & (wanted != 0)
    if any_wanted != 0:
        total = tl.zeros((BLOCK_N,), dtype=tl.float64)
        partial_ptrs = partials_ptr + offs
        for _ in range(tiles):
            total += tl.load(partial_ptrs, mask=inside, other=0.0).to(tl.float64)
            partial_ptrs += rows
        unit = 1.0 / tl.load(units_ptr + offs, mask=inside, other=1.0)
        terms = tl.load(terms_ptr + offs, mask=inside, other=0.0)
        cancelled = tl.where(terms > 0, tl.sqrt(terms / total), 0.0)
        if FIRST:
            tl.store(wanted_ptr + offs, (cancelled > most).to(tl.int32), mask=inside)
        tl.store(squares_ptr + offs, total * unit * unit, mask=store)
        tl.store(cancelled_ptr + offs, cancelled, mask=store)


def add_rows(
    before: torch.Tensor | None,  # (NUMBERS,)
    squares: torch.Tensor,  # (n,)
    cancelled: torch.Tensor,  # (n,)
    mask: torch.Tensor | None,  # (n,)
    first_bad: torch.Tensor,  # (2,)
    rounding: float,
    resolved: float,
) -> torch.Tensor:
    """Return the numbers of a stream with these rows: rounding is what is lost where nothing cancels, 0 if none is."""
    after = torch.empty(NUMBERS, dtype=torch.float64, device=squares.device)
    launch.launch(
        _factor_add_kernel,
        (1,),
        before,
        squares,
        cancelled,
        mask,
        first_bad,
        after,
        rounding,
        resolved,
        int(squares.shape[0]),
        BLOCK_N=1024,
        num_warps=4,
    )
    return after


@triton.jit(do_not_specialize=["rounding", "resolved", "n"])
def _factor_add_kernel(
    before_ptr,
    squares_ptr,
    cancelled_ptr,
    mask_ptr,
    bad_ptr,
    after_ptr,
    rounding,
    resolved,
    n,
    BLOCK_N: tl.constexpr,
):
    offs_n = tl.arange(0, BLOCK_N)
    counts = tl.zeros((BLOCK_N,), dtype=tl.float64)
    sums = tl.zeros((BLOCK_N,), dtype=tl.float64)
    lost = tl.zeros((BLOCK_N,), dtype=tl.float64)
    worst = tl.zeros((BLOCK_N,), dtype=tl.float64)
    for start in range(0, n, BLOCK_N):
        offs = start + offs_n
        counted = _counted(mask_ptr, offs, n)
        counts += counted.to(tl.float64)
        sums += tl.load(squares_ptr + offs, mask=counted, other=0.0)
        error = rounding * tl.load(cancelled_ptr + offs, mask=counted, other=0.0)
        lost += (error > resolved).to(tl.float64)
        worst = tl.where(error > worst, error, worst)
    count = tl.sum(counts, axis=0)
    mean = tl.sum(sums, axis=0) / tl.maximum(count, 1.0)
    deviations = tl.zeros((BLOCK_N,), dtype=tl.float64)
    for start in range(0, n, BLOCK_N):
        offs = start + offs_n
        counted = _counted(mask_ptr, offs, n)
        deviation = tl.where(counted, tl.load(squares_ptr + offs, mask=counted, other=0.0) - mean, 0.0)
        deviations += deviation * deviation
    square = tl.sum(deviations, axis=0)
    unresolved = tl.sum(lost, axis=0)
    most = tl.max(worst, axis=0)
    bad1 = tl.load(bad_ptr).to(tl.float64)
    bad2 = tl.load(bad_ptr + 1).to(tl.float64)
    if before_ptr is not None:
        rows = tl.load(before_ptr)
        earlier = tl.load(before_ptr + 1)
        both = tl.maximum(rows + count, 1.0)
        step = mean - earlier
        # a batch of none changes nothing, and before there were rows there is no mean
        mean = tl.where(rows > 0, earlier + step * (count / both), mean)
        between = tl.where(count > 0, step * step * (rows * count / both), 0.0)
        square = tl.load(before_ptr + 2) + square + tl.where(rows > 0, between, 0.0)
        count += rows
        unresolved += tl.load(before_ptr + 3)
        most = tl.maximum(tl.load(before_ptr + 4), most)
        bad1 = tl.minimum(tl.load(before_ptr + 5), bad1)
        bad2 = tl.minimum(tl.load(before_ptr + 6), bad2)
    tl.store(after_ptr, count)
    tl.store(after_ptr + 1, mean)
    tl.store(after_ptr + 2, square)
    tl.store(after_ptr + 3, unresolved)
    tl.store(after_ptr + 4, most)
    tl.store(after_ptr + 5, bad1)
    tl.store(after_ptr + 6, bad2)


@triton.jit
def _counted(mask_ptr, offs, n):
    """Return which rows count."""
    counted = offs < n
    if mask_ptr is not None:
        counted = counted & (tl.load(mask_ptr + offs, mask=counted, other=0) != 0)
    return counted

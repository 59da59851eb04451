"""Kernel values of tiles: products of packed rows, what a kernel takes of them, and a kernel fitted to an array.

k is as in `reference.gram_sums`: of rows less a sampled centre and of their norms, in the number that products sum in.
exp(-t) is 2^(-t log2(e)) with log2(e) in the factor; exp(-t) - 1 is a polynomial where it is near 0. Rows are scaled by
a power of 2, for float32 to hold their powers. What is fitted to the data stays on the device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray

from ..tiles import launch
from ..tiles.launch import cdiv
from ..tiles.order import multiply
from ..tiles.packed_rows import FEATURES, ROWS, PackedRows, dtype_of, pack, rounded, sample_of, terms_of, unit_of

# of the first two, kernel values are what is measured
FUNCTIONS = {"linear": 0, "cosine": 0, "distance": 1, "rbf": 2, "laplacian": 3, "polynomial": 4}
LINEAR = tl.constexpr(0)
DISTANCE = tl.constexpr(1)
RBF = tl.constexpr(2)
LAPLACIAN = tl.constexpr(3)
POLYNOMIAL = tl.constexpr(4)
# parameters of a kernel for one bandwidth: factor, offset or coef0, and of polynomials noise and value at the landmark
PARAMETERS = tl.constexpr(4)
# steps of the contraction that float32 sums on matrix units, which drop bits at each step
CHUNK = tl.constexpr(1024)


@triton.jit
def products(
    a_ptr,
    b_ptr,
    stride_a,
    stride_b,
    first_i,
    first_j,
    width,
    TERMS: tl.constexpr,
    LONG: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # (terms, rows, width), (terms, rows, width), [BLOCK_I], [BLOCK_J]
    """Dot products of rows of two packed blocks, [BLOCK_I, BLOCK_J]; LONG if rows are longer than a chunk.

    Offsets inside a tile are int32, of rows of up to 2^24 features: those of int64 do not fit the registers.
    """
    kind: tl.constexpr = tl.float64 if a_ptr.dtype.element_ty == tl.float64 else tl.float32
    offs_k = tl.arange(0, BLOCK_K)
    a_ptr += tl.cast(first_i, tl.int64) * width
    b_ptr += tl.cast(first_j, tl.int64) * width
    offs_a = tl.arange(0, BLOCK_I)[:, None] * width + offs_k[None, :]
    offs_b = tl.arange(0, BLOCK_J)[None, :] * width + offs_k[:, None]
    dots = tl.zeros((BLOCK_I, BLOCK_J), dtype=kind)
    if LONG:
        for start in range(0, width, CHUNK):
            acc = tl.zeros((BLOCK_I, BLOCK_J), dtype=kind)
            for k in range(start, tl.minimum(start + CHUNK, width), BLOCK_K):
                acc = _step(a_ptr + k, b_ptr + k, offs_a, offs_b, stride_a, stride_b, acc, TERMS)
            dots += acc
    else:
        for k in range(0, width, BLOCK_K):
            dots = _step(a_ptr + k, b_ptr + k, offs_a, offs_b, stride_a, stride_b, dots, TERMS)
    return dots


@triton.jit
def _step(a_ptr, b_ptr, offs_a, offs_b, stride_a, stride_b, acc, TERMS: tl.constexpr):
    """One step of the contraction: of two planes each, all products but that of the lower ones."""
    a_tile = tl.load(a_ptr + offs_a)
    b_tile = tl.load(b_ptr + offs_b)
    if TERMS == 2:
        a_rest = tl.load(a_ptr + stride_a + offs_a)
        b_rest = tl.load(b_ptr + stride_b + offs_b)
        acc = multiply(a_rest, b_tile, acc)
        acc = multiply(a_tile, b_rest, acc)
    return multiply(a_tile, b_tile, acc)


@triton.jit
def measures(dots, norms_i, norms_j, FUNCTION: tl.constexpr):  # [I, J], [I], [J]
    """Take what no bandwidth changes: squared distances, distances, or the dot products as they are."""
    if FUNCTION == LINEAR:
        return dots
    if FUNCTION == POLYNOMIAL:
        return dots
    # rounding may leave a distance below zero; NaN stays
    squares = (norms_i[:, None] + norms_j[None, :]) - 2.0 * dots
    squares = tl.maximum(squares, 0.0, propagate_nan=tl.PropagateNan.ALL)
    if FUNCTION == RBF:
        return squares
    return tl.sqrt(squares)


@triton.jit
def inside(measured, offs_i, offs_j, n_i, n_j, diagonal, FUNCTION: tl.constexpr):  # [I, J], [I], [J]
    """Change what is measured so that kernel values are 0 in padded rows and, unless it counts, on the diagonal."""
    counted = (offs_i < n_i)[:, None] & (offs_j < n_j)[None, :]
    counted = counted & (diagonal | (offs_i[:, None] != offs_j[None, :]))
    if FUNCTION <= DISTANCE:
        return tl.where(counted, measured, 0.0)
    return tl.where(counted, measured, float("inf"))


@triton.jit
def values(measured, norms_i, norms_j, parameters_ptr, degree, FUNCTION: tl.constexpr):  # [I, J], [I], [1, J], (4,)
    """Kernel values of what `measures` gives, for one bandwidth; norms are those of `FittedKernel.norms`."""
    if FUNCTION <= DISTANCE:
        return measured
    factor = tl.load(parameters_ptr)
    offset = tl.load(parameters_ptr + 1)
    if FUNCTION == POLYNOMIAL:
        base = measured * factor + offset
        power = base
        for _ in range(1, degree):
            power *= base
        k = (power - norms_i[:, None]) - (norms_j - tl.load(parameters_ptr + 3))
        # rows that do not differ give 0, and not what rounding makes of it
        return tl.where(tl.abs(k) <= tl.abs(power) * tl.load(parameters_ptr + 2), 0.0, k)
    return exp2_less(measured * -factor, offset)


@triton.jit
def split(tile, PARTS: tl.constexpr):  # [I, J]
    """Return the tile as PARTS tiles of J / PARTS columns, each thread those of the columns that it holds."""
    if PARTS == 1:
        parts = (tile,)
    else:
        halves = tl.permute(tl.reshape(tile, (tile.shape[0], 2, tile.shape[1] // 2)), (0, 2, 1))
        first, second = tl.split(halves)
        parts = split(first, PARTS // 2) + split(second, PARTS // 2)
    return parts


@triton.jit
def exp2_less(t, offset):
    """2^t - offset for t <= 0 and an offset of 0 or 1, with all digits near t = 0 if it is 1; 0 for minus infinity."""
    power = tl.exp2(t)
    if offset != 0:
        # 2^t - 1 over t: to 1.3e-8 in float32, where it is the best of its degree, to 1.4e-17 in float64
        if t.dtype == tl.float32:
            series = t * 0.0011544523 + 0.0095412815
            series = series * t + 0.055490408
            series = series * t + 0.24022564
            series = series * t + 0.6931472
        else:
            series = t * 1.3691488853904128e-12 + 2.5678435993488206e-11
            series = series * t + 4.4455382718708116e-10
            series = series * t + 7.054911620801123e-09
            series = series * t + 1.01780860092397e-07
            series = series * t + 1.321548679014431e-06
            series = series * t + 1.5252733804059841e-05
            series = series * t + 0.0001540353039338161
            series = series * t + 0.0013333558146428443
            series = series * t + 0.009618129107628477
            series = series * t + 0.05550410866482158
            series = series * t + 0.24022650695910072
            series = series * t + 0.6931471805599453
        far = tl.where(t == float("-inf"), 0.0, power - 1.0)
        power = tl.where(t > -0.5, series * t, far)
    return power


@triton.jit
def _upper_norms_kernel(
    plane_ptr, squares_ptr, norms_ptr, rows, width, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr
):  # (rows, width), (rows,), (rows,)
    offs_n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_N,), dtype=tl.float32)
    for start in range(0, width, BLOCK_P):
        offs_p = start + tl.arange(0, BLOCK_P)
        mask = (offs_n < rows)[:, None] & (offs_p < width)[None, :]
        lower = tl.load(plane_ptr + offs_n[:, None] * width + offs_p[None, :], mask=mask, other=0.0).to(tl.float32)
        total += tl.sum(lower * lower, axis=1)
    squares = tl.load(squares_ptr + offs_n, mask=offs_n < rows, other=0.0)
    tl.store(norms_ptr + offs_n, squares - total.to(tl.float64), mask=offs_n < rows)


@dataclass(frozen=True)
class FittedKernel:
    """A kernel fitted to an array, for s bandwidths; all tensors are float64, on its device."""

    function: int
    normalise: bool
    degree: int
    precision: str
    centre: torch.Tensor  # (p,) subtracted from rows
    unit: torch.Tensor | None  # () what rows are multiplied by
    landmark: torch.Tensor | None  # (p,) of the polynomial kernel, whose rows nothing is subtracted from
    parameters: torch.Tensor  # (s, 4)
    offsets: torch.Tensor  # (s,)
    scale: torch.Tensor  # () what values of scaled rows are multiplied by

    def pack(self, rows: torch.Tensor, padding: int = ROWS) -> PackedRows:
        """Return rows as products take them, a multiple of so many."""
        count, width = (cdiv(size, by) * by for size, by in zip(rows.shape, (padding, FEATURES), strict=True))
        shape = terms_of(self.precision), count, width
        planes = torch.empty(shape, dtype=dtype_of(self.precision), device=rows.device)
        squares = torch.empty(count, dtype=torch.float64, device=rows.device)
        into = planes, squares
        return pack(rows, self.centre, self.precision, normalise=self.normalise, unit=self.unit, into=into)

    @property
    def unbounded(self) -> bool:
        """Whether values have no bound that is near all of them."""
        return self.function in (FUNCTIONS["linear"], FUNCTIONS["distance"])

    def norms(self, packed: PackedRows) -> torch.Tensor:
        """Return what values take of one row (rows,): its squared norm, or the polynomial at row and landmark.

        Norms lack the products of lower planes, as products do: rows that are equal have no distance.
        """
        if self.landmark is not None:
            return self._power(packed.planes[0, :, : packed.p] @ self.landmark)
        if len(packed.planes) == 1 or self.function == FUNCTIONS["linear"]:
            return packed.squares
        norms = torch.empty_like(packed.squares)
        block_n = 128 if launch.interpreting() else 8
        launch.launch(
            _upper_norms_kernel,
            (cdiv(packed.rows, block_n),),
            packed.planes[1],
            packed.squares,
            norms,
            packed.rows,
            packed.width,
            BLOCK_N=block_n,
            BLOCK_P=min(256, triton.next_power_of_2(packed.width)),
            num_warps=4,
        )
        return norms

    def diagonal(self, packed: PackedRows) -> torch.Tensor:
        """Return k of each row with itself (s, n)."""
        count, squares = len(self.offsets), packed.squares[: packed.n]
        if self.landmark is not None:
            values = self._power(squares) - 2 * self.norms(packed)[: packed.n] + self.parameters[0, 3]
            return values.expand(count, packed.n)
        if self.function == FUNCTIONS["linear"]:
            return (squares * self.scale).expand(count, packed.n)
        if self.function == FUNCTIONS["distance"]:
            return torch.zeros_like(squares).expand(count, packed.n)
        return (1 - self.offsets)[:, None].expand(count, packed.n)

    def _power(self, dots: torch.Tensor) -> torch.Tensor:
        return _polynomial(dots, self.parameters[0], self.degree)


def fit(
    x: torch.Tensor,  # (n, p)
    kernel: str,
    bandwidths: NDArray[np.float64] | None,
    *,
    sample: torch.Tensor | None = None,  # (k, p)
    degree: int,
    coef0: float,
    precision: str,
) -> FittedKernel:
    """Return a kernel fitted to x, or to a sample of its rows, without a wait for the device."""
    centre, spread = sample_of(x if sample is None else sample)
    widths = [1.0] if bandwidths is None else [float(width) for width in bandwidths]
    parameters = torch.zeros((len(widths), PARAMETERS.value), dtype=torch.float64, device=x.device)
    unit, landmark = None, None
    offsets = torch.zeros_like(parameters[:, 0])
    scale = torch.ones_like(spread)
    if kernel == "cosine":
        length = (centre * centre).sum().sqrt()
        centre = rounded(torch.where(length > 0, centre / length, centre), x.dtype == torch.float64)
    elif kernel == "polynomial":
        landmark, centre = centre, torch.zeros_like(centre)
        parameters[:, 0], parameters[:, 1] = 1 / x.shape[1], coef0
        # of the dot product, of random signs, and of the factors
        parameters[:, 2] = degree * (4 + math.sqrt(x.shape[1])) * torch.finfo(torch.float64).eps
        parameters[:, 3] = _polynomial((landmark * landmark).sum(), parameters[0], degree)
    else:
        if precision != "exact":
            unit = unit_of(x, centre)
            scale = 1 / unit if kernel in ("laplacian", "distance") else 1 / (unit * unit)
        if kernel in ("rbf", "laplacian"):
            number = torch.float64 if precision == "exact" else torch.float32
            for index, width in enumerate(widths):
                # wide bandwidths: k is near 1, and its digits are in 1 - k
                below, limit = (2 * width**2, 2 * width**2) if kernel == "rbf" else (width, width**2)
                offsets[index] = 2 * spread < limit
                parameters[index, 0] = math.log2(math.e) / below if below else math.inf
            # an infinite factor would make NaN of a distance of 0
            parameters[:, 0] = (parameters[:, 0] * scale).clamp(max=torch.finfo(number).max)
            parameters[:, 1], scale = offsets, torch.ones_like(scale)
    return FittedKernel(
        FUNCTIONS[kernel], kernel == "cosine", degree, precision, centre, unit, landmark, parameters, offsets, scale
    )


def _polynomial(dots: torch.Tensor, parameters: torch.Tensor, degree: int) -> torch.Tensor:
    base = dots * parameters[0] + parameters[1]
    power = base
    for _ in range(1, degree):
        power = power * base
    return power

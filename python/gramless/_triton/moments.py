"""Second moments about a pivot on a GPU: rows are packed a chunk at a time, and summed by columns and by tiles.

d = x - c and e = y - c': d^T d, d^T e, e^T e; sums over rows of d, d^3, d^4, a d, b d and those of e, of a^2, a b, b^2
for a = |d|^2 and b = |e|^2.
Cost: n (p^2 + 2 p q + q^2) flops, three times that for "high". At n = 1e6, p = q = 4096, "fast" of bfloat16, 6.7e13
flops; packing and sums of columns read 3.3e10 bytes and write 1.6e10, 12 of about 120 ms at 4e12 bytes/s and 6.5e14
flops/s. Peak extra bytes: twice _launch.WORKSPACE_BYTES, or planes of 128 rows and a set of tiles where that is more.
Numerics: d as in `_rows`, in a unit near its size, so that float32 has room for powers; sums of columns over 128 rows
are float32, then float64, those of tiles as in `_moment_tiles`; rows far longer than others are apart (`_giants`). NaN
stays in its features; nothing is raised for values.
Rejected: cuBLAS, which computes both halves of d^T d, and leaves sums of bfloat16 in float32 only since torch 2.8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray

from .tiles import launch, packed_rows
from .tiles.launch import cdiv
from .tiles.layer_moments import LayerSums, chunk_rows, padded
from .tiles.moment_products import MOST_ROWS, SLACK, Features, Tiles, tile_bytes
from .tiles.outlier_rows import MOST, Giants

# sums of columns: of d, d^3, d^4, and of d weighted by a and b
_SUMS = tl.constexpr(5)
# rows that a program sums by columns, in as many sums of float32 as it reads rows at a time
_COLUMN_ROWS = 512


def moments(
    x: torch.Tensor,  # (n, p)
    y: torch.Tensor | None = None,  # (n, q)
    *,
    pivot_x: NDArray[np.float64] | torch.Tensor | None = None,  # (p,)
    pivot_y: NDArray[np.float64] | torch.Tensor | None = None,  # (q,)
    self_terms: bool = True,
    nonfinite: str = "raise",
    precision: str = "high",
) -> dict[str, Any]:
    """Return the sums of `reference.moments` on the device, and the first rows that are not finite.

    Values are not judged here, whatever nonfinite says: to read them is to wait for the device.
    """
    wide = any(array is not None and array.dtype == torch.float64 for array in (x, y))
    precision = "exact" if wide else precision
    sides = [_Side.of("x", x, pivot_x, wide, precision, 0)]
    if y is not None:
        sides.append(_Side.of("y", y, pivot_y, wide, precision, sides[0].width))
    sums = _Sums(sides, precision, self_terms)
    for start in range(0, sums.n, sums.chunk_rows):
        sums.add(start)
    return sums.results()


def layer_moments(
    xs: Sequence[torch.Tensor],  # each (n, p)
    ys: Sequence[torch.Tensor] | None = None,  # each (n, q)
    *,
    pivots_x: Sequence[NDArray[np.float64] | torch.Tensor] | None = None,  # each (p,)
    pivots_y: Sequence[NDArray[np.float64] | torch.Tensor] | None = None,  # each (q,)
    nonfinite: str = "raise",
    precision: str = "high",
) -> dict[str, Any]:
    """Return the sums of `reference.layer_moments` on the device, and as bad the first row of each layer not finite.

    Values are not judged here, whatever nonfinite says: to read them is to wait for the device.
    """
    layers = [*xs, *(ys or [])]
    given: list[tuple[Any, int]] = [(pivots_x, len(xs)), (pivots_y, len(layers) - len(xs))]
    pivots = [pivot for side, count in given for pivot in side or [None] * count]
    precision = "exact" if any(layer.dtype == torch.float64 for layer in layers) else precision
    rows = chunk_rows(int(xs[0].shape[0]), padded([int(layer.shape[1]) for layer in layers]), precision)
    sums = LayerSums(layers, len(xs), pivots, precision, rows)
    for start in range(0, sums.n, rows):
        sums.add(start)
    return sums.results()


def scratch_bytes(n: int, p: int, q: int, precision: str) -> int:
    """Return the most bytes beside the result, on a GPU of 132 processors, for two arrays, or one where q is 0."""
    width = _padded(p) + _padded(q)
    rows = _chunk_rows(n, width, precision)
    tiles = tile_bytes(p, q, rows, precision, "sm_90", 132)
    giants = 0 if precision == "exact" else 8 * width * cdiv(MOST * cdiv(n, rows), packed_rows.ROWS) * packed_rows.ROWS
    # planes; squares of both sides, and their products; sums of columns, and those of a chunk
    per_row = packed_rows.packed_bytes(packed_rows.ROWS, width, precision) // packed_rows.ROWS + 8 + 32
    return rows * per_row + tiles + 2 * giants + 8 * int(_SUMS.value) * width * (cdiv(rows, _COLUMN_ROWS) + 2)


def _padded(p: int) -> int:
    return cdiv(p, packed_rows.FEATURES) * packed_rows.FEATURES


def _chunk_rows(n: int, width: int, precision: str) -> int:
    """Return rows whose planes, and the tiles of whose programs, take no more than the workspace, 128 at the least."""
    planes = launch.WORKSPACE_BYTES // packed_rows.packed_bytes(packed_rows.ROWS, width, precision)
    # half of all products, in the number that tiles have
    programs = max(1, launch.WORKSPACE_BYTES // ((4 if precision == "exact" else 2) * width**2))
    most = min(max(1, planes), programs * MOST_ROWS // packed_rows.ROWS)
    return min(cdiv(n, packed_rows.ROWS), most) * packed_rows.ROWS


@dataclass
class _Side:
    """One array: its pivot and unit, its features as tiles have them, and its first row that is not finite."""

    name: str
    array: torch.Tensor
    pivot: torch.Tensor
    unit: torch.Tensor | None
    features: Features
    first_bad: torch.Tensor

    @classmethod
    def of(cls, name: str, array: torch.Tensor, pivot: Any, wide: bool, precision: str, column: int) -> _Side:
        if pivot is None:
            found = packed_rows.pivot_of(array)
        else:
            # a copy in any case: what comes back is the caller's to write to
            given = torch.as_tensor(pivot, dtype=torch.float64, device=array.device).clone()
            found = packed_rows.rounded(given, wide).contiguous()
        # float64 has room for all powers
        unit = None if precision == "exact" else packed_rows.unit_of(array, found)
        features = Features(int(array.shape[1]), column, None if unit is None else unit.reciprocal())
        bad = torch.full((), array.shape[0], dtype=torch.int64, device=array.device)
        return cls(name, array, found, unit, features, bad)

    @property
    def width(self) -> int:
        """Features, padded."""
        return _padded(self.features.p)

    @property
    def columns(self) -> slice:
        return slice(self.features.column, self.features.column + self.features.p)


class _Sums:
    """All sums of one call, over one chunk of rows after the other."""

    def __init__(self, sides: list[_Side], precision: str, self_terms: bool) -> None:
        self.sides, self.precision, self.self_terms = sides, precision, self_terms
        self.n, device = int(sides[0].array.shape[0]), sides[0].array.device
        self.width = sum(side.width for side in sides)
        self.chunk_rows = _chunk_rows(self.n, self.width, precision)
        terms, dtype = packed_rows.terms_of(precision), packed_rows.dtype_of(precision)
        held = torch.empty(terms * self.chunk_rows * self.width + SLACK, dtype=dtype, device=device)
        # the last tile reads beyond the last row, though to no end
        held[-SLACK:].zero_()
        self.planes = held[:-SLACK].view(terms, self.chunk_rows, self.width)
        self.squares = torch.empty((len(sides), self.chunk_rows), dtype=torch.float64, device=device)
        self.columns = torch.zeros((_SUMS.value, self.width), dtype=torch.float64, device=device)
        # float64 has digits to spare
        chunks = cdiv(self.n, self.chunk_rows)
        self.giants = None if precision == "exact" else Giants(chunks, self.width, SLACK, device)
        self.norms = torch.zeros((len(sides),) * 2, dtype=torch.float64, device=device)
        features = [side.features for side in sides]
        own = [(one, one) if self_terms else None for one in features]
        cross = [(features[0], features[1])] if len(features) == 2 else [None, None]
        self.tiles = Tiles.plan([*own, *cross], self.planes, self.chunk_rows, precision)

    def add(self, start: int) -> None:
        """Add the rows of one chunk."""
        rows = min(cdiv(self.n - start, packed_rows.ROWS) * packed_rows.ROWS, self.chunk_rows)
        planes, squares = self.planes[:, :rows], self.squares[:, :rows]
        arrays = []
        for place, side in enumerate(self.sides):
            part, column = side.array[start : start + rows], side.features.column
            into = planes[:, :, column : column + side.width], squares[place]
            bad = packed_rows.pack(part, side.pivot, self.precision, unit=side.unit, into=into).first_bad
            bad = torch.where(bad < part.shape[0], bad + start, self.n)
            side.first_bad = torch.minimum(side.first_bad, bad)
            arrays.append((part, side.pivot, column))
        if self.giants:
            self.giants.take(start // self.chunk_rows, arrays, planes, squares)
        self.columns += self._columns(planes, squares)
        self.norms += _norms(squares)
        self.tiles.add(planes, giants=self.giants, last=start + rows >= self.n)

    def _columns(self, planes: torch.Tensor, squares: torch.Tensor) -> torch.Tensor:
        """Return sums over rows of d and its powers, and of d weighted by the squares of either side."""
        terms, rows, width = planes.shape
        # a thread reads 16 bytes of a row at a time, where warps have 32 threads, and where they have 64
        together = 8 if launch.architecture(planes.device).startswith("gfx") else 4
        block_n, block_p, ahead = (128, 512, 1) if launch.interpreting() else (together, 256, 4)
        parts = cdiv(rows, _COLUMN_ROWS)
        partials = torch.empty((parts, *self.columns.shape), dtype=torch.float64, device=planes.device)
        launch.launch(
            _moments_columns_kernel,
            (cdiv(width, block_p), parts),
            planes,
            squares,
            partials,
            rows,
            width,
            planes.stride(0),
            planes.stride(1),
            squares.stride(0),
            TERMS=terms,
            SIDES=len(self.sides),
            LENGTH=_COLUMN_ROWS,
            AHEAD=ahead,
            BLOCK_N=block_n,
            BLOCK_P=block_p,
            num_warps=4,
        )
        return partials.sum(dim=0)

    def results(self) -> dict[str, Any]:
        """Return all sums in the units of the data."""
        if self.giants:
            self._leave_units(self.giants)
        found: dict[str, Any] = {"n": self.n}
        for place, side in enumerate(self.sides):
            name, sums = side.name, self.columns[:, side.columns]
            found[f"bad_{name}"] = side.first_bad
            if self.self_terms:
                found |= {
                    f"pivot_{name}": side.pivot,
                    f"sum_{name}": sums[0],
                    f"cubes_{name}": sums[1],
                    f"fourths_{name}": sums[2],
                    f"weighted_{name}{name}": sums[3 + place],
                    f"norms_{name}{name}": self.norms[place, place],
                }
            for other, across in enumerate(self.sides):
                if other != place:
                    found |= {f"weighted_{name}{across.name}": sums[3 + other], "norms_xy": self.norms[0, 1]}
        blocks = zip(("sxx", "syy", "sxy"), self.tiles.blocks, strict=True)
        return found | {key: block.sums for key, block in blocks if block is not None}

    def _leave_units(self, giants: Giants) -> None:
        """Bring sums of columns and norms to the units of the data, and add those of the giants."""
        inverses = [side.features.inverse for side in self.sides if side.features.inverse is not None]
        squared = [inverse * inverse for inverse in inverses]
        for side, own, square in zip(self.sides, inverses, squared, strict=True):
            factors = torch.stack([own, own * square, square * square, *(own * other for other in squared)])
            self.columns[: len(factors), side.columns] *= factors[:, None]
        self.norms *= torch.stack(squared)[:, None] * torch.stack(squared)
        squares = torch.stack([giants.values[0, :, side.columns].square().sum(dim=1) for side in self.sides])
        self.columns += self._columns(giants.values, squares)
        self.norms += _norms(squares)


def _norms(squares: torch.Tensor) -> torch.Tensor:
    """Return sums over rows of products of the squares of both sides."""
    return (squares[:, None] * squares[None]).sum(dim=2)


@triton.jit
def _moments_columns_kernel(
    planes_ptr,
    squares_ptr,
    partials_ptr,
    rows,
    width,
    stride_term,
    stride_row,
    stride_side,
    TERMS: tl.constexpr,
    SIDES: tl.constexpr,
    LENGTH: tl.constexpr,
    AHEAD: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    pid_p, pid_n = tl.program_id(0), tl.program_id(1)
    kind: tl.constexpr = tl.float64 if planes_ptr.dtype.element_ty == tl.float64 else tl.float32
    offs_p = pid_p * BLOCK_P + tl.arange(0, BLOCK_P)
    mask_p = offs_p < width
    start = pid_n * LENGTH
    first = tl.zeros((BLOCK_N, BLOCK_P), dtype=kind)
    third = tl.zeros((BLOCK_N, BLOCK_P), dtype=kind)
    fourth = tl.zeros((BLOCK_N, BLOCK_P), dtype=kind)
    by_x = tl.zeros((BLOCK_N, BLOCK_P), dtype=kind)
    by_y = tl.zeros((BLOCK_N, BLOCK_P), dtype=kind)
    for begin in range(start, tl.minimum(start + LENGTH, rows), AHEAD * BLOCK_N):
        # several rows at a time, so that their loads wait together
        for step in tl.static_range(AHEAD):
            offs_n = (begin + step * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
            plane_ptrs = planes_ptr + offs_n[:, None] * stride_row + offs_p[None, :]
            d = tl.load(plane_ptrs, mask=mask_p[None, :], other=0.0).to(kind)  # [BLOCK_N, BLOCK_P]
            if TERMS == 2:
                d += tl.load(plane_ptrs + stride_term, mask=mask_p[None, :], other=0.0).to(kind)
            first += d
            by_x += tl.load(squares_ptr + offs_n).to(kind)[:, None] * d
            if SIDES == 2:
                by_y += tl.load(squares_ptr + stride_side + offs_n).to(kind)[:, None] * d
            squared = d * d
            third += squared * d
            fourth += squared * squared
    out_ptrs = partials_ptr + (pid_n * _SUMS) * width + offs_p
    tl.store(out_ptrs, tl.sum(first.to(tl.float64), axis=0), mask=mask_p)
    tl.store(out_ptrs + width, tl.sum(third.to(tl.float64), axis=0), mask=mask_p)
    tl.store(out_ptrs + 2 * width, tl.sum(fourth.to(tl.float64), axis=0), mask=mask_p)
    tl.store(out_ptrs + 3 * width, tl.sum(by_x.to(tl.float64), axis=0), mask=mask_p)
    tl.store(out_ptrs + 4 * width, tl.sum(by_y.to(tl.float64), axis=0), mask=mask_p)

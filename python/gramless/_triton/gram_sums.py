"""Sums over i != j of k_ij^2, l_ij^2, k_ij l_ij, row sums and diagonals, of the block pairs asked for.

k_ij from the products of packed rows i and j of x (`_rows`) and their norms, l_ij likewise from y, for all bandwidths.
Cost: n^2 (p + q) flops for "fast", 3 times that for "high": only tiles i <= j are computed. A tile's sums over its rows
and over its columns, the rows of its mirror, are partials that a second pass adds in fixed order: R^2 s / 16 bytes for
each array and a block of R rows, 67 MB at n = 1e6, s = 1, beside two packed blocks of each array. At p = q = 512 tiles
of 128 x 128 are 34 Mflop of 512 KB from the cache, and 2000 instructions of each thread for 128 kernel values.
Numerics: products and kernel values in float32, for "exact" in float64; sums over a row of a tile likewise, for kernels
without a bound in float64; sums over rows and tiles in float64. NaN stays NaN, padded rows count nothing.
Rejected: sums over columns by float atomics: no two runs would agree.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray

from .gram.blocks import Block, Side
from .gram.kernel_functions import CHUNK, PARAMETERS, fit, inside, measures, products, split, values
from .gram.plan import CONFIGS, Piece, Plan
from .gram.plan import default_block_rows as default_block_rows
from .gram.plan import scratch_bytes as scratch_bytes
from .gram.sampled_error import sampled_error
from .tiles import launch
from .tiles.launch import Config, cdiv
from .tiles.order import grouped, grouped_triangle
from .tiles.packed_rows import ROWS

# so few rows are computed in float64, as on the host
ROWS_IN_FLOAT64 = 1024
# tiles in a row that share their columns in the cache
_GROUP = 8


def gram_sums(
    x: torch.Tensor,  # (n, p)
    y: torch.Tensor | None = None,  # (n, q)
    *,
    kernel: str = "linear",
    bandwidth_x: NDArray[np.float64] | None = None,  # (s,)
    bandwidth_y: NDArray[np.float64] | None = None,  # (s,)
    degree: int = 3,
    coef0: float = 1.0,
    block_rows: int | None = None,
    pairs: NDArray[np.int64] | None = None,  # (m, 2)
    sample_x: torch.Tensor | None = None,  # (k, p)
    sample_y: torch.Tensor | None = None,  # (k, q)
    nonfinite: str = "raise",
    precision: str = "high",
) -> dict[str, Any]:
    """Return sums over i != j of K K, K L and L L, row sums over j != i, and diagonals, as `reference.gram_sums` does.

    All are float64 tensors on the device of x, which nothing here waits for; bad_x and bad_y are the first row that is
    not finite, for cosine zero_x and zero_y the first row of zeros, n if there is none: values are not judged here,
    whatever nonfinite says. error_x and error_y are `sampled_error`, 0 for "exact". Up to 1024 rows, float64 input and
    polynomials are "exact" whatever precision says.

    Peak extra bytes: `scratch_bytes`, of packed blocks of rows (_launch.WORKSPACE_BYTES, or two blocks of 128 rows of
    each array) and up to 128 MiB of partials.
    """
    n = int(x.shape[0])
    arrays = (
        {"x": (x, bandwidth_x, sample_x)}
        if y is None
        else {"x": (x, bandwidth_x, sample_x), "y": (y, bandwidth_y, sample_y)}
    )
    wide = kernel == "polynomial" or any(array.dtype == torch.float64 for array, _, _ in arrays.values())
    if wide or n <= ROWS_IN_FLOAT64:
        precision = "exact"
    sides = {
        name: Side(array, fit(array, kernel, widths, sample=sample, degree=degree, coef0=coef0, precision=precision))
        for name, (array, widths, sample) in arrays.items()
    }
    total = Total(list(sides.values()), precision)
    for left, right in total.plan.pairs(n, block_rows, pairs):
        total.add(left, right)
    flat: dict[str, Any] = {"n": n}
    for at, (name, side) in enumerate(sides.items()):
        flat[f"offset_{name}"], flat[f"diagonal_{name}"] = side.fitted.offsets, side.diagonal
        flat[f"rows_{name}"] = side.rows * side.fitted.scale
        flat[f"sum_{name}{name}"] = total.sums[:, at] * side.fitted.scale**2
        flat[f"bad_{name}"], flat[f"error_{name}"] = side.first_bad, sampled_error(side.array, side.fitted)
        if kernel == "cosine":
            flat[f"zero_{name}"] = side.first_zero
    if y is not None:
        flat["sum_xy"] = total.sums[:, 2] * (sides["x"].fitted.scale * sides["y"].fitted.scale)
    return flat


class Total:
    """Sums over tiles of both arrays, over one pair of pieces after the other."""

    def __init__(self, sides: list[Side], precision: str) -> None:
        self.sides, self.precision = sides, precision
        self.count, self.device = len(sides[0].fitted.offsets), sides[0].array.device
        self.sums = torch.zeros((self.count, 3), dtype=torch.float64, device=self.device)
        self.plan = Plan.of([int(side.array.shape[1]) for side in sides], precision, self.count)
        configs, rows = CONFIGS[precision]["interpret"], min(sides[0].array.shape[0], self.plan.rows)
        fits = [one for one in configs if one.block_i >= rows]
        self.config = (fits or configs[-1:])[0] if launch.interpreting() else None
        self.padding = max(ROWS, self.config.block_i) if self.config else ROWS

    def add(self, left: Piece, right: Piece) -> None:
        """Add the tiles of a pair of pieces, and of its mirror."""
        blocks = [[self._block(side, piece, left) for piece in (left, right)] for side in self.sides]
        apart = right[0] - left[0]
        if self.config is None:
            self.config = launch.config(CONFIGS[self.precision], self.device)
        sums, partials = self.run(self.config, blocks, apart)
        self.sums += sums.sum(dim=2)
        for side, (rows, columns), (block, _) in zip(self.sides, partials, blocks, strict=True):
            _add(side.rows[:, slice(*left)], rows)
            if left == right:
                side.diagonal[:, slice(*left)] = side.fitted.diagonal(block.rows)
            else:
                _add(side.rows[:, slice(*right)], columns)

    def _block(self, side: Side, piece: Piece, left: Piece) -> Block:
        if piece not in side.held and len(side.held) >= self.plan.held:
            side.keep(left)
        return side.block(piece, self.padding)

    def run(
        self, config: Config, blocks: list[list[Block]], apart: int
    ) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]:
        """Return the sums of each tile (s, 3, tiles), and for each array those of its rows and of its columns.

        The pieces begin so many rows apart.
        """
        symmetric = apart == 0
        n_i, n_j = (block.rows.n for block in blocks[0])
        tiles_i, tiles_j = cdiv(n_i, config.block_i), cdiv(n_j, config.block_j)
        tiles = tiles_i * (tiles_i + 1) // 2 if symmetric else tiles_i * tiles_j
        fitted = self.sides[0].fitted
        number = torch.float64 if fitted.unbounded else self.sides[0].number
        partials = []
        for _ in self.sides:
            rows = torch.empty((self.count, tiles_j, tiles_i * config.block_i), dtype=number, device=self.device)
            shape = (self.count, tiles_i, tiles_j * config.block_j)
            # with its mirrors, a triangle of tiles has each row and column of tiles once
            partials.append((rows, rows if symmetric else torch.empty(shape, dtype=number, device=self.device)))
        sums = torch.empty((self.count, 3, tiles), dtype=torch.float64, device=self.device)
        # without y its place is taken by x
        arrays = [
            (block_i.rows.planes, block_j.rows.planes, block_i.norms, block_j.norms, side.parameters, *of_side)
            for side, of_side, (block_i, block_j) in zip(self.sides, partials, blocks, strict=True)
        ]
        planes = [(block_i.rows.planes, block_j.rows.planes) for block_i, block_j in blocks]
        widths = [of_i.shape[2] for of_i, _ in planes]
        launch.launch(
            _gram_sums_kernel,
            (tiles,),
            *arrays[0],
            *arrays[-1],
            sums,
            n_i,
            n_j,
            tiles_i,
            tiles_j,
            apart,
            widths[0],
            widths[-1],
            planes[0][0].stride(0),
            planes[0][1].stride(0),
            planes[-1][0].stride(0),
            planes[-1][1].stride(0),
            self.count,
            fitted.degree,
            FUNCTION=fitted.function,
            PAIRED=len(self.sides) == 2,
            SYMMETRIC=symmetric,
            TERMS=planes[0][0].shape[0],
            LONG_X=widths[0] > CHUNK.value,
            LONG_Y=widths[-1] > CHUNK.value,
            GROUP=_GROUP,
            **config.constants,
            **config.options,
        )
        return sums, partials


def _add(rows: torch.Tensor, partial: torch.Tensor) -> None:  # (s, n), (s, tiles, n)
    """Add sums of the rows of tiles, in the order of the tiles."""
    rows += partial.sum(dim=1, dtype=torch.float64)[:, : rows.shape[1]]


@triton.jit
def _gram_sums_kernel(
    x_i_ptr,
    x_j_ptr,
    norms_xi_ptr,
    norms_xj_ptr,
    parameters_x_ptr,
    rows_x_ptr,
    columns_x_ptr,
    y_i_ptr,
    y_j_ptr,
    norms_yi_ptr,
    norms_yj_ptr,
    parameters_y_ptr,
    rows_y_ptr,
    columns_y_ptr,
    sums_ptr,
    n_i,
    n_j,
    tiles_i,
    tiles_j,
    apart,
    width_x,
    width_y,
    stride_xi,
    stride_xj,
    stride_yi,
    stride_yj,
    bandwidths,
    degree,
    FUNCTION: tl.constexpr,
    PAIRED: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    TERMS: tl.constexpr,
    LONG_X: tl.constexpr,
    LONG_Y: tl.constexpr,
    GROUP: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    pid, count = tl.program_id(0), tl.num_programs(0)
    if SYMMETRIC:
        pid_i, pid_j = grouped_triangle(pid, tiles_j, GROUP)
    else:
        pid_i, pid_j = grouped(pid, tiles_i, tiles_j, GROUP)
    # a tile on the diagonal holds its own mirror
    mirrored = (apart != 0) | (pid_i != pid_j)
    offs_i = pid_i * BLOCK_I + tl.arange(0, BLOCK_I)
    offs_j = pid_j * BLOCK_J + tl.arange(0, BLOCK_J)
    edge = (not mirrored) | ((pid_i + 1) * BLOCK_I > n_i) | ((pid_j + 1) * BLOCK_J > n_j)
    # sums of unbounded values cancel with each other
    sum_kind: tl.constexpr = rows_x_ptr.dtype.element_ty
    x_tile = products(
        x_i_ptr,
        x_j_ptr,
        stride_xi,
        stride_xj,
        pid_i * BLOCK_I,
        pid_j * BLOCK_J,
        width_x,
        TERMS,
        LONG_X,
        BLOCK_I,
        BLOCK_J,
        BLOCK_K,
    )
    if PAIRED:
        y_tile = products(
            y_i_ptr,
            y_j_ptr,
            stride_yi,
            stride_yj,
            pid_i * BLOCK_I,
            pid_j * BLOCK_J,
            width_y,
            TERMS,
            LONG_Y,
            BLOCK_I,
            BLOCK_J,
            BLOCK_K,
        )
        norms_yi, norms_yj = tl.load(norms_yi_ptr + offs_i), tl.load(norms_yj_ptr + offs_j)
        y_tile = measures(y_tile, norms_yi, norms_yj, FUNCTION)
    norms_xi, norms_xj = tl.load(norms_xi_ptr + offs_i), tl.load(norms_xj_ptr + offs_j)
    x_tile = measures(x_tile, norms_xi, norms_xj, FUNCTION)
    if edge:
        x_tile = inside(x_tile, offs_i, offs_j, n_i, n_j, mirrored, FUNCTION)
        if PAIRED:
            y_tile = inside(y_tile, offs_i, offs_j, n_i, n_j, mirrored, FUNCTION)
    # of parts of the columns: fewer values in registers at a time
    x_parts = split(x_tile, PARTS)
    norms_xj = split(norms_xj[None, :], PARTS)
    if PAIRED:
        y_parts = split(y_tile, PARTS)
        norms_yj = split(norms_yj[None, :], PARTS)
    COLUMNS: tl.constexpr = BLOCK_J // PARTS
    for s in range(bandwidths):
        rows_at = (s * tiles_j + pid_j).to(tl.int64) * (tiles_i * BLOCK_I) + offs_i
        columns_at = (s * tiles_i + pid_i).to(tl.int64) * (tiles_j * BLOCK_J) + pid_j * BLOCK_J + tl.arange(0, COLUMNS)
        sums_ptrs = sums_ptr + 3 * s * count + pid
        rows_x = tl.zeros((BLOCK_I,), dtype=sum_kind)
        rows_y, xx, yy, xy = rows_x, rows_x, rows_x, rows_x
        for part in tl.static_range(PARTS):
            k = values(x_parts[part], norms_xi, norms_xj[part], parameters_x_ptr + s * PARAMETERS, degree, FUNCTION)
            k = k.to(sum_kind)
            rows_x += tl.sum(k, axis=1)
            xx += tl.sum(k * k, axis=1)
            columns = tl.sum(k, axis=0)
            if mirrored:
                tl.store(columns_x_ptr + columns_at + part * COLUMNS, columns)
            if PAIRED:
                m = values(y_parts[part], norms_yi, norms_yj[part], parameters_y_ptr + s * PARAMETERS, degree, FUNCTION)
                m = m.to(sum_kind)
                rows_y += tl.sum(m, axis=1)
                yy += tl.sum(m * m, axis=1)
                xy += tl.sum(k * m, axis=1)
                columns = tl.sum(m, axis=0)
                if mirrored:
                    tl.store(columns_y_ptr + columns_at + part * COLUMNS, columns)
        tl.store(rows_x_ptr + rows_at, rows_x)
        tl.store(sums_ptrs, _total(xx, mirrored))
        if PAIRED:
            tl.store(rows_y_ptr + rows_at, rows_y)
            tl.store(sums_ptrs + count, _total(yy, mirrored))
            tl.store(sums_ptrs + 2 * count, _total(xy, mirrored))


@triton.jit
def _total(rows, mirrored):
    """Add sums over rows of a tile in float64, those of its mirror as well."""
    total = tl.sum(rows.to(tl.float64), axis=0)
    return tl.where(mirrored, 2 * total, total)

"""Products of packed features with each other over many rows: the tiles of all second moments of a call in one launch.

partials[program] = sum over some rows of d_i d_j for features i, j of a tile; of x with x and y with y only tiles that
reach above the diagonal. They are added in float64 in the order of the rows, then mirrored.
Cost: at p = q = 4096, "fast", a chunk of 24,576 rows is 1.7e12 flops and reads 2e10 bytes from the cache (128 x 256
tiles make 85 flops of a byte); each 8192 rows write 135 MB of tiles, beside reading what is there. One chunk in 16 goes
on to the results.
Numerics: matrix units cut off the last digits of float32, 1.4e-9 of a sum for each of its rows. "fast" has sums of 8192
rows, 1e-5 where data are rounded by 4e-3; "high" adds those of 1024 in plain float32; chunks are added likewise.
Rejected: two sums of a tile in registers for "fast" too: tiles of 128 x 128 ask more of the cache than it gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from . import launch, packed_rows
from .launch import Config, Configs, cdiv
from .order import grouped, grouped_triangle, multiply
from .outlier_rows import Giants

# rows that a program sums at the most, and at the least where it would otherwise have no work
MOST_ROWS = 8192
_LEAST_ROWS = 512
# rows in one sum of a matrix unit, 0 for all that a program has
_STEPS = {"fast": 0, "high": 1024, "exact": 0}
# chunks whose tiles are added before they go to float64
_CHUNKS = 16
# rounds of programs that fill a device
_ROUNDS = 2
# features that tiles may reach beyond the last one, and those up to which tiles are small
SLACK = 256
_NARROW = 64
# rows of tiles that share their columns in the cache
_GROUP = tl.constexpr(8)

CONFIGS: dict[str, Configs] = {
    "fast": {
        "interpret": (Config(512, 512, 128, 4, 1),),
        "sm_80": (Config(128, 256, 32, 8, 4), Config(128, 128, 64, 8, 3)),
        "sm_90": (Config(128, 256, 64, 8, 4), Config(128, 256, 64, 8, 3), Config(128, 128, 64, 8, 4)),
        "sm_100": (Config(128, 256, 64, 8, 4),),
        "gfx942": (Config(128, 256, 64, 8, 2),),
    },
    "high": {
        "interpret": (Config(512, 512, 128, 4, 1),),
        "sm_80": (Config(64, 128, 32, 4, 4),),
        "sm_90": (Config(128, 128, 64, 8, 3), Config(128, 128, 32, 8, 5)),
        "sm_100": (Config(128, 128, 64, 8, 2),),
        "gfx942": (Config(128, 128, 32, 8, 2),),
    },
    "exact": {
        "interpret": (Config(512, 512, 128, 4, 1),),
        "sm_80": (Config(128, 128, 16, 8, 3),),
        "sm_90": (Config(128, 128, 16, 8, 3), Config(64, 128, 16, 8, 3)),
        "sm_100": (Config(128, 128, 16, 8, 3),),
        "gfx942": (Config(128, 128, 16, 8, 2),),
    },
}
# of few features
NARROW: dict[str, Configs] = {
    "fast": {
        "interpret": (Config(64, 64, 128, 4, 1),),
        "sm_80": (Config(64, 64, 64, 4, 4),),
        "sm_90": (Config(64, 64, 64, 4, 4),),
        "gfx942": (Config(64, 64, 64, 4, 2),),
    },
    "high": {
        "interpret": (Config(64, 64, 128, 4, 1),),
        "sm_80": (Config(64, 64, 32, 4, 4),),
        "sm_90": (Config(64, 64, 64, 4, 3),),
        "gfx942": (Config(64, 64, 32, 4, 2),),
    },
    "exact": {
        "interpret": (Config(64, 64, 128, 4, 1),),
        "sm_80": (Config(64, 64, 16, 4, 3),),
        "sm_90": (Config(64, 64, 16, 4, 3),),
        "gfx942": (Config(64, 64, 16, 4, 2),),
    },
}


@dataclass(frozen=True)
class Features:
    """The features of one array: how many, the column of the first in the planes, and the inverse of their unit."""

    p: int
    column: int
    inverse: torch.Tensor | None


@dataclass(frozen=True)
class Grid:
    """Tiles of one matrix of second moments, and the programs of a launch, each of some rows for one of them."""

    tiles_i: int
    tiles_j: int
    tiles: int
    rows: int
    programs: int

    @classmethod
    def of(cls, p: int, q: int, symmetric: bool, config: Config, chunk_rows: int, processors: int) -> Grid:
        tiles_i, tiles_j = cdiv(p, config.block_i), cdiv(q, config.block_j)
        tiles = tiles_i * tiles_j
        if symmetric:
            tiles = tiles_j * (tiles_j + 1) // 2 * (config.block_j // config.block_i)
        rows = min(max(cdiv(chunk_rows, cdiv(_ROUNDS * processors, tiles)), _LEAST_ROWS), MOST_ROWS)
        rows = cdiv(rows, packed_rows.ROWS) * packed_rows.ROWS
        return cls(tiles_i, tiles_j, tiles, rows, tiles * cdiv(chunk_rows, rows))


@dataclass(frozen=True)
class Block:
    """One matrix of second moments, of features of one array or of two."""

    i: Features
    j: Features
    grid: Grid
    sums: torch.Tensor  # (p, q) float64

    @classmethod
    def of(cls, i: Features, j: Features, config: Config, chunk_rows: int, device: torch.device) -> Block:
        grid = Grid.of(i.p, j.p, i is j, config, chunk_rows, launch.processors(device))
        return cls(i, j, grid, torch.empty((i.p, j.p), dtype=torch.float64, device=device))


def configs_of(widths: Sequence[int], precision: str) -> Configs:
    """Return the tiles for so many features."""
    return (NARROW if max(widths) <= _NARROW else CONFIGS)[precision]


def tile_bytes(p: int, q: int, chunk_rows: int, precision: str, architecture: str, processors: int) -> int:
    """Return the bytes of the tiles of all programs, for two arrays, or one where q is 0."""
    config = launch.candidates(configs_of((p, q), precision), architecture)[0]
    blocks = [(p, p), (q, q), (p, q)] if q else [(p, p)]
    grids = [
        Grid.of(*widths, place < 2, config, chunk_rows, processors).programs for place, widths in enumerate(blocks)
    ]
    return sum(grids) * config.block_i * config.block_j * (8 if precision == "exact" else 4)


class Tiles:
    """Second moments of x with x, y with y and x with y, or some of these, from the planes of one chunk at a time."""

    def __init__(self, blocks: Sequence[Block | None], config: Config, precision: str, device: torch.device) -> None:
        self.blocks, self.config, self.steps = blocks, config, _STEPS[precision]
        self.programs = sum(block.grid.programs for block in blocks if block)
        number = torch.float64 if precision == "exact" else torch.float32
        shape = (self.programs, config.block_i, config.block_j)
        self.partials = torch.empty(shape, dtype=number, device=device)
        self.chunks = 0

    @classmethod
    def plan(
        cls, pairs: Sequence[tuple[Features, Features] | None], planes: torch.Tensor, chunk_rows: int, precision: str
    ) -> Tiles:
        """Return tiles for chunks like this one: of x with x, y with y, x with y, or None where one is not wanted."""
        device = planes.device

        def made(config: Config) -> Tiles:
            blocks = [None if pair is None else Block.of(*pair, config, chunk_rows, device) for pair in pairs]
            return cls(blocks, config, precision, device)

        widths = [one.p for pair in pairs if pair is not None for one in pair]
        return made(launch.config(configs_of(widths, precision), device))

    def add(self, planes: torch.Tensor, *, giants: Giants | None, last: bool) -> None:
        """Add the products of the features of one more chunk, and with the last one those of the giants of all."""
        self.multiply(planes)
        self.chunks += 1
        if last or self.chunks % _CHUNKS == 0:
            self._reduce(giants if last else None, first=self.chunks <= _CHUNKS, last=last)

    def multiply(self, planes: torch.Tensor) -> None:
        """Sum products of rows into the partials, in addition to those of chunks that are not in the results."""
        xx, yy, xy = (block and block.grid for block in self.blocks)
        columns = [block.j.column for block in self.blocks if block]
        launch.launch(
            _moments_product_kernel,
            (self.programs,),
            planes,
            self.partials,
            planes.shape[1],
            planes.stride(0),
            planes.stride(1),
            max(columns),
            *((xx.tiles_j, xx.rows, xx.programs) if xx else (1, 1, 0)),
            *((yy.tiles_j, yy.rows, yy.programs) if yy else (1, 1, 0)),
            *((xy.tiles_i, xy.tiles_j, xy.rows) if xy else (1, 1, 1)),
            int(self.chunks % _CHUNKS > 0),
            TERMS=planes.shape[0],
            STEPS=self.steps,
            **self.config.constants,
            **self.config.options,
        )

    def _reduce(self, giants: Giants | None, *, first: bool, last: bool) -> None:
        """Add the partials to the results, in a fixed order."""
        count = giants and giants.found.sum(dtype=torch.int32)
        block_r = self.config.block_i if launch.interpreting() else 16
        base = 0
        for block in self.blocks:
            if block is None:
                continue
            launch.launch(
                _moments_reduce_kernel,
                (block.grid.tiles, self.config.block_i // block_r),
                self.partials,
                block.sums,
                block.i.inverse,
                block.j.inverse,
                giants and giants.values,
                count,
                giants.rows if giants else 0,
                giants.values.stride(1) if giants else 0,
                block.i.column,
                block.j.column,
                block.i.p,
                block.j.p,
                block.grid.tiles_i,
                block.grid.tiles_j,
                base,
                block.grid.programs // block.grid.tiles,
                int(first),
                SYMMETRIC=block.i is block.j,
                MIRRORED=block.i is block.j and last,
                BLOCK_I=self.config.block_i,
                BLOCK_J=self.config.block_j,
                BLOCK_R=block_r,
                num_warps=8 if self.config.block_j > 64 else 4,
            )
            base += block.grid.programs


_COUNTS = ["tiles_x", "rows_xx", "programs_xx", "tiles_y", "rows_yy", "programs_yy", "tiles_i", "tiles_j", "rows_xy"]


@triton.jit(do_not_specialize=[*_COUNTS, "column_y", "add"])
def _moments_product_kernel(
    planes_ptr,
    partials_ptr,
    rows,
    stride_term,
    stride_row,
    column_y,
    tiles_x,
    rows_xx,
    programs_xx,
    tiles_y,
    rows_yy,
    programs_yy,
    tiles_i,
    tiles_j,
    rows_xy,
    add,
    TERMS: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    pid = tl.program_id(0)
    if pid < programs_xx:
        part, i, j = _upper(pid, tiles_x, BLOCK_J // BLOCK_I)
        column_i = 0
        column_j = 0
        length = rows_xx
    elif pid < programs_xx + programs_yy:
        part, i, j = _upper(pid - programs_xx, tiles_y, BLOCK_J // BLOCK_I)
        column_i = column_y
        column_j = column_y
        length = rows_yy
    else:
        place = pid - programs_xx - programs_yy
        part = place // (tiles_i * tiles_j)
        i, j = grouped(place % (tiles_i * tiles_j), tiles_i, tiles_j, _GROUP)
        column_i = 0
        column_j = column_y
        length = rows_xy
    start = part * length
    stop = tl.minimum(start + length, rows)
    offs_i = tl.multiple_of(column_i + i * BLOCK_I, 16) + tl.arange(0, BLOCK_I)
    offs_j = tl.multiple_of(column_j + j * BLOCK_J, 16) + tl.arange(0, BLOCK_J)
    offs_k = tl.arange(0, BLOCK_K)
    # read transposed, as it is multiplied, for tiles that go to shared memory as they are
    offs_a = offs_i[:, None] + offs_k[None, :] * stride_row
    offs_b = offs_k[:, None] * stride_row + offs_j[None, :]
    rows_ptr = planes_ptr + start.to(tl.int64) * stride_row
    total = tl.zeros((BLOCK_I, BLOCK_J), dtype=partials_ptr.dtype.element_ty)
    if STEPS > 0:
        for begin in range(start, stop, STEPS):
            acc = tl.zeros((BLOCK_I, BLOCK_J), dtype=total.dtype)
            for _ in range(begin, tl.minimum(begin + STEPS, stop), BLOCK_K):
                acc = _step(rows_ptr, offs_a, offs_b, stride_term, acc, TERMS)
                rows_ptr += BLOCK_K * stride_row
            total += acc
    else:
        for _ in range(start, stop, BLOCK_K):
            total = _step(rows_ptr, offs_a, offs_b, stride_term, total, TERMS)
            rows_ptr += BLOCK_K * stride_row
    # a half at a time, for want of registers
    halves = tl.split(tl.permute(tl.reshape(total, (BLOCK_I, 2, BLOCK_J // 2)), (0, 2, 1)))
    offs = tl.arange(0, BLOCK_I)[:, None] * BLOCK_J + tl.arange(0, BLOCK_J // 2)[None, :]
    out_ptrs = partials_ptr + pid.to(tl.int64) * (BLOCK_I * BLOCK_J) + offs
    for half in tl.static_range(2):
        sums = halves[half]
        if add != 0:
            sums += tl.load(out_ptrs + half * (BLOCK_J // 2))
        tl.store(out_ptrs + half * (BLOCK_J // 2), sums)


@triton.jit
def _step(rows_ptr, offs_a, offs_b, stride_term, acc, TERMS: tl.constexpr):
    """Add the products of some rows; of two planes each, all products but that of the lower ones."""
    a_tile = tl.load(rows_ptr + offs_a)  # [BLOCK_I, BLOCK_K]
    b_tile = tl.load(rows_ptr + offs_b)  # [BLOCK_K, BLOCK_J]
    if TERMS == 2:
        acc = multiply(tl.load(rows_ptr + stride_term + offs_a), b_tile, acc)
        acc = multiply(a_tile, tl.load(rows_ptr + stride_term + offs_b), acc)
    return multiply(a_tile, b_tile, acc)


@triton.jit
def _upper(pid, tiles, RATIO: tl.constexpr):
    """Return a part of the rows, and a tile (i, j) of a triangle whose tiles are cut into RATIO along i."""
    count = tiles * (tiles + 1) // 2 * RATIO
    place = pid % count
    i, j = grouped_triangle(place // RATIO, tiles, _GROUP)
    return pid // count, i * RATIO + place % RATIO, j


@triton.jit(do_not_specialize=["giants", "column_i", "column_j", "p", "tiles_i", "tiles_j", "base", "parts", "first"])
def _moments_reduce_kernel(
    partials_ptr,
    sums_ptr,
    inverse_i_ptr,
    inverse_j_ptr,
    giants_ptr,
    count_ptr,
    giants,
    stride_giant,
    column_i,
    column_j,
    p,
    q,
    tiles_i,
    tiles_j,
    base,
    parts,
    first,
    SYMMETRIC: tl.constexpr,
    MIRRORED: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    pid, pid_r = tl.program_id(0), tl.program_id(1)
    if SYMMETRIC:
        _, i, j = _upper(pid, tiles_j, BLOCK_J // BLOCK_I)
    else:
        i, j = grouped(pid, tiles_i, tiles_j, _GROUP)
    offs_r = pid_r * BLOCK_R + tl.arange(0, BLOCK_R)
    offs = offs_r[:, None] * BLOCK_J + tl.arange(0, BLOCK_J)[None, :]
    total = tl.zeros((BLOCK_R, BLOCK_J), dtype=tl.float64)
    for part in range(parts):
        slot = (base + part * tl.num_programs(0) + pid).to(tl.int64)
        total += tl.load(partials_ptr + slot * (BLOCK_I * BLOCK_J) + offs).to(tl.float64)
    if inverse_i_ptr is not None:
        total = total * tl.load(inverse_i_ptr) * tl.load(inverse_j_ptr)
    if giants_ptr is not None:
        offs_k = tl.arange(0, 16)
        a_ptrs = (
            giants_ptr + tl.multiple_of(column_i, 16) + (i * BLOCK_I + offs_r)[:, None] + offs_k[None, :] * stride_giant
        )
        b_ptrs = giants_ptr + tl.multiple_of(column_j, 16) + j * BLOCK_J + tl.arange(0, BLOCK_J)[None, :]
        b_ptrs += offs_k[:, None] * stride_giant
        for _ in range(0, tl.where(tl.load(count_ptr) > 0, giants, 0), 16):
            total = multiply(tl.load(a_ptrs), tl.load(b_ptrs), total)
            a_ptrs += 16 * stride_giant
            b_ptrs += 16 * stride_giant
    offs_i = (i * BLOCK_I + offs_r).to(tl.int64)[:, None]
    offs_j = (j * BLOCK_J + tl.arange(0, BLOCK_J)).to(tl.int64)[None, :]
    mask = (offs_i < p) & (offs_j < q)
    if SYMMETRIC:
        # below the diagonal products are added in another order
        mask = mask & (offs_i <= offs_j)
    out_ptrs = sums_ptr + offs_i * q + offs_j
    if first == 0:
        total += tl.load(out_ptrs, mask=mask, other=0.0)
    tl.store(out_ptrs, total, mask=mask)
    if MIRRORED:
        tl.store(sums_ptr + tl.trans(offs_j * q + offs_i), tl.trans(total), mask=tl.trans(mask))

"""How gram_sums cuts its pass: shapes of tiles, pieces of rows, and the bytes that these take."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..tiles import launch
from ..tiles.launch import Config, Configs, cdiv
from ..tiles.packed_rows import ROWS, packed_bytes

# sums of the rows of tiles that are held at a time, unless one block of rows needs more
_PARTIAL_BYTES = 128 * 2**20
# the least rows of a tile, for which there are the most sums
_LEAST_TILE = 64
# rows [first, last)
Piece = tuple[int, int]


@dataclass(frozen=True)
class TileConfig(Config):
    """A tile whose kernel values are taken in so many parts, as many at a time as registers hold."""

    parts: int = 1

    @property
    def constants(self) -> dict[str, int]:
        return {**super().constants, "PARTS": self.parts}


# for as few programs as there can be
_INTERPRET = tuple(TileConfig(rows, rows, 64, 4, 1) for rows in (64, 128, 256, 512, 1024))
# square tiles: those on the diagonal hold their own mirror
CONFIGS: dict[str, Configs] = {
    "fast": {
        "interpret": _INTERPRET,
        "sm_80": (TileConfig(64, 64, 32, 4, 4),),
        "sm_90": (TileConfig(128, 128, 64, 8, 4, parts=4), TileConfig(128, 128, 64, 8, 3, parts=4)),
        "sm_100": (TileConfig(64, 64, 64, 4, 4),),
        "gfx942": (TileConfig(128, 128, 64, 8, 2, parts=2),),
    },
    "high": {
        "interpret": _INTERPRET,
        "sm_80": (TileConfig(64, 64, 32, 4, 4),),
        "sm_90": (TileConfig(128, 128, 32, 8, 4, parts=4), TileConfig(128, 128, 32, 8, 6, parts=4)),
        "sm_100": (TileConfig(64, 64, 64, 4, 4),),
        "gfx942": (TileConfig(128, 128, 32, 8, 2, parts=2),),
    },
    "exact": {
        "interpret": _INTERPRET,
        "sm_80": (TileConfig(64, 64, 16, 8, 3),),
        "sm_90": (TileConfig(64, 64, 16, 8, 3),),
        "sm_100": (TileConfig(64, 64, 16, 8, 3),),
        "gfx942": (TileConfig(64, 64, 16, 8, 3),),
    },
}


def default_block_rows(p: int, q: int, precision: str, bandwidths: int = 1) -> int:
    """Return how many rows a block has, so that two of each array and the partials of a pair fit; q = 0 without y."""
    sides = 2 if q else 1
    of_row = sum(packed_bytes(ROWS, width, precision) for width in (p, q) if width) // ROWS
    packed = launch.WORKSPACE_BYTES // (2 * of_row)
    partial = math.isqrt(_PARTIAL_BYTES * _LEAST_TILE // (16 * sides * bandwidths))
    return max(min(packed, partial) // ROWS, 1) * ROWS


@dataclass(frozen=True)
class Plan:
    """How many rows a piece has, and how many pieces of each array are held."""

    rows: int
    held: int

    @classmethod
    def of(cls, widths: list[int], precision: str, bandwidths: int) -> Plan:
        """Return the plan for arrays of these numbers of features."""
        rows = default_block_rows(widths[0], sum(widths[1:]), precision, bandwidths)
        of_piece = sum(packed_bytes(rows, width, precision) for width in widths)
        return cls(rows, max(2, launch.WORKSPACE_BYTES // of_piece))

    def pairs(self, n: int, block_rows: int | None, pairs: NDArray[np.int64] | None) -> Iterator[tuple[Piece, Piece]]:
        """Yield pairs I <= J of pieces that make up the pairs of blocks, all rows being one block without pairs."""
        # no result depends on blocks but for which pairs of them are counted
        size = n if pairs is None or block_rows is None else block_rows
        for one, other in [(0, 0)] if pairs is None else pairs.tolist():
            left, right = (self.pieces(block * size, min((block + 1) * size, n)) for block in (one, other))
            for at, piece in enumerate(left):
                yield from ((piece, beside) for beside in (right[at:] if one == other else right))

    def pieces(self, first: int, last: int) -> list[Piece]:
        """Return the rows [first, last) in pieces of nearly the same length, whole tiles but for the last."""
        size = cdiv(cdiv(last - first, cdiv(last - first, self.rows)), ROWS) * ROWS
        return [(start, min(start + size, last)) for start in range(first, last, size)]


def scratch_bytes(n: int, p: int, q: int, precision: str, bandwidths: int) -> int:
    """Return the most bytes beside the result, on an H200, of a pass over all pairs; q = 0 without y."""
    widths = [width for width in (p, q) if width]
    plan = Plan.of(widths, precision, bandwidths)
    pieces = plan.pieces(0, n)
    rows = cdiv(pieces[0][1], ROWS) * ROWS
    tile = CONFIGS[precision]["sm_90"][0].block_i
    tiles = cdiv(rows, tile)
    held = min(len(pieces), plan.held) * sum(packed_bytes(rows, width, precision) + 8 * rows for width in widths)
    # sums over rows and columns of tiles, those of a tile, and those of one side added in float64
    partial = len(widths) * 8 * tiles * rows * min(len(pieces), 2) + 24 * tiles**2 + 16 * rows
    return held + bandwidths * partial

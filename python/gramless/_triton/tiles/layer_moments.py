"""Moments of many layers on a GPU: each is packed once for a chunk of rows, one launch multiplies those of all pairs.

Planes hold the layers side by side, each from a column on that is a multiple of 16, in a unit of its own. So do results
until the last chunk: x with all layers of y, or with itself, in float64. They are cut into layers at the end.
Cost: as `moments` of all layers of x and of y without those of x with x and y with y, but for each layer alone; beside
the result, that of all layers with their padding. Sums weighted by norms are float64 products of d and |d|^2.
Numerics: as `moments`; the rows that are apart from others of their chunk are those of any layer.
Rejected: a launch for each pair, 45,000 for 300 layers, each of which has less work than a launch takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from . import launch, packed_rows
from .launch import cdiv
from .moment_products import SLACK, Features, Tiles
from .outlier_rows import Giants

# columns that layers begin at, as tiles read them
_COLUMNS = 16
# rows whose d is taken to float64 at a time
_WIDE_ROWS = 4096


@dataclass
class _Layer:
    """One layer: its pivot and unit, its columns in the planes, and its first row that is not finite."""

    array: torch.Tensor
    pivot: torch.Tensor
    unit: torch.Tensor | None
    column: int
    first_bad: torch.Tensor

    @classmethod
    def of(cls, array: torch.Tensor, pivot: Any, precision: str, column: int) -> _Layer:
        wide = array.dtype == torch.float64
        if pivot is None:
            found = packed_rows.pivot_of(array)
        else:
            # a copy in any case: what comes back is the caller's to write to
            given = torch.as_tensor(pivot, dtype=torch.float64, device=array.device).clone()
            found = packed_rows.rounded(given, wide).contiguous()
        unit = None if precision == "exact" else packed_rows.unit_of(array, found)
        bad = torch.full((), array.shape[0], dtype=torch.int64, device=array.device)
        return cls(array, found, unit, column, bad)

    @property
    def p(self) -> int:
        return int(self.array.shape[1])

    @property
    def width(self) -> int:
        """Features, padded."""
        return cdiv(self.p, _COLUMNS) * _COLUMNS

    @property
    def columns(self) -> slice:
        return slice(self.column, self.column + self.p)


class LayerSums:
    """All sums of one call, over one chunk of rows after the other."""

    def __init__(
        self, arrays: Sequence[torch.Tensor], split: int, pivots: Sequence[Any], precision: str, chunk_rows: int
    ) -> None:
        self.split, self.precision, self.chunk_rows = split, precision, chunk_rows
        self.layers: list[_Layer] = []
        column, cut = 0, 0
        for place, (array, pivot) in enumerate(zip(arrays, pivots, strict=True)):
            if place == split:
                cut = column
            self.layers.append(_Layer.of(array, pivot, precision, column))
            column += self.layers[-1].width
        self.n, self.width, self.device = int(arrays[0].shape[0]), column, arrays[0].device
        terms, dtype = packed_rows.terms_of(precision), packed_rows.dtype_of(precision)
        held = torch.empty(terms * chunk_rows * self.width + SLACK, dtype=dtype, device=self.device)
        # the last tile reads beyond the last row, though to no end
        held[-SLACK:].zero_()
        self.planes = held[:-SLACK].view(terms, chunk_rows, self.width)
        self.squares = torch.empty((len(arrays), chunk_rows), dtype=torch.float64, device=self.device)
        # sums of d, d^3, d^4
        self.columns = torch.zeros((3, self.width), dtype=torch.float64, device=self.device)
        self.weighted = torch.zeros((self.width, len(arrays)), dtype=torch.float64, device=self.device)
        self.norms = torch.zeros((len(arrays),) * 2, dtype=torch.float64, device=self.device)
        chunks = cdiv(self.n, chunk_rows)
        self.giants = None if precision == "exact" else Giants(chunks, self.width, SLACK, self.device)
        self.tiles = [Tiles.plan(pairs, self.planes, chunk_rows, precision) for pairs in self._pairs(cut)]

    def _pairs(self, cut: int) -> list[list[tuple[Features, Features] | None]]:
        """Return the matrices to compute: of all of x with all of y and of each layer, or of all of x with itself."""
        if self.split == len(self.layers):
            every = Features(self.width, 0, None)
            return [[(every, every), None, None]]
        x, y = Features(cut, 0, None), Features(self.width - cut, cut, None)
        own = [Features(layer.p, layer.column, None) for layer in self.layers]
        return [[None, None, (x, y)], *([None, (one, one), None] for one in own)]

    def add(self, start: int) -> None:
        """Add the rows of one chunk."""
        rows = min(cdiv(self.n - start, packed_rows.ROWS) * packed_rows.ROWS, self.chunk_rows)
        planes, squares = self.planes[:, :rows], self.squares[:, :rows]
        arrays = []
        for place, layer in enumerate(self.layers):
            part = layer.array[start : start + rows]
            into = planes[:, :, layer.column : layer.column + layer.width], squares[place]
            bad = packed_rows.pack(part, layer.pivot, self.precision, unit=layer.unit, into=into).first_bad
            bad = torch.where(bad < part.shape[0], bad + start, self.n)
            layer.first_bad = torch.minimum(layer.first_bad, bad)
            arrays.append((part, layer.pivot, layer.column))
        if self.giants:
            self.giants.take(start // self.chunk_rows, arrays, planes, squares)
        self._add_rows(planes, squares)
        for tiles in self.tiles:
            tiles.add(planes, giants=None, last=start + rows >= self.n)

    def _add_rows(self, planes: torch.Tensor, squares: torch.Tensor) -> None:
        """Add sums over rows of d and its powers, of d weighted by the squares of each layer, and of these products."""
        for first in range(0, planes.shape[1], _WIDE_ROWS):
            d = planes[:, first : first + _WIDE_ROWS].to(torch.float64).sum(dim=0)
            a = squares[:, first : first + _WIDE_ROWS]
            square = d * d
            self.columns += torch.stack([d.sum(dim=0), (square * d).sum(dim=0), (square * square).sum(dim=0)])
            self.weighted += d.T @ a.T
            self.norms += a @ a.T

    def results(self) -> dict[str, Any]:
        """Return all sums in the units of the data."""
        blocks = [next(block.sums for block in tiles.blocks if block) for tiles in self.tiles]
        if self.giants:
            self._leave_units(self.giants, blocks)
        found: dict[str, Any] = {"n": self.n, "bad": torch.stack([layer.first_bad for layer in self.layers])}
        paired = self.split < len(self.layers)
        sides = {"x": list(range(self.split))}
        if paired:
            sides["y"] = list(range(self.split, len(self.layers)))
        for name, side in sides.items():
            own = [self.layers[k] for k in side]
            sums = [self.columns[:, layer.columns] for layer in own]
            second = [self._block(blocks, k, k).reshape(-1) for k in side]
            found |= {
                f"pivot_{name}": torch.cat([layer.pivot for layer in own]),
                f"sum_{name}": torch.cat([part[0] for part in sums]),
                f"s{name}{name}": torch.cat(second),
                f"weighted_{name}{name}": torch.cat([self.weighted[self.layers[k].columns, k] for k in side]),
                f"norms_{name}{name}": torch.stack([self.norms[k, k] for k in side]),
                f"cubes_{name}": torch.cat([part[1] for part in sums]),
                f"fourths_{name}": torch.cat([part[2] for part in sums]),
            }
        partners = sides.get("y", sides["x"])
        strips = []
        for a in sides["x"]:
            others = [b for b in partners if paired or b > a]
            if others:
                strips.append(torch.cat([self._block(blocks, a, b) for b in others], dim=1).reshape(-1))
        empty = torch.zeros(0, dtype=torch.float64, device=self.device)
        found["sxy"] = torch.cat(strips) if strips else empty
        keys = {"weighted_xy": (sides["x"], partners)} | ({"weighted_yx": (partners, sides["x"])} if paired else {})
        for key, (rows, others) in keys.items():
            columns = slice(others[0], others[-1] + 1)
            found[key] = torch.cat([self.weighted[self.layers[k].columns, columns] for k in rows])
        found["norms_xy"] = self.norms[: self.split, partners[0] : partners[-1] + 1].clone()
        return found

    def _block(self, blocks: list[torch.Tensor], a: int, b: int) -> torch.Tensor:
        """Return the second moments of two layers."""
        x, y = self.layers[a], self.layers[b]
        if len(blocks) == 1:
            return blocks[0][x.columns, y.columns]
        if a == b:
            return blocks[1 + a]
        first = self.layers[self.split].column
        return blocks[0][x.columns, slice(y.column - first, y.column - first + y.p)]

    def _leave_units(self, giants: Giants, blocks: list[torch.Tensor]) -> None:
        """Bring all sums to the units of the data, and add those of the giants."""
        inverse = torch.ones(self.width, dtype=torch.float64, device=self.device)
        of_layers = torch.stack([layer.unit.reciprocal() for layer in self.layers if layer.unit is not None])
        for place, layer in enumerate(self.layers):
            inverse[layer.columns] = of_layers[place]
        squared, values = of_layers.square(), giants.values[0]
        self.columns *= torch.stack([inverse, inverse**3, inverse**4])
        self.weighted *= inverse[:, None] * squared[None, :]
        self.norms *= squared[:, None] * squared[None, :]
        squares = torch.stack([values[:, layer.columns].square().sum(dim=1) for layer in self.layers])
        self._add_rows(giants.values, squares)
        spans = [(slice(0, self.width),) * 2]
        if len(blocks) > 1:
            cut = self.layers[self.split].column
            spans = [(slice(0, cut), slice(cut, self.width)), *((layer.columns,) * 2 for layer in self.layers)]
        for block, (i, j) in zip(blocks, spans, strict=True):
            block *= inverse[i, None] * inverse[None, j]
            block += values[:, i].T @ values[:, j]


def chunk_rows(n: int, width: int, precision: str) -> int:
    """Return rows whose planes take no more than the workspace, 128 at the least."""
    most = max(1, launch.WORKSPACE_BYTES // packed_rows.packed_bytes(packed_rows.ROWS, width, precision))
    return min(cdiv(n, packed_rows.ROWS), most) * packed_rows.ROWS


def padded(widths: Sequence[int]) -> int:
    """Return the features of layers of such widths with their padding."""
    return sum(cdiv(p, _COLUMNS) * _COLUMNS for p in widths)

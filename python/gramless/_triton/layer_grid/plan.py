"""How a batch of layers is cut: tiles of rows, parts of the features, bands of rows, and what memory that takes."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch

from ..tiles import launch
from ..tiles.launch import Config, cdiv
from .kernel_values import CONFIGS, SAMPLE

# rows that a rule takes the distances of, where a batch goes by bands: evenly spaced ones, if there are more
EXACT_ROWS = 4096
# features that float32 sums on matrix units, which drop bits at each step
CHUNK = 1024
# steps over the features that a part of them has at least, most parts, and programs for each processor
LEAST_STEPS, MOST_SPLITS, PROGRAMS_EACH = 4, 16, 3
# pairs of rows that a part of them has at least, most parts of these, and programs for each processor
LEAST_PAIRS, MOST_PARTS, PARTS_EACH = 256, 128, 2
# features of a step at most, of a sampled piece, and pairs of rows that the values of a layer are a multiple of
STEP, PIECE, _PAIRS = 64, 512, 128
# rows of a tile whose values are made at a time, of float64 half as many
_STRIP = 32
# rows for which tiles of 64 will do
_FEW_ROWS = 64


class Group(NamedTuple):
    """Layers that one launch takes: of one dtype, with rows that are whole aligned steps or are not."""

    dtype: torch.dtype
    even: bool
    layers: tuple[int, ...]


class Band(NamedTuple):
    """Blocks of rows whose pairs with all later rows are held at a time."""

    tile: int
    tiles: int
    origin: int
    pairs: int


@dataclass(frozen=True)
class Layers:
    """What stays the same from batch to batch: x before y, none of which means that x is compared with itself."""

    widths: tuple[int, ...]
    count_x: int
    kernel: str
    rule: str | None
    precision: str
    device: torch.device
    processors: int
    workspace: int

    @property
    def count(self) -> int:
        """Number of layers."""
        return len(self.widths)

    @property
    def count_y(self) -> int:
        """Number of columns of the grid."""
        return self.count - self.count_x or self.count_x

    @property
    def pairs(self) -> int:
        """Number of pairs of layers."""
        return self.count_x * self.count_y

    @property
    def symmetric(self) -> bool:
        """Whether x is compared with itself."""
        return self.count == self.count_x


@dataclass(frozen=True)
class Plan:
    """How batches of n rows of such groups of layers are computed."""

    layers: Layers
    n: int
    groups: tuple[Group, ...]

    @property
    def wide(self) -> bool:
        """Whether all is float64."""
        return self.layers.precision == "exact" or any(group.dtype == torch.float64 for group in self.groups)

    @property
    def number(self) -> torch.dtype:
        """Of kernel values."""
        return torch.float64 if self.wide else torch.float32

    @cached_property
    def architecture(self) -> str:
        """The tiles are those of it."""
        return launch.architecture(self.layers.device)

    def config(self, group: Group) -> Config:
        """Return the tiles of a launch."""
        precision = "exact" if self.wide else "high" if self.terms(group) == 2 else "fast"
        found = launch.candidates(CONFIGS[precision], self.architecture)[0]
        if self.n <= _FEW_ROWS < found.block_i:
            return replace(found, block_i=_FEW_ROWS, block_j=_FEW_ROWS, block_k=min(found.block_k, 32), num_warps=4)
        return found

    def terms(self, group: Group) -> int:
        """Return the planes of the rows of a group."""
        return 2 if self.layers.precision == "high" and group.dtype == torch.float32 and not self.wide else 1

    @cached_property
    def block(self) -> int:
        """Rows of a tile."""
        return self.config(self.groups[0]).block_i

    @property
    def blocks(self) -> int:
        """Blocks of rows."""
        return cdiv(self.n, self.block)

    @property
    def strips(self) -> int:
        """Parts of a tile whose values are made at a time."""
        return 1 if launch.interpreting() else self.block // (_STRIP // 2 if self.wide else _STRIP)

    @property
    def width(self) -> int:
        """Features, padded."""
        return cdiv(max(self.layers.widths), STEP) * STEP

    @property
    def pieces(self) -> int:
        """Pieces of the features that centres are taken of."""
        return cdiv(self.width, PIECE)

    @cached_property
    def splits(self) -> int:
        """Parts of the features: no longer than one number may sum, and enough programs for all processors."""
        programs = self.layers.count * self.blocks * (self.blocks + 1) // 2
        steps = cdiv(max(self.layers.widths), STEP)
        wanted = min(round(PROGRAMS_EACH * self.layers.processors / programs), steps // LEAST_STEPS, MOST_SPLITS)
        return max(1, wanted, cdiv(steps * STEP, CHUNK))

    @cached_property
    def bands(self) -> list[Band]:
        """All rows as one band if they fit the workspace, else as many blocks as do, one at least."""
        blocks, found, first = self.blocks, [], 0
        while first < blocks:
            last = first + 1
            while last < blocks and self._bytes(self._band(first, last + 1)) <= self.layers.workspace:
                last += 1
            found.append(self._band(first, last))
            first = last
        return found

    def _band(self, first: int, last: int) -> Band:
        """Return the band of blocks first..last - 1."""
        before, after, through = (self._tiles_from(block) for block in (0, first, last))
        start, stop = (self._pairs_before(min(block * self.block, self.n)) for block in (first, last))
        return Band(before - after, after - through, start, stop - start)

    def _tiles_from(self, block: int) -> int:
        left = self.blocks - block
        return left * (left + 1) // 2

    def _pairs_before(self, row: int) -> int:
        return row * (2 * self.n - row - 1) // 2

    def _bytes(self, band: Band) -> int:
        values = self.splits * band.tiles * self.block**2 + band.pairs
        return self.layers.count * values * self.number.itemsize

    @cached_property
    def sample(self) -> Plan | None:
        """How a rule takes distances of each layer by itself, where those of all are too many."""
        if self.layers.rule is None or len(self.bands) == 1:
            return None
        # of one layer all rows are held at a time
        one = replace(self.layers, widths=(max(self.layers.widths),), count_x=1, workspace=sys.maxsize)
        return Plan(one, cdiv(self.n, self.spacing), self.groups)

    @property
    def spacing(self) -> int:
        """Rows from one of the sample to the next."""
        return cdiv(self.n, EXACT_ROWS)

    @cached_property
    def parts(self) -> tuple[int, int, int, int]:
        """Parts of the pairs of rows, layers and pairs of rows of a step of a product, and how many of its programs."""
        side, step = (16, 128) if launch.interpreting() else (32, 32)
        tiles_x, tiles_y = cdiv(self.layers.count_x, side), cdiv(self.layers.count_y, side)
        tiles = tiles_x * (tiles_x + 1) // 2 if self.layers.symmetric else tiles_x * tiles_y
        programs = tiles + cdiv(self.layers.count, side)
        most = max(1, min(MOST_PARTS, PARTS_EACH * self.layers.processors // programs))
        return min(most, cdiv(self.stride, LEAST_PAIRS)), side, step, tiles

    @property
    def stride(self) -> int:
        """Values of a layer, padded."""
        return cdiv(max(max(band.pairs for band in self.bands), 1), _PAIRS) * _PAIRS

    def memory(self) -> dict[str, tuple[torch.dtype, int]]:
        """Return the dtypes and lengths of the buffers that the launches share."""
        layers, rows, number = self.layers.count, self.blocks * self.block, self.number
        tiles = max(band.tiles for band in self.bands)
        sizes = {
            "centre": (number, layers * self.width),
            "deviations": (number, layers * self.pieces * SAMPLE.value),
            "norms": (number, self.splits * layers * rows),
            "grams": (number, self.splits * layers * tiles * self.block**2),
            "values": (number, layers * self.stride),
            "parts": (torch.float64, layers * tiles * (self.strips + 1) * self.block),
            "sums": (torch.float64, layers * tiles * self.strips * 2),
            "rows": (torch.float64, layers * rows),
            "shifts": (torch.float64, layers),
            "products": (torch.float64, self.parts[0] * self.layers.pairs),
            "selfs": (torch.float64, self.parts[0] * layers),
            "bads": (torch.int64, layers * (self.blocks + 1)),
        }
        if self.sample is not None:
            sampled = self.sample.memory()
            sizes = {key: (dtype, max(size, sampled[key][1])) for key, (dtype, size) in sizes.items()}
        return sizes

"""One pass over the logits of one or two models in chunks, rows by rows and in each all labels in their order.

A chunk is written by a product for each model and read by what sums it up; of logits that are given it is where they
lie. The workspace holds one chunk of each model that has an unembedding. It has all labels of its rows where these are
to be read again, and room for so many rows that reading w again costs nothing beside the products.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import triton

from ..tiles import launch
from ..tiles.launch import WORKSPACE_BYTES, cdiv
from . import products

# rows of a chunk whose labels come piece by piece, and the fewest that hold all labels; labels of a piece, at the least
_MOST_ROWS = 2048
_LEAST_ROWS = 256
_LEAST_LABELS = 4096
# labels of a row that a program sums at a time, all of them in one warp, which needs no barriers to add them up; and
# rows and labels of the interpreter
_LABELS, _LABELS_WIDE = 512, 256
_BLOCK_N, _BLOCK_V = 512, 1024
# programs for each processor, which together keep its memory busy
_PROGRAMS = 64


class Head(NamedTuple):
    """One model."""

    h: torch.Tensor  # (N, d), or (N, V)
    w: torch.Tensor | None  # (V, d)
    b: Any  # (V,)
    softcap: float | None


class Chunk(NamedTuple):
    """Some rows, and some labels of these."""

    first_row: int
    rows: int
    first_label: int
    labels: int


class Shape(NamedTuple):
    """Rows and labels of a chunk."""

    rows: int
    labels: int


def shape_of(n: int, labels: int, tile: tuple[int, int], numbers: int, *, whole: bool) -> Shape:
    """Return the shape of chunks that hold so many numbers of each model, whole tiles of them.

    Parameters
    ----------
    n, labels : int
        Rows and labels of the pass.
    tile : tuple of int
        Rows and labels of a tile of products; one tile there always is.
    numbers : int
        Logits of one model that the workspace holds.
    whole : bool
        Whether logits are read again, once those of all labels are known.
    """
    block_i, block_j = tile
    all_rows, all_labels = cdiv(n, block_i) * block_i, cdiv(labels, block_j) * block_j
    fit = numbers // all_labels // block_i * block_i
    if fit >= min(all_rows, _MOST_ROWS) or (whole and fit >= _LEAST_ROWS):
        return Shape(min(fit, all_rows), all_labels)
    rows = min(all_rows, max(_MOST_ROWS // block_i, 1) * block_i)
    while rows > block_i and numbers // rows < min(_LEAST_LABELS, all_labels):
        rows = max(rows // 2 // block_i, 1) * block_i
    return Shape(rows, min(max(numbers // rows // block_j, 1) * block_j, all_labels))


def room(ways: Sequence[str], device: torch.device, workspace: int | None) -> tuple[tuple[int, int], int]:
    """Return rows and labels of a tile of products, and the logits that a workspace holds of each of these models."""
    tiles = [products.tile(way, device) for way in ways]
    item = 8 if "exact" in ways else 4
    given = WORKSPACE_BYTES if workspace is None else workspace
    return (max(one.block_i for one in tiles), max(one.block_j for one in tiles)), given // (item * len(ways))


@dataclass
class Pass:
    """Rows and labels that count of one or two models on a device, and the chunk in hand."""

    heads: Sequence[Head]
    rows: torch.Tensor | None  # (N',)
    index: torch.Tensor | None  # (V',)
    targets: torch.Tensor | None  # (N,)
    n: int
    labels: int
    wide: bool
    precision: str
    scale: float
    shape: Shape
    biases: Sequence[torch.Tensor | None]
    workspace: Sequence[torch.Tensor | None]

    @classmethod
    def over(
        cls,
        heads: Sequence[Head],
        labels: Any,
        mask: Any,
        targets: Any,
        temperature: float,
        precision: str,
        workspace: int | None,
        *,
        whole: bool,
    ) -> Pass:
        device = heads[0].h.device
        arrays = [a for head in heads for a in (head.h, head.w) if a is not None]
        wide = precision == "exact" or any(a.dtype == torch.float64 for a in arrays)
        kind = torch.float64 if wide else torch.float32
        kept = _kept(heads, labels)
        rows = None if mask is None else np.flatnonzero(mask)
        n = int(heads[0].h.shape[0]) if rows is None else len(rows)
        count = _labels(heads[0]) if kept is None else len(kept)
        index = None if kept is None else _on(kept, device)
        shape = Shape(n, count)
        ways = [_way(head, precision, wide) for head in heads if head.w is not None]
        if ways:
            shape = shape_of(n, count, *room(ways, device, workspace), whole=whole)
        return cls(
            heads,
            None if rows is None else _on(rows, device),
            index,
            None if targets is None else _places(_on(targets, device), index),
            n,
            count,
            wide,
            precision,
            1.0 / temperature,
            shape,
            [None if head.b is None else _bias(head.b, kept, device, kind) for head in heads],
            [None if head.w is None else _chunk(shape, device, kind) for head in heads],
        )

    @property
    def device(self) -> torch.device:
        return self.heads[0].h.device

    @property
    def holds_all(self) -> bool:
        """Whether a chunk has all labels of its rows."""
        return self.shape.labels >= self.labels

    def results(self, fields: int) -> torch.Tensor:
        """Return room for so many numbers of each row."""
        return torch.empty((fields, self.n), dtype=torch.float64, device=self.device)

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Yield the first row and the number of rows of each chunk."""
        for first in range(0, self.n, max(self.shape.rows, 1)):
            yield first, min(self.shape.rows, self.n - first)

    def chunks(self, first_row: int, rows: int) -> Iterator[Chunk]:
        """Yield chunks of these rows, with their products in the workspace until the next one."""
        size = self.shape.labels
        for first in range(0, self.labels, size):
            labels = min(size, self.labels - first)
            chunk = Chunk(first_row, rows, first, labels)
            for head, out in zip(self.heads, self.workspace, strict=True):
                if head.w is not None and out is not None:
                    way = _way(head, self.precision, self.wide)
                    products.products(head.h, head.w, way, self.rows, self.index, first_row, first, out, (rows, labels))
            yield chunk

    def partials(self, fields: int, rows: int) -> torch.Tensor:
        """Return room for what parts of the labels of these rows leave, after what those of chunks before have left."""
        parts = cdiv(self.shape.labels, self._length(rows))
        return torch.empty((fields, 1 + parts, rows), dtype=torch.float64, device=self.device)

    def sum_up(self, kernel: Any, chunk: Chunk, partials: torch.Tensor, *more: torch.Tensor | None) -> int:
        """Launch a kernel on a chunk, which leaves its sums for each part of the labels; return how many there are."""
        length = self._length(chunk.rows)
        parts = cdiv(chunk.labels, length)
        arguments: list[Any] = []
        keywords: dict[str, Any] = {}
        for head, out, bias, number in zip(self.heads, self.workspace, self.biases, "12", strict=False):
            z = head.h if out is None else out
            arguments += [z, *z.stride(), bias, _bits(_within(head.softcap, wide=self.wide))]
            keywords |= {f"CAPPED{number}": head.softcap is not None, f"GIVEN{number}": head.w is None}
        launch.launch(
            kernel,
            (cdiv(chunk.rows, self._block_n(chunk.rows)), parts),
            *arguments,
            self.rows,
            self.index,
            *more,
            partials.view(-1),
            chunk.first_row,
            chunk.rows,
            chunk.first_label,
            chunk.labels,
            length,
            partials.stride(0),
            _bits(self.scale),
            **keywords,
            WIDE=self.wide,
            BLOCK_N=self._block_n(chunk.rows),
            BLOCK_V=self._block_v(self.shape.labels),
            num_warps=1,
        )
        return parts

    def reduce(self, kernel: Any, chunk: Chunk, partials: torch.Tensor, parts: int, out: torch.Tensor) -> None:
        """Launch a kernel that joins the parts of a chunk to what is before them, and with the last tells results."""
        block = min(_BLOCK_N, triton.next_power_of_2(chunk.rows)) if launch.interpreting() else 128
        launch.launch(
            kernel,
            (cdiv(chunk.rows, block),),
            self.index,
            partials.view(-1),
            out.view(-1),
            int(chunk.first_label == 0),
            1 + parts,
            chunk.first_row,
            chunk.rows,
            self.n,
            self.labels,
            partials.stride(0),
            LAST=chunk.first_label + chunk.labels == self.labels,
            BLOCK_N=block,
            num_warps=4,
        )

    def _block_n(self, rows: int) -> int:
        return min(_BLOCK_N, int(triton.next_power_of_2(rows))) if launch.interpreting() else 1

    def _block_v(self, labels: int) -> int:
        if launch.interpreting():
            return min(_BLOCK_V, int(triton.next_power_of_2(labels)))
        return _LABELS_WIDE if self.wide else _LABELS

    def _length(self, rows: int) -> int:
        """Return the labels of a part, the same in all chunks of these rows: so many parts that programs are enough."""
        block_v = self._block_v(self.shape.labels)
        tiles = cdiv(self.shape.labels, block_v)
        wanted = cdiv(_PROGRAMS * launch.processors(self.device), cdiv(rows, self._block_n(rows)))
        return cdiv(tiles, min(wanted, tiles)) * block_v


def _labels(head: Head) -> int:
    return int(head.h.shape[1] if head.w is None else head.w.shape[0])


def _way(head: Head, precision: str, wide: bool) -> str:
    return "" if head.w is None else products.way(head.h, head.w, precision, wide=wide)


def _kept(heads: Sequence[Head], labels: Any) -> Any:
    """Return the labels that count, in order, less what every model masks; None for all."""
    if any(head.b is None for head in heads):
        return labels
    masked = np.logical_and.reduce([np.isneginf(np.asarray(head.b)) for head in heads])
    if not masked.any():
        return labels
    return np.flatnonzero(~masked) if labels is None else np.asarray(labels)[~masked[np.asarray(labels)]]


def _on(values: Any, device: torch.device, kind: torch.dtype = torch.int64) -> torch.Tensor:
    """Return an array on the device, without a wait, which a copy out of memory that is not pinned would be."""
    made = values if isinstance(values, torch.Tensor) else torch.from_numpy(np.array(values))
    if device.type != "cpu" and made.device.type == "cpu":
        made = made.pin_memory()
    return made.to(device, kind, non_blocking=True)


def _places(targets: torch.Tensor, index: torch.Tensor | None) -> torch.Tensor:
    """Return where the targets are among the labels that count, -1 where they are not."""
    if index is None:
        return targets
    place = torch.searchsorted(index, targets).clamp(max=len(index) - 1)
    return torch.where(index.index_select(0, place) == targets, place, -1)


def _bias(b: Any, kept: Any, device: torch.device, kind: torch.dtype) -> torch.Tensor:
    """Return the biases of the labels that count, in order, with room for a tile more."""
    values = np.asarray(b, np.float64) if kept is None else np.asarray(b, np.float64)[np.asarray(kept)]
    return _on(np.concatenate([values, np.zeros(_BLOCK_V)]), device, kind)


def _chunk(shape: Shape, device: torch.device, kind: torch.dtype) -> torch.Tensor:
    """Return room for a chunk of logits, and behind the last row for a tile more."""
    made = torch.empty(shape.rows * shape.labels + _BLOCK_V, dtype=kind, device=device)
    return made[:-_BLOCK_V].view(shape)


def _within(cap: float | None, *, wide: bool) -> float:
    """Return a cap that the number of the logits holds; beyond it, a larger or smaller one is no other."""
    if cap is None:
        return 1.0
    return cap if wide else min(max(cap, 1e-37), 1e38)


def _bits(value: float) -> int:
    return int(np.float64(value).view(np.int64))

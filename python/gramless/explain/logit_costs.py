"""Flops, bytes read and peak bytes of predictions: passes over logits, comparisons in batches, logit distances."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from .._base import quantile_sketch
from ..ops import backends
from ..predictions import factorization, row_statistics, stacked_weights, unembedding_pair
from ..predictions.logit_distance import _BLOCK_BYTES, _LEAST_ROWS
from . import costs
from .costs import Columns, Cost, readable

# a workspace that holds the logits of fewer rows, and not those of all, holds none
LEAST_KEPT_ROWS = 64
# fields of a row in a state of one model, and of two
_STATE_FIELDS = (7, 19)
# values of a row for each label that the definition holds: of one model, of two, and of two with divergences; and those
# that are there while the next logits are made
_DEFINED, _DEFINED_BEFORE = (6, 8, 14), 3
# values of a row that a comparison takes, beside those of its table, while it makes them
_TABLE_SCRATCH = 8

# rows of each piece of a factor, and the first of their columns that is not zero and the one after the last
Panels = Sequence[tuple[int, int, int]]


class Model(NamedTuple):
    """One model: what its hidden states, or its logits, and its unembedding are made of."""

    h: Columns
    w: Columns | None  # None: h holds logits
    on_unit: bool = False  # multiplied in bfloat16
    widened: bool = False  # the definition takes both arrays as float32

    @property
    def width(self) -> int:
        """Number of features d that are multiplied."""
        return 0 if self.w is None else self.h.width

    @property
    def label_bytes(self) -> int:
        """Bytes of a row of the unembedding."""
        return 0 if self.w is None else self.w.row_bytes


@dataclass(frozen=True)
class Pass:
    """A pass over the logits of one or two models, of the labels that count."""

    models: tuple[Model, ...]
    labels: int
    backend: str
    divergences: bool = False
    workspace: int | None = None

    @property
    def width(self) -> int:
        """Number of features d1 + d2 that are multiplied."""
        return sum(one.width for one in self.models)

    @property
    def in_float64(self) -> bool:
        """Whether logits are in float64."""
        return any(array.dtype == "float64" for one in self.models for array in (one.h, one.w) if array)

    @property
    def state_bytes(self) -> int:
        """Bytes of a row of the state."""
        return 8 * _STATE_FIELDS[len(self.models) - 1]

    @property
    def row_bytes(self) -> int:
        """Bytes read of a row of hidden states, or of logits."""
        return sum((one.h if one.w else one.h._replace(width=self.labels)).row_bytes for one in self.models)

    @property
    def label_bytes(self) -> int:
        """Bytes of a row of all unembeddings."""
        return sum(one.label_bytes for one in self.models)

    @property
    def limit(self) -> int:
        """Bytes that logits may take so that they are not computed again."""
        return int(_core().LOGIT_WORKSPACE) if self.workspace is None else self.workspace

    def held(self, n: int) -> int:
        """Return of how many of n rows the workspace holds the logits."""
        return min(n, self.limit // (2 * self.labels * self._item))

    def kept(self, n: int) -> int:
        """Return of how many rows logits are kept at a time, for divergences; 0: of none, these take a second pass."""
        held = self.held(n) if self.divergences else 0
        return held if held >= min(n, LEAST_KEPT_ROWS) else 0

    def cost(self, n: int) -> Cost:
        """Return the cost of n rows."""
        flops, held = 2 * n * self.labels * self.width, n * self.state_bytes
        if self.backend == "reference":
            return Cost(flops, n * self.row_bytes + self.labels * self.label_bytes, held, self._defined(n))
        core, kept = _core(), self.kept(n)
        times = 2 if self.divergences and not kept else 1
        block = min(core.logit_block_rows(n, self.labels, self.width, float64=self.in_float64), kept or n)
        # labels are packed once for each block of rows
        read = n * self.row_bytes + -(-n // max(block, 1)) * self.labels * self.label_bytes
        scratch = core.logit_scratch_bytes(
            n,
            self.labels,
            [one.width for one in self.models],
            float64=self.in_float64,
            on_unit=[one.on_unit for one in self.models],
            most_rows=block,
        )
        logits = 2 * block * self.labels * self._item if kept else 0
        return Cost(times * flops, times * read, held, scratch + logits)

    def told(self, names: Sequence[str]) -> str:
        """Tell how models in bfloat16 are multiplied, given what follows "h" and "w" in the names of their arrays."""
        if self.backend == "reference":
            return ""
        told, wide = "", "float64" if self.in_float64 else "float32"
        for number, one in zip(names, self.models, strict=True):
            if one.w is not None and one.h.dtype == one.w.dtype == "bfloat16":
                how = f"multiplied by {_core().bf16_unit()}" if one.on_unit else f"widened to {wide}"
                told += f"; bfloat16 of h{number} and w{number} is {how}"
        return told

    def second_pass(self, n: int) -> str:
        """Tell where divergences take their logits from."""
        if not (n and self.divergences) or self.backend == "reference":
            return ""
        if self.kept(n):
            return f"; logits of {self.kept(n)} rows at a time are kept for js and tv"
        holds = f"{readable(self.limit)} holds those of {self.held(n)} rows, fewer than {min(n, LEAST_KEPT_ROWS)}"
        return f"; logits are computed twice, for js and tv: a workspace of {holds}"

    def _defined(self, n: int) -> int:
        """Return the bytes of the definition: all logits, made of arrays in float64 of one model after the other."""
        elements = [n * one.h.width + self.labels * one.width for one in self.models]
        # rows that count, and these in float64
        arrays = max(count * (8 + one.h.kind_bytes) for count, one in zip(elements, self.models, strict=True))
        widened = sum(4 * count for count, one in zip(elements, self.models, strict=True) if one.widened)
        values, logits = _DEFINED[len(self.models) - 1 + self.divergences], 8 * n * self.labels
        return widened + max(arrays + _DEFINED_BEFORE * logits, values * logits)

    @property
    def _item(self) -> int:
        return 8 if self.in_float64 else 4


def comparison(counts: Mapping[int, int], of: Pass, *, keep: bool) -> Cost:
    """Return the cost of a comparison: so many batches of so many rows; keep: the values of all rows."""
    names = row_statistics.names_of(divergences=of.divergences)
    most, several = max(counts), sum(counts.values()) > 1
    passes = [of.cost(size).times(count) for size, count in counts.items()]
    # of the batch before
    earlier = most * of.state_bytes if several else 0
    making = most * (of.state_bytes + 8 * (len(names) + _TABLE_SCRATCH))
    sketches = 3 * 8 * quantile_sketch.SIZE * len(names)
    kept = 8 * len(names) * sum(size * count for size, count in counts.items()) if keep else 0
    during = max(max(one.peak for one in passes) + earlier, making) + sketches
    flops, read = sum(one.flops for one in passes), sum(one.bytes_read for one in passes)
    # values are kept in pieces, and then as one
    return Cost(flops, read, 2 * kept, max(during - kept, 0))


def of_state(n: int, *, keep: bool) -> Cost:
    """Return the cost of a comparison of a state that is there."""
    count = len(row_statistics.NAMES)
    held = 2 * 8 * count * n if keep else 0
    return Cost(0, 8 * _STATE_FIELDS[1] * n, held, 8 * (count + _TABLE_SCRATCH) * n + 8 * quantile_sketch.SIZE * count)


def by_vocabulary(n: int, of: Pass) -> Cost:
    """Return the cost of a logit distance from logits in float64, block by block of rows, which are copied."""
    first, second = of.models
    size = max(_LEAST_ROWS, _BLOCK_BYTES // (8 * first.h.width))
    wide = first._replace(h=Columns(first.h.width, "float64"), on_unit=False)
    inside = replace(of, models=(wide, second._replace(on_unit=False)))
    row_bytes = first.h.row_bytes + second.h.row_bytes
    flops, read, peak = 0, n * row_bytes, 0
    for rows, count in batches(n, size).items():
        cost = inside.cost(rows)
        flops += count * cost.flops
        read += count * (cost.bytes_read - rows * inside.row_bytes)
        peak = max(peak, cost.peak + rows * (row_bytes + wide.h.row_bytes))
    # the state of the block before, and of all rows numbers, squares and roots
    return Cost(flops, read, 0, peak + (size * of.state_bytes if n > size else 0) + 8 * 4 * n)


def batches(n: int, size: int) -> dict[int, int]:
    """Return how many batches there are of which size."""
    whole = {size: n // size} if n >= size else {}
    return whole | ({n % size: 1} if n % size else {})


def factor(labels: int, columns: Sequence[Columns], backend: str, *, biased: bool, gathered: bool) -> Cost:
    """Return the cost of the factor of two unembeddings, by second moments, or by their rows where these are few."""
    first, second = columns
    right = Columns(second.width + biased, "float64")
    width, label_bytes = first.width + right.width, first.row_bytes + second.row_bytes
    sampled = min(labels, stacked_weights._PIVOT_ROWS)
    if labels <= width:
        # read again for their fingerprint
        return Cost(0, (2 * labels + sampled) * label_bytes, 8 * labels * width, labels * label_bytes)
    rows = min(
        labels, max(stacked_weights.BLOCK_ROWS, width // stacked_weights.PIECE_ROWS * stacked_weights.PIECE_ROWS)
    )
    once = costs.moments(rows, [first, right], backend)
    sums = once.held * (2 if labels > rows else 1)
    during = 8 * rows * right.width + (rows * first.row_bytes if gathered else 0) + sums + once.scratch
    # the moments about their mean beside the sums, then beside the triangle; and rows of them
    square = 8 * width * width
    algebra = square + max(once.held, square) + 16 * min(width, factorization._QR_ROWS) * width
    flops = costs.moments(labels, [first, right], backend).flops + width**3 // 3
    return Cost(flops, (labels + sampled) * label_bytes, square, max(during, algebra) - square)


def panels(labels: int, width: int) -> Panels:
    """Return those of a factor: a triangle, or as many rows as labels, where these are no more than its columns."""
    size, count = unembedding_pair._FACTOR_ROWS, min(labels, width)
    starts = range(0, count, size)
    return [(min(size, count - first), 0 if labels <= width else first, width) for first in starts]


def by_factor(n: int, columns: Sequence[Columns], used: Panels, *, biased: bool, exact: bool, gathered: bool) -> Cost:
    """Return the cost of a logit distance with a factor that is there; exact: of no sums that squared its columns."""
    width = sum(one.width for one in columns) + biased
    row_bytes = sum(one.row_bytes for one in columns)
    rows = min(n, max(unembedding_pair._LEAST_ROWS, unembedding_pair._BLOCK_BYTES // (8 * width)))
    # rows in float64, their squares for what rounding may do, and the largest product
    block = 8 * (width * (2 if exact else 1) + max((count for count, _, _ in used), default=0))
    # of all rows numbers, squares and roots
    scratch = rows * (block + (row_bytes if gathered else 0)) + 8 * 4 * n
    return Cost(2 * n * sum(count * (stop - start) for count, start, stop in used), n * row_bytes, 0, scratch)


def _core() -> Any:
    return backends.core_or_raise("explain")

"""A table of moments: named arrays over the same rows and pairs of them, as layer grids and processes share it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from .._base import arguments, saved_state
from .._base.arrays import Array
from .._base.gpu_arrays import Unread
from .moments import (
    CrossMoments,
    Part,
    SelfMoments,
    as_flat_arrays,
    cross_from,
    cross_shapes,
    flatten,
    self_from,
    self_shapes,
    to_device_of,
)

# as many rows as a kernel takes its pivot from
PIVOT_ROWS = 64


@dataclass(frozen=True)
class Layout:
    """Names and numbers of features of the arrays of a table, and its pairs: with it, a table is one flat vector."""

    widths: dict[str, int]
    pairs: list[tuple[str, str]]

    def encode(self) -> str:
        """Return the layout as a text."""
        return json.dumps([list(self.widths.items()), self.pairs])

    @classmethod
    def decode(cls, function: str, text: str) -> Layout:
        """Return the layout of such a text, checked."""
        try:
            widths, pairs = json.loads(text)
            made = cls({str(name): int(width) for name, width in widths}, [(str(a), str(b)) for a, b in pairs])
        except (OverflowError, RecursionError, TypeError, ValueError) as error:
            raise ValueError(f"{function}: cannot read the layout of the state: {error}") from None
        if not made.widths or not all(a in made.widths and b in made.widths for a, b in made.pairs):
            raise ValueError(f"{function}: the layout of the state names no arrays, or pairs of unknown arrays")
        return made

    def slots(self) -> dict[str, tuple[int, ...]]:
        """Return keys and shapes of all sums, in the order of the flat vector; pivots are no sums."""
        slots: dict[str, tuple[int, ...]] = {}
        for i, width in enumerate(self.widths.values()):
            slots |= {f"self.{i}.{k}": shape for k, shape in self_shapes(width).items() if k != "pivot"}
        for i, (a, b) in enumerate(self.pairs):
            slots |= {f"cross.{i}.{k}": shape for k, shape in cross_shapes(self.widths[a], self.widths[b]).items()}
        return slots

    def split_pivots(self, vector: Array) -> dict[str, Array]:
        """Return the pivot of each array out of one vector of all."""
        pivots, start = {}, 0
        for name, width in self.widths.items():
            pivots[name] = vector[start : start + width]
            start += width
        return pivots

    def keyed_pivots(self, vector: Array) -> dict[str, Array]:
        """Return the pivots by key out of one vector of all."""
        return {f"self.{i}.pivot": value for i, value in enumerate(self.split_pivots(vector).values())}

    def split_sums(self, vector: Array) -> dict[str, Array]:
        """Return the sums by key out of the flat vector."""
        sums, start = {}, 0
        for key, shape in self.slots().items():
            size = math.prod(shape)
            sums[key] = vector[start : start + size].reshape(shape)
            start += size
        return sums


@dataclass(frozen=True, eq=False, repr=False)
class MomentTable:
    """Self moments of each named array, cross moments of the pairs that were asked for. Never changed in place."""

    selfs: Mapping[str, SelfMoments]
    crosses: Mapping[tuple[str, str], CrossMoments]
    # of rows that came on a GPU
    unread: Unread | None = None

    @property
    def n(self) -> int:
        """Number of rows."""
        return next(iter(self.selfs.values())).n

    @property
    def nbytes(self) -> int:
        """Bytes held by the arrays."""
        return sum(part.nbytes for part in self.selfs.values()) + sum(part.nbytes for part in self.crosses.values())

    @property
    def widths(self) -> dict[str, int]:
        """Number of features of each named array."""
        return {name: part.width for name, part in self.selfs.items()}

    @property
    def pivots(self) -> dict[str, Array]:
        """Pivot of each named array."""
        return {name: part.pivot for name, part in self.selfs.items()}

    def pivots_for(self, rows: int) -> Mapping[str, Array]:
        """Return the pivots for the next rows, none where the kernel shall choose.

        A pivot of few rows is far from the mean, which costs digits in float32. So until enough rows have been seen it
        follows them: the mean so far, or that of the new rows if these are more.
        """
        if self.n >= PIVOT_ROWS:
            return self.pivots
        return {} if rows > self.n else {name: p.pivot + p.sum / p.n for name, p in self.selfs.items()}

    @property
    def layout(self) -> Layout:
        """Names, numbers of features and pairs."""
        return Layout(self.widths, list(self.crosses))

    def flat(self, *, copy: bool = True) -> dict[str, Array]:
        """Return all arrays by key: those of `Layout.slots`, and the pivots."""
        parts: dict[str, Part] = {f"self.{i}": part for i, part in enumerate(self.selfs.values())}
        parts |= {f"cross.{i}": part for i, part in enumerate(self.crosses.values())}
        return flatten(parts, copy=copy)

    def beside(self, own: MomentTable) -> MomentTable:
        """Return the table with its arrays in the library and on the device of another."""
        one = next(iter(own.selfs.values()))
        selfs = {name: to_device_of(part, one) for name, part in self.selfs.items()}
        return MomentTable(selfs, {pair: to_device_of(part, one) for pair, part in self.crosses.items()}, self.unread)

    def settled(self, function: str) -> MomentTable:
        """Return the table once no rows that came on a GPU are found to be at fault; this waits for it."""
        if self.unread is not None:
            self.unread.refuse_faults(function, self.n)
        return self

    def about_kept(self, own: MomentTable) -> MomentTable:
        """Return the table with the very pivots of another that a kernel was given for it, if it has kept them."""
        if own.unread is None or not own.unread.rounded or own.n < PIVOT_ROWS:
            return self
        selfs = {name: replace(part, pivot=own.selfs[name].pivot) for name, part in self.selfs.items()}
        return replace(self, selfs=selfs)

    def translate(self, pivots: Mapping[str, Array]) -> MomentTable:
        """Return the same rows about other pivots, in the library and on the device of the present ones."""
        selfs = {name: part.about(pivots[name]) for name, part in self.selfs.items()}
        crosses = {
            (a, b): part.translate(self.selfs[a], self.selfs[b], pivots[a], pivots[b])
            for (a, b), part in self.crosses.items()
        }
        unread = None if self.unread is None else replace(self.unread, rounded=False)
        return MomentTable(selfs, crosses, unread)

    def merge(self, other: MomentTable) -> MomentTable:
        """Return the rows of both, about the pivots and in the order of the first; names and widths must agree."""
        moved = other.beside(self).translate(self.pivots)
        selfs = {name: part.merge(moved.selfs[name]) for name, part in self.selfs.items()}
        crosses = {
            # the other table may name its arrays, and so its pairs, in another order
            (a, b): part.merge(moved.crosses[a, b] if (a, b) in moved.crosses else moved.crosses[b, a].swapped())
            for (a, b), part in self.crosses.items()
        }
        return MomentTable(selfs, crosses, self.unread_with(other))

    def unread_with(self, other: MomentTable) -> Unread | None:
        """Return what is not known yet of these rows and others after them."""
        if self.unread is None or other.unread is None:
            unread = self.unread
            if other.unread is not None:
                unread = Unread({name: row + self.n for name, row in other.unread.first_bad.items()}, rounded=False)
            return unread
        kept = all(part.pivot is other.selfs[name].pivot for name, part in self.selfs.items())
        rounded = self.unread.rounded or (kept and other.unread.rounded)
        return replace(self.unread.followed_by(other.unread, self.n), rounded=rounded)

    def to_dict(self, form: str) -> dict[str, Any]:
        """Return a flat dict of copies of all arrays, the layout as a text."""
        return as_flat_arrays(self.flat(), format=form, n=self.n, layout=self.layout.encode())

    @classmethod
    def from_dict(cls, function: str, state: Mapping[str, Any], form: str) -> MomentTable:
        """Return the table of a dict made by `to_dict`, copied and checked."""
        n = saved_state.header(function, state, form)
        layout = Layout.decode(function, saved_state.text(function, state, "layout"))
        table = cls.from_flat(function, layout, n, state)
        saved_state.no_other_keys(function, state, {"format", "n", "layout", *table.flat(copy=False)})
        return table

    @classmethod
    def from_flat(cls, function: str, layout: Layout, n: int, flat: Mapping[str, Any]) -> MomentTable:
        """Return the table of arrays by key, copied and checked."""
        selfs = {name: self_from(function, flat, f"self.{i}", n) for i, name in enumerate(layout.widths)}
        arguments.same_widths(function, layout.widths, {name: part.width for name, part in selfs.items()})
        crosses = {
            (a, b): cross_from(function, flat, f"cross.{i}", layout.widths[a], layout.widths[b])
            for i, (a, b) in enumerate(layout.pairs)
        }
        return cls(selfs, crosses)

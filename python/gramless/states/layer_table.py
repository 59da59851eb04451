"""Moments of a grid of layers by the names of both sides, as streams and processes share them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from array_api_compat import array_namespace

from .._base import saved_state
from .._base.arrays import Array
from .._base.gpu_arrays import Unread
from .layer_moments import LayerMoments, shapes, split
from .moment_table import PIVOT_ROWS
from .moments import as_flat_arrays


@dataclass(frozen=True)
class LayerLayout:
    """Names and numbers of features of the layers, those of x first: with it, a table is one flat vector."""

    widths: dict[str, int]

    def encode(self) -> str:
        """Return the layout as a text."""
        return json.dumps(list(self.widths.items()))

    @classmethod
    def decode(cls, function: str, text: str) -> LayerLayout:
        """Return the layout of such a text, checked."""
        try:
            made = cls({str(name): int(width) for name, width in json.loads(text)})
        except (OverflowError, RecursionError, TypeError, ValueError) as error:
            raise ValueError(f"{function}: cannot read the layout of the state: {error}") from None
        names = list(made.widths)
        x = [name for name in names if name.startswith("x/")]
        y = [name for name in names if name.startswith("y/")]
        if not x or names != x + y or min(made.widths.values()) < 1:
            raise ValueError(f"{function}: the layout of the state is not that of a layer grid")
        return made

    @property
    def sides(self) -> tuple[list[int], list[int]]:
        """Numbers of features of the layers of x and of y."""
        x, y = ([p for name, p in self.widths.items() if name.startswith(side)] for side in ("x/", "y/"))
        return x, y

    def slots(self) -> dict[str, tuple[int, ...]]:
        """Return keys and shapes of all sums, in the order of the flat vector; pivots are no sums."""
        return {key: shape for key, shape in shapes(*self.sides).items() if not key.endswith(".pivot")}

    def split_pivots(self, vector: Array) -> dict[str, Array]:
        """Return the pivot of each layer out of one vector of all."""
        return dict(zip(self.widths, split(vector, list(self.widths.values())), strict=True))

    def keyed_pivots(self, vector: Array) -> dict[str, Array]:
        """Return the pivots by key out of one vector of all."""
        p = sum(self.sides[0])
        return {"x.pivot": vector[:p]} | ({"y.pivot": vector[p:]} if self.sides[1] else {})

    def split_sums(self, vector: Array) -> dict[str, Array]:
        """Return the sums by key out of the flat vector."""
        sums, start = {}, 0
        for key, shape in self.slots().items():
            size = math.prod(shape)
            sums[key] = vector[start : start + size].reshape(shape)
            start += size
        return sums


@dataclass(frozen=True, eq=False, repr=False)
class LayerTable:
    """Moments of named layers and of all pairs of a grid. Never changed in place."""

    names: tuple[str, ...]
    sums: LayerMoments
    # of rows that came on a GPU
    unread: Unread | None = None

    @property
    def n(self) -> int:
        """Number of rows."""
        return self.sums.n

    @property
    def nbytes(self) -> int:
        """Bytes held by the arrays."""
        return self.sums.nbytes

    @property
    def widths(self) -> dict[str, int]:
        """Number of features of each layer."""
        y = self.sums.y.widths if self.sums.y else ()
        return dict(zip(self.names, self.sums.x.widths + y, strict=True))

    @property
    def layout(self) -> LayerLayout:
        """Names and numbers of features."""
        return LayerLayout(self.widths)

    @property
    def pivots(self) -> dict[str, Array]:
        """Pivot of each layer."""
        return self._by_name([self.sums.x.pivot, *([self.sums.y.pivot] if self.sums.y else [])])

    def pivots_for(self, rows: int) -> Mapping[str, Array]:
        """Return the pivots for the next rows, none where the kernel shall choose: see `MomentTable.pivots_for`."""
        if self.n >= PIVOT_ROWS:
            return self.pivots
        if rows > self.n:
            return {}
        sides = [self.sums.x, *([self.sums.y] if self.sums.y else [])]
        return self._by_name([side.pivot + side.sum / self.n for side in sides])

    def _by_name(self, vectors: Sequence[Array]) -> dict[str, Array]:
        found: dict[str, Array] = {}
        names, widths = list(self.names), list(self.widths.values())
        for vector, side in zip(vectors, (self.sums.x, self.sums.y), strict=False):
            count = len(side.widths) if side else 0
            found |= zip(names[:count], split(vector, widths[:count]), strict=True)
            names, widths = names[count:], widths[count:]
        return found

    def flat(self, *, copy: bool = True) -> dict[str, Array]:
        """Return all arrays by key."""
        found = self.sums.flat()
        return {k: array_namespace(v).asarray(v, copy=True) for k, v in found.items()} if copy else found

    def settled(self, function: str) -> LayerTable:
        """Return the table once no rows that came on a GPU are found to be at fault; this waits for it."""
        if self.unread is not None:
            self.unread.refuse_faults(function, self.n)
        return self

    def about_kept(self, own: LayerTable) -> LayerTable:
        """Return the table with the very pivots of another that a kernel was given for it, if it has kept them."""
        if own.unread is None or not own.unread.rounded or own.n < PIVOT_ROWS:
            return self
        x = replace(self.sums.x, pivot=own.sums.x.pivot)
        y = self.sums.y and own.sums.y and replace(self.sums.y, pivot=own.sums.y.pivot)
        return replace(self, sums=replace(self.sums, x=x, y=y))

    def translate(self, pivots: Mapping[str, Array]) -> LayerTable:
        """Return the same rows about other pivots, in the library and on the device of the present ones."""
        xp = array_namespace(self.sums.second)
        count = len(self.sums.x.widths)
        x, y = ([pivots[name] for name in side] for side in (self.names[:count], self.names[count:]))
        moved = self.sums.about(xp.concat(x), xp.concat(y) if y else None)
        unread = None if self.unread is None else replace(self.unread, rounded=False)
        return replace(self, sums=moved, unread=unread)

    def added_to(self, before: LayerTable) -> LayerTable:
        """Return the rows of both, in the arrays of this table, which nobody else may hold.

        The pivots are those of this table until enough rows have been seen.
        """
        kept = before if before.n >= PIVOT_ROWS else self
        pivot_y = kept.sums.y.pivot if kept.sums.y else None
        sums = self.sums.added_to(before.sums, kept.sums.x.pivot, pivot_y)
        return LayerTable(before.names, sums, before.unread_with(self))

    def merge(self, other: LayerTable) -> LayerTable:
        """Return the rows of both, about the pivots and in the order of the first; names and widths must agree."""
        theirs = other._in_order(self.names).sums.beside(self.sums)
        return LayerTable(self.names, self.sums.merge(theirs), self.unread_with(other))

    def beside(self, own: LayerTable) -> LayerTable:
        """Return the table with its arrays in the library and on the device of another."""
        return replace(self, sums=self.sums.beside(own.sums))

    def _in_order(self, names: tuple[str, ...]) -> LayerTable:
        if names == self.names:
            return self
        places = [self.names.index(name) for name in names]
        count = len(self.sums.x.widths)
        of_x, of_y = places[:count], [place - count for place in places[count:]]
        return replace(self, names=names, sums=self.sums.in_order(of_x, of_y))

    def unread_with(self, other: LayerTable) -> Unread | None:
        """Return what is not known yet of these rows and others after them."""
        if self.unread is None or other.unread is None:
            unread = self.unread
            if other.unread is not None:
                unread = Unread({name: row + self.n for name, row in other.unread.first_bad.items()}, rounded=False)
            return unread
        mine, theirs = ([side and side.pivot for side in (t.sums.x, t.sums.y)] for t in (self, other))
        kept = all(a is b for a, b in zip(mine, theirs, strict=True))
        rounded = self.unread.rounded or (kept and other.unread.rounded)
        return replace(self.unread.followed_by(other.unread, self.n), rounded=rounded)

    def to_dict(self, form: str) -> dict[str, Any]:
        """Return a flat dict of copies of all arrays, the layout as a text."""
        return as_flat_arrays(self.flat(), format=form, n=self.n, layout=self.layout.encode())

    @classmethod
    def from_dict(cls, function: str, state: Mapping[str, Any], form: str) -> LayerTable:
        """Return the table of a dict made by `to_dict`, copied and checked."""
        n = saved_state.header(function, state, form)
        layout = LayerLayout.decode(function, saved_state.text(function, state, "layout"))
        table = cls.from_flat(function, layout, n, state)
        saved_state.no_other_keys(function, state, {"format", "n", "layout", *table.flat(copy=False)})
        return table

    @classmethod
    def from_flat(cls, function: str, layout: LayerLayout, n: int, flat: Mapping[str, Any]) -> LayerTable:
        """Return the table of arrays by key, copied and checked."""
        sums = LayerMoments.from_flat(n, *layout.sides, _arrays(function, layout, flat))
        names = iter(layout.widths)
        for side in (sums.x, sums.y):
            for part in side.parts(n) if side else []:
                saved_state.squares(function, next(names), part.second, part.norms)
        return cls(tuple(layout.widths), sums)


def _arrays(function: str, layout: LayerLayout, flat: Mapping[str, Any]) -> dict[str, Array]:
    return {key: saved_state.array(function, flat, key, shape) for key, shape in shapes(*layout.sides).items()}

"""Moments of many layers over the same rows and of all their pairs, as a few long arrays.

The arrays of layers stand one after the other: vectors hold all features of x, and of y; a column of weighted sums or
of norms belongs to one layer. The formulas are those of `_states`, each written once for all pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from .._base import arguments
from .._base.arrays import Array
from .moments import SelfMoments


@dataclass(frozen=True, eq=False, repr=False)
class LayerSide:
    """Self moments of the layers of one side, in float64: the fields of `SelfMoments`, one layer after the other."""

    widths: tuple[int, ...]
    pivot: Array  # (p,)  of all features
    sum: Array  # (p,)
    second: Array  # (q,)  the blocks of all layers, row by row
    weighted: Array  # (p,)
    norms: Array  # (l,)
    cubes: Array  # (p,)
    fourths: Array  # (p,)

    def parts(self, n: int) -> list[SelfMoments]:
        """Return the moments of each layer over n rows, as views."""
        found, start, block = [], 0, 0
        for k, p in enumerate(self.widths):
            own = slice(start, start + p)
            found.append(
                SelfMoments(
                    n=n,
                    pivot=self.pivot[own],
                    sum=self.sum[own],
                    second=self.second[block : block + p * p].reshape((p, p)),
                    weighted=self.weighted[own],
                    norms=self.norms[k],
                    cubes=self.cubes[own],
                    fourths=self.fourths[own],
                )
            )
            start, block = start + p, block + p * p
        return found

    @classmethod
    def of(cls, parts: Sequence[SelfMoments]) -> LayerSide:
        """Return the side of such layers, copied."""
        xp = array_namespace(parts[0].second)

        def joined(name: str) -> Array:
            return xp.concat([xp.reshape(getattr(part, name), (-1,)) for part in parts])

        names = [f.name for f in fields(cls) if f.name != "widths"]
        return cls(tuple(part.width for part in parts), **{name: joined(name) for name in names})

    @property
    def traces(self) -> Array:
        """Sum of the squared lengths of the rows of each layer."""
        xp = array_namespace(self.second)
        starts = np.cumsum([0, *(p * p for p in self.widths)]).tolist()
        diagonal = xp.concat([self.second[o : o + p * p : p + 1] for o, p in zip(starts, self.widths, strict=False)])
        return layer_sums(diagonal, self.widths)

    def in_order(self, order: Sequence[int]) -> LayerSide:
        """Return the same layers in another order, copied."""
        parts = self.parts(0)
        return self.of([parts[k] for k in order])

    def about(self, n: int, pivot: Array) -> LayerSide:
        """Return the same n rows about another pivot of all features."""
        pivots = split(pivot, self.widths)
        moved = self.of([part.about(own) for part, own in zip(self.parts(n), pivots, strict=True)])
        return replace(moved, pivot=pivot)


@dataclass(frozen=True, eq=False, repr=False)
class LayerMoments:
    """The state of one pass over many layers: moments of each, and of each layer of x with each partner, in float64.

    Partners are the layers of y. Without y they are those of x: the second moments are those with the layers that come
    later, all other sums those with every layer, the layer itself among them.
    """

    n: int
    x: LayerSide
    y: LayerSide | None
    second: Array  # (s,)  for each layer of x d^T e, (its features, features of all partners), row by row
    weighted_x: Array  # (p, l2)  sum of b_i d_i for each partner
    weighted_y: Array | None  # (q, l1)  sum of a_i e_i for each layer of x; None without y
    norms: Array  # (l1, l2)  sum of a_i b_i

    def __repr__(self) -> str:
        return f"LayerMoments(n={self.n}, layers={len(self.x.widths)} x {len(self.partners.widths)})"

    @property
    def partners(self) -> LayerSide:
        """The layers of y, or those of x."""
        return self.x if self.y is None else self.y

    @property
    def nbytes(self) -> int:
        """Bytes held by the arrays."""
        return sum(8 * int(np.prod(array.shape)) for array in self.flat().values())

    def flat(self) -> dict[str, Array]:
        """Return all arrays by key: x.sum, y.sum, pairs.second, and so on."""
        found: dict[str, Array] = {}
        parts: dict[str, Any] = {"x": self.x, "y": self.y, "pairs": self}
        for name, part in parts.items():
            for f in fields(part) if part else ():
                value = getattr(part, f.name)
                if f.name not in ("n", "x", "y", "widths") and value is not None:
                    found[f"{name}.{f.name}"] = value
        return found

    @classmethod
    def from_flat(
        cls, n: int, widths_x: Sequence[int], widths_y: Sequence[int], flat: Mapping[str, Array]
    ) -> LayerMoments:
        """Return the state of arrays by key."""
        sides: list[LayerSide | None] = []
        for name, widths in {"x": widths_x, "y": widths_y}.items():
            own = {key.removeprefix(f"{name}."): value for key, value in flat.items() if key.startswith(f"{name}.")}
            sides.append(LayerSide(tuple(widths), **own) if widths else None)
        pairs = {key.removeprefix("pairs."): value for key, value in flat.items() if key.startswith("pairs.")}
        x, y = sides
        if x is None:
            raise ValueError("LayerMoments: expected at least one layer of x")
        return cls(n, x, y, **({"weighted_y": None} | pairs))

    def strips(self) -> Iterator[tuple[slice, tuple[int, ...], Array]]:
        """Yield the features of each layer of x, the widths of its partners, and its second moments with these."""
        start = at = 0
        for k, p in enumerate(self.x.widths):
            widths = self.x.widths[k + 1 :] if self.y is None else self.y.widths
            size = p * sum(widths)
            yield slice(start, start + p), widths, self.second[at : at + size].reshape((p, sum(widths)))
            start, at = start + p, at + size

    def block(self, a: int, b: int) -> Array:
        """Return the second moments of layer a of x with another layer, partner b, (p, q), as a view."""
        if self.y is None and a > b:
            return self.block(b, a).T
        p, before = self.x.widths[a], self.x.widths[:a]
        if self.y is None:
            first, widths = a + 1, self.x.widths[a + 1 :]
            at = sum(width * sum(self.x.widths[k + 1 :]) for k, width in enumerate(before))
        else:
            first, widths = 0, self.y.widths
            at = sum(before) * sum(widths)
        start, size = sum(widths[: b - first]), p * sum(widths)
        return self.second[at : at + size].reshape((p, sum(widths)))[:, start : start + widths[b - first]]

    def about(self, pivot_x: Array, pivot_y: Array | None) -> LayerMoments:
        """Return the same rows about other pivots of all features."""
        if self._has(pivot_x, pivot_y):
            return self
        c, d = self._steps(pivot_x, pivot_y)
        second = array_namespace(self.second).empty_like(self.second)
        made = replace(self._moved_sums(c, d, pivot_x, pivot_y), second=second)
        for (_, _, target), moved in zip(made.strips(), self.moved_strips(c, d), strict=True):
            target[...] = moved
        return made

    def added_to(self, before: LayerMoments, pivot_x: Array, pivot_y: Array | None) -> LayerMoments:
        """Return the sums of both about such pivots, in the arrays of this state, which nobody else may hold."""
        mine = self.about(pivot_x, pivot_y)
        if before._has(pivot_x, pivot_y):
            old, strips = before, before.moved_strips(None, None)
        else:
            c, d = before._steps(pivot_x, pivot_y)
            old, strips = before._moved_sums(c, d, pivot_x, pivot_y), before.moved_strips(c, d)
        # strip by strip: moved sums of all would cost as much as the sums themselves
        for (_, _, target), moved in zip(mine.strips(), strips, strict=True):
            target += moved
        theirs = old.flat()
        for key, value in mine.flat().items():
            if not key.endswith(".pivot") and key != "pairs.second":
                value += theirs[key]
        x = replace(mine.x, pivot=pivot_x)
        return replace(mine, n=self.n + before.n, x=x, y=mine.y and replace(mine.y, pivot=pivot_y))

    def merge(self, other: LayerMoments) -> LayerMoments:
        """Return the rows of both, about the pivots of the first; widths must agree."""
        y = None if self.y is None else self.y.pivot
        moved = other.about(self.x.pivot, y).flat()
        sums = {key: value if key.endswith(".pivot") else value + moved[key] for key, value in self.flat().items()}
        widths_y = self.y.widths if self.y else ()
        return self.from_flat(self.n + other.n, self.x.widths, widths_y, sums)

    def in_order(self, of_x: Sequence[int], of_y: Sequence[int]) -> LayerMoments:
        """Return the same layers in another order, copied."""
        xp = array_namespace(self.second)
        partners = of_x if self.y is None else of_y
        x, y = self.x.in_order(of_x), None if self.y is None else self.y.in_order(of_y)
        blocks = []
        for place, a in enumerate(of_x):
            others = partners[place + 1 :] if self.y is None else partners
            own = [self.block(a, b) for b in others]
            blocks += [xp.reshape(xp.concat(own, axis=1), (-1,))] if own else []
        second = xp.concat(blocks) if blocks else self.second

        def ordered(values: Array, widths: Sequence[int], rows: Sequence[int], columns: Sequence[int]) -> Array:
            parts = split(values, widths)
            chosen = xp.concat([parts[k] for k in rows])
            return xp.stack([chosen[:, k] for k in columns], axis=1)

        ones = (1,) * len(of_x)
        return LayerMoments(
            self.n,
            x,
            y,
            second,
            weighted_x=ordered(self.weighted_x, self.x.widths, of_x, partners),
            weighted_y=None if self.y is None else ordered(self.weighted_y, self.y.widths, of_y, of_x),
            norms=ordered(self.norms, ones, of_x, partners),
        )

    def beside(self, own: LayerMoments) -> LayerMoments:
        """Return the state with its arrays in the library and on the device of another."""
        xp, where = array_namespace(own.second), device(own.second)
        if array_namespace(self.second) is xp and device(self.second) == where:
            return self
        flat = {key: xp.asarray(value, device=where) for key, value in self.flat().items()}
        return self.from_flat(self.n, self.x.widths, self.y.widths if self.y else (), flat)

    def centred_pairs(self, divisor: int) -> tuple[Array, Array]:
        """Return, about the means, |d^T e / divisor|^2 and the norms of all pairs, both (l1, l2).

        Without y the first of these is 0 where a layer does not come before its partner.
        """
        c, d = self.x.sum / self.n, self.partners.sum / self.n
        norms = self._moved_sums(c, d, self.x.pivot, None if self.y is None else self.y.pivot, sides=False).norms
        xp = array_namespace(self.second)
        squares = xp.zeros_like(self.norms)
        for k, (widths, strip) in enumerate(zip(self._partner_widths(), self.moved_strips(c, d), strict=True)):
            if widths:
                scaled = strip / divisor
                later = slice(self.norms.shape[1] - len(widths), None)
                squares[k, later] = layer_sums(xp.sum(scaled * scaled, axis=0), widths)
        return squares, norms

    def _partner_widths(self) -> list[tuple[int, ...]]:
        return [widths for _, widths, _ in self.strips()]

    def moved_strips(self, c: Array | None, d: Array | None) -> Iterator[Array]:
        """Yield the second moments of each layer of x with its partners, after steps c and d of the pivots."""
        partners = self.partners
        for own, widths, strip in self.strips():
            if c is None or d is None:
                yield strip
                continue
            later = slice(partners.sum.shape[0] - sum(widths), None)
            moved = self.x.sum[own] - self.n * c[own]
            with np.errstate(over="ignore", invalid="ignore"):
                strip = strip - c[own][:, None] * partners.sum[later][None, :] - moved[:, None] * d[later][None, :]
            yield strip

    # sums of far rows may overflow; the estimator that reads them refuses then
    @np.errstate(over="ignore", invalid="ignore")
    def _moved_sums(
        self, c: Array, d: Array, pivot_x: Array, pivot_y: Array | None, *, sides: bool = True
    ) -> LayerMoments:
        """Return all sums after such steps of the pivots but the second moments of pairs, which stay as they are."""
        n, x, y = self.n, self.x, self.partners
        forward, backward = self._products(c, d)
        square_c, square_d = layer_sums(c * c, x.widths), layer_sums(d * d, y.widths)
        along_x, along_y = layer_sums(c * x.sum, x.widths), layer_sums(d * y.sum, y.widths)
        traces_x, traces_y = x.traces, y.traces
        weighted_y = self.weighted_x if self.weighted_y is None else self.weighted_y
        norms = self.norms - 2 * layer_sums(d[:, None] * weighted_y, y.widths).T
        norms = norms - 2 * layer_sums(c[:, None] * self.weighted_x, x.widths)
        norms = norms + 4 * layer_sums(c[:, None] * forward, x.widths)
        norms = norms + (traces_x - 2 * along_x)[:, None] * square_d[None, :]
        norms = norms + square_c[:, None] * (traces_y - 2 * along_y + n * square_d)[None, :]

        def moved(weighted: Array, step: Array, total: Array, traces: Array, products: Array, other: Array) -> Array:
            along, square = other
            weighted = weighted - step[:, None] * traces[None, :] - 2 * products
            return weighted + 2 * step[:, None] * along[None, :] + (total - n * step)[:, None] * square[None, :]

        weighted_x = moved(self.weighted_x, c, x.sum, traces_y, forward, (along_y, square_d))
        if self.weighted_y is not None:
            weighted_y = moved(self.weighted_y, d, y.sum, traces_x, backward, (along_x, square_c))
        return LayerMoments(
            n=n,
            x=x.about(n, pivot_x) if sides else x,
            y=self.y.about(n, pivot_y) if sides and self.y is not None else self.y,
            second=self.second,
            weighted_x=weighted_x,
            weighted_y=None if self.weighted_y is None else weighted_y,
            norms=norms,
        )

    def _products(self, c: Array, d: Array) -> tuple[Array, Array]:
        """Return S d for each layer of x and partner (p, l2), and c S for each the other way (q, l1)."""
        xp = array_namespace(self.second)
        forward = xp.zeros_like(self.weighted_x)
        backward = forward if self.weighted_y is None else xp.zeros_like(self.weighted_y)
        count, q = len(self.partners.widths), self.partners.sum.shape[0]
        for k, (own, widths, strip) in enumerate(self.strips()):
            if widths:
                later = slice(q - sum(widths), None)
                forward[own, count - len(widths) :] = layer_sums((strip * d[later][None, :]).T, widths).T
                backward[later, k] = c[own] @ strip
        if self.y is None:
            for k, ((own, _, _), part) in enumerate(zip(self.strips(), self.x.parts(self.n), strict=True)):
                forward[own, k] = part.second @ c[own]
        return forward, backward

    def _has(self, pivot_x: Array, pivot_y: Array | None) -> bool:
        pairs = [(pivot_x, self.x.pivot)] + ([] if self.y is None else [(pivot_y, self.y.pivot)])
        # a look at numbers on a GPU would wait for it; about the same pivot all sums stay what they are
        return all(
            pivot is own or (not arguments.gpu_of(own) and bool(array_namespace(own).all(pivot == own)))
            for pivot, own in pairs
        )

    def _steps(self, pivot_x: Array, pivot_y: Array | None) -> tuple[Array, Array]:
        c = pivot_x - self.x.pivot
        return c, c if self.y is None else pivot_y - self.y.pivot


def layer_sums(values: Array, widths: Sequence[int]) -> Array:
    """Return sums along the first axis over the features of each layer."""
    if isinstance(values, np.ndarray):
        return np.add.reduceat(values, np.cumsum([0, *widths[:-1]]), axis=0)
    xp = array_namespace(values)
    return xp.stack([xp.sum(part, axis=0) for part in split(values, widths)])


def split(values: Array, widths: Sequence[int]) -> list[Array]:
    """Return the features of each layer, along the first axis, as views."""
    ends = np.cumsum(widths).tolist()
    return [values[end - width : end] for end, width in zip(ends, widths, strict=True)]


def shapes(widths_x: Sequence[int], widths_y: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all arrays by key, of layers of such numbers of features."""
    found: dict[str, tuple[int, ...]] = {}
    for name, widths in {"x": widths_x, "y": widths_y}.items():
        if widths:
            fields_of_features = ("pivot", "sum", "weighted", "cubes", "fourths")
            found |= {f"{name}.{key}": (sum(widths),) for key in fields_of_features}
            found |= {f"{name}.second": (sum(p * p for p in widths),), f"{name}.norms": (len(widths),)}
    count, partners = len(widths_x), len(widths_y or widths_x)
    later = [sum(widths_y) if widths_y else sum(widths_x[k + 1 :]) for k in range(count)]
    found["pairs.second"] = (sum(p * other for p, other in zip(widths_x, later, strict=True)),)
    found["pairs.weighted_x"] = (sum(widths_x), partners)
    if widths_y:
        found["pairs.weighted_y"] = (sum(widths_y), count)
    return found | {"pairs.norms": (count, partners)}

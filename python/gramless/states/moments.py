"""What one pass leaves behind: frozen sums that merge and move their pivot, wherever their arrays live.

With d = x - pivot and a_i = |d_i|^2 (e and b_i for y), every field but the pivot is a sum over rows. Moving the pivot
is closed algebra on these sums, so that states add up in any order. Fields without a dimension are 0-d arrays.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, TypeAlias, TypeVar

import numpy as np
from array_api_compat import array_namespace, device

from .._base import arguments, saved_state
from .._base.arrays import Array

FORMAT = "gramless.moments/1"


@dataclass(frozen=True, eq=False, repr=False)
class SelfMoments:
    """Moments of one array of shape (n, p) about its pivot, in float64."""

    n: int
    pivot: Array  # (p,)
    sum: Array  # (p,)  sum of d
    second: Array  # (p, p)  d^T d
    weighted: Array  # (p,)  sum of a_i d_i
    norms: Array  # ()  sum of a_i^2
    cubes: Array  # (p,)  sum of d^3
    fourths: Array  # (p,)  sum of d^4

    def __repr__(self) -> str:
        return f"SelfMoments(n={self.n}, p={self.width})"

    @property
    def width(self) -> int:
        """Number of features p."""
        return int(self.pivot.shape[0])

    @property
    def trace(self) -> Array:
        """Sum of a_i, 0-d."""
        xp = array_namespace(self.second)
        return xp.linalg.trace(self.second)

    @property
    def nbytes(self) -> int:
        """Bytes held by the arrays."""
        return _nbytes(self)

    def translate(self, pivot: Array) -> SelfMoments:
        """Return the same rows about another pivot, finite numbers of shape (p,)."""
        return self.about(_to_own_device("pivot", pivot, self.pivot))

    def about(self, pivot: Array) -> SelfMoments:
        """Return the same rows about the pivot of another state."""
        if _same(pivot, self.pivot):
            return self
        return replace(self._shift(pivot - self.pivot), pivot=pivot)

    def centred(self) -> SelfMoments:
        """Return the same rows about their mean."""
        return self._shift(self.sum / self.n)

    # sums of far rows may overflow; the estimator that reads them refuses then
    @np.errstate(over="ignore", invalid="ignore")
    def _shift(self, c: Array) -> SelfMoments:
        xp = array_namespace(self.second)
        n, s, v, square = self.n, self.sum, self.weighted, c @ c
        moved = s - n * c
        # a matrix plus its transpose stays symmetric to the last bit
        half = _outer(c, s - 0.5 * n * c)
        diagonal = xp.linalg.diagonal(self.second)
        trace = self.trace
        norms = self.norms - 4 * (c @ v) + 2 * square * trace + 4 * (c @ (self.second @ c))
        norms = norms - 4 * square * (c @ s) + n * square**2
        return SelfMoments(
            n=n,
            pivot=self.pivot + c,
            sum=moved,
            second=self.second - (half + half.T),
            weighted=v - c * trace - 2 * (self.second @ c) + 2 * c * (s @ c) + square * moved,
            # a sum of squares, whatever rounding has left of it
            norms=xp.asarray(xp.clip(norms, 0.0, None)),
            cubes=self.cubes - 3 * c * diagonal + 3 * c**2 * s - n * c**3,
            fourths=self.fourths - 4 * c * self.cubes + 6 * c**2 * diagonal - 4 * c**3 * s + n * c**4,
        )

    def merge(self, other: SelfMoments) -> SelfMoments:
        """Return the rows of both, about the pivot of the first that has rows."""
        if other.n == 0 or self.n == 0:
            return self if other.n == 0 else other
        arguments.same_widths("merge", {"x": self.width}, {"x": other.width})
        return _add(self, to_device_of(other, self).about(self.pivot))


@dataclass(frozen=True, eq=False, repr=False)
class CrossMoments:
    """Moments between two arrays of shapes (n, p) and (n, q), about the pivots of their self moments."""

    second: Array  # (p, q)  d^T e
    weighted_x: Array  # (p,)  sum of b_i d_i
    weighted_y: Array  # (q,)  sum of a_i e_i
    norms: Array  # ()  sum of a_i b_i

    def __repr__(self) -> str:
        return f"CrossMoments(p={self.second.shape[0]}, q={self.second.shape[1]})"

    @property
    def nbytes(self) -> int:
        """Bytes held by the arrays."""
        return _nbytes(self)

    def translate(self, x: SelfMoments, y: SelfMoments, pivot_x: Array, pivot_y: Array) -> CrossMoments:
        """Return the same rows about other pivots; x and y are the self moments about the present ones."""
        if _same(pivot_x, x.pivot) and _same(pivot_y, y.pivot):
            return self
        return self._shift(x, y, pivot_x - x.pivot, pivot_y - y.pivot)

    def centred(self, x: SelfMoments, y: SelfMoments) -> CrossMoments:
        """Return the same rows about their means; x and y are the self moments about the present pivots."""
        return self._shift(x, y, x.sum / x.n, y.sum / y.n)

    @np.errstate(over="ignore", invalid="ignore")
    def _shift(self, x: SelfMoments, y: SelfMoments, c: Array, d: Array) -> CrossMoments:
        xp = array_namespace(self.second)
        n, second, square_c, square_d = x.n, self.second, c @ c, d @ d
        trace_x, trace_y = x.trace, y.trace
        moved_x, moved_y = x.sum - n * c, y.sum - n * d
        forward, backward = second @ d, c @ second
        norms = self.norms - 2 * (d @ self.weighted_y) - 2 * (c @ self.weighted_x) + 4 * (c @ forward)
        norms = norms + square_d * (trace_x - 2 * (c @ x.sum)) + square_c * (trace_y - 2 * (d @ y.sum) + n * square_d)
        return CrossMoments(
            second=second - _outer(c, y.sum) - _outer(moved_x, d),
            weighted_x=self.weighted_x - c * trace_y - 2 * forward + 2 * c * (y.sum @ d) + square_d * moved_x,
            weighted_y=self.weighted_y - d * trace_x - 2 * backward + 2 * d * (x.sum @ c) + square_c * moved_y,
            norms=xp.asarray(norms),
        )

    def swapped(self) -> CrossMoments:
        """Return the same rows with x and y exchanged."""
        return CrossMoments(self.second.T, self.weighted_y, self.weighted_x, self.norms)

    def merge(self, other: CrossMoments) -> CrossMoments:
        """Return the rows of both; the pivots must already agree."""
        return _add(self, to_device_of(other, self))


Part: TypeAlias = SelfMoments | CrossMoments
PartT = TypeVar("PartT", SelfMoments, CrossMoments)


@dataclass(frozen=True, eq=False, repr=False)
class MomentState:
    """The state of one pass over a pair of arrays: every linear measure follows from it.

    Parameters
    ----------
    x, y : SelfMoments
        Moments of each array about its own pivot, in float64.
    cross : CrossMoments
        Moments between them.

    Notes
    -----
    It holds 8 (p^2 + q^2 + p q) bytes and some vectors, whatever the number of rows. Arrays are never changed in place.

    Examples
    --------
    >>> import numpy as np
    >>> import gramless as gl
    >>> rng = np.random.default_rng(0)
    >>> x, y = rng.standard_normal((50, 4)), rng.standard_normal((50, 3))
    >>> state = gl.moments(x[:20], y[:20]).merge(gl.moments(x[20:], y[20:]))
    >>> state
    MomentState(n=50, p=4, q=3)
    >>> bool(np.isclose(gl.cka(state), gl.cka(x, y)))
    True
    """

    x: SelfMoments
    y: SelfMoments
    cross: CrossMoments

    def __repr__(self) -> str:
        return f"MomentState(n={self.n}, p={self.x.width}, q={self.y.width})"

    @property
    def n(self) -> int:
        """Number of rows."""
        return self.x.n

    @property
    def nbytes(self) -> int:
        """Bytes held by the arrays."""
        return self.x.nbytes + self.y.nbytes + self.cross.nbytes

    def translate(self, pivot_x: Array, pivot_y: Array) -> MomentState:
        """Return the same rows about other pivots, exact up to rounding.

        Parameters
        ----------
        pivot_x, pivot_y : array of shape (p,) and (q,)
            Finite numbers, copied.

        Raises
        ------
        TypeError
            If a pivot is no array of real numbers.
        ValueError
            If a pivot has another shape, or values that are not finite.
        """
        return self.about(
            _to_own_device("pivot_x", pivot_x, self.x.pivot), _to_own_device("pivot_y", pivot_y, self.y.pivot)
        )

    def about(self, pivot_x: Array, pivot_y: Array) -> MomentState:
        """Return the same rows about the pivots of another state."""
        cross = self.cross.translate(self.x, self.y, pivot_x, pivot_y)
        return MomentState(self.x.about(pivot_x), self.y.about(pivot_y), cross)

    def centred(self) -> MomentState:
        """Return the same rows about their means."""
        return MomentState(self.x.centred(), self.y.centred(), self.cross.centred(self.x, self.y))

    def merge(self, other: MomentState) -> MomentState:
        """Return the rows of both states, about the pivots of the first that has rows.

        Raises
        ------
        TypeError
            If other is not a MomentState.
        ValueError
            If the numbers of features differ.
        """
        if not isinstance(other, MomentState):
            raise TypeError(f"merge: expected a MomentState, got {type(other).__name__}")
        if other.n == 0 or self.n == 0:
            return self if other.n == 0 else other
        arguments.same_widths("merge", self._widths(), other._widths())
        near = MomentState(
            to_device_of(other.x, self.x), to_device_of(other.y, self.y), to_device_of(other.cross, self.cross)
        )
        moved = near.about(self.x.pivot, self.y.pivot)
        return MomentState(_add(self.x, moved.x), _add(self.y, moved.y), self.cross.merge(moved.cross))

    def _parts(self) -> dict[str, Part]:
        return {"x": self.x, "y": self.y, "cross": self.cross}

    def _widths(self) -> dict[str, int]:
        return {"x": self.x.width, "y": self.y.width}

    def to_dict(self) -> dict[str, Array]:
        """Return a flat dict of copies of all arrays, "n" and "format" among them, which saves without pickle.

        Examples
        --------
        >>> import numpy as np
        >>> import gramless as gl
        >>> from safetensors.numpy import load_file, save_file
        >>> state = gl.moments(np.eye(5), np.eye(5)[:, :3])
        >>> save_file(state.to_dict(), "state.safetensors")
        >>> gl.MomentState.from_dict(load_file("state.safetensors"))
        MomentState(n=5, p=5, q=3)
        >>> np.savez("state.npz", **state.to_dict())
        >>> with np.load("state.npz") as arrays:
        ...     gl.MomentState.from_dict(arrays)
        MomentState(n=5, p=5, q=3)
        """
        return as_flat_arrays(flatten(self._parts()), format=FORMAT, n=self.n)

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> MomentState:
        """Return the state of a dict made by `to_dict`, copied.

        Raises
        ------
        ValueError
            If the format, a key, a shape or the number of rows is not what `to_dict` writes, or no rows have such sums.
        TypeError
            If an array is not float64, or a key not str.
        """
        function = "MomentState.from_dict"
        n = saved_state.header(function, state, FORMAT)
        x, y = (self_from(function, state, name, n) for name in ("x", "y"))
        cross = cross_from(function, state, "cross", x.width, y.width)
        made = cls(x, y, cross)
        saved_state.no_other_keys(function, state, {"format", "n", *flatten(made._parts(), copy=False)})
        return made


def as_flat_arrays(arrays: Mapping[str, Array], **plain: str | float) -> dict[str, Array]:
    """Return texts, numbers and arrays as arrays alone, which any format of files holds: a text as UTF-8 in uint8."""
    xp = array_namespace(*arrays.values()) if arrays else np
    made = {
        key: np.frombuffer(bytearray(value, "utf-8"), np.uint8) if isinstance(value, str) else np.asarray(value)
        for key, value in plain.items()
    }
    return {key: xp.asarray(value) for key, value in made.items()} | dict(arrays)


def read_only(part: PartT) -> PartT:
    """Return a state for hands that may write into its arrays: read-only views, or copies where there are none."""
    return replace(part, **{name: _read_only(value) for name, value in _arrays(part)})


def _read_only(value: Array) -> Array:
    if not isinstance(value, np.ndarray):
        return array_namespace(value).asarray(value, copy=True)
    view = value.view()
    view.flags.writeable = False
    return view


def flatten(parts: Mapping[str, Part], *, copy: bool = True) -> dict[str, Array]:
    """Return all arrays of named states as one flat dict: "x.pivot", "cross.second"."""
    flat = {}
    for name, part in parts.items():
        for field, value in _arrays(part):
            flat[f"{name}.{field}"] = array_namespace(value).asarray(value, copy=True) if copy else value
    return flat


def self_shapes(p: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the arrays of self moments, by field."""
    return {"pivot": (p,), "sum": (p,), "second": (p, p), "weighted": (p,), "norms": (), "cubes": (p,), "fourths": (p,)}


def cross_shapes(p: int, q: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the arrays of cross moments, by field."""
    return {"second": (p, q), "weighted_x": (p,), "weighted_y": (q,), "norms": ()}


def self_from(function: str, flat: Mapping[str, Any], name: str, n: int) -> SelfMoments:
    """Return the self moments of a flat dict, copied and checked."""
    shapes = self_shapes(saved_state.width(function, flat, f"{name}.pivot"))
    made = SelfMoments(n, **_arrays_from(function, flat, name, shapes))
    saved_state.squares(function, name, made.second, made.norms)
    return made


def cross_from(function: str, flat: Mapping[str, Any], name: str, p: int, q: int) -> CrossMoments:
    """Return the cross moments of a flat dict, copied and checked."""
    return CrossMoments(**_arrays_from(function, flat, name, cross_shapes(p, q)))


def _arrays_from(
    function: str, flat: Mapping[str, Any], name: str, shapes: dict[str, tuple[int, ...]]
) -> dict[str, Array]:
    return {field: saved_state.array(function, flat, f"{name}.{field}", shape) for field, shape in shapes.items()}


def _arrays(part: Part) -> Iterator[tuple[str, Array]]:
    return ((f.name, getattr(part, f.name)) for f in fields(part) if f.name != "n")


def _nbytes(part: Part) -> int:
    return sum(8 * math.prod(value.shape) for _, value in _arrays(part))


def to_device_of(part: PartT, own: Part) -> PartT:
    """Return a state with its arrays in the library and on the device of another."""
    xp, where = array_namespace(own.second), device(own.second)
    if array_namespace(part.second) is xp and device(part.second) == where:
        return part
    return replace(part, **{name: xp.asarray(value, device=where) for name, value in _arrays(part)})


def add_into(fresh: PartT, old: PartT) -> PartT:
    """Return the sums of two states about the same pivot, in the arrays of the first, which nobody else may hold."""
    for (name, mine), (_, theirs) in zip(_arrays(fresh), _arrays(old), strict=True):
        if name != "pivot":
            mine += theirs
    return replace(fresh, n=fresh.n + old.n) if isinstance(fresh, SelfMoments) else fresh


def _add(first: PartT, second: PartT) -> PartT:
    """Return the sums of two states about the same pivot."""
    xp = array_namespace(first.second)
    pairs = zip(_arrays(first), _arrays(second), strict=True)
    sums = {name: xp.asarray(mine + theirs) for (name, mine), (_, theirs) in pairs if name != "pivot"}
    return replace(first, **sums, **({"n": first.n + second.n} if isinstance(first, SelfMoments) else {}))


def _outer(a: Array, b: Array) -> Array:
    return a[:, None] * b[None, :]


def _to_own_device(name: str, value: Any, own: Array) -> Array:
    """Return a pivot that was asked for in the library and on the device of the present one, checked."""
    made = arguments.vector("translate", name, value, int(own.shape[0]))
    return array_namespace(own).asarray(made, device=device(own))


def _same(pivot: Array, own: Array) -> bool:
    # a look at numbers on a GPU would wait for it; about the same pivot all sums stay what they are
    return pivot is own or (not arguments.gpu_of(own) and bool(array_namespace(own).all(pivot == own)))

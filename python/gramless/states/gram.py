"""What sums over pairs of rows leave behind: the state that HSIC and CKA of any kernel follow from.

Sums are over ordered pairs i != j of rows. k is given less a constant offset, on which no HSIC depends; see
`gramless.reference.gram_sums`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from .._base import arguments, saved_state
from .._base.arrays import Float64
from .moments import as_flat_arrays

FORMAT = "gramless.gram_sums/1"


@dataclass(frozen=True, eq=False, repr=False)
class GramSide:
    """Sums over the kernel matrix of one array, for s bandwidths, in float64."""

    bandwidth: Float64  # (s,)  0 where the kernel has none
    offset: Float64  # (s,)  what is taken off k
    square: Float64  # (s,)  sum of k^2
    rows: Float64  # (s, n)  sum of k over j != i
    diagonal: Float64  # (s, n)  k_ii

    def merge(self, other: GramSide) -> GramSide:
        """Return the pairs of both."""
        for name in ("bandwidth", "offset"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if not np.array_equal(mine, theirs):
                raise ValueError(f"merge: expected states with the same {name}, got {mine} and {theirs}")
        sums = {name: getattr(self, name) + getattr(other, name) for name in ("square", "rows", "diagonal")}
        return replace(self, **sums)

    def select(self, index: int) -> GramSide:
        """Return the sums of one bandwidth."""
        part = slice(index, index + 1)
        return GramSide(**{name: value[part] for name, value in self.arrays().items()})

    def arrays(self) -> dict[str, Float64]:
        """Return all arrays by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, eq=False, repr=False)
class GramState:
    """Sums over pairs of rows of kernel matrices: HSIC and CKA of any kernel follow from them.

    Parameters
    ----------
    n : int
        Number of rows.
    kernel : str
        As in `gramless.gram_sums`, like degree and coef0.
    degree : int
        Degree of the polynomial kernel.
    coef0 : float
        Constant of the polynomial kernel.
    pairs : int
        Pairs i < j of rows that have been counted, of n (n - 1) / 2.
    eps : float
        Relative rounding of one kernel value.
    x : GramSide
        Sums over the kernel matrix of x, for s bandwidths.
    y : GramSide or None
        Those of y.
    product : float64 array of shape (s,) or None
        Sum of k l over i != j.
    error : float
        Relative error of kernel values, root mean square, as a few random tiles tell that were computed again in
        float64: of passes on a GPU whose rows are rounded, else 0.

    Notes
    -----
    It holds 16 n s bytes for each array, whatever the numbers of features. Arrays are never changed in place.

    Examples
    --------
    >>> import numpy as np
    >>> import gramless as gl
    >>> rng = np.random.default_rng(0)
    >>> x, y = rng.standard_normal((50, 4)), rng.standard_normal((50, 3))
    >>> pairs = np.array([[0, 0], [0, 1], [1, 1]])
    >>> rbf = {"kernel": "rbf", "bandwidth_x": 2.0, "bandwidth_y": 2.0, "block_rows": 30}
    >>> parts = [gl.gram_sums(x, y, **rbf, pairs=pairs[k : k + 1]) for k in range(3)]
    >>> parts[0]
    GramState(n=50, kernel='rbf', bandwidths=1, pairs=435 of 1225)
    >>> state = parts[0].merge(parts[1]).merge(parts[2])
    >>> bool(np.isclose(gl.cka(state), gl.cka(x, y, kernel="rbf", bandwidth=2.0)))
    True
    """

    n: int
    kernel: str
    degree: int
    coef0: float
    pairs: int
    eps: float
    x: GramSide
    y: GramSide | None
    product: Float64 | None
    error: float = 0.0

    def __repr__(self) -> str:
        counted = "" if self.complete else f", pairs={self.pairs} of {self.all_pairs}"
        return f"GramState(n={self.n}, kernel={self.kernel!r}, bandwidths={self.bandwidths}{counted})"

    @property
    def bandwidths(self) -> int:
        """Number of bandwidths s; 1 if the kernel has none."""
        return len(self.x.bandwidth)

    @property
    def all_pairs(self) -> int:
        """Number of pairs i < j of rows."""
        return self.n * (self.n - 1) // 2

    @property
    def complete(self) -> bool:
        """Whether all pairs of rows have been counted."""
        return self.pairs == self.all_pairs

    @property
    def nbytes(self) -> int:
        """Bytes held by the arrays."""
        return sum(value.nbytes for value in self._arrays().values())

    def merge(self, other: GramState) -> GramState:
        """Return the pairs of both states, which are of the same arrays and have no pair in common.

        Raises
        ------
        TypeError
            If other is not a GramState.
        ValueError
            If the states differ in rows, kernel or bandwidths, or hold more pairs than there are.
        """
        if not isinstance(other, GramState):
            raise TypeError(f"merge: expected a GramState, got {type(other).__name__}")
        for name in ("n", "kernel", "degree", "coef0", "bandwidths"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise ValueError(f"merge: expected states with the same {name}, got {mine!r} and {theirs!r}")
        pairs = self.pairs + other.pairs
        if pairs > self.all_pairs:
            raise ValueError(
                f"merge: expected states without common pairs of rows, got {self.pairs} and {other.pairs} pairs of "
                f"{self.all_pairs}"
            )
        eps, error = max(self.eps, other.eps), max(self.error, other.error)
        merged = replace(self, pairs=pairs, eps=eps, error=error, x=self.x.merge(other.x))
        if self.y is None or other.y is None or self.product is None or other.product is None:
            if self.y is not other.y:
                raise ValueError("merge: expected two states with y or two without, got one of each")
            return merged
        return replace(merged, y=self.y.merge(other.y), product=self.product + other.product)

    def select(self, index: int) -> GramState:
        """Return the state of one of several bandwidths.

        Raises
        ------
        IndexError
            If there is no such bandwidth.
        """
        if not 0 <= index < self.bandwidths:
            raise IndexError(f"select: expected an index below {self.bandwidths}, got {index}")
        y = None if self.y is None else self.y.select(index)
        product = None if self.product is None else self.product[index : index + 1]
        return replace(self, x=self.x.select(index), y=y, product=product)

    def to_dict(self) -> dict[str, Any]:
        """Return a flat dict of copies of all arrays, numbers and texts as arrays too: it saves without pickle."""
        return as_flat_arrays(
            {key: value.copy() for key, value in self._arrays().items()},
            format=FORMAT,
            n=self.n,
            kernel=self.kernel,
            degree=self.degree,
            coef0=self.coef0,
            pairs=self.pairs,
            eps=self.eps,
            **({"error": self.error} if self.error else {}),
        )

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> GramState:
        """Return the state of a dict made by `to_dict`, copied.

        Raises
        ------
        ValueError
            If the format, a key, a shape or a number is not what `to_dict` writes.
        TypeError
            If an array is not float64.
        """
        function = "GramState.from_dict"
        n = saved_state.header(function, state, FORMAT)
        kernel = saved_state.text(function, state, "kernel")
        arguments.choice(function, "kernel", kernel, arguments.KERNELS)
        count = saved_state.width(function, state, "x.bandwidth")

        def side(name: str) -> GramSide:
            shapes = {field.name: (count,) for field in fields(GramSide)} | dict.fromkeys(
                ("rows", "diagonal"), (count, n)
            )
            return GramSide(
                **{key: saved_state.array(function, state, f"{name}.{key}", shape) for key, shape in shapes.items()}
            )

        paired = "product" in state
        made = cls(
            n=n,
            kernel=kernel,
            degree=saved_state.whole(function, state, "degree"),
            coef0=float(saved_state.array(function, state, "coef0", ())),
            pairs=saved_state.whole(function, state, "pairs"),
            eps=float(saved_state.array(function, state, "eps", ())),
            x=side("x"),
            y=side("y") if paired else None,
            product=saved_state.array(function, state, "product", (count,)) if paired else None,
            error=float(saved_state.array(function, state, "error", ())) if "error" in state else 0.0,
        )
        if made.pairs > made.all_pairs or made.degree < 1 or count < 1:
            raise ValueError(f"{function}: expected at most {made.all_pairs} pairs, a degree and a bandwidth")
        saved_state.no_other_keys(function, state, set(made.to_dict()))
        return made

    def _arrays(self) -> dict[str, Float64]:
        sides = {"x": self.x} if self.y is None else {"x": self.x, "y": self.y}
        found = {f"{name}.{key}": value for name, side in sides.items() for key, value in side.arrays().items()}
        return found if self.product is None else found | {"product": self.product}

"""Floats with metadata: a standard error (`Estimate`) or a permutation null (`Calibrated`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import Self


class AnnotatedFloat(float):
    """A float with facts, which arithmetic forgets."""

    def __new__(cls, value: float, **facts: Any) -> Self:
        made = super().__new__(cls, value)
        made.__dict__.update(facts)
        return made

    def __getnewargs_ex__(self) -> tuple[tuple[float], dict[str, Any]]:
        return (float(self),), dict(self.__dict__)

    def __repr__(self) -> str:
        facts = "".join(f", {name}={value!r}" for name, value in self.__dict__.items() if value is not None)
        return f"{type(self).__name__}({float(self)!r}{facts})"


class Estimate(AnnotatedFloat):
    """A float with its standard error.

    Attributes
    ----------
    stderr : float
        Standard error, in units of the value; 0 if the value is exact.
    fraction : float or None
        Pairs of rows that were computed, of all n (n - 1) / 2.
    n_batches : int or None
        Batches of rows that were computed.
    n_features : int or None
        Frequencies of random features.

    Examples
    --------
    >>> import numpy as np
    >>> import gramless as gl
    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((2000, 3))
    >>> y = x + rng.standard_normal((2000, 3))
    >>> value = gl.cka(x, y, kernel="rbf", fraction=0.2)
    >>> bool(abs(value - gl.cka(x, y, kernel="rbf")) < 4 * value.stderr)
    True
    >>> round(value.fraction, 1)
    0.2
    """

    stderr: float
    fraction: float | None = None
    n_batches: int | None = None
    n_features: int | None = None


class Calibrated(AnnotatedFloat):
    """A float beside what it is where rows of x and y have nothing to do with each other.

    Attributes
    ----------
    null_mean : float
        Mean over random permutations of the rows of y.
    null_quantile : float
        Their 95 % quantile.
    pvalue : float
        (1 + permutations whose value is at least this one) / (1 + n_permutations).
    n_permutations : int
        Number of permutations.
    seed : int
        Seed of the permutations.

    Examples
    --------
    >>> import numpy as np
    >>> import gramless as gl
    >>> x = np.random.default_rng(0).standard_normal((100, 3))
    >>> value = gl.cka(x, x**2, kernel="rbf", null="permutation", n_permutations=99)
    >>> bool(value > value.null_quantile > value.null_mean)
    True
    >>> value.pvalue
    0.01
    """

    null_mean: float
    null_quantile: float
    pvalue: float
    n_permutations: int
    seed: int

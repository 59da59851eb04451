"""Logit distance of a stream of batches, with its standard error."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import _checks
from ._checks import Array
from ._states import saved
from .accumulators import Accumulator, agree, gather
from .unembedding import UnembeddingPair

if TYPE_CHECKING:
    from typing import Self

FORMAT = "gramless.logit_distance/1"

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class LogitDistanceResult:
    """A logit distance with its standard error.

    Parameters
    ----------
    value : float
        Root of the mean over rows of the squared distance.
    stderr : float
        Standard error over rows: that of the mean square, divided by twice the root (delta method). NaN of one row, 0
        for equal models.
    mean_square : float
        Mean over rows of the squared distance.
    n : int
        Number of rows.

    Examples
    --------
    >>> import gramless as gl
    >>> print(gl.LogitDistanceResult(value=2.0, stderr=0.25, mean_square=4.0, n=100))
    2.000 +- 0.250 (n = 100)
    """

    value: float
    stderr: float
    mean_square: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:#.4g} +- {self.stderr:#.3g} (n = {self.n})"

    def __float__(self) -> float:
        return self.value


class LogitDistance(Accumulator):
    """Logit distance of a stream of batches of hidden states.

    Parameters
    ----------
    pair : UnembeddingPair
        The factor of the unembeddings.

    Notes
    -----
    N D^2 flops as `UnembeddingPair.rows`; it holds three numbers.

    Examples
    --------
    >>> import numpy as np
    >>> import gramless as gl
    >>> rng = np.random.default_rng(0)
    >>> h1, h2 = rng.standard_normal((100, 8)), rng.standard_normal((100, 6))
    >>> w1, w2 = rng.standard_normal((500, 8)), rng.standard_normal((500, 6))
    >>> stream = gl.LogitDistance(gl.UnembeddingPair(w1, w2))
    >>> for start in range(0, 100, 30):
    ...     _ = stream.update(h1[start : start + 30], h2[start : start + 30])
    >>> print(stream.finalize())
    83.23 +- 1.52 (n = 100)
    """

    def __init__(self, pair: UnembeddingPair) -> None:
        if not isinstance(pair, UnembeddingPair):
            raise TypeError(f"LogitDistance: expected an UnembeddingPair, got {type(pair).__name__}")
        self._pair = pair
        self._sums = _Sums()

    def __repr__(self) -> str:
        return f"LogitDistance(n={self.n}, {self._pair!r})"

    @property
    def n(self) -> int:
        """Number of rows so far."""
        return self._sums.n

    @property
    def nbytes(self) -> int:
        """Bytes held by the sums; the pair is shared."""
        return 24

    def update(self, h1: Array, h2: Array, *, mask: Any = None) -> Self:
        """Add rows.

        Parameters
        ----------
        h1, h2 : array of shape (N, d1) and (N, d2), float16, bfloat16, float32 or float64
            Any N, also none.
        mask : bool array of shape (N,), optional
            Rows that count. Default: all.

        Raises
        ------
        TypeError, ValueError, RuntimeError
            As `UnembeddingPair.rows`. The rows so far are kept.
        """
        self._sums = self._sums.merge(_Sums.of(self._pair._squares("LogitDistance.update", h1, h2, mask)))
        return self

    def merge(self, other: Self) -> Self:
        """Add all rows of another accumulator, which stays as it is. An empty one changes nothing.

        Raises
        ------
        TypeError
            If other is of another kind.
        ValueError
            If its pair is of other weights.
        """
        if not isinstance(other, LogitDistance):
            raise TypeError(f"LogitDistance.merge: expected another LogitDistance, got {type(other).__name__}")
        self._same_weights("merge", other._pair.fingerprint)
        self._sums = self._sums.merge(other._sums)
        return self

    def finalize(self) -> LogitDistanceResult:
        """Return the distance of all rows so far; more rows may follow.

        Raises
        ------
        ValueError
            If there are no rows yet.
        """
        n, mean, square = self._sums
        if n == 0:
            raise ValueError("LogitDistance.finalize: no rows yet, update first")
        value = math.sqrt(mean)
        error = math.sqrt(square / (n - 1) / n) if n > 1 else math.nan
        return LogitDistanceResult(value, error / (2 * value) if value else 0.0, mean, n)

    def reset(self) -> None:
        """Forget all rows."""
        self._sums = _Sums()

    def state_dict(self) -> dict[str, Array]:
        """Return a flat dict of arrays, which saves without pickle; the pair saves by itself."""
        n, mean, square = self._sums
        return saved({}, format=FORMAT, n=n, mean=mean, square=square, fingerprint=self._pair.fingerprint)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace all rows by those of a dict made by `state_dict`, which is copied.

        Raises
        ------
        TypeError, ValueError
            If the dict is not one of these, or one of other weights. The rows so far are kept.
        """
        function = "LogitDistance.load_state_dict"
        n = _checks.state_header(function, state, FORMAT)
        mean, square = (float(_checks.state_array(function, state, key, ())) for key in ("mean", "square"))
        if mean < 0 or square < 0 or (n == 0 and (mean or square)):
            raise ValueError(f"{function}: no {n} rows have mean square {mean} and sum of squares {square}")
        self._same_weights("load_state_dict", _checks.state_text(function, state, "fingerprint"))
        _checks.no_other_keys(function, state, {"format", "n", "mean", "square", "fingerprint"})
        self._sums = _Sums(n, mean, square)

    def all_reduce(self, group: Any = None) -> Self:
        """Replace the rows of each process by those of all, with torch.distributed.

        Every process of the group calls it, once; calling it twice counts rows twice. Processes without rows take part.

        Raises
        ------
        RuntimeError
            If torch.distributed is not initialised, or this process is not in the group.
        ValueError
            On every process alike, if the weights differ between processes.
        """
        function = "LogitDistance.all_reduce"
        if agree(function, self.n, self._pair.fingerprint, group) is None:
            return self
        total = _Sums()
        for n, mean, square in gather(np.array(self._sums, dtype=np.float64), group):
            total = total.merge(_Sums(int(n), float(mean), float(square)))
        self._sums = total
        return self

    def _same_weights(self, method: str, fingerprint: str) -> None:
        if fingerprint != self._pair.fingerprint:
            raise ValueError(f"LogitDistance.{method}: these rows belong to other unembeddings")


class _Sums(NamedTuple):
    """Number of values, their mean, and the sum of squares about it."""

    n: int = 0
    mean: float = 0.0
    square: float = 0.0

    @classmethod
    def of(cls, values: Float64) -> Self:
        if not len(values):
            return cls()
        mean = float(values.mean())
        return cls(len(values), mean, float(np.square(values - mean).sum()))

    def merge(self, other: _Sums) -> _Sums:
        """Return the sums of both (Chan, Golub, LeVeque 1979)."""
        if not self.n or not other.n:
            return self if self.n else other
        n, step = self.n + other.n, other.mean - self.mean
        mean = self.mean + step * (other.n / n)
        return _Sums(n, mean, self.square + other.square + step * step * (self.n * other.n / n))

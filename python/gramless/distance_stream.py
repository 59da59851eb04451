"""Logit distance of a stream of batches, with its standard error."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import _checks
from ._checks import Array
from ._row_values import Mean
from ._states import saved
from .accumulators import Accumulator
from .unembedding import UnembeddingPair

if TYPE_CHECKING:
    from typing import Self

FORMAT = "gramless.logit_distance/1"


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


class LogitDistance(Accumulator[Mean]):
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

    def __repr__(self) -> str:
        return f"LogitDistance(n={self.n}, {self._pair!r})"

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
        function = self._name("update")
        self._take(function, Mean.of(self._pair._squares(function, h1, h2, mask)))
        return self

    def finalize(self) -> LogitDistanceResult:
        """Return the distance of all rows so far; more rows may follow.

        Raises
        ------
        ValueError
            If there are no rows yet.
        """
        found = self._filled(self._name("finalize"))
        value = math.sqrt(found.value)
        return LogitDistanceResult(value, found.stderr / (2 * value) if value else 0.0, found.value, found.n)

    def state_dict(self) -> dict[str, Array]:
        """Return a flat dict of arrays, which saves without pickle; the pair saves by itself."""
        n, mean, square = self._state or Mean()
        return saved({}, format=FORMAT, n=n, mean=mean, square=square, fingerprint=self._pair.fingerprint)

    def _loaded(self, function: str, state: Mapping[str, Any]) -> Mean | None:
        n = _checks.state_header(function, state, FORMAT)
        sums = (_checks.state_array(function, state, key, (), infinite=True) for key in ("mean", "square"))
        mean, square = map(float, sums)
        if mean < 0 or square < 0 or (n == 0 and (mean or square)):
            raise ValueError(f"{function}: no {n} rows have mean square {mean} and sum of squares {square}")
        self._same_weights(function, _checks.state_text(function, state, "fingerprint"))
        _checks.no_other_keys(function, state, {"format", "n", "mean", "square", "fingerprint"})
        return Mean(n, mean, square) if n else None

    def _refuse_other(self, function: str, other: Any) -> None:
        super()._refuse_other(function, other)
        self._same_weights(function, other._pair.fingerprint)

    def _joined(self, function: str, mine: Mean, theirs: Mean) -> Mean:
        return mine.merge(theirs)

    def _layout(self, state: Mean) -> str:
        return self._pair.fingerprint

    def _same_weights(self, function: str, fingerprint: str) -> None:
        if fingerprint != self._pair.fingerprint:
            raise ValueError(f"{function}: these rows belong to other unembeddings")

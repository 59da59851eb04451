"""Logit distance of a stream of batches, with its standard error."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .._base import arguments, saved_state
from .._base.arrays import Array
from .._base.gpu_arrays import is_asked_for
from .._base.process_group import Agreement, gather
from .._base.running_mean import Mean
from ..accumulators.base import Accumulator
from ..ops.backends import PRECISIONS, check_backend
from ..states.moments import as_flat_arrays
from .gpu_factor_rows import Sums, nonfinite, warn_of_cancellation
from .unembedding_pair import UnembeddingPair

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


class Unread(NamedTuple):
    """Sums of rows on a GPU that nobody has waited for."""

    numbers: Any  # (7,) float64, those of `Sums`
    start: int  # the number of the row that theirs are counted from

    def read(self) -> Sums:
        """Return them; this waits for the device."""
        return Sums.of(self.numbers.tolist())


@dataclass(frozen=True, eq=False)
class Rows:
    """Squared distances of all rows so far: of those of the host, and of those that came on GPUs, in parts."""

    known: Mean
    unread: tuple[Unread, ...] = ()
    # also those that do not count
    given: int = 0

    @property
    def n(self) -> int:
        """Number of rows that count; of rows on a GPU this waits for it."""
        return self.known.n + sum(part.read().n for part in self.unread)

    def merge(self, other: Rows) -> Rows:
        """Return the rows of both."""
        later = tuple(part._replace(start=part.start + self.given) for part in other.unread)
        return Rows(self.known.merge(other.known), self.unread + later, self.given + other.given)


class LogitDistance(Accumulator[Rows]):
    """Logit distance of a stream of batches of hidden states.

    Parameters
    ----------
    pair : UnembeddingPair
        The factor of the unembeddings.
    precision : {"fast", "high", "exact"}
        As in `UnembeddingPair.squared_distances`, like backend.
    backend : {"auto", "reference", "cpu", "cuda"}
        A named backend never falls back to another.

    Notes
    -----
    N D^2 flops as `UnembeddingPair.squared_distances`; it holds three numbers, and seven for each GPU.

    Sums of rows on a GPU stay there, and `update` does not wait for it, but once for the factor if that was made
    elsewhere: rows that are not finite, overflow and terms that cancel are told by what reads the sums, `finalize` or
    `state_dict`, and `reset` takes them away. A mask may be on the GPU.

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

    def __init__(self, pair: UnembeddingPair, *, precision: str = "high", backend: str = "auto") -> None:
        if not isinstance(pair, UnembeddingPair):
            raise TypeError(f"LogitDistance: expected an UnembeddingPair, got {type(pair).__name__}")
        arguments.choice("LogitDistance", "precision", precision, PRECISIONS)
        check_backend("LogitDistance", backend)
        self._pair, self._precision, self._backend = pair, precision, backend

    def __repr__(self) -> str:
        return f"LogitDistance(n={self.n}, {self._pair!r})"

    @property
    def nbytes(self) -> int:
        """Bytes held by the sums; the pair is shared."""
        return 24 + 56 * len(self._state.unread if self._state else ())

    def update(self, h1: Array, h2: Array, *, mask: Any = None) -> Self:
        """Add rows.

        Parameters
        ----------
        h1, h2 : array of shape (N, d1) and (N, d2), float16, bfloat16, float32 or float64
            Any N, also none.
        mask : bool array of shape (N,), optional
            Rows that count. Default: all. There are no targets here: without those to be ignored, targets != -100.

        Raises
        ------
        TypeError, ValueError, RuntimeError
            As `UnembeddingPair.squared_distances`. The rows so far are kept.
        """
        function, pair = self._name("update"), self._pair
        arrays = pair._states(function, h1, h2)
        given, before = int(arrays["h1"].shape[0]), self._state
        if not is_asked_for(arrays, self._backend):
            self._take(function, Rows(Mean.of(pair._squares(function, h1, h2, mask)), given=given))
            return self
        rows = Rows(Mean()) if before is None else before
        *earlier, last = rows.unread or (None,)
        home = arrays["h1"].device if arguments.gpu_of(arrays["h1"]) else None
        if last is not None and home not in (None, last.numbers.device):
            earlier, last = [*earlier, last], None
        part = Unread(None, rows.given) if last is None else last
        options = self._precision, self._backend
        numbers = pair._held.add(part.numbers, rows.given - part.start, function, arrays, mask, options)
        if given:
            unread = (*earlier, part._replace(numbers=numbers))
            self._state = Rows(rows.known, unread, rows.given + given)
        return self

    def finalize(self) -> LogitDistanceResult:
        """Return the distance of all rows so far; more rows may follow.

        Raises
        ------
        ValueError
            If there are no rows yet, or rows that came on a GPU are not finite or overflow.

        Warns
        -----
        RuntimeWarning
            As `UnembeddingPair.squared_distances`, of rows that came on a GPU.
        """
        found = self._read(self._name("finalize"), self._state)
        if not found.n:
            raise ValueError(f"{self._name('finalize')}: no rows yet, update first")
        value = math.sqrt(found.value)
        return LogitDistanceResult(value, found.stderr / (2 * value) if value else 0.0, found.value, found.n)

    def state_dict(self) -> dict[str, Array]:
        """Return a flat dict of arrays, which saves without pickle; the pair saves by itself."""
        return self._saved(self._read(self._name("state_dict"), self._state))

    def _saved(self, mean: Mean) -> dict[str, Array]:
        n, value, square = mean
        return as_flat_arrays({}, format=FORMAT, n=n, mean=value, square=square, fingerprint=self._pair.fingerprint)

    def _loaded(self, function: str, state: Mapping[str, Any]) -> Rows | None:
        n = saved_state.header(function, state, FORMAT)
        sums = (saved_state.array(function, state, key, (), infinite=True) for key in ("mean", "square"))
        mean, square = map(float, sums)
        if mean < 0 or square < 0 or (n == 0 and (mean or square)):
            raise ValueError(f"{function}: no {n} rows have mean square {mean} and sum of squares {square}")
        self._same_weights(function, saved_state.text(function, state, "fingerprint"))
        saved_state.no_other_keys(function, state, {"format", "n", "mean", "square", "fingerprint"})
        return Rows(Mean(n, mean, square), given=n) if n else None

    def _refuse_other(self, function: str, other: Any) -> None:
        super()._refuse_other(function, other)
        self._same_weights(function, other._pair.fingerprint)

    def _read(self, function: str, state: Rows | None) -> Mean:
        """Return the mean of all rows; of rows on a GPU this waits for it.

        Raises
        ------
        ValueError
            If some of these are not finite, or overflow.
        """
        rows = state or Rows(Mean())
        parts = [part.read() for part in rows.unread]
        for part, found in zip(rows.unread, parts, strict=True):
            for name, row in found.first_bad.items():
                raise nonfinite(function, name, part.start + row)
            # sums of squares of these may
            if not math.isfinite(found.mean):
                raise ValueError(f"{function}: squared distances overflow; scale the data down")
        lost, worst = sum(found.unresolved for found in parts), max((found.worst for found in parts), default=0.0)
        if lost:
            warn_of_cancellation(function, lost, sum(found.n for found in parts), worst, stacklevel=4)
        return functools.reduce(Mean.merge, (Mean(*found[:3]) for found in parts), rows.known)

    def _take(self, function: str, state: Rows) -> None:
        # whether a GPU has rows that count is not asked
        if self._state is None and state.unread:
            self._state = state
        else:
            super()._take(function, state)

    def _reduced(self, function: str, agreed: Agreement, group: Any) -> Rows:
        """Return the rows of all processes; what is at fault on one of them is told by all."""
        try:
            mine: Mapping[str, Any] = self._saved(self._read(function, self._state))
        except ValueError as error:
            mine = {"fault": np.array(str(error))}
        everyone = gather(mine, group)
        for state in everyone:
            if "fault" in state:
                raise ValueError(str(state["fault"]))
        found = (self._loaded(function, state) for state in everyone if int(state["n"]))
        return functools.reduce(Rows.merge, filter(None, found))

    def _joined(self, function: str, mine: Rows, theirs: Rows) -> Rows:
        return mine.merge(theirs)

    def _layout(self, state: Rows) -> str:
        return self._pair.fingerprint

    def _same_weights(self, function: str, fingerprint: str) -> None:
        if fingerprint != self._pair.fingerprint:
            raise ValueError(f"{function}: these rows belong to other unembeddings")

"""What is known of the values of many rows: means with standard errors, and quantiles, for each of several values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .._base import arguments, quantile_sketch, saved_state
from .._base.arrays import Float64, try_as_numpy
from .._base.running_mean import Mean
from ..measures import logits
from ..states.logits import OPTIONS, LogitPairState

if TYPE_CHECKING:
    from typing import Self

DIVERGENCES = ("js", "tv")
TARGETS = ("nll_p", "nll_q")
NAMES = (
    "kl_pq",
    "kl_qp",
    "jeffreys",
    *DIVERGENCES,
    "logit_distance",
    "logit_l1",
    "top1_agreement",
    "entropy_p",
    "entropy_q",
    "cross_entropy_pq",
    "cross_entropy_qp",
    *TARGETS,
)
# of these, the mean is that of squares
SQUARED = ("logit_distance",)
# between these, quantiles of a sketch are known by two digits
SKETCHED = (quantile_sketch.LOW, quantile_sketch.HIGH)
# numbers and sums of a column, as one vector
_NUMBERS = 7


def names_of(*, divergences: bool) -> tuple[str, ...]:
    """Return the names of the values of a row."""
    return tuple(name for name in NAMES if divergences or name not in DIVERGENCES)


@dataclass(frozen=True)
class Column:
    """One value of many rows.

    Finite values have a mean and extremes; infinite ones and those that are NaN are counted. Quantiles come from a
    sketch, or from the values where these are kept. Arrays are never changed in place.
    """

    finite: Mean
    infinite: int
    invalid: int
    least: float
    most: float
    sketch: quantile_sketch.Counts

    @property
    def n(self) -> int:
        """Number of values."""
        return self.finite.n + self.infinite + self.invalid

    @classmethod
    def of(cls, values: Float64, *, squared: bool) -> Self:
        """Return the column of these values."""
        finite, valid = values[np.isfinite(values)], values[~np.isnan(values)]
        least, most = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 0.0)
        mean = Mean.of(np.square(finite) if squared else finite)
        return cls(mean, len(valid) - len(finite), len(values) - len(valid), least, most, quantile_sketch.tally(valid))

    def merge(self, other: Column) -> Column:
        """Return the column of the values of both."""
        filled = [column for column in (self, other) if column.finite.n] or [other]
        return Column(
            self.finite.merge(other.finite),
            self.infinite + other.infinite,
            self.invalid + other.invalid,
            min(column.least for column in filled),
            max(column.most for column in filled),
            self.sketch + other.sketch,
        )

    def average(self) -> tuple[float, float]:
        """Return the mean and its standard error, which only a finite mean of two values or more has."""
        if self.invalid or not self.n:
            return math.nan, math.nan
        return (math.inf, math.nan) if self.infinite else (self.finite.value, self.finite.stderr)

    def quantile(self, share: float) -> float:
        """Return a quantile, NaN if a value is NaN."""
        if self.invalid or not self.n:
            return math.nan
        return quantile_sketch.quantile(self.sketch, share, self.least, self.most)

    def vector(self) -> Float64:
        """Return numbers and sums as one vector."""
        n, mean, square = self.finite
        return np.array([n, self.infinite, self.invalid, mean, square, self.least, self.most], dtype=np.float64)

    @classmethod
    def from_vector(cls, vector: Float64, sketch: quantile_sketch.Counts) -> Self:
        """Return the column of such a vector."""
        finite, infinite, invalid, mean, square, least, most = vector.tolist()
        return cls(Mean(int(finite), mean, square), int(infinite), int(invalid), least, most, sketch)


@dataclass(frozen=True)
class RowTable:
    """All values of the rows so far, by name; the values themselves, in pieces, if they are kept."""

    n: int
    labels: int
    columns: Mapping[str, Column]
    pieces: tuple[Mapping[str, Float64], ...] | None

    @classmethod
    def of(cls, function: str, state: LogitPairState, *, divergences: bool, keep: bool) -> Self:
        """Return the table of a state.

        Raises
        ------
        ValueError
            If divergences are wanted, and the state has none.
        """
        predicted = ~np.isnan(state.lse_p + state.lse_q)
        if divergences and (predicted & np.isnan(state.js + state.tv)).any():
            raise ValueError(
                f"{function}: the state has no js and tv; make it with divergences=True, after a merge replace them by "
                "the sums of those of gramless.logit_divergences, or do without: divergences=False"
            )
        values = {
            name: getattr(logits, name)(state) for name in names_of(divergences=divergences) if name not in TARGETS
        }
        aimed = ~np.isnan(state.target_p + state.target_q)
        # what is not finite hides whether a row has a target: it counts if others have
        aimed |= ~predicted & aimed.any()
        with np.errstate(invalid="ignore"):
            values |= {"nll_p": state.lse_p - state.target_p, "nll_q": state.lse_q - state.target_q}
        with np.errstate(over="ignore", invalid="ignore"):
            columns = {
                name: Column.of(row[aimed] if name in TARGETS else row, squared=name in SQUARED)
                for name, row in values.items()
            }
        pieces = ({name: np.array(row) for name, row in values.items()},) if keep else None
        return cls(state.n, state.labels, columns, pieces)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        held = sum(row.nbytes for piece in self.pieces or () for row in piece.values())
        return held + sum(column.sketch.nbytes + column.vector().nbytes for column in self.columns.values())

    def merge(self, other: RowTable) -> RowTable:
        """Return the table of the rows of both, of the same values and numbers of labels."""
        with np.errstate(over="ignore", invalid="ignore"):
            columns = {name: column.merge(other.columns[name]) for name, column in self.columns.items()}
        pieces = None if self.pieces is None or other.pieces is None else self.pieces + other.pieces
        return RowTable(self.n + other.n, self.labels, columns, pieces)

    def rows(self) -> dict[str, Float64] | None:
        """Return copies of the values of all rows, in order, if they are kept; NaN where a row has no target."""
        if self.pieces is None:
            return None
        shown = [name for name, column in self.columns.items() if column.n]
        return {name: np.concatenate([piece[name] for piece in self.pieces]) for name in shown}

    def quantile(self, name: str, share: float) -> float:
        """Return a quantile of a value: that of the sketch, exact where values are kept."""
        column = self.columns[name]
        if self.pieces is None or column.invalid or not column.n:
            return column.quantile(share)
        values = np.concatenate([piece[name] for piece in self.pieces])
        values = np.sort(values[~np.isnan(values)])
        return float(values[quantile_sketch.rank(share, len(values)) - 1])

    def to_dict(self) -> dict[str, Any]:
        """Return the columns, and values that are kept, as flat copied arrays."""
        flat: dict[str, Any] = {}
        for name, column in self.columns.items():
            flat[f"{name}.numbers"] = column.vector()
            flat[f"{name}.sketch"] = column.sketch.copy()
            if self.pieces is not None:
                flat[f"{name}.rows"] = np.concatenate([piece[name] for piece in self.pieces])
        return flat

    @classmethod
    def from_dict(
        cls, function: str, state: Mapping[str, Any], n: int, labels: int, *, divergences: bool, keep: bool
    ) -> Self:
        """Return the table of such a dict, copied and checked."""
        columns, piece = {}, {}
        for name in names_of(divergences=divergences):
            found = saved_state.array(function, state, f"{name}.numbers", (_NUMBERS,), infinite=True)
            vector = np.asarray(arguments.to_numpy(found))
            rows = vector[:3].sum()
            if rows > n or (rows < n and name not in TARGETS) or (vector[[0, 1, 2, 4]] < 0).any():
                raise ValueError(f"{function}: '{name}.numbers' are not those of {n} rows")
            column = Column.from_vector(
                vector, _copied(function, state, f"{name}.sketch", np.int64, quantile_sketch.SIZE)
            )
            if column.n - column.invalid != column.sketch.sum() or column.least > column.most:
                raise ValueError(f"{function}: '{name}.numbers' and '{name}.sketch' are of other rows")
            columns[name] = column
            if keep:
                piece[name] = _copied(function, state, f"{name}.rows", np.float64, n)
        return cls(n, labels, columns, (piece,) if keep else None)


def check_state(function: str, state: LogitPairState) -> None:
    """Refuse a state whose fields, replaced by hand, are not arrays of its rows, and labels no number of these.

    Values are taken on trust: NaN is what nonfinite="propagate" makes of a row.
    """
    n: tuple[int, ...] | None = None
    for name in (each.name for each in fields(state)):
        value, kind = getattr(state, name), np.int64 if name.startswith("top_") else np.float64
        if name == "labels":
            arguments.positive(function, "labels of the state", value)
            continue
        if name in OPTIONS:
            if value is not None or name == "temperature":
                arguments.above_zero(function, f"{name} of the state", value)
            continue
        if name.startswith("top_logit"):
            kind = np.float64
        if not isinstance(value, np.ndarray) or value.dtype != kind:
            found = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
            raise TypeError(f"{function}: expected {name} of the state to be an array of {kind.__name__}, got {found}")
        n = value.shape if n is None else n
        if value.ndim != 1 or value.shape != n:
            expected = f"{n} as {fields(state)[0].name}" if len(n) == 1 else "(n,)"
            raise ValueError(f"{function}: expected {name} of the state of shape {expected}, got {value.shape}")


def _copied(function: str, state: Mapping[str, Any], key: str, kind: type, size: int) -> NDArray[Any]:
    """Return a copy of float64 values, or of int64 counts, of a saved state."""
    found, counts = try_as_numpy(state.get(key)), kind is np.int64
    if found is None or found.dtype != kind or found.shape != (size,) or (counts and (found < 0).any()):
        expected = "int64 counts" if counts else "float64"
        raise ValueError(f"{function}: expected {key!r} to be {expected} of shape {(size,)}")
    return found.copy()

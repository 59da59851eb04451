"""Rows that are too few for a batch, and wait for those that follow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._base import arguments
from .._base.arrays import Array

Rows = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Carry:
    """Rows of each named layer, float64 or else float32, or none."""

    rows: Rows = field(default_factory=dict)

    @property
    def n(self) -> int:
        """Number of rows."""
        return len(next(iter(self.rows.values()))) if self.rows else 0

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(rows.nbytes for rows in self.rows.values())

    def followed_by(self, arrays: Mapping[str, Array]) -> Rows:
        """Return copies of all rows, these first."""
        held = {name: [rows] for name, rows in self.rows.items()}
        return {name: np.concatenate([*held.get(name, []), _plain(array)]) for name, array in arrays.items()}

    def extended(self, function: str, arrays: Mapping[str, Array]) -> Carry:
        """Return these rows and more, which are checked now and not when they become a batch."""
        for name, array in arrays.items():
            if not np.isfinite(_plain(array)).all():
                error = ValueError(f"{function}: layer {name}: has non-finite values in rows 0..{array.shape[0] - 1}")
                raise arguments.advise_on_nonfinite(error, array)
        return Carry(self.followed_by(arrays))

    def to_dict(self) -> dict[str, NDArray[Any]]:
        """Return copies of the rows by keys of a saved state."""
        return {f"carry.{i}": rows.copy() for i, rows in enumerate(self.rows.values())}

    @classmethod
    def from_dict(cls, function: str, state: Mapping[str, Any], widths: Mapping[str, int], most: int) -> Carry:
        """Return the rows of such a state, copied and checked to be no more than so many."""
        if "carry.0" not in state:
            return cls()
        found: Rows = {}
        for i, (name, width) in enumerate(widths.items()):
            value: Any = state.get(f"carry.{i}")
            rows = arguments.to_numpy(value) if arguments.is_torch(value) else value
            if not isinstance(rows, np.ndarray) or rows.dtype not in (np.float32, np.float64):
                raise TypeError(f"{function}: expected 'carry.{i}' to be an array of float32 or float64")
            n = len(next(iter(found.values()), rows)) if rows.ndim else 0
            if rows.shape != (n, width) or not 0 < n <= most or not np.isfinite(rows).all():
                raise ValueError(
                    f"{function}: expected 'carry.{i}' to be up to {most} finite rows of {width}, got {rows.shape}"
                )
            found[name] = rows.copy()
        return cls(found)


def _plain(array: Array) -> NDArray[Any]:
    rows = arguments.to_numpy(array)
    return rows if rows.dtype == np.float64 else rows.astype(np.float32, copy=False)

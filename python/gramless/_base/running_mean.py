"""Mean and standard error of many values that arrive in batches."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .arrays import Float64

if TYPE_CHECKING:
    from typing import Self


class Mean(NamedTuple):
    """Number of values, their mean, and the sum of squares about it."""

    n: int = 0
    value: float = 0.0
    square: float = 0.0

    @classmethod
    def of(cls, values: Float64) -> Self:
        """Return that of these values."""
        if not len(values):
            return cls()
        mean = float(values.mean())
        return cls(len(values), mean, float(np.square(values - mean).sum()))

    @property
    def stderr(self) -> float:
        """Standard error, which two values or more have."""
        return math.sqrt(self.square / (self.n - 1) / self.n) if self.n > 1 else math.nan

    def merge(self, other: Mean) -> Mean:
        """Return that of the values of both (Chan, Golub, LeVeque 1979)."""
        if not (self.n and other.n):
            return self if self.n else other
        n, step = self.n + other.n, other.value - self.value
        square = self.square + other.square + step * step * (self.n * other.n / n)
        return Mean(n, self.value + step * (other.n / n), square)

"""Quantiles of a stream: counts of values in bins that grow with the values, and merge by addition.

The bins are those of Masson, Rim, Lee (2019), PVLDB 12 (DDSketch), over a fixed range. So a sketch depends neither on
the order of its values nor on how they came together.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

# largest relative error of a quantile between LOW and HIGH
ACCURACY = 0.01
LOW, HIGH = 1e-12, 1e6
_BINS = math.ceil(math.log(HIGH / LOW) / math.log((1 + ACCURACY) / (1 - ACCURACY)))
_GROWTH = (HIGH / LOW) ** (1 / _BINS)
# counts of values up to 0, of those below LOW, of each bin, of those above HIGH, of infinity
SIZE = _BINS + 4
_ABOVE = SIZE - 2
_UPPER = LOW * _GROWTH ** np.arange(1, _BINS + 1)
# what stands for a bin: as far, relatively, from its lower as from its upper end
_VALUES = np.concatenate([[0.0, LOW / 2], 2 * _UPPER / (_GROWTH + 1), [math.inf, math.inf]])

Counts: TypeAlias = NDArray[np.int64]  # (SIZE,)


def tally(values: NDArray[np.float64]) -> Counts:
    """Count values, none of them NaN.

    Examples
    --------
    >>> import numpy as np
    >>> from gramless._base.quantile_sketch import quantile, tally
    >>> values = np.linspace(1, 100, 1000)
    >>> round(quantile(tally(values[:300]) + tally(values[300:]), 0.5, 1.0, 100.0), 1)
    50.8
    """
    index = np.where(values > 0, 1, 0)
    index[values > HIGH] = _ABOVE
    index[values == np.inf] = SIZE - 1
    inside = (values >= LOW) & (values <= HIGH)
    position = np.ceil(np.log(values[inside] / LOW) / math.log(_GROWTH)).astype(np.int64)
    index[inside] = 1 + np.clip(position, 1, _BINS)
    return np.bincount(index, minlength=SIZE).astype(np.int64, copy=False)


def quantile(counts: Counts, share: float, least: float, most: float) -> float:
    """Return the smallest value with at least this share of all values at or below it.

    The smallest and the largest finite value are exact. Between them, the relative error is at most ACCURACY from LOW
    to HIGH; values up to 0 count as 0, and what is above HIGH counts as the largest.

    Parameters
    ----------
    counts : int64 array of shape (SIZE,)
        At least one value.
    share : float
        From 0 to 1.
    least, most : float
        The smallest and the largest finite value.
    """
    n = int(counts.sum())
    finite, place = n - int(counts[-1]), rank(share, n)
    if place > finite:
        return math.inf
    if place in (1, finite):
        return least if place == 1 else most
    return float(np.clip(_VALUES[np.searchsorted(np.cumsum(counts), place)], least, most))


def rank(share: float, n: int) -> int:
    """Return the rank, from 1, of a quantile of n values."""
    # a product that rounding has put above a whole number is that number
    return max(1, math.ceil(share * n * (1 - 2**-50)))

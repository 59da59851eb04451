"""Square roots of second moments: R with R^T R = sum of (x - mean)(x - mean)^T, streamed over blocks of rows.

The factorisation sees rows in float64 a block at a time, never all of them, and never their moments: two models that
are equal up to rounding stay equal up to rounding, where differences of moments would lose half of the digits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .._base import arguments
from .._base.arrays import Array, Float64
from .._base.streaming_qr import no_rows, with_rows

# rows whose values are refused together, as in the kernels
_REPORTED_ROWS = 256
# rows of a block
BLOCK_ROWS = 2048


@dataclass(frozen=True)
class Root:
    """Rows (n, p) as a factorisation."""

    n: int
    mean: Float64  # (p,)
    factor: Float64  # (p, p)  upper triangular

    @property
    def covariance(self) -> Float64:
        """R with R^T R the covariance, by n - 1."""
        return np.asarray(self.factor / np.sqrt(self.n - 1))

    @property
    def second(self) -> Float64:
        """R with R^T R the mean of x x^T, about zero."""
        return np.concatenate([self.factor / np.sqrt(self.n), self.mean[None]])


def root_of_rows(function: str, arrays: Mapping[str, Array], columns: Mapping[str, Float64] | None = None) -> Root:
    """Return the factorisation of arrays side by side; after each comes its column of the same name, if it has one.

    A column of ones comes first, about the mean of the first block: what stays of the others below its row is centred.
    Cost: 2 n p^2 flops and 24 p^2 bytes beside a block of rows, for p columns in all.
    """
    columns = columns or {}
    width = sum(int(a.shape[1]) for a in arrays.values()) + len(columns)
    found, n, pivot = no_rows(width + 1), 0, np.zeros(width)
    for start, blocks in float64_blocks(function, arrays):
        parts = []
        for name, block in blocks.items():
            parts.append(block)
            if name in columns:
                parts.append(columns[name][start : start + len(block), None])
        rows = np.concatenate(parts, axis=1)
        below = np.ones((len(rows), width + 1), order="F")
        with np.errstate(over="ignore", invalid="ignore"):
            pivot = pivot if n else rows.mean(axis=0)
            np.subtract(rows, pivot, out=below[:, 1:])
        found = with_rows(found, below)
        n += len(rows)
    if not (np.isfinite(found).all() and np.isfinite(pivot).all()):
        raise ValueError(f"{function}: sums over rows of {' and '.join(arrays)} overflow; scale the data down")
    return Root(n, pivot + found[0, 1:] / found[0, 0], np.triu(found[1:, 1:]))


def power_of_two(a: Float64) -> int:
    """Return e with all entries of a finite array below 2^e, the largest at least 2^(e - 1); 0 for zeros."""
    return int(np.frexp(abs(a).max(initial=0.0))[1])


def scaled(a: Float64) -> Float64:
    """Return an array times a power of two, exact, whose squares neither overflow nor underflow."""
    return np.asarray(np.ldexp(a, -power_of_two(a)))


def powers_of_columns(a: Float64) -> NDArray[np.int64]:
    """Return the power of two of each column."""
    return np.asarray(np.frexp(abs(a).max(axis=0, initial=0.0))[1], np.int64)


def scaled_columns(a: Float64) -> Float64:
    """Return the same, each column with its own power of two."""
    return np.asarray(np.ldexp(a, -powers_of_columns(a)))


def float64_blocks(
    function: str, arrays: Mapping[str, Array], block_rows: int = BLOCK_ROWS
) -> Iterator[tuple[int, dict[str, Float64]]]:
    """Yield the first row and the rows of each array in float64, a block at a time; refuse what is not finite."""
    n = next(iter(arrays.values())).shape[0]
    for start in range(0, n, block_rows):
        yield (
            start,
            {name: float64_rows(function, name, a, slice(start, start + block_rows)) for name, a in arrays.items()},
        )


def float64_rows(function: str, name: str, a: Array, rows: slice | NDArray[np.int64]) -> Float64:
    """Return rows of an array in float64; refuse what is not finite."""
    block = arguments.to_numpy(a[rows]).astype(np.float64)
    bad = ~np.isfinite(block).all(axis=1)
    if bad.any():
        found = int(np.arange(a.shape[0])[rows][bad.argmax()]) // _REPORTED_ROWS * _REPORTED_ROWS
        last = min(found + _REPORTED_ROWS, int(a.shape[0])) - 1
        error = ValueError(f"{function}: {name} has non-finite values in rows {found}..{last}")
        raise arguments.advise_on_nonfinite(error, a)
    return block


def mapped_rows(function: str, name: str, a: Array, change: Callable[[Float64], Float64], width: int) -> Float64:
    """Return a function of the rows of an array, block by block, as one array (n, width)."""
    made = np.empty((int(a.shape[0]), width))
    for start, blocks in float64_blocks(function, {name: a}):
        block = change(blocks[name])
        made[start : start + len(block)] = block
    return made

"""Square roots of sums over rows that come in blocks: R with R^T R = X^T X, by reflections of [R; block]."""

from __future__ import annotations

import numpy as np

from .arrays import Float64

# columns of a panel: with blocks of 1024 rows the quickest of 32, 64 and 512 (2 cores, AVX-512)
_PANEL = 32


def no_rows(width: int) -> Float64:
    """Return the triangle R (width, width) of no rows."""
    return np.zeros((width, width), order="F")


def with_rows(triangle: Float64, rows: Float64) -> Float64:
    """Return the upper triangle of [R; rows] for a triangle R (p, p) and rows (n, p), both overwritten.

    Both are float64 in Fortran order. A first column of ones centres the others: what stays of them below the first row
    is the root of their sums about their mean, and the first row over its first entry is their mean.
    """
    from scipy.linalg import lapack

    return np.asarray(lapack.dtpqrt(0, min(_PANEL, len(triangle)), triangle, rows, overwrite_a=1, overwrite_b=1)[0])

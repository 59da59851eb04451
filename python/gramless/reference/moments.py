"""Second moments about a pivot, with the norm-weighted sums that unbiased HSIC needs.

Sources: Song, Smola, Gretton, Bedo, Borgwardt (2012), "Feature selection via dependence maximization", JMLR 13,
eq. 5 (the unbiased estimator HSIC_1); Kornblith, Norouzi, Lee, Hinton (2019), arXiv:1905.00414, eq. 2 (HSIC of linear
kernels as the squared norm of the cross-covariance).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

PIVOT_ROWS = 64
BLOCK_ROWS = 256

Float64 = NDArray[np.float64]


def moments(
    x: NDArray[Any],  # (n, p)
    y: NDArray[Any] | None = None,  # (n, q)
    *,
    pivot_x: Float64 | None = None,  # (p,)
    pivot_y: Float64 | None = None,  # (q,)
    self_terms: bool = True,
    nonfinite: str = "raise",
) -> dict[str, Any]:
    """Return sums of products of d = x - pivot_x and e = y - pivot_y, with a_i = |d_i|^2 and b_i = |e_i|^2.

    Peak extra bytes: 24 n (p + q) + 8 (p^2 + q^2 + p q).
    """
    single = x.dtype != np.float64 and (y is None or y.dtype != np.float64)
    if nonfinite == "raise":
        _refuse_nonfinite("x", x)
        if y is not None:
            _refuse_nonfinite("y", y)
    # an overflow, and infinities that may propagate, are judged on the results
    with np.errstate(over="ignore", invalid="ignore"):
        c = _pivot(x, pivot_x, single)
        d = x.astype(np.float64) - c
        a = np.sum(d**2, axis=1)  # (n,)
        state: dict[str, Any] = {"n": x.shape[0]}
        if self_terms:
            state |= {
                "pivot_x": c,
                "sum_x": np.sum(d, axis=0),
                "sxx": d.T @ d,
                "weighted_xx": a @ d,
                "norms_xx": float(a @ a),
                "cubes_x": np.sum(d**3, axis=0),
                "fourths_x": np.sum(d**4, axis=0),
            }
        if y is not None:
            c = _pivot(y, pivot_y, single)
            e = y.astype(np.float64) - c
            b = np.sum(e**2, axis=1)  # (n,)
            if self_terms:
                state |= {
                    "pivot_y": c,
                    "sum_y": np.sum(e, axis=0),
                    "syy": e.T @ e,
                    "weighted_yy": b @ e,
                    "norms_yy": float(b @ b),
                    "cubes_y": np.sum(e**3, axis=0),
                    "fourths_y": np.sum(e**4, axis=0),
                }
            state |= {
                "sxy": d.T @ e,
                "weighted_xy": b @ d,
                "weighted_yx": a @ e,
                "norms_xy": float(a @ b),
            }
    if nonfinite == "raise":
        _refuse_overflow(state)
    return state


def _pivot(x: NDArray[Any], pivot: Float64 | None, single: bool) -> Float64:
    """Return the given pivot, or the medians of the first rows, rounded to float32 unless x or y is float64."""
    if pivot is None:
        # a mean would follow a single row that is far longer than the others
        pivot = np.median(x[:PIVOT_ROWS].astype(np.float64), axis=0)
        single = x.dtype != np.float64
    pivot = np.array(pivot, dtype=np.float64)
    return pivot.astype(np.float32).astype(np.float64) if single else pivot


def _refuse_nonfinite(name: str, x: NDArray[Any]) -> None:
    n = x.shape[0]
    for start in range(0, n, BLOCK_ROWS):
        stop = min(start + BLOCK_ROWS, n)
        if not np.all(np.isfinite(x[start:stop])):
            raise ValueError(f"moments: {name} has non-finite values in rows {start}..{stop - 1}")


def _refuse_overflow(state: dict[str, Any]) -> None:
    # third and fourth powers overflow first, and one estimator alone reads them: it refuses by itself
    for key, value in state.items():
        if not key.startswith(("cubes", "fourths")) and not np.all(np.isfinite(value)):
            raise ValueError(f"moments: {key} overflows although the input is finite; scale the input")

"""Second moments about a pivot, with the norm-weighted sums that unbiased HSIC needs.

Sources: Song, Smola, Gretton, Bedo, Borgwardt (2012), "Feature selection via dependence maximization", JMLR 13,
eq. 5 (the unbiased estimator HSIC_1); Kornblith, Norouzi, Lee, Hinton (2019), arXiv:1905.00414, eq. 2 (HSIC of linear
kernels as the squared norm of the cross-covariance).
"""

from __future__ import annotations

from collections.abc import Sequence
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


def layer_moments(
    xs: Sequence[NDArray[Any]],  # each (n, p)
    ys: Sequence[NDArray[Any]] | None = None,  # each (n, q)
    *,
    pivots_x: Sequence[Float64] | None = None,  # each (p,)
    pivots_y: Sequence[Float64] | None = None,  # each (q,)
    nonfinite: str = "raise",
) -> dict[str, Any]:
    """Return the sums of `moments` for many layers of x and y, and for all pairs of one of x with one of y.

    Sums of one layer stand one layer after the other: vectors of all features of x, as sum_x; sxx, all blocks (p, p)
    row by row; norms_xx, one number for each layer.

    Sums of pairs: sxy, for each layer of x its block (p, features of all layers of y) row by row; weighted_xy (features
    of x, layers of y), sums of d with the weights b of each layer; weighted_yx alike; norms_xy (layers of x, of y).
    Without ys, x is y, but sxy has the blocks (p, features of the layers after this one), and weighted_yx is left out.

    A layer is computed alike whatever others there are. Errors have the place of the layer among all as `layer`.

    Peak extra bytes: 24 n (p + q) of all features, and the result twice.
    """
    sides = {"x": list(xs), "y": list(ys or [])}
    pivots: dict[str, Any] = {"x": pivots_x, "y": pivots_y}
    state: dict[str, Any] = {"n": xs[0].shape[0]}
    shifted: dict[str, list[Float64]] = {}
    for name, layers in sides.items():
        place = len(xs) if name == "y" else 0
        given = pivots[name] or [None] * len(layers)
        own = [_self_sums(place + k, *pair, nonfinite) for k, pair in enumerate(zip(layers, given, strict=True))]
        shifted[name] = [x.astype(np.float64) - found["pivot_x"] for x, found in zip(layers, own, strict=True)]
        for key in own[0] if own else ():
            if key != "n":
                state[key.replace("x", name)] = np.concatenate([np.ravel(found[key]) for found in own])
    with np.errstate(over="ignore", invalid="ignore"):
        d, e = shifted["x"], shifted["y"] if ys is not None else shifted["x"]
        a, b = (np.stack([np.sum(one**2, axis=1) for one in side], axis=1) for side in (d, e))  # (n, layers)
        blocks = [one.T @ np.hstack([one[:, :0], *(e if ys is not None else d[k + 1 :])]) for k, one in enumerate(d)]
        state["sxy"] = np.concatenate([block.ravel() for block in blocks])
        state["weighted_xy"] = np.hstack(d).T @ b
        if ys is not None:
            state["weighted_yx"] = np.hstack(e).T @ a
        state["norms_xy"] = a.T @ b
    return state


def _self_sums(place: int, x: NDArray[Any], pivot: Float64 | None, nonfinite: str) -> dict[str, Any]:
    """Return the sums of one layer, with errors that tell its place."""
    try:
        return moments(x, pivot_x=pivot, nonfinite=nonfinite)
    except ValueError as error:
        reason = str(error).removeprefix("moments: ").removeprefix("x ")
        told = ValueError(f"layer_moments: layer {place}: {reason}")
        told.layer, told.reason = place, reason  # type: ignore[attr-defined]
        raise told from None


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

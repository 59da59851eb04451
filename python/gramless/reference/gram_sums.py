"""Sums over pairs of rows of kernel matrices K of x and L of y, the diagonal apart.

Sources: Song, Smola, Gretton, Bedo, Borgwardt (2012), JMLR 13, eq. 5 (HSIC_1 of any kernels, from these sums); Szekely,
Rizzo (2014), arXiv:1310.2926 (distance covariance as HSIC of the distance kernel); Nguyen, Raghu, Kornblith (2021),
arXiv:2010.15327 (HSIC of minibatches).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

SAMPLED_ROWS = 7
BLOCK_ROWS = 1584

Float64 = NDArray[np.float64]


def gram_sums(
    x: NDArray[Any],  # (n, p)
    y: NDArray[Any] | None = None,  # (n, q)
    *,
    kernel: str = "linear",
    bandwidth_x: Float64 | None = None,  # (s,)
    bandwidth_y: Float64 | None = None,  # (s,)
    degree: int = 3,
    coef0: float = 1.0,
    block_rows: int | None = None,
    pairs: NDArray[np.int64] | None = None,  # (m, 2)
    sample_x: NDArray[Any] | None = None,  # (k, p)
    sample_y: NDArray[Any] | None = None,  # (k, q)
    nonfinite: str = "raise",
) -> dict[str, Any]:
    """Return sums over i != j of K K, K L and L L, row sums over j != i, and diagonals.

    Of the pairs of rows only those in the given pairs (I, J), I <= J, of blocks of block_rows rows are counted, each in
    both orders; by default all are. The arrays over rows are zero where nothing was counted.

    k(u, v) for linear is (u - c) . (v - c) for one centre c of sampled rows, on which no HSIC depends; rbf
    exp(-|u - v|^2 / (2 s^2)) - o; laplacian exp(-|u - v| / s) - o; distance |u - v|. The offset o is 1 for wide
    bandwidths s, where k is near 1 and the digits are in 1 - k, else 0. cosine is that of linear for rows and centre of
    length 1; polynomial f(u, v) - f(u, c) - f(c, v) + f(c, c) with f(u, v) = (u . v / p + coef0)^degree: HSIC does not
    depend on what is of one row alone.

    Peak extra bytes: 64 n^2 + 8 n (p + q).
    """
    n, size = x.shape[0], block_rows or BLOCK_ROWS
    counted = np.zeros((n, n), dtype=bool)
    for i, j in _all_pairs(-(-n // size)) if pairs is None else pairs:
        counted[i * size : (i + 1) * size, j * size : (j + 1) * size] = True
    counted |= counted.T
    visited: NDArray[np.bool_] = np.asarray(counted.any(axis=1))
    state: dict[str, Any] = {"n": n}
    matrices = []
    for name, array, widths, sample in (("x", x, bandwidth_x, sample_x), ("y", y, bandwidth_y, sample_y)):
        if array is None:
            continue
        if nonfinite == "raise":
            _refuse_nonfinite(name, array, visited)
            if kernel == "cosine":
                _refuse_zeros(name, array, visited)
        scale, spread = _sample(array if sample is None else sample)
        offsets = [_offset(kernel, width, spread) for width in _widths(widths)]
        full = np.stack(
            [
                _matrix(array, array, kernel, width, offset, degree, coef0, scale)
                for width, offset in zip(_widths(widths), offsets, strict=True)
            ]
        )  # (s, n, n)
        full = np.where(counted, full, 0.0)
        state[f"offset_{name}"] = np.array(offsets)
        state[f"diagonal_{name}"] = np.diagonal(full, axis1=1, axis2=2).copy()
        apart = full - state[f"diagonal_{name}"][:, :, None] * np.eye(n)
        state[f"rows_{name}"] = apart.sum(axis=2)
        state[f"sum_{name}{name}"] = np.sum(apart * apart, axis=(1, 2))
        matrices.append(apart)
    if y is not None:
        state["sum_xy"] = np.sum(matrices[0] * matrices[1], axis=(1, 2))
    return state


def gram_values(
    layers: Sequence[NDArray[Any]],  # each (n, p)
    others: Sequence[NDArray[Any]] | None = None,  # each (m, p)
    *,
    kernel: str = "linear",
    bandwidths: Sequence[float] | None = None,
    pivots: Sequence[Float64] | None = None,  # each (p,)
    degree: int = 3,
    coef0: float = 1.0,
    nonfinite: str = "raise",
) -> dict[str, Any]:
    """Return the kernel values of many layers over one batch, flat, so that one product gives every pair of layers.

    Without others: values (l, n (n - 1) / 2) above the diagonal, row by row; rows (l, n), sums over j != i; squares
    (l,), sums of k^2 over i != j. With others, the rows of the same layers in another batch: values (l, n m), rows
    (l, n) and columns (l, m), squares over all n m. Values are float32, or float64 if a layer is, and of polynomials.

    Pivots, for the linear kernel, default to the sampled centres of the layers; offsets are as in gram_sums.

    Peak extra bytes: 16 n m beside the result.
    """
    names = ("values", "rows", "columns", "squares", "offsets")
    found: dict[str, list[Any]] = {name: [] for name in names}
    wide = kernel == "polynomial" or any(array.dtype == np.float64 for array in layers)
    for index, array in enumerate(layers):
        other = array if others is None else others[index]
        if nonfinite == "raise":
            _refuse_nonfinite(str(index), array, np.ones(len(array), dtype=bool))
            _refuse_nonfinite(str(index), other, np.ones(len(other), dtype=bool))
        centre, spread = _sample(array)
        width = None if bandwidths is None else bandwidths[index]
        offset = _offset(kernel, width, spread)
        centre = centre if pivots is None else pivots[index]
        full = _matrix(array, other, kernel, width, offset, degree, coef0, centre)
        if others is None:
            np.fill_diagonal(full, 0.0)
        found["values"].append(full[np.triu_indices(len(full), 1)] if others is None else full.ravel())
        found["rows"].append(full.sum(axis=1))
        found["columns"].append(full.sum(axis=0))
        found["squares"].append(np.sum(full**2))
        found["offsets"].append(offset)
    if others is None:
        del found["columns"]
    arrays = {name: np.array(value, dtype=np.float64) for name, value in found.items()}
    return arrays | {"values": arrays["values"].astype(np.float64 if wide else np.float32)}


def gram_products(
    values: NDArray[Any],  # (l, m)
    pivots: Float64,  # (l,)
    split: int,
) -> dict[str, Any]:
    """Return products of the kernel values of two layers, less a number for each layer.

    products (split, l - split) pairs the first layers with the others, or (l, l) all of them if split is l; squares
    (l,) are those of each layer with itself.

    Peak extra bytes: 8 l m.
    """
    centred = values.astype(np.float64) - pivots[:, None]
    with np.errstate(over="ignore", invalid="ignore"):
        return {
            # a sum for each pair by itself: the bits of BLAS depend on how many there are
            "products": np.einsum("ai,bi->ab", centred[:split], centred[split % len(centred) :]),
            "squares": np.sum(centred**2, axis=1),
        }


def _all_pairs(count: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(count) for j in range(i, count)]


def _widths(bandwidth: Float64 | None) -> list[float | None]:
    return [None] if bandwidth is None else [float(width) for width in bandwidth]


def _sample(x: NDArray[Any]) -> tuple[Float64, float]:
    """Return the medians of up to 7 rows, evenly spaced, and the median of their squared distances from these."""
    rows = x[:: max(1, len(x) // SAMPLED_ROWS)][:SAMPLED_ROWS].astype(np.float64)
    centre: Float64 = np.median(rows, axis=0)
    if x.dtype != np.float64:
        centre = centre.astype(np.float32).astype(np.float64)
    return centre, float(np.median(np.sum((rows - centre) ** 2, axis=1)))


def _offset(kernel: str, width: float | None, spread: float) -> float:
    if width is None or kernel not in ("rbf", "laplacian"):
        return 0.0
    return 1.0 if 2 * spread < (2 if kernel == "rbf" else 1) * width**2 else 0.0


def _matrix(
    x: NDArray[Any],
    y: NDArray[Any],
    kernel: str,
    width: float | None,
    offset: float,
    degree: int,
    coef0: float,
    centre: Float64,
) -> Float64:
    """Return k of all rows of x with all rows of y."""
    u, v = x.astype(np.float64), y.astype(np.float64)
    if kernel == "polynomial":
        about_u, about_v, about = (
            (a @ b.T / x.shape[1] + coef0) ** degree for a, b in ((u, centre), (v, centre), (centre, centre))
        )
        full = (u @ v.T / x.shape[1] + coef0) ** degree
        k = (full - about_u[:, None]) - (about_v - about)
        # rows that do not differ give 0, and not what rounding makes of it
        noise = degree * (4 + np.sqrt(x.shape[1])) * np.finfo(np.float64).eps * np.abs(full)
        return np.where(np.abs(k) <= noise, 0.0, k)
    if kernel == "cosine":
        u, v = (a / np.sqrt(np.sum(a**2, axis=1))[:, None] for a in (u, v))
        length = float(np.sqrt(centre @ centre))
        centre = centre / length if length else centre
        centre = centre if x.dtype == np.float64 else centre.astype(np.float32).astype(np.float64)
    u, v = u - centre, v - centre
    products = u @ v.T
    a, b = np.sum(u**2, axis=1), np.sum(v**2, axis=1)
    if kernel in ("linear", "cosine"):
        return np.asarray(products)
    squares = np.maximum(a[:, None] + b[None, :] - 2 * products, 0.0)
    if x is y:
        np.fill_diagonal(squares, 0.0)
    if kernel == "distance":
        return np.asarray(np.sqrt(squares))
    scale = 1.0 if width is None else width
    exponent = -squares / (2 * scale**2) if kernel == "rbf" else -np.sqrt(squares) / scale
    return np.asarray(np.expm1(exponent) if offset else np.exp(exponent))


def _refuse_nonfinite(name: str, x: NDArray[Any], visited: NDArray[np.bool_]) -> None:
    bad = np.flatnonzero(visited & ~np.isfinite(x.astype(np.float64)).all(axis=1))
    if len(bad):
        first = int(bad[0]) // 256 * 256
        last = min(first + 256, len(x)) - 1
        raise ValueError(f"gram_sums: {name} has non-finite values in rows {first}..{last}")


def _refuse_zeros(name: str, x: NDArray[Any], visited: NDArray[np.bool_]) -> None:
    zero = np.flatnonzero(visited & ~x.astype(np.float64).any(axis=1))
    if len(zero):
        raise ValueError(f"gram_sums: row {zero[0]} of {name} is zero, and has no cosine")

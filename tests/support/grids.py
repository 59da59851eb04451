"""Grids of layers from dense kernel matrices: every batch by U-centring, standard errors in two passes."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

import gramless as gl
from support import bounds, cases, oracle

Layers = dict[str, np.ndarray]

WIDTHS_X = {"z": 7, "a": 12, "m": 3}
WIDTHS_Y = {"out": 5, "in": 16}


def layers(dtype: str = "fp64", n: int = 60, seed: int = 4) -> tuple[Layers, Layers]:
    """Layers of different widths over one latent; names sort otherwise than they are given."""
    rng = np.random.default_rng(seed)
    latent = rng.standard_normal((n, 5))

    def view(p: int) -> np.ndarray:
        return (latent @ rng.standard_normal((5, p)) + 0.3 * rng.standard_normal((n, p))).astype(cases.DTYPES[dtype])

    return {k: view(p) for k, p in WIDTHS_X.items()}, {k: view(p) for k, p in WIDTHS_Y.items()}


def cut(side: Layers, start: int, stop: int) -> Layers:
    return {name: rows[start:stop] for name, rows in side.items()}


def batches(sides: tuple[Layers, Layers], sizes: tuple[int, ...]) -> list[tuple[Layers, Layers]]:
    return [(cut(sides[0], a, b), cut(sides[1], a, b)) for a, b in pairwise(np.cumsum([0, *sizes]).tolist())]


def squared_distances(x: np.ndarray, number: type) -> np.ndarray:
    """Of all pairs of rows, from their differences."""
    wide = np.asarray(x).astype(number)
    return np.stack([((row - wide) ** 2).sum(axis=1) for row in wide])


def median_width(squares: np.ndarray) -> np.floating:
    """The median distance of pairs i < j."""
    return np.median(np.sqrt(squares[np.triu_indices(len(squares), 1)]))


def dense(x: np.ndarray, kernel: str, width: float | None) -> np.ndarray:
    """The kernel matrix in extended precision; without a width, that of the median distance."""
    if kernel == "linear":
        return oracle.gram(x)
    squares = squared_distances(x, oracle.WIDE)
    return np.exp(-squares / (2 * oracle.WIDE(width or median_width(squares)) ** 2))


def naive(x: np.ndarray, kernel: str) -> np.ndarray:
    """The plain NumPy expression on centred rows, in the dtype that the tile products have."""
    number = oracle.compute_dtype(x)
    rows = x.astype(number) - x.mean(axis=0, dtype=np.float64).astype(number)
    products, norms = rows @ rows.T, (rows * rows).sum(axis=1)
    if kernel == "linear":
        return products
    squares = np.maximum(norms[:, None] + norms[None, :] - 2 * products, number(0))
    np.fill_diagonal(squares, 0)
    return np.exp(-squares / (2 * median_width(squares) ** 2))


def rounding(x: np.ndarray, kernel: str) -> float:
    """Root mean square error of the naive kernel values, in standard deviations of the true ones."""
    apart = ~np.eye(len(x), dtype=bool)
    want = dense(x, kernel, None)[apart]
    return float(np.sqrt(np.mean((naive(x, kernel)[apart] - want) ** 2)) / np.std(want))


def hsic_grid(side: list[np.ndarray], kernel: str, width: float | None) -> np.ndarray:
    """HSIC_1 of all pairs of layers over the same rows."""
    matrices = [dense(x, kernel, width) for x in side]
    return np.array([[oracle.gram_hsic(k, m) for m in matrices] for k in matrices], dtype=np.float64)


def minibatch(
    parts: list[tuple[Layers, Layers]],
    kernel: str = "linear",
    width: float | None = None,
    weights: str = "rows",
) -> tuple[np.ndarray, np.ndarray]:
    """CKA of averages over batches, and its standard error."""
    found = np.stack([hsic_grid([*xs.values(), *ys.values()], kernel, width) for xs, ys in parts])
    rows = np.array([len(next(iter(xs.values()))) for xs, _ in parts], float)
    return cka_of_batches(found, len(parts[0][0]), rows if weights == "rows" else np.ones_like(rows))


def cka_of_batches(hsics: np.ndarray, split: int, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same from HSIC (batches, l, l), of which the first `split` layers are the rows of the grid.

    The linear part of log c = log A - log B / 2 - log C / 2 in the averages, about them.
    """
    share = weights / weights.sum()
    mean = np.tensordot(share, hsics, 1)
    own = np.diagonal(mean)
    pairs = mean[:split, split:]
    values = pairs / np.sqrt(np.outer(own[:split], own[split:]))
    relative = np.diagonal(hsics, axis1=1, axis2=2) / own
    parts = hsics[:, :split, split:] / pairs - (relative[:, :split, None] + relative[:, None, split:]) / 2
    free = 1 - (share**2).sum()
    with np.errstate(invalid="ignore"):
        return values, np.abs(values) * np.sqrt(np.tensordot(share**2, parts**2, 1) / free)


def fed(parts: list[tuple[Layers, Layers | None]], kernel: str = "linear", **keywords: object) -> gl.LayerGrid:
    grid = gl.LayerGrid("minibatch", kernel=kernel, **keywords)
    for part in parts:
        grid.update(*part)
    return grid


def assert_grid(matrix: gl.SimilarityMatrix, want: tuple[np.ndarray, np.ndarray], dtype: object) -> None:
    """Values by their relative error; standard errors, which are of their differences, by the absolute one."""
    bound = bounds.bound_for(dtype)
    for got, truth in zip(matrix.values.ravel(), want[0].ravel(), strict=True):
        bounds.assert_relative(got, truth, bound)
    for got, truth in zip(matrix.stderr.ravel(), want[1].ravel(), strict=True):
        bounds.assert_absolute(got, truth, bound, "standard error")


def assert_same_grids(got: gl.SimilarityMatrix, want: gl.SimilarityMatrix, what: str) -> None:
    """Equal up to float64 rounding of sums that were taken in another order."""
    assert (got.layers_x, got.layers_y, got.n) == (want.layers_x, want.layers_y, want.n), what
    scale = np.full_like(want.values, bounds.CKA_TERMS)
    bounds.assert_within_algebra(got.values, want.values, scale, what)
    bounds.assert_within_algebra(got.stderr, want.stderr, scale, f"standard errors, {what}")


def assert_same_matrices(got: gl.SimilarityMatrix, want: gl.SimilarityMatrix, what: str) -> None:
    bounds.assert_same_bits(got.values, want.values, what)
    bounds.assert_same_bits(got.stderr, want.stderr, f"standard errors, {what}")

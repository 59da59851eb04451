"""Unbiased CKA of two RBF kernels: our call, its operations, and the same number in float64 by code of its own."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import gramless as gl

# rows per block of a Gram matrix in float64: 8 MB
BLOCK_ROWS = 1024
SAMPLED_ROWS = 64


def bandwidth(width: int) -> float:
    """About the median of the pairwise distances of `base.activations`, whose columns have variance 1."""
    return math.sqrt(2 * width)


def gram_flops(n: int, p: int, q: int) -> int:
    """Operations of the products of both Gram matrices, half of each computed."""
    return n * n * (p + q)


def sums(x: Any, y: Any, backend: str = "cpu") -> Any:
    """What is measured: one pass that gives all sums which HSIC and CKA of the two kernels need."""
    widths = [np.array([bandwidth(a.shape[1])]) for a in (x, y)]
    return gl.gram_sums(x, y, kernel="rbf", bandwidth_x=widths[0], bandwidth_y=widths[1], backend=backend)


def unbiased_hsic(n: int, product: float, rows_k: np.ndarray, rows_l: np.ndarray) -> float:
    """Song et al. 2012, equation 5, from the sum of K L and the row sums, both without the diagonal."""
    total = float(rows_k.sum()) * float(rows_l.sum()) / ((n - 1) * (n - 2))
    return (product + total - 2 / (n - 2) * float(rows_k @ rows_l)) / (n * (n - 3))


def unbiased_cka(n: int, products: tuple[float, float, float], rows_k: np.ndarray, rows_l: np.ndarray) -> float:
    """From the sums of K K, K L and L L."""
    kk, kl, ll = products
    own = unbiased_hsic(n, kk, rows_k, rows_k) * unbiased_hsic(n, ll, rows_l, rows_l)
    return unbiased_hsic(n, kl, rows_k, rows_l) / math.sqrt(own)


def exponents(u: np.ndarray, v: np.ndarray, width: float) -> np.ndarray:
    """-|u - v|^2 / (2 width^2) of all rows of u with all rows of v, in float64."""
    squares = np.einsum("ij,ij->i", u, u)[:, None] + np.einsum("ij,ij->i", v, v)
    squares -= 2 * (u @ v.T)
    squares /= -2 * width**2
    return squares


def centred(x: np.ndarray, rows: slice) -> np.ndarray:
    return x[rows].astype(np.float64) - x[:SAMPLED_ROWS].astype(np.float64).mean(0)


def true_rbf_cka(x: np.ndarray, y: np.ndarray) -> float:
    """In float64, by blocks of both Gram matrices; written apart from the package that it judges."""
    n = len(x)
    parts = [slice(start, min(start + BLOCK_ROWS, n)) for start in range(0, n, BLOCK_ROWS)]
    rows_k, rows_l = np.zeros(n), np.zeros(n)
    products = np.zeros(3)
    for index, part in enumerate(parts):
        left = [centred(a, part) for a in (x, y)]
        for other in parts[index:]:
            k, m = (
                np.exp(exponents(u, u if other is part else centred(a, other), bandwidth(a.shape[1])))
                for u, a in zip(left, (x, y), strict=True)
            )
            if other is part:
                np.fill_diagonal(k, 0)
                np.fill_diagonal(m, 0)
            else:
                rows_k[other] += k.sum(0)
                rows_l[other] += m.sum(0)
            rows_k[part] += k.sum(1)
            rows_l[part] += m.sum(1)
            weight = 1 if other is part else 2
            products += weight * np.array([np.vdot(k, k), np.vdot(k, m), np.vdot(m, m)])
    kk, kl, ll = map(float, products)
    return unbiased_cka(n, (kk, kl, ll), rows_k, rows_l)


def rows_error(state: Any, x: np.ndarray, y: np.ndarray) -> float:
    """The largest relative error of the row sums of some rows: all that float64 can check where n^2 is too much."""
    n = len(x)
    sample = np.linspace(0, n - 1, SAMPLED_ROWS, dtype=np.int64)
    worst = 0.0
    for array, side in ((x, state.x), (y, state.y)):
        few, width, offset = centred(array, sample), bandwidth(array.shape[1]), float(side.offset[0])
        truth = np.zeros(SAMPLED_ROWS)
        for start in range(0, n, BLOCK_ROWS):
            exponent = exponents(few, centred(array, slice(start, start + BLOCK_ROWS)), width)
            truth += (np.expm1(exponent) if offset else np.exp(exponent)).sum(1)
        # the diagonal is no part of the row sums
        truth -= 0.0 if offset else 1.0
        worst = max(worst, float(np.max(np.abs(side.rows[0][sample] - truth) / np.abs(truth))))
    return worst

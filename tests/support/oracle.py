"""Independent answers: exact rationals, brute force over tuples of rows, dense Gram matrices in extended precision.

Nothing here is taken from the package; each oracle takes another road than the one-pass algebra of the kernels:
HSIC_1 is computed from U-centred Gram matrices (Szekely and Rizzo 2014, eq. 2.4) or as the U-statistic itself
(Song et al. 2012, eq. 5), never from second moments.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import permutations

import numpy as np

WIDE = np.longdouble
CROSS_KEYS = ("sxy", "weighted_xy", "weighted_yx", "norms_xy")


def _integers(x: np.ndarray) -> tuple[np.ndarray, int]:
    """Rows as Python integers and the power of two they were multiplied by: every finite float is such a fraction."""
    exact = [[Fraction(float(v)) for v in row] for row in np.asarray(x)]
    shift = max(v.denominator for row in exact for v in row).bit_length() - 1
    return np.array([[int(v * 2**shift) for v in row] for row in exact], dtype=object), shift


def _exact_gram(x: np.ndarray) -> tuple[np.ndarray, int]:
    rows, shift = _integers(x)
    rows = rows - rows[0]
    return rows @ rows.T, 2 * shift


def u_statistic(x: np.ndarray, y: np.ndarray) -> Fraction:
    """HSIC_1 as the mean over ordered quadruples of distinct rows of K_ij (L_ij + L_qr - 2 L_iq). Exact; n up to 8."""
    k, shift_k = _exact_gram(x)
    m, shift_l = _exact_gram(y)
    total, count = 0, 0
    for i, j, q, r in permutations(range(len(k)), 4):
        total += k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q])
        count += 1
    return Fraction(total, count * 2 ** (shift_k + shift_l))


def _u_centred(k: np.ndarray) -> np.ndarray:
    """(n-1)(n-2) times the U-centred matrix of k, so that integers stay integers."""
    n = len(k)
    k = k.copy()
    np.fill_diagonal(k, 0)
    rows = k.sum(axis=1)
    a = (n - 1) * (n - 2) * k - (n - 1) * (rows[:, None] + rows[None, :]) + rows.sum()
    np.fill_diagonal(a, 0)
    return a


def exact_hsic(x: np.ndarray, y: np.ndarray) -> Fraction:
    """HSIC_1 as an exact fraction, from the U-centred Gram matrices. Meant for n p up to a few thousand."""
    k, shift_k = _exact_gram(x)
    m, shift_l = _exact_gram(y)
    n = len(k)
    total = (_u_centred(k) * _u_centred(m)).sum()
    return Fraction(int(total), ((n - 1) * (n - 2)) ** 2 * n * (n - 3) * 2 ** (shift_k + shift_l))


def exact_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased CKA from exact fractions, rounded once at the end."""
    xy, xx, yy = exact_hsic(x, y), exact_hsic(x, x), exact_hsic(y, y)
    squared = xy * xy / (xx * yy)
    root = np.sqrt(WIDE(squared.numerator / squared.denominator))
    return float(root if xy >= 0 else -root)


def gram(x: np.ndarray, number: type = WIDE) -> np.ndarray:
    """Dense Gram matrix of the rows about their mean, in extended precision by default."""
    rows = np.asarray(x).astype(number)
    rows = rows - rows.mean(axis=0, dtype=number)
    return rows @ rows.T


def gram_hsic(k: np.ndarray, m: np.ndarray) -> np.floating:
    """HSIC_1 of two dense Gram matrices k and m, by U-centring."""
    n = len(k)
    scale = k.dtype.type((n - 1) * (n - 2))
    return (_u_centred(k) / scale * (_u_centred(m) / scale)).sum() / k.dtype.type(n * (n - 3))


def dense_hsic(x: np.ndarray, y: np.ndarray, number: type = WIDE) -> np.floating:
    return gram_hsic(gram(x, number), gram(y, number))


def dense_cka(x: np.ndarray, y: np.ndarray, number: type = WIDE) -> float:
    k, m = gram(x, number), gram(y, number)
    return float(gram_hsic(k, m) / np.sqrt(gram_hsic(k, k)) / np.sqrt(gram_hsic(m, m)))


def cancellation(x: np.ndarray, y: np.ndarray) -> float:
    """How much larger than HSIC_1 its terms are when they come from moments, at the worst of the three of a CKA.

    A row of huge norm is in the trace of K L and leaves with the diagonal; dense Gram matrices never hold it.
    """
    k, m = gram(x), gram(y)
    worst = max(abs((a * b).sum() / (len(a) * (len(a) - 3)) / gram_hsic(a, b)) for a, b in ((k, m), (k, k), (m, m)))
    return float(1 + worst)


def biased_hsic(x: np.ndarray, y: np.ndarray) -> float:
    """tr(K H L H) / (n - 1)^2 with the centring matrix H written out and the Gram matrices about the first row."""
    x, y = (np.asarray(a).astype(WIDE) for a in (x, y))
    k, m = (x - x[0]) @ (x - x[0]).T, (y - y[0]) @ (y - y[0]).T
    n = len(k)
    h = np.eye(n, dtype=WIDE) - WIDE(1) / WIDE(n)
    return float(np.trace(k @ h @ m @ h) / WIDE((n - 1) ** 2))


def biased_cka(x: np.ndarray, y: np.ndarray) -> float:
    return biased_hsic(x, y) / np.sqrt(biased_hsic(x, x)) / np.sqrt(biased_hsic(y, y))


def feature_corrected_hsic(x: np.ndarray, y: np.ndarray, *, same: bool = False) -> np.floating:
    """Mean of HSIC_1(k_a, l_b) over pairs of single features; over a != b only where x and y are the same model."""
    ks = [gram(np.asarray(x)[:, a : a + 1]) for a in range(np.shape(x)[1])]
    ls = ks if same else [gram(np.asarray(y)[:, b : b + 1]) for b in range(np.shape(y)[1])]
    pairs = [gram_hsic(k, m) for a, k in enumerate(ks) for b, m in enumerate(ls) if not (same and a == b)]
    return np.sum(np.array(pairs, dtype=WIDE)) / WIDE(len(pairs))


def feature_corrected_cka(x: np.ndarray, y: np.ndarray) -> float:
    xx, yy = feature_corrected_hsic(x, x, same=True), feature_corrected_hsic(y, y, same=True)
    if xx <= 0 or yy <= 0:
        return float("nan")
    return float(feature_corrected_hsic(x, y) / np.sqrt(xx) / np.sqrt(yy))


def compute_dtype(x: np.ndarray, y: np.ndarray | None = None) -> type:
    """The dtype the tile product is documented to use: float64 if either side is float64, else float32."""
    wide = any(a is not None and a.dtype == np.float64 for a in (x, y))
    return np.float64 if wide else np.float32


def moments(x: np.ndarray, y: np.ndarray, pivot_x: np.ndarray, pivot_y: np.ndarray, number: type | None = None) -> dict:
    """Every entry of the flat dict of the kernel from its definition, in a wider number than the kernel uses."""
    number = number or (WIDE if compute_dtype(x, y) is np.float64 else np.float64)
    d = x.astype(number) - np.asarray(pivot_x).astype(number)
    e = y.astype(number) - np.asarray(pivot_y).astype(number)
    return _entries(d, e)


def moment_scales(x: np.ndarray, y: np.ndarray, pivot_x: np.ndarray, pivot_y: np.ndarray) -> dict:
    """For each entry, the sum of the absolute values of its terms: what one rounding error is relative to."""
    d = np.abs(x.astype(np.float64) - np.asarray(pivot_x))
    e = np.abs(y.astype(np.float64) - np.asarray(pivot_y))
    return _entries(d, e)


def translation_scales(x: np.ndarray, y: np.ndarray, *pivots: tuple[np.ndarray, np.ndarray]) -> dict:
    """Scale of states that passed through all these (pivot_x, pivot_y): bounds every term of the change of pivot."""
    d = sum(np.abs(x.astype(np.float64) - p) for p, _ in pivots)
    e = sum(np.abs(y.astype(np.float64) - p) for _, p in pivots)
    for p, q in pivots:
        d = d + sum(np.abs(p - other) for other, _ in pivots)
        e = e + sum(np.abs(q - other) for _, other in pivots)
    return _entries(d, e)


def naive_moments(x: np.ndarray, y: np.ndarray, pivot_x: np.ndarray, pivot_y: np.ndarray) -> dict:
    """The plain NumPy expressions in the compute dtype: the yardstick of the error."""
    number = compute_dtype(x, y)
    d = x.astype(number) - np.asarray(pivot_x).astype(number)
    e = y.astype(number) - np.asarray(pivot_y).astype(number)
    return _entries(d, e)


def _entries(d: np.ndarray, e: np.ndarray) -> dict:
    a, b = (d * d).sum(axis=1), (e * e).sum(axis=1)
    out = {"n": len(d), "sxy": d.T @ e, "weighted_xy": b @ d, "weighted_yx": a @ e, "norms_xy": (a * b).sum()}
    for side, z, norms in (("x", d, a), ("y", e, b)):
        out |= {
            f"sum_{side}": z.sum(axis=0),
            f"s{side}{side}": z.T @ z,
            f"weighted_{side}{side}": norms @ z,
            f"norms_{side}{side}": (norms * norms).sum(),
            f"cubes_{side}": (z * z * z).sum(axis=0),
            f"fourths_{side}": (z * z * z * z).sum(axis=0),
        }
    return out


def pivot(x: np.ndarray) -> np.ndarray:
    """Medians of the first min(n, 64) rows, in float64 before they are rounded."""
    return np.median(np.asarray(x)[:64].astype(WIDE), axis=0).astype(np.float64)

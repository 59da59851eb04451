"""Pairs of models p(y|x) = softmax(h w^T + b), and measures of them as published: dense, with loops over labels.

Nothing here is taken from the package. Log-likelihoods (N, V) are written out; standard deviations are NumPy's, over
rows or columns of these; d_rep and mSVD are taken over all inputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np

Models = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
ARRAYS = ("h1", "w1", "h2", "w2")


def related(
    seed: int = 0, n: int = 60, labels: int = 9, d: int = 3, noise: float = 0.3, d2: int | None = None
) -> Models:
    """Two models of one task, h and w not centred; d2 is the hidden size of the second."""
    rng = np.random.default_rng([seed, n, labels, d])
    h1 = rng.standard_normal((n, d)) + rng.standard_normal(d)
    w1 = 1.5 * rng.standard_normal((labels, d)) + rng.standard_normal(d)
    d2 = d2 or d
    mix = rng.standard_normal((d, d2)) / np.sqrt(d2)
    h2 = h1 @ mix + noise * rng.standard_normal((n, d2))
    w2 = w1 @ np.linalg.pinv(mix).T + noise * rng.standard_normal((labels, d2))
    return h1, w1, h2, w2


def recoordinated(h: np.ndarray, w: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The same model: (A, A^-T) on h and w, and a vector added to all rows of w."""
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((h.shape[1],) * 2) + np.eye(h.shape[1])
    return h @ a.T, w @ np.linalg.inv(a) + rng.standard_normal(h.shape[1])


def log_likelihoods(h: np.ndarray, w: np.ndarray, b: np.ndarray | None = None) -> np.ndarray:
    """ln p, (N, V)."""
    z = h @ w.T + (0 if b is None else b)
    z = z - z.max(axis=1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def mean_kl(models: Models) -> float:
    p, q = log_likelihoods(*models[:2]), log_likelihoods(*models[2:])
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


def squared_logit_distance(models: Models, centred: bool = False) -> float:
    """Mean squared distance of logits less their mean over labels; centred: over inputs as well."""
    z = models[0] @ models[1].T - models[2] @ models[3].T
    z = z - z.mean(axis=1, keepdims=True)
    z = z - z.mean(axis=0) if centred else z
    return float((z**2).sum(axis=1).mean())


def sd(values: np.ndarray) -> float:
    return float(np.std(values, ddof=1))


def scaled_gaps(p: np.ndarray, q: np.ndarray, pivot: int, others: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """For columns of ln p and ln q: both standard deviations of each other column, and the difference of scales.

    The first has two rows: of the column itself and of the pivot, each divided by the scale of that column.
    """
    gaps, scales = np.empty((2, len(others))), np.empty(len(others))
    for k, y in enumerate(others):
        one, two = sd(p[:, y] - p[:, pivot]), sd(q[:, y] - q[:, pivot])
        gaps[:, k] = [sd(p[:, u] / one - q[:, u] / two) for u in (y, pivot)]
        scales[k] = abs(one - two)
    return gaps, scales


def d_llv_terms(
    p: np.ndarray, q: np.ndarray, pivot: int, leave_out: int, inputs: list[int], reduction: str = "max"
) -> tuple[float, float, float, float]:
    """The four terms from log-likelihoods (N, V); reduction "mean" keeps the largest of the second."""
    reduce = getattr(np, reduction)
    others = [y for y in range(p.shape[1]) if y not in (pivot, leave_out)]
    first, third = scaled_gaps(p, q, pivot, others)
    second, fourth = scaled_gaps(p[inputs].T, q[inputs].T, 0, list(range(1, len(inputs))))
    return float(reduce(first)), float(second.max()), float(reduce(third)), float(reduce(fourth))


def best_pivot(p: np.ndarray, q: np.ndarray, reduction: str = "max") -> tuple[int, int, float]:
    """The pivot and the label left out with the smallest first term, out of all pairs."""
    labels, best = p.shape[1], (0, 0, np.inf)
    for pivot in range(labels):
        others = [y for y in range(labels) if y != pivot]
        gaps, _ = scaled_gaps(p, q, pivot, others)
        for k, leave_out in enumerate(others):
            value = float(getattr(np, reduction)(np.delete(gaps, k, axis=1)))
            if value < best[2]:
                best = (pivot, leave_out, value)
    return best


def msvd(h1: np.ndarray, w1: np.ndarray, h2: np.ndarray, w2: np.ndarray, rows: list[int]) -> float:
    """Mean singular value of the covariance over inputs of z-scored coordinates."""
    scores = []
    for h, w in ((h1, w1), (h2, w2)):
        seen = h @ (w[rows[1:]] - w[rows[0]]).T
        scores.append((seen - seen.mean(axis=0)) / seen.std(axis=0, ddof=1))
    covariance = scores[0].T @ scores[1] / (len(h1) - 1)
    return float(np.linalg.svd(covariance, compute_uv=False).sum()) / (len(rows) - 1)


def d_svd(models: Models, pivot: int, leave_out: int, inputs: list[int]) -> tuple[float, float]:
    """1 - mSVD at its worst over label sets, and of the unembeddings."""
    h1, w1, h2, w2 = models
    others = [y for y in range(len(w1)) if y not in (pivot, leave_out)]
    sets = combinations(others, h1.shape[1])
    worst = max(1 - msvd(*models, [pivot, *chosen]) for chosen in sets)
    return worst, 1 - msvd(w1, h1, w2, h2, inputs)


def label_sets(labels: int, d: int, pivots: int, count: int, seed: int) -> Iterator[np.ndarray]:
    """Label sets, the pivot first, drawn as the published code of d_rep does."""
    rng = np.random.default_rng(seed)
    for pivot in rng.choice(np.arange(labels), pivots, replace=False):
        others = np.delete(np.arange(labels), pivot)
        for _ in range(count):
            yield np.concatenate([[pivot], others[rng.choice(range(labels - 1), d, replace=False)]])


def residuals(models: Models, chosen: np.ndarray) -> tuple[np.ndarray, float]:
    """|h1 - A h2| of each input for one label set, and the smallest singular value of L_1."""
    h1, w1, h2, w2 = models
    one, two = (w[chosen[1:]] - w[chosen[0]] for w in (w1, w2))
    a = np.linalg.inv(one) @ two
    return np.array([np.linalg.norm(x - a @ y) for x, y in zip(h1, h2, strict=True)]), np.linalg.norm(one, -2)

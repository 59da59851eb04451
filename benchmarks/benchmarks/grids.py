"""All pairs of layers of two models over one batch: the layers, the operations, and the answer in float64."""

from __future__ import annotations

import numpy as np

from .rbf import bandwidth, exponents

Layers = list[np.ndarray]  # each (n, width)


def grid_layers(layers: int, n: int, width: int, *, offset: float = 0.0, seed: int = 0) -> tuple[Layers, Layers]:
    """Layers of two models with a common part: linear CKA of every pair is between 0.1 and 0.7, far from zero."""
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal((n, width), dtype=np.float32)
    models: tuple[Layers, Layers] = ([], [])
    for model in models:
        for share in np.linspace(0.6, 0.9, layers, dtype=np.float32):
            own = rng.standard_normal((n, width), dtype=np.float32)
            mean = (offset * rng.standard_normal(width)).astype(np.float32)
            model.append(share * shared + np.sqrt(1 - share**2) * own + mean)
    return models


def grid_flops(layers: int, n: int, width: int) -> int:
    """Half of each Gram matrix, and the products of the halves of every pair."""
    return 2 * layers * n * (n + 1) * width + layers**2 * n * (n - 1)


def gram(x: np.ndarray, kernel: str) -> np.ndarray:
    centred = x.astype(np.float64) - x.mean(0, dtype=np.float64)
    if kernel == "linear":
        return centred @ centred.T
    return np.exp(exponents(centred, centred, bandwidth(x.shape[1])))


def true_grid(xs: Layers, ys: Layers, kernel: str = "linear") -> np.ndarray:
    """Unbiased CKA of all pairs in float64 (Song et al. 2012, equation 5), from whole Gram matrices."""
    n = len(xs[0])
    grams = np.stack([gram(x, kernel) for x in xs + ys])
    grams[:, range(n), range(n)] = 0
    flat, rows = grams.reshape(len(grams), -1), grams.sum(1)
    total = rows.sum(1)
    hsic = flat @ flat.T + np.outer(total, total) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (rows @ rows.T)
    own = np.sqrt(np.diagonal(hsic))
    return (hsic / np.outer(own, own))[: len(xs), len(xs) :]

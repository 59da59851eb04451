"""Two models as hidden states and unembeddings, and the squared distance of their centred logits by definition."""

from __future__ import annotations

import numpy as np
import pytest

from gramless.predictions import factorization
from support import bounds, cases

LONG = np.longdouble
MODELS = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def models(v: int, d1: int, d2: int, n: int, dtype: str = "fp64", other: str | None = None) -> MODELS:
    """h1, w1, h2, w2 of models that have nothing to do with each other."""
    rng = np.random.default_rng([v, d1, d2, n])
    kinds = [cases.DTYPES[dtype], cases.DTYPES[other or dtype]]
    shapes = [(n, d1), (v, d1), (n, d2), (v, d2)]
    return tuple(rng.standard_normal(shape).astype(kind) for shape, kind in zip(shapes, kinds + kinds, strict=True))


def near(v: int, d: int, n: int, ratio: float, dtype: str = "fp64") -> MODELS:
    """Models that differ by this ratio."""
    rng = np.random.default_rng([v, d, n])
    h, w = rng.standard_normal((n, d)), rng.standard_normal((v, d))
    other = [a + ratio * rng.standard_normal(a.shape) for a in (h, w)]
    return tuple(a.astype(cases.DTYPES[dtype]) for a in (h, w, *other))


def truth(h1, w1, h2, w2, b1=0.0, b2=0.0) -> np.ndarray:
    """The definition; differences first where sizes agree, which extended precision needs for near-equal models."""
    h1, w1, h2, w2 = (np.asarray(a).astype(LONG) for a in (h1, w1, h2, w2))
    delta = (h1 - h2) @ w1.T + h2 @ (w1 - w2).T if h1.shape == h2.shape else h1 @ w1.T - h2 @ w2.T
    delta = delta + (np.asarray(b1, dtype=LONG) - np.asarray(b2, dtype=LONG))
    delta -= delta.mean(axis=1, keepdims=True)
    return np.square(delta).sum(axis=1)


def assert_rows(got: np.ndarray, want: np.ndarray, bound: float = bounds.SAME_FP64, what: str = "rows") -> None:
    """Relative, row by row; rows of distance 0 must be 0 but for the rounding of the others."""
    assert got.dtype == np.float64
    scale = np.where(want > 0, want, max(float(want.max(initial=0)), 1.0))
    assert bounds.scaled_error(got, want, scale) <= bound, what


def factor_by(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Force the way a factor is found."""
    monkeypatch.setattr(factorization, "GRAM_ERROR", {"gram": np.inf, "qr": 0.0}[method])

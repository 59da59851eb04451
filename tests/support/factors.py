"""Rows of two models given to a factor on a GPU, as its tests call it, and models whose terms cancel."""

from __future__ import annotations

from typing import Any

import numpy as np

import gramless as gl
from support import device, gpu_bounds
from support.heads import MODELS, near, truth

PRECISIONS = ("fast", "high", "exact")
# the interpreter takes arrays of the host where backend="cuda" is asked for; a GPU takes its tensors by itself
BACKEND = "auto" if device.label() == "cuda" else "cuda"


def rows(pair: gl.UnembeddingPair, h1: np.ndarray, h2: np.ndarray, precision: str = "high", **more: Any) -> np.ndarray:
    return pair.squared_distances(device.tensor(h1), device.tensor(h2), precision=precision, backend=BACKEND, **more)


def assert_is_truth(of: MODELS, precision: str, biased: bool = False) -> None:
    h1, w1, h2, w2 = of
    bias = {"b1": np.linspace(-3, 2, len(w1)), "b2": np.geomspace(1, 9, len(w1))} if biased else {}
    pair = gl.UnembeddingPair(w1, w2, **bias)
    got, want = rows(pair, h1, h2, precision), truth(*of, **bias)
    assert got.dtype == np.float64
    assert (want > 0).all()
    gpu_bounds.assert_factor_rows(got, want, precision, pair.factor, h1, h2)


def with_a_column(v: int, d: int, n: int, ratio: float) -> tuple[MODELS, np.ndarray]:
    """Near models of other sizes, whose terms cancel, and their squared distances."""
    h1, w1, h2, w2 = near(v, d, n, ratio, "fp32")
    want = truth(h1, w1, h2, w2)
    h2, w2 = (np.hstack([a, np.full((len(a), 1), one, np.float32)]) for a, one in ((h2, 1), (w2, 0)))
    return (h1, w1, h2, w2), want

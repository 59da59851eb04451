"""Two models in batches for a GPU, where what an update leaves comes late, and the same on the host."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import gramless as gl
from gramless.reference import logit_pairs as definition
from support import bounds, device

N, V = 40, 30
RNG = np.random.default_rng(8)
H1, W1 = RNG.standard_normal((N, 9)), RNG.standard_normal((V, 9)) / 2
H2, W2 = H1[:, :6] + 0.3 * RNG.standard_normal((N, 6)), W1[:, :6] + 0.1 * RNG.standard_normal((V, 6))
TARGETS, MASK = RNG.integers(0, V, N), RNG.random(N) < 0.7
TARGETS[::6] = -1
MODELS = (H1, W1, H2, W2)
BATCHES = (slice(0, 17), slice(17, 18), slice(18, N))
BACKEND = "auto" if device.label() == "cuda" else "cuda"
EXACT: dict[str, Any] = {"precision": "exact", "backend": BACKEND}


def tensors(*arrays: np.ndarray) -> list[Any]:
    return [device.tensor(array) for array in arrays]


def assert_same(got: gl.LogitComparison, want: gl.LogitComparison) -> None:
    assert (got.n, got.labels, got.n_targets, got.infinite) == (want.n, want.labels, want.n_targets, want.infinite)
    assert got.stderr.keys() == want.stderr.keys()
    for name, error in want.stderr.items():
        bounds.assert_relative(getattr(got, name), getattr(want, name), bounds.SAME_FP64, name)
        bounds.assert_relative(got.stderr[name], error, bounds.SAME_FP64, f"stderr of {name}")


def by_definition(first: Any, second: Any, **told: Any) -> dict[str, Any]:
    """What the kernel does, at once: streams are tested here, and kernels elsewhere."""
    del told["workspace"], told["precision"], told["backend"]
    arrays = [None if a is None else a.cpu().double().numpy() for of in (first, second) for a in (of.h, of.w)]
    if told["targets"] is not None:
        assert told["targets"].dtype == torch.int64
        told["targets"] = told["targets"].cpu().numpy()
    of_models = {"b1": first.b, "b2": second.b, "softcap1": first.softcap, "softcap2": second.softcap}
    flat = definition.logit_pairs(*arrays, **told, **of_models, nonfinite="propagate")
    return {name: a if name == "labels" else device.tensor(a) for name, a in flat.items()}


def stream(**options: Any) -> gl.LogitPairs:
    return gl.LogitPairs(*tensors(W1, W2), **EXACT | options)


def fed(batches: Any = BATCHES, **options: Any) -> gl.LogitPairs:
    made = stream(**options)
    for rows in batches:
        made.update(*tensors(H1[rows], H2[rows]), targets=TARGETS[rows])
    return made


def on_host(batches: Any = BATCHES, **options: Any) -> gl.LogitPairs:
    made = gl.LogitPairs(W1, W2, **options)
    for rows in batches:
        made.update(H1[rows], H2[rows], targets=TARGETS[rows])
    return made


def spoiled(array: np.ndarray, row: int, value: float = np.nan) -> np.ndarray:
    bad = array.copy()
    bad[row, 1] = value
    return bad

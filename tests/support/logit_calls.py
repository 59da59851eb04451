"""Arguments of functions of predictions, as tensors where kernels for a GPU run."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from support import device
from support.heads import models


def tensors(n: int, v: int, d1: int, d2: int, *dtypes: str) -> list[torch.Tensor]:
    """h1, w1, h2 and w2, of one dtype or one each."""
    arrays = [device.tensor(a) for a in models(v, d1, d2, n, "fp32")]
    return [a.to(getattr(torch, kind)) for a, kind in zip(arrays, dtypes * (4 // len(dtypes)), strict=True)]


def arguments(function: str, h1: Any, w1: Any, h2: Any, w2: Any) -> tuple[Any, ...]:
    return (h1, w1) if function == "logsumexp" else (h1, w1, h2, w2)


def choices(n: int, v: int, names: str) -> dict[str, Any]:
    """Rows and labels that count and others, by their first letters."""
    made: dict[str, Any] = {
        "b": np.where(np.arange(v) % 9 == 0, -np.inf, 0.5),
        "b1": np.linspace(0, 1, v),
        "b2": np.zeros(v),
        "labels": np.arange(v)[::-2],
        "mask": np.arange(n) % 3 > 0,
        "targets": np.full(n, -1),
    }
    return {name: made[name] for name in names.split()}

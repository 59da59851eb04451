"""Models that predict over one vocabulary, on a device, and what they predict in float64, by code of its own."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .base import relative_error
from .gpu_data import parts
from .gpu_device import Device
from .logits import DIFFERENCES, SPREAD, Models

if TYPE_CHECKING:
    import torch

Float64 = np.ndarray[Any, np.dtype[np.float64]]

# rows that are checked, where float64 would take too long for all
SAMPLED_ROWS = 1024
# rows whose logits are held in float64 at a time
TRUE_ROWS = 128


def two_models(n: int, labels: int, width: int, dtype: str, data: str, device: Device, seed: int = 0) -> Models:
    """Models that differ as those of `logits.two_models` do, rounded to a dtype: what is rounded is their data."""
    import torch

    drawn = torch.Generator(device.name).manual_seed(seed)
    kind = getattr(torch, dtype)

    def pair(rows: int, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = (torch.empty(rows, width, dtype=kind, device=device.name) for _ in range(2))
        for part in parts(rows):
            first, other = torch.randn(2, part.stop - part.start, width, generator=drawn, device=device.name)
            x[part] = scale * first
            y[part] = scale * (first + DIFFERENCES[data] * other)
        return x, y

    (h1, h2), (w1, w2) = pair(n, 1.0), pair(labels, SPREAD / math.sqrt(width))
    return Models(h1, w1, h2, w2)


def given_bytes(heads: tuple[torch.Tensor, ...]) -> int:
    return sum(a.numel() * a.element_size() for a in heads)


class Truth(NamedTuple):
    """Values of some rows in float64."""

    rows: np.ndarray[Any, np.dtype[np.int64]]  # their numbers
    values: dict[str, Float64]

    def worst(self, found: Mapping[str, Any]) -> float:
        """The largest relative error of values of all rows, at those that are known; NaN if one is."""
        errors = [relative_error(values[self.rows], self.values[name]) for name, values in found.items()]
        return float(np.max(errors))


def as_numpy(values: torch.Tensor) -> Float64:
    return values.double().cpu().numpy()


def sampled(n: int, most: int | None, beside: torch.Tensor) -> torch.Tensor:
    """Numbers of rows, evenly spaced if there are more than are to be taken."""
    import torch

    count = n if most is None else min(n, most)
    return torch.linspace(0, n - 1, count, dtype=torch.float64, device=beside.device).round().long()


def true_pairs(models: Models, most: int | None = SAMPLED_ROWS) -> Truth:
    """Of two models."""
    rows = sampled(len(models.h1), most, models.h1)
    return _collected(
        rows,
        (
            pair_values(true_logits(models.h1, models.w1, few), true_logits(models.h2, models.w2, few))
            for few in rows.split(TRUE_ROWS)
        ),
    )


def true_one(h: torch.Tensor, w: torch.Tensor, targets: torch.Tensor, most: int | None = SAMPLED_ROWS) -> Truth:
    """Of one model, with the cross entropy of a label for each row."""
    rows = sampled(len(h), most, h)
    return _collected(rows, (one_values(true_logits(h, w, few), targets[few]) for few in rows.split(TRUE_ROWS)))


def _collected(rows: torch.Tensor, chunks: Iterator[dict[str, torch.Tensor]]) -> Truth:
    collected: dict[str, list[Float64]] = {}
    for found in chunks:
        for name, values in found.items():
            collected.setdefault(name, []).append(as_numpy(values))
    return Truth(rows.cpu().numpy(), {name: np.concatenate(values) for name, values in collected.items()})


def true_logits(h: torch.Tensor, w: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    import torch

    few = h[rows].double()
    return torch.cat([few @ w[part].double().T for part in parts(len(w))], dim=1)


def pair_values(z1: torch.Tensor, z2: torch.Tensor) -> dict[str, torch.Tensor]:
    import torch

    log_p, log_q = (torch.log_softmax(z, dim=1) for z in (z1, z2))
    p, q = log_p.exp(), log_q.exp()
    log_m = ((p + q) / 2).log()
    delta = z1 - z2
    delta -= delta.mean(dim=1, keepdim=True)
    kl_pq, kl_qp = (p * (log_p - log_q)).sum(1), (q * (log_q - log_p)).sum(1)
    return {
        "kl_pq": kl_pq,
        "kl_qp": kl_qp,
        "jeffreys": kl_pq + kl_qp,
        "entropy_p": -(p * log_p).sum(1),
        "entropy_q": -(q * log_q).sum(1),
        "logit_distance": delta.square().sum(1).sqrt(),
        "js": ((p * (log_p - log_m)).sum(1) + (q * (log_q - log_m)).sum(1)) / 2,
        "tv": (p - q).abs().sum(1) / 2,
    }


def one_values(z: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
    import torch

    log_p = torch.log_softmax(z, dim=1)
    p = log_p.exp()
    return {
        "lse": z[:, 0] - log_p[:, 0],
        "entropy": -(p * log_p).sum(1),
        "renyi2": -p.square().sum(1).log(),
        "cross_entropy": -log_p.gather(1, targets[:, None])[:, 0],
    }

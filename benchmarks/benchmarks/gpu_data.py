"""Data on a device, and answers in float64, by code that shares nothing with the package that it judges."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .gpu_device import Device
from .rbf import bandwidth

if TYPE_CHECKING:
    import torch

# rows that are drawn, and summed in float64, at a time
BLOCK_ROWS = 8192
# rows whose kernel sums are computed where all pairs in float64 take too long
SAMPLED_ROWS = 4096
DTYPE = "bfloat16"
# of column means, in standard deviations, as in the other suites
OFFSET = 3.0


def parts(n: int, rows: int = BLOCK_ROWS) -> Iterator[slice]:
    for start in range(0, n, rows):
        yield slice(start, min(start + rows, n))


def activations(n: int, width: int, device: Device, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """x and y (n, width) in bfloat16 as `base.activations` has them: unbiased CKA near 0.36, means off zero."""
    import torch

    drawn = torch.Generator(device.name).manual_seed(seed)
    means = OFFSET * torch.randn(2, width, generator=drawn, device=device.name)
    x, y = (torch.empty(n, width, dtype=torch.bfloat16, device=device.name) for _ in range(2))
    for rows in parts(n):
        d, e = torch.randn(2, rows.stop - rows.start, width, generator=drawn, device=device.name)
        x[rows] = d + means[0]
        y[rows] = 0.6 * d + 0.8 * e + means[1]
    return x, y


def layers(
    count: int, n: int, width: int, device: Device, seed: int = 0
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Layers of two models as `grids.grid_layers` has them: CKA of every pair is far from zero. Means are zero."""
    import torch

    drawn = torch.Generator(device.name).manual_seed(seed)
    shared = torch.randn(n, width, generator=drawn, device=device.name)
    models: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    for model in models:
        for share in torch.linspace(0.6, 0.9, count).tolist():
            own = torch.randn(n, width, generator=drawn, device=device.name)
            model.append((share * shared + math.sqrt(1 - share**2) * own).bfloat16())
    return models


class Sums(NamedTuple):
    """Sums over rows about the means, and for each of them the sum of the absolute values of its terms."""

    n: int
    values: dict[str, torch.Tensor]
    scales: dict[str, torch.Tensor]

    def unbiased_cka(self) -> float:
        """Song et al. 2012, equation 5, of linear kernels."""
        xx, xy, yy = (self._hsic(*names) for names in ("xx", "xy", "yy"))
        return xy / math.sqrt(xx) / math.sqrt(yy)

    def biased_cka(self) -> float:
        xx, xy, yy = (float((self.values[f"second_{name}"] / self.n).square().sum()) for name in ("xx", "xy", "yy"))
        return xy / math.sqrt(xx) / math.sqrt(yy)

    def _hsic(self, a: str, b: str) -> float:
        n = self.n
        square = float((self.values[f"second_{a}{b}"] / n).square().sum())
        traces = [float(self.values[f"second_{name}{name}"].trace()) / n for name in (a, b)]
        row = float(self.values[f"norms_{a}{b}"]) / n / (n - 2)
        return square - row + traces[0] * traces[1] / ((n - 1) * (n - 2))


def true_moments(x: torch.Tensor, y: torch.Tensor, repeats: int = 1) -> Sums:
    """All sums of a state of moments about its means; rows count as often as they are repeated."""
    import torch

    n = len(x)
    means = [sum(a[rows].double().sum(0) for rows in parts(n)) / n for a in (x, y)]
    values: dict[str, Any] = {}
    scales: dict[str, Any] = {}

    def add(name: str, value: torch.Tensor, scale: torch.Tensor) -> None:
        values[name] = values.get(name, 0) + value
        scales[name] = scales.get(name, 0) + scale

    for rows in parts(n):
        sides = [a[rows].double() - mean for a, mean in zip((x, y), means, strict=True)]
        norms = [d.square().sum(1) for d in sides]
        for a, d in zip("xy", sides, strict=True):
            add(f"sum_{a}", d.sum(0), d.abs().sum(0))
            add(f"cubes_{a}", (d**3).sum(0), (d.abs() ** 3).sum(0))
            add(f"fourths_{a}", (d**4).sum(0), (d**4).sum(0))
        for (a, i), (b, j) in ((("x", 0), ("x", 0)), (("x", 0), ("y", 1)), (("y", 1), ("y", 1))):
            d, e = sides[i], sides[j]
            # entries are judged by the lengths of their two columns, below
            add(f"second_{a}{b}", d.T @ e, torch.zeros((), dtype=torch.float64, device=d.device))
            add(f"norms_{a}{b}", norms[i] @ norms[j], norms[i] @ norms[j])
            add(f"weighted_{a}{b}", norms[j] @ d, norms[j] @ d.abs())
        add("weighted_yx", norms[0] @ sides[1], norms[0] @ sides[1].abs())
    lengths = {a: values[f"second_{a}{a}"].diagonal().sqrt() for a in "xy"}
    for a, b in ("xx", "xy", "yy"):
        scales[f"second_{a}{b}"] = torch.outer(lengths[a], lengths[b])
    counted = [{name: repeats * value for name, value in found.items()} for found in (values, scales)]
    return Sums(repeats * n, *counted)


def largest(
    found: Mapping[str, torch.Tensor], truth: Mapping[str, torch.Tensor], scales: Mapping[str, torch.Tensor]
) -> float:
    """The largest difference over its scale, NaN if one is."""
    import torch

    return float(torch.stack([((found[name] - truth[name]).abs() / scales[name]).max() for name in truth]).max())


class KernelSums(NamedTuple):
    """Float64 sums of k, l and their products over all pairs i != j, or over those of some rows i."""

    n: int
    rows: torch.Tensor  # (m,) their numbers
    sums: torch.Tensor  # (2, m) of k and of l, over j
    products: torch.Tensor  # (3, m) of k k, k l and l l, over j

    @property
    def complete(self) -> bool:
        return len(self.rows) == self.n


def true_kernel_sums(
    x: torch.Tensor, y: torch.Tensor, offsets: tuple[float, float] = (0.0, 0.0), *, most_rows: int | None = None
) -> KernelSums:
    """RBF kernels less their offsets; of evenly spaced rows if there are more than are to be taken."""
    import torch

    n = len(x)
    count = n if most_rows is None else min(n, most_rows)
    chosen = torch.linspace(0, n - 1, count, dtype=torch.float64, device=x.device).round().long()
    centres = [a[:64].double().mean(0) for a in (x, y)]
    sums = torch.zeros(2, count, dtype=torch.float64, device=x.device)
    products = torch.zeros(3, count, dtype=torch.float64, device=x.device)
    for left in parts(count):
        few = [a[chosen[left]].double() - centre for a, centre in zip((x, y), centres, strict=True)]
        for right in parts(n):
            k, m = (
                _kernel(u, a[right].double() - centre, bandwidth(a.shape[1]), offset)
                for u, a, centre, offset in zip(few, (x, y), centres, offsets, strict=True)
            )
            # a row with itself is no pair
            same = chosen[left, None] == torch.arange(right.start, right.stop, device=x.device)
            k.masked_fill_(same, 0.0)
            m.masked_fill_(same, 0.0)
            sums[:, left] += torch.stack([k.sum(1), m.sum(1)])
            products[:, left] += torch.stack([torch.linalg.vecdot(a, b) for a, b in ((k, k), (k, m), (m, m))])
    return KernelSums(n, chosen, sums, products)


def _kernel(u: torch.Tensor, v: torch.Tensor, width: float, offset: float) -> torch.Tensor:
    exponent = u @ v.T
    exponent *= 2
    exponent -= u.square().sum(1)[:, None]
    exponent -= v.square().sum(1)
    exponent /= 2 * width**2
    return exponent.expm1_() if offset else exponent.exp_()


class GridTerms(NamedTuple):
    """Unbiased HSIC of linear kernels of one batch: of all pairs of layers, and of each layer with itself."""

    cross: np.ndarray  # (layers of x, layers of y)
    own_x: np.ndarray
    own_y: np.ndarray

    def averaged(self, other: GridTerms, share: float) -> GridTerms:
        """The average of two batches, of which the other counts as this share of all."""
        return GridTerms(*((1 - share) * a + share * b for a, b in zip(self, other, strict=True)))

    def cka(self) -> np.ndarray:
        return self.cross / np.sqrt(np.outer(self.own_x, self.own_y))


def true_grid_terms(xs: list[torch.Tensor], ys: list[torch.Tensor]) -> GridTerms:
    """Song et al. 2012, equation 5, from whole Gram matrices."""
    import torch

    n = len(xs[0])
    grams = torch.stack([_gram(a) for a in xs + ys])
    grams.diagonal(dim1=1, dim2=2).zero_()
    flat, sums = grams.flatten(1), grams.sum(1)
    total = sums.sum(1)
    hsic = flat @ flat.T + torch.outer(total, total) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (sums @ sums.T)
    hsic = (hsic / (n * (n - 3))).cpu().numpy()
    own = np.diagonal(hsic)
    return GridTerms(hsic[: len(xs), len(xs) :], own[: len(xs)], own[len(xs) :])


def _gram(x: torch.Tensor) -> torch.Tensor:
    centred = x.double() - x.double().mean(0)
    return centred @ centred.T

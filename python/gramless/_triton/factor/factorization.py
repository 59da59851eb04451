"""The factor of two unembeddings on a GPU: M in blocks, its second moments, and the root of them, or reflections.

M = [W1, W1 - W2, b1 - b2] or [W1, -W2, b1 - b2]; R^T R = M^T C M for the centring C over labels.
Cost: V D^2 flops in float64; reflections as torch has them 2.7 V D^2, in blocks of 2 D rows, of which those with the
triangle so far are no more than a third. Peak extra bytes: 16 D^2, twice _launch.WORKSPACE_BYTES for planes and tiles,
and that of float64 rows; for reflections 56 D^2.
Numerics: float64. Whether the root is safe is told by the norm of the inverse, as Hager (1984) and Higham (1988)
estimate it: five steps, each of them a lower bound, which nothing has to wait for.
Rejected: sums in less than float64, which lose what near-equal models differ by; an estimate that starts at random.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch

from ..moments import moments
from ..tiles import launch, packed_rows
from ..tiles.launch import cdiv
from .fingerprint import write_marks

# steps of the estimate of a norm: LAPACK takes five at the most
_STEPS = 5
# columns that reads of 16 bytes are sure of
_ALIGNED = 16
# fewest rows of M at a time
_LEAST_ROWS = 1024


@dataclass(frozen=True)
class Weights:
    """Two unembeddings on a device, and the labels of them that count."""

    w1: torch.Tensor  # (V, d1)
    w2: torch.Tensor  # (V, d2)
    index: torch.Tensor | None  # (V',) int64
    bias: torch.Tensor | None  # (V',) float64, b1 - b2

    @property
    def count(self) -> int:
        """Number of labels V' that count."""
        return int(self.w1.shape[0]) if self.index is None else len(self.index)

    @property
    def width(self) -> int:
        """Number of columns D."""
        return int(self.w1.shape[1]) + int(self.w2.shape[1]) + (self.bias is not None)

    @property
    def right_width(self) -> int:
        """Number of columns after those of W1."""
        return self.width - int(self.w1.shape[1])

    def rows(self, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return rows of both as they are."""
        if self.index is None:
            return self.w1[start:stop], self.w2[start:stop]
        taken = self.index[start:stop]
        return self.w1.index_select(0, taken), self.w2.index_select(0, taken)

    def right(self, w1: torch.Tensor, w2: torch.Tensor, start: int, out: torch.Tensor) -> None:
        """Write the columns after those of W1, in float64."""
        d2 = w2.shape[1]
        if w1.shape[1] == d2:
            out[:, :d2] = w1
            out[:, :d2] -= w2
        else:
            out[:, :d2] = w2
            out[:, :d2].neg_()
        if self.bias is not None:
            out[:, d2] = self.bias[start : start + len(w1)]

    def write(self, start: int, stop: int, out: torch.Tensor) -> None:
        """Write rows of M in float64."""
        w1, w2 = self.rows(start, stop)
        d1 = w1.shape[1]
        out[:, :d1] = w1
        self.right(w1, w2, start, out[:, d1:])

    def dense(self, start: int, stop: int) -> torch.Tensor:
        """Return rows of M in float64."""
        made = torch.empty((stop - start, self.width), dtype=torch.float64, device=self.w1.device)
        self.write(start, stop, made)
        return made

    def only(self, places: torch.Tensor) -> Weights:
        """Return the weights of a few of the labels that count."""
        taken = places if self.index is None else self.index[places]
        return Weights(self.w1, self.w2, taken, None if self.bias is None else self.bias[places])

    def pivot(self, places: torch.Tensor) -> torch.Tensor:
        """Return the mean of a few rows, the value itself where all of them have the same."""
        few = self.only(places).dense(0, len(places))
        pivot = torch.where((few == few[:1]).all(dim=0), few[0], few.mean(dim=0))
        # values that are not finite are refused for what they make of the sums
        return torch.where(torch.isfinite(pivot), pivot, 0.0)

    def marks(self, keys1: torch.Tensor, keys2: torch.Tensor) -> torch.Tensor:
        """Return the marks (V', 2, 4) of all rows."""
        out = torch.empty((self.count, 2, 4), dtype=torch.int64, device=self.w1.device)
        for start, stop in pieces(self.count, block_rows(self)):
            for side, (w, keys) in enumerate(zip(self.rows(start, stop), (keys1, keys2), strict=True)):
                write_marks(w, keys, out[start:stop, side])
        return out


def block_rows(weights: Weights) -> int:
    """Return how many rows of M in float64 the workspace holds."""
    rows = launch.WORKSPACE_BYTES // (8 * weights.right_width * packed_rows.ROWS) * packed_rows.ROWS
    return max(_LEAST_ROWS, rows)


def pieces(count: int, rows: int) -> list[tuple[int, int]]:
    """Return the bounds of blocks of so many rows."""
    return list(pairwise([*range(0, count, rows), count]))


def by_rows(weights: Weights, pivot: torch.Tensor) -> torch.Tensor:
    """Return the centred rows of M, which are few."""
    matrix = weights.dense(0, weights.count)
    matrix -= pivot
    matrix -= matrix.mean(dim=0)
    return matrix


@dataclass(frozen=True)
class Root:
    """A root of second moments, and what says whether it may be used."""

    matrix: torch.Tensor  # (D, D) upper triangular
    failed: torch.Tensor  # () int32, 0 where there is one
    inverse: torch.Tensor  # () the norm of the inverse of the moments of unit columns
    size: torch.Tensor  # () a number that is finite where all rows are, and their squares


def by_moments(weights: Weights, pivot: torch.Tensor) -> Root:
    """Return the root of the second moments of M about their mean."""
    d1, width, device = int(weights.w1.shape[1]), weights.width, weights.w1.device
    second = torch.zeros((width, width), dtype=torch.float64, device=device)
    total = torch.zeros(width, dtype=torch.float64, device=device)
    rows, q = block_rows(weights), weights.right_width
    # whole reads of 16 bytes, whatever the width
    padded = cdiv(q, _ALIGNED) * _ALIGNED
    buffer = torch.zeros((min(rows, weights.count), padded), dtype=torch.float64, device=device)
    about = torch.nn.functional.pad(pivot[d1:], (0, padded - q))
    for start, stop in pieces(weights.count, rows):
        w1, w2 = weights.rows(start, stop)
        right = buffer[: stop - start]
        weights.right(w1, w2, start, right[:, :q])
        found = moments(w1, right, pivot_x=pivot[:d1], pivot_y=about, nonfinite="propagate", precision="exact")
        total[:d1] += found["sum_x"]
        total[d1:] += found["sum_y"][:q]
        second[:d1, :d1] += found["sxx"]
        second[d1:, d1:] += found["syy"][:q, :q]
        second[:d1, d1:] += found["sxy"][:, :q]
        # or the next ones would be held beside them
        del found
    del buffer
    second[d1:, :d1] = second[:d1, d1:].T
    size = second.diagonal().sum()
    second.addr_(total, total, alpha=-1.0 / weights.count)
    scale = second.diagonal().clamp_min(0.0).sqrt()
    dead = scale == 0
    divisor = torch.where(dead, 1.0, scale)
    second /= divisor
    second /= divisor[:, None]
    second.masked_fill_(dead, 0.0).masked_fill_(dead[:, None], 0.0)
    second.diagonal().fill_(1.0)
    upper, failed = torch.linalg.cholesky_ex(second, upper=True)
    del second
    inverse = _inverse_norm(upper)
    upper *= scale
    return Root(upper, failed, inverse, size)


def _inverse_norm(upper: torch.Tensor) -> torch.Tensor:
    """Return an estimate, from below, of the largest column sum of the inverse of R^T R."""
    width, device = len(upper), upper.device

    def solved(x: torch.Tensor) -> torch.Tensor:
        return torch.cholesky_solve(x[:, None], upper, upper=True)[:, 0]

    places = torch.arange(width, device=device)
    # what no step may find: signs that alternate, of growing size
    last = (1 - 2 * (places % 2)) * (1 + places.double() / max(width - 1, 1))
    most = solved(last).abs().sum() * (2.0 / (3 * width))
    x = torch.full((width,), 1.0 / width, dtype=torch.float64, device=device)
    for _ in range(_STEPS):
        y = solved(x)
        most = torch.maximum(most, y.abs().sum())
        away = solved(torch.where(y < 0, -1.0, 1.0).double())
        x = (places == away.abs().argmax()).double()
    return most


def by_reflections(weights: Weights, pivot: torch.Tensor) -> torch.Tensor:
    """Return the upper triangular factor by Householder reflections of [R; block], block after block.

    A column of ones comes first: what stays of the others below its row is their centred part.
    """
    width, device = weights.width + 1, weights.w1.device
    found = torch.zeros((0, width), dtype=torch.float64, device=device)
    for start, stop in pieces(weights.count, max(_LEAST_ROWS, 2 * width)):
        above = len(found)
        both = torch.empty((above + stop - start, width), dtype=torch.float64, device=device)
        both[:above], block = found, both[above:]
        block[:, 0] = 1.0
        weights.write(start, stop, block[:, 1:])
        block[:, 1:] -= pivot
        found = torch.linalg.qr(both, mode="r").R
    return found[1:, 1:].contiguous()

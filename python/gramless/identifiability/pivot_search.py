"""The search for the pivot and the label to leave out, which make the first term of d_LLV smallest.

The term of a pair of labels is symmetric in them, so tiles of pairs I <= J suffice; a tile is read along its rows for
the pivots of I and along its columns for those of J. Leaving out one label takes out the largest entry of a pivot, so
that its two largest, or its sum and the largest, are all that is kept: V^2 / 2 pairs serve V pivots and V labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .._base import arguments
from .._base.arrays import Array, Float64
from ..measures.identifiability import LogVariances, first_terms, vanishing
from .model_pair import Indices

# labels of a tile
TILE = 512
# squared distances below this share of the squared norms have lost too many digits to cancellation
_CLOSE = 1e-6


@dataclass(frozen=True)
class Labels:
    """All that the first term needs of the labels of both models, and of how their logits vary."""

    w: tuple[Array, Array]  # (V, d)
    roots: tuple[Float64, Float64]  # (k, d)  of the covariance of h
    variances: LogVariances  # (V,)

    def __len__(self) -> int:
        return len(self.variances.first)

    def psi(self, model: int, labels: Indices, pivots: Indices) -> Float64:
        """Return psi of labels with their pivots (m,), one by one; 0 where it is rounding."""
        made, root = np.empty(len(labels)), self.roots[model]
        for start in range(0, len(labels), TILE):
            some = slice(start, start + TILE)
            differences = (_wide(self.w[model], labels[some]) - _wide(self.w[model], pivots[some])).T
            seen = root @ differences
            made[some] = np.where(vanishing(seen, root, differences), 0.0, np.linalg.norm(seen, axis=0))
        return made

    def terms(self, labels: Indices, pivot: int) -> tuple[Float64, Float64, Float64]:
        """Return for labels with one pivot the squared parts of the first term, of pivot and label; and the third."""
        pivots = np.full_like(labels, pivot)
        psi_1, psi_2 = (self.psi(model, labels, pivots) for model in (0, 1))
        near = self.variances[pivots[:1]]
        of_pivot, of_label = first_terms(near, self.variances[labels], psi_1[None], psi_2[None])
        return of_pivot[0], of_label[0], abs(psi_1 - psi_2)


def search(labels: Labels, reduction: str, pivot: int | None, leave_out: int | None) -> tuple[int, int, float]:
    """Return the pivot and the label left out that make the first term smallest, and that term, squared for "max".

    Either may be given. The term is infinite if every pivot has two labels or more with its own logits.
    """
    count = len(labels)
    tally = _Tally(count, reduction == "mean", leave_out)
    for pivots, others, parts in _all_pairs(labels) if pivot is None else _pairs_of(labels, pivot):
        entries = np.sqrt(parts[0]) + np.sqrt(parts[1]) if reduction == "mean" else np.maximum(*parts)
        tally.add(pivots, others, entries.copy())
        if pivot is None and pivots[0] != others[0]:
            tally.add(others, pivots, entries.T.copy())
    values = tally.values()
    allowed = np.arange(count) if pivot is None else np.array([pivot])
    allowed = allowed[allowed != leave_out]
    chosen = int(allowed[values[allowed].argmin()])
    return chosen, int(tally.label[chosen]) if leave_out is None else leave_out, float(values[chosen])


class _Tally:
    """What the pairs seen so far say of each pivot: its reduced term without the label that makes most of it."""

    def __init__(self, count: int, mean: bool, leave_out: int | None) -> None:
        self.mean, self.leave_out = mean, leave_out
        self.largest, self.second = np.full((2, count), -np.inf)
        self.label = np.zeros(count, np.int64)
        # of the finite entries
        self.sum = np.zeros(count)

    def add(self, pivots: Indices, labels: Indices, entries: Float64) -> None:
        """Take entries (pivots, labels) in, which are overwritten; labels rise from call to call."""
        # what does not count can never be the largest
        entries[(pivots[:, None] == labels) | (labels == self.leave_out)] = -np.inf
        if self.mean:
            self.sum[pivots] += np.where(np.isfinite(entries), entries, 0.0).sum(axis=1)
        rows, at = np.arange(len(pivots)), entries.argmax(axis=1)
        best = entries[rows, at]
        entries[rows, at] = -np.inf
        held = self.largest[pivots]
        self.second[pivots] = np.maximum(np.minimum(best, held), np.maximum(entries.max(axis=1), self.second[pivots]))
        # of equal entries the lowest label stays
        self.label[pivots] = np.where(best > held, labels[at], self.label[pivots])
        self.largest[pivots] = np.maximum(best, held)

    def values(self) -> Float64:
        """Return the reduced term of each pivot, infinite if an entry that counts is."""
        worst = self.second if self.leave_out is None else self.largest
        if not self.mean:
            return worst
        left_out = self.largest if self.leave_out is None else np.zeros_like(self.sum)
        total = self.sum - np.where(np.isfinite(left_out), left_out, 0.0)
        return np.where(np.isfinite(worst), total / (2 * (len(total) - 2)), np.inf)


def _pairs_of(labels: Labels, pivot: int) -> Iterator[tuple[Indices, Indices, tuple[Float64, Float64]]]:
    others = np.delete(np.arange(len(labels)), pivot)
    of_pivot, of_label, _ = labels.terms(others, pivot)
    yield np.array([pivot]), others, (of_pivot[None], of_label[None])


def _all_pairs(labels: Labels) -> Iterator[tuple[Indices, Indices, tuple[Float64, Float64]]]:
    """Yield the squared parts of the first term for tiles I <= J of pairs of labels."""
    count = len(labels)
    seen = [_seen(w, root) for w, root in zip(labels.w, labels.roots, strict=True)]
    squares = [np.einsum("vk,vk->v", a, a) for a in seen]
    for start in range(0, count, TILE):
        rows = np.arange(start, min(start + TILE, count))
        for first in range(start, count, TILE):
            columns = np.arange(first, min(first + TILE, count))
            psi = [_distances(labels, model, seen[model], squares[model], rows, columns) for model in (0, 1)]
            yield rows, columns, first_terms(labels.variances[rows], labels.variances[columns], psi[0], psi[1])


def _seen(w: Array, root: Float64) -> Float64:
    """Return rows of w in coordinates in which psi is their distance, about their mean, which keeps digits."""
    # k rows would do, but d suffice
    root = np.asarray(np.linalg.qr(root, mode="r"))
    made = np.empty((int(w.shape[0]), len(root)))
    for start in range(0, len(made), TILE):
        made[start : start + TILE] = _wide(w, slice(start, start + TILE)) @ root.T
    made -= made.mean(axis=0)
    return made


def _distances(labels: Labels, model: int, seen: Float64, squares: Float64, rows: Indices, columns: Indices) -> Float64:
    """Return psi for all pairs of rows and columns."""
    size = squares[rows, None] + squares[columns]
    square = size - 2 * (seen[rows] @ seen[columns].T)
    at, to = np.nonzero(square <= _CLOSE * size)
    psi: Float64 = np.sqrt(square.clip(0.0))
    psi[at, to] = labels.psi(model, columns[to], rows[at])
    return psi


def _wide(w: Array, rows: slice | Indices) -> Float64:
    return arguments.to_numpy(w[rows]).astype(np.float64)

"""The matrix whose rows are the differences of two unembeddings, read in blocks, and a small factor that stands for it.

For labels y, delta = W1 h1 + b1 - W2 h2 - b2 is linear in u: with hidden states of one size, u = (h1 - h2, h2, 1) and
M = [W1, W1 - W2, b1 - b2]; else u = (h1, h2, 1) and M = [W1, -W2, b1 - b2]. With C the centring over labels, any R with
R^T R = M^T C M gives ||R u|| = ||C delta||: V has dropped out (measures.md 4.4).

Let c_j be the length of column j of C M, and k = sqrt(sum_j (u_j c_j)^2) / ||C M u|| what cancels in a row. A factor
by Householder reflections has relative errors of about eps k, as the sum over labels itself has. One by Cholesky from
second moments has eps k^2, but takes a third to a fifth of the time. With unit columns, k^2 is at most the norm of the
inverse of these moments, whatever the row: that decides between them.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .. import ops
from .._base import arguments
from .._base.arrays import Array, Float64
from .._base.progress import progress_bar
from .._base.streaming_qr import no_rows, with_rows
from ..ops import threads
from ..states.moments import MomentState, add_into
from . import stacked_weights
from .stacked_weights import Columns, pieces, row_marks, slices, without_zeros

if TYPE_CHECKING:
    pass


# rows of a block of the reflections: the quickest of 512, 1024, 4096 (2 cores, AVX-512)
_QR_ROWS = 1024

# relative error of a squared distance that rounding of the moments may cause in any row
GRAM_ERROR = 1e-7

EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, eq=False)
class Factor:
    """A matrix R (r, D) with R^T R = M^T C M, where it was found, how, and the fingerprint of the weights."""

    matrix: Array
    method: str
    fingerprint: str


def factor(columns: Columns, backend: str, *, progress: bool) -> Factor:
    """Return a factor: M itself if labels are no more than columns, else by Cholesky where it is safe, or reflections.

    Cost: V D^2 flops, 3 V D^2 where Cholesky is not safe. Peak extra bytes: 8 (p^2 + q^2 + p q) of sums with p = d1 and
    q = D - d1, and the larger of as many again and 8 D^2 of result; a block of 8 max(8192, D) q bytes.
    """
    if columns.count <= columns.width:
        matrix = columns.dense(np.arange(columns.count))
        if not np.isfinite(matrix).all():
            columns.refuse_nonfinite(0, columns.count)
        matrix -= columns.pivot()
        matrix -= matrix.mean(axis=0)
        return Factor(without_zeros(matrix), "rows", columns.fingerprint())
    pivot = columns.pivot()
    moments, fingerprint = _moments(columns, pivot, backend, progress=progress)
    found, method = _cholesky(columns, moments), "gram"
    if found is None:
        found, method = _reflections(columns, pivot, progress=progress), "qr"
    return Factor(without_zeros(found), method, fingerprint)


def _moments(columns: Columns, pivot: Float64, backend: str, *, progress: bool) -> tuple[list[MomentState], str]:
    """Return the moments of M about the pivot, in a list that lets go of them, and the fingerprint of its rows."""
    d1, _ = columns.sizes
    rows = max(stacked_weights.BLOCK_ROWS, columns.width // stacked_weights.PIECE_ROWS * stacked_weights.PIECE_ROWS)
    buffer = np.empty((min(rows, columns.count), columns.width - d1))
    fingerprint = columns.marked()
    total: MomentState | None = None
    with ThreadPoolExecutor(threads.threads_or_one()) as pool:
        for start, stop in progress_bar(pieces(0, columns.count, rows), "labels", shown=progress):

            def prepare(piece: tuple[int, int], start: int = start) -> bytes:
                first, last = piece
                w1, w2 = columns.rows(first, last)
                columns.right(w1, w2, first, buffer[first - start : last - start])
                return row_marks(w1, w2)

            for marks in pool.map(prepare, pieces(start, stop, stacked_weights.PIECE_ROWS)):
                fingerprint.update(marks)
            state = ops.moments(
                columns.left(start, stop),
                buffer[: stop - start],
                pivot_x=pivot[:d1],
                pivot_y=pivot[d1:],
                nonfinite="propagate",
                backend=backend,
            )
            if not all(np.isfinite(np.diagonal(side.second)).all() for side in (state.x, state.y)):
                columns.refuse_nonfinite(start, stop)
            if total is not None:
                state = MomentState(
                    add_into(state.x, total.x), add_into(state.y, total.y), add_into(state.cross, total.cross)
                )
            total = state
    return [total] if total is not None else [], str(fingerprint.hexdigest())


def _cholesky(columns: Columns, moments: list[MomentState]) -> Float64 | None:
    """Return the upper triangular factor of the moments about their mean; None if rounding of them may matter."""
    from scipy.linalg import blas, lapack

    state, (d1, _) = moments.pop(), columns.sizes
    second = np.empty((columns.width, columns.width))
    second[:d1, :d1], second[d1:, d1:] = state.x.second, state.y.second
    second[:d1, d1:], second[d1:, :d1] = state.cross.second, state.cross.second.T
    total, n = np.concatenate([state.x.sum, state.y.sum]), state.n
    del state
    # lapack takes columns where numpy has rows, so that its lower triangle is this upper one; all work is in place
    second = blas.dger(-1.0 / n, total, total, a=second.T, overwrite_a=1).T
    scale = np.sqrt(np.clip(np.diagonal(second), 0.0, None))
    dead = scale == 0
    scale[dead] = 1.0
    second /= scale
    second /= scale[:, None]
    second[dead, :], second[:, dead] = 0.0, 0.0
    np.fill_diagonal(second, 1.0)
    norm = max(float(np.abs(second[rows]).sum(axis=1).max()) for rows in slices(columns.width, _QR_ROWS))
    made, failed = lapack.dpotrf(second.T, lower=1, clean=1, overwrite_a=1)
    if failed:
        return None
    reciprocal, failed = lapack.dpocon(made, norm, uplo="L")
    # the inverse has the norm 1 / (reciprocal norm)
    if failed or EPS * np.sqrt(columns.width) > GRAM_ERROR * reciprocal * norm:
        return None
    scale[dead] = 0.0
    upper: Float64 = made.T
    upper *= scale
    return upper


def _reflections(columns: Columns, pivot: Float64, *, progress: bool) -> Float64:
    """Return the upper triangular factor by Householder reflections of [R; block], block after block.

    A column of ones comes first: what stays of the others below its row is their centred part.
    """
    d1, width = columns.sizes[0], columns.width + 1
    found = no_rows(width)
    buffer = np.empty((_QR_ROWS, width), order="F")
    for start, stop in progress_bar(pieces(0, columns.count, _QR_ROWS), "labels, by reflections", shown=progress):
        rows = stop - start
        buffer[:rows, 0], buffer[rows:] = 1.0, 0.0
        w1, w2 = columns.rows(start, stop)
        buffer[:rows, 1 : d1 + 1] = arguments.to_numpy(w1)
        columns.right(w1, w2, start, buffer[:rows, d1 + 1 :])
        buffer[:rows, 1:] -= pivot
        found = with_rows(found, buffer)
        if not np.isfinite(np.diagonal(found)).all():
            columns.refuse_nonfinite(start, stop)
    return np.ascontiguousarray(np.triu(found[1:, 1:]))

"""Canonical correlations, mSVD, d_rep and the terms of d_LLV, from square roots of second moments.

A root of second moments S is a matrix R (k, p) with R^T R = S. Rows enter through it alone, so that their number drops
out; what would be the small difference of two large moments, or come out negative, is the norm of a difference of
columns of R.

- mean_cca: |C_xx^-1/2 C_xy C_yy^-1/2|_* / rank, the mean canonical correlation (Kornblith et al. 2019,
  arXiv:1905.00414, Table 1; mCCA of Nielsen et al. 2025, arXiv:2506.03784).
- msvd: |R|_* / M for the M x M matrix R of correlations between L_1 f_1 and L_2 f_2 (Nielsen et al. 2025).
- d_rep: |f_1 - A f_2| with A = L_1^-T L_2^T (Nielsen et al. 2026, arXiv:2602.15438).
- d_LLV: with psi_k(y, y0) = SD_x[ln p_k(y|x) - ln p_k(y0|x)], its first term is the largest SD_x[ln p_1(u|x) / psi_1 -
  ln p_2(u|x) / psi_2] for u in {y, y0} (Nielsen et al. 2025). The moment forms are derived here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .._base import arguments
from .._base.arrays import Float64
from ..states.moments import MomentState, SelfMoments

_EPS = 2.0**-52
# all singular values of smaller matrices are quicker than the smallest alone
_DENSE = 48
# reciprocal condition numbers below this are rounding whatever the size
_HOPELESS = 2.0**-60


def canonical_correlations(function: str, state: MomentState, rtol: float | None) -> tuple[Float64, int, int]:
    """Return the canonical correlations, falling, and the ranks of x and y.

    Features are scaled to variance 1 first, which changes no canonical correlation. The rank counts the eigenvalues of
    their correlation matrix above rtol times the largest; the others are left out.
    """
    p, q, n = state.x.width, state.y.width, state.n
    if n <= max(p, q) + 1:
        raise ValueError(
            f"{function}: expected at least {max(p, q) + 2} rows for p = {p} and q = {q} features, got n = {n}: "
            "with as many features as rows every canonical correlation is 1"
        )
    for name, part in (("x", state.x), ("y", state.y)):
        if not np.isfinite(np.diag(arguments.to_numpy(part.second))).all():
            raise ValueError(f"{function}: sums of squares of {name} overflow; scale the data down")
    varying = {name: _varying(part) for name, part in (("x", state.x), ("y", state.y))}
    for name, kept in varying.items():
        if not kept.any():
            raise ValueError(
                f"{function}: {name} is constant, its rows do not differ beyond rounding, or their squares underflow"
            )
    centred = state.centred()
    kept_x, kept_y = varying["x"], varying["y"]
    xx = arguments.to_numpy(centred.x.second)[np.ix_(kept_x, kept_x)]
    yy = arguments.to_numpy(centred.y.second)[np.ix_(kept_y, kept_y)]
    xy = arguments.to_numpy(centred.cross.second)[np.ix_(kept_x, kept_y)]
    scale = 1 / np.sqrt(np.concatenate([np.diag(xx), np.diag(yy)]))
    root = root_of(np.block([[xx, xy], [xy.T, yy]]) * scale[:, None] * scale)
    cutoff = np.sqrt(max(p, q) * _EPS if rtol is None else rtol)
    basis_x, basis_y = column_basis(root[:, : len(xx)], cutoff), column_basis(root[:, len(xx) :], cutoff)
    values = np.asarray(np.linalg.svd(basis_x.T @ basis_y, compute_uv=False), np.float64)
    return values, int(basis_x.shape[1]), int(basis_y.shape[1])


def _varying(part: SelfMoments) -> NDArray[np.bool_]:
    """Return which features differ between rows by more than the rounding of sums about this pivot."""
    total, pivot, s = (
        np.diag(arguments.to_numpy(part.second)),
        arguments.to_numpy(part.pivot),
        arguments.to_numpy(part.sum),
    )
    centred = total - s * s / part.n
    kept: NDArray[np.bool_] = (centred > 16 * _EPS * total) & (centred > part.n * (4 * _EPS * pivot) ** 2)
    return kept


def root_of(second: Float64) -> Float64:
    """Return R with R^T R = S; eigenvalues that rounding has made negative count as 0."""
    values, vectors = np.linalg.eigh(second)
    return np.asarray(np.sqrt(values.clip(0.0))[:, None] * vectors.T)


def column_basis(root: Float64, cutoff: float) -> Float64:
    """Return an orthonormal basis of the columns, without singular values up to cutoff times the largest."""
    left, values, _ = np.linalg.svd(root, full_matrices=False)
    return left[:, values > cutoff * values[0]]


def vanishing(columns: Float64, root: Float64, coefficients: Float64) -> NDArray[np.bool_]:
    """Return which columns root @ coefficients (k, m) are 0 but for rounding of that product."""
    size = np.linalg.norm(root) * np.linalg.norm(coefficients, axis=0)
    zero: NDArray[np.bool_] = np.linalg.norm(columns, axis=0) <= root.shape[1] * _EPS * size
    return zero


def mean_singular_value(x: Float64, y: Float64) -> float:
    """Return mSVD of coordinates whose centred values have these columns (k, M), none of them 0."""
    x, y = (a / np.linalg.norm(a, axis=0) for a in (x, y))
    return float(np.linalg.svd(x.T @ y, compute_uv=False).sum()) / int(x.shape[1])


def label_maps(differences_1: Float64, differences_2: Float64) -> tuple[Float64, Float64]:
    """Return the maps A = L_1^-T L_2^T of label sets, and the smallest singular value of each L_1.

    The differences are L^T (s, d, d). Matrices L_1 that are singular to working precision have the value 0 and no map.
    """
    d = differences_1.shape[1]
    size = abs(differences_1).max(axis=(1, 2))
    scaled = differences_1 / np.where(size > 0, size, 1.0)[:, None, None]
    # what rounding of its own entries makes of a matrix that is singular
    least = d * _EPS * np.linalg.norm(scaled, axis=(1, 2))
    if d <= _DENSE:
        sigma = np.linalg.svd(scaled, compute_uv=False)[:, -1]
        kept = sigma > least
        maps = np.linalg.solve(scaled[kept], differences_2[kept])
    else:
        found = [_factorised(*matrices) for matrices in zip(scaled, differences_2, least, strict=True)]
        sigma = np.array([value for value, _ in found])
        kept = sigma > least
        maps = np.array([made for _, made in found if made is not None]).reshape(-1, d, d)
    return maps / size[kept, None, None], np.where(kept, sigma * size, 0.0)


def _factorised(first: Float64, second: Float64, least: float) -> tuple[float, Float64 | None]:
    """Return the smallest singular value of a matrix (d, d) of entries up to 1, and its map unless it is singular."""
    from scipy.linalg import lapack
    from scipy.sparse.linalg import LinearOperator, eigsh

    factors, order, failed = lapack.dgetrf(first)
    if failed or lapack.dgecon(factors, np.linalg.norm(first, 1))[0] < _HOPELESS:
        return 0.0, None

    def inverse_twice(v: Float64) -> Float64:
        forward = lapack.dgetrs(factors, order, v, trans=1)[0]
        return np.asarray(lapack.dgetrs(factors, order, forward)[0])

    # the largest eigenvalue of (L L^T)^-1 by Lanczos iterations from a fixed start; a decomposition takes far longer
    start = np.random.default_rng(0).standard_normal(len(first))
    largest = eigsh(LinearOperator(first.shape, inverse_twice), 1, v0=start, return_eigenvectors=False)[0]
    smallest = float(1 / np.sqrt(largest))
    return smallest, lapack.dgetrs(factors, order, second)[0] if smallest > least else None


@np.errstate(over="ignore", invalid="ignore")
def mean_square_residuals(root_1: Float64, root_2: Float64, maps: Float64) -> Float64:
    """Return mean |f_1 - A f_2|^2 for maps A (s, d, d), from the roots (k, d) of the joint second moments."""
    differences = root_1 - root_2 @ np.swapaxes(maps, 1, 2)
    return np.asarray(np.einsum("skd,skd->s", differences, differences))


@dataclass(frozen=True)
class LogVariances:
    """For each label, the SD of a_1 ln p_1 - a_2 ln p_2 over inputs, as a function of two factors a.

    ln p_1 and ln p_2 of a label are two vectors; in a basis whose first vector is along that of model 1 they are
    (first, 0) and (along, across), so that the SD is the length of (a_1 first - a_2 along, a_2 across).
    """

    first: Float64  # (V,)  SD of ln p_1
    along: Float64  # (V,)
    across: Float64  # (V,)

    @classmethod
    def of(cls, x: Float64, y: Float64) -> LogVariances:
        """Return those of labels whose ln p_1 and ln p_2 are rows of x and y (V, k)."""
        first = np.linalg.norm(x, axis=1)
        unit = np.divide(x, first[:, None], out=np.zeros_like(x), where=first[:, None] > 0)
        along = np.einsum("vk,vk->v", unit, y)
        return cls(first, along, np.linalg.norm(y - along[:, None] * unit, axis=1))

    @classmethod
    def joined(cls, parts: list[LogVariances]) -> LogVariances:
        """Return those of all labels of some blocks."""
        names = ("first", "along", "across")
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def __getitem__(self, labels: slice | NDArray[np.int64]) -> LogVariances:
        return LogVariances(self.first[labels], self.along[labels], self.across[labels])

    def rows(self) -> LogVariances:
        """Return the same labels along rows."""
        return LogVariances(self.first[:, None], self.along[:, None], self.across[:, None])

    def squares(self, a_1: Float64, a_2: Float64) -> Float64:
        """Return the variances for these factors, of shape (V,), or (V, m) after `rows`."""
        difference = a_1 * self.first - a_2 * self.along
        across = a_2 * self.across
        return difference * difference + across * across


def first_terms(near: LogVariances, far: LogVariances, psi_1: Float64, psi_2: Float64) -> tuple[Float64, Float64]:
    """Return the squares of the two parts of term 1 for pairs of labels (I, J); infinite where a psi is 0."""
    undefined = (psi_1 == 0) | (psi_2 == 0)
    with np.errstate(divide="ignore"):
        a_1, a_2 = 1 / psi_1, 1 / psi_2
    if undefined.any():
        a_1[undefined] = a_2[undefined] = 0.0
    parts = near.rows().squares(a_1, a_2), far.squares(a_1, a_2)
    if undefined.any():
        for part in parts:
            part[undefined] = np.inf
    return parts


def second_terms(x: Float64, y: Float64, phi_1: Float64, phi_2: Float64) -> Float64:
    """Return the parts of term 2, 2 M numbers: SD_y[ln p_1(y|h) / phi_1(j) - ln p_2(y|h) / phi_2(j)], h = x_j or x_0.

    Rows of x and y (M + 1, k) are the logits of the inputs x_0, .., x_M in a common basis.
    """
    own = x[1:] / phi_1[:, None] - y[1:] / phi_2[:, None]
    pivot = x[:1] / phi_1[:, None] - y[:1] / phi_2[:, None]
    return np.asarray(np.linalg.norm(np.concatenate([own, pivot]), axis=1))

"""What one distance of two models says of another, as inequalities that hold for any two models.

Derived for this library and checked by its tests on random models; not statements of a paper, though two of them are
close to statements of Nielsen et al. (2025, arXiv:2506.03784) and (2026, arXiv:2602.15438), as said there. Distances
of logits are those of `gramless.logit_distance`: the root of the mean over inputs of the squared distance of logits,
each less its mean over labels. Biases do not enter.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .._base import arguments
from .._base.arrays import Array, Float64
from ..measures.identifiability import column_basis
from . import model_pair
from .square_roots import power_of_two, root_of_rows

_EPS = 2.0**-52


def logit_distance_from_kl(kl: float, least_probability: float) -> float:
    """Return what the distance of logits is at most, given the KL divergence and the least probability.

    d^2 <= 2 KL / tau. Where both models give every label at least tau, KL(p||q) = sum p (exp(-l) - 1 + l) with l =
    ln p - ln q, and each term is at least tau l^2 / 2; centring l can only shorten it. The factor 2 cannot be improved.

    Parameters
    ----------
    kl : float
        Mean KL divergence, either way, in nats.
    least_probability : float
        tau, the least probability of any label, input and model, above 0 and at most 1/2.

    Returns
    -------
    float
        Of no use for a vocabulary: with tau = 1e-9 a KL divergence of 1e-6 allows a distance of 45.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Examples
    --------
    >>> import gramless as gl
    >>> gl.bounds.logit_distance_from_kl(0.02, 0.01)
    2.0
    """
    function = "logit_distance_from_kl"
    _least(function, "kl", kl)
    if arguments.above_zero(function, "least_probability", least_probability) > 0.5:
        raise ValueError(f"{function}: expected least_probability of at most 0.5, got {least_probability!r}")
    return math.sqrt(_quotient(2 * float(kl), least_probability))


def least_squares_from_logit_distance(distance: float, w1: Array) -> float:
    """Return what the least-squares residual of `gramless.d_rep` is at most, given the distance of logits.

    The residual is h1 - A h2 with A the pseudoinverse of the centred w1 times the centred w2, so it is that
    pseudoinverse of the difference of the centred logits, and its root mean square is at most d / sigma_min(w1).

    Parameters
    ----------
    distance : float
        Distance of logits.
    w1 : array of shape (V, d)
        Unembedding of the first model.

    Returns
    -------
    float
        Bound on the root of `.least_squares`; infinite if the centred w1 has not rank d.

    Raises
    ------
    TypeError, ValueError
        If distance is negative, w1 is no array, or values are not finite.

    Examples
    --------
    >>> import numpy as np
    >>> import gramless as gl
    >>> round(gl.bounds.least_squares_from_logit_distance(0.1, np.array([[1.0, 0], [-1, 0], [0, 2], [0, -2]])), 6)
    0.070711
    """
    function = "least_squares_from_logit_distance"
    _least(function, "distance", distance)
    factor = root_of_rows(function, {"w1": arguments.rows(function, "w1", w1)}).factor
    values = np.linalg.svd(factor, compute_uv=False)
    if len(factor) < factor.shape[1] or values[-1] <= factor.shape[1] * _EPS * values[0]:
        return float("inf")
    return _quotient(distance, values[-1])


def d_rep_from_logit_distance(distance: float, sigma_min: float, d: int, labels: int) -> float:
    """Return what `gramless.d_rep` is at most over all pivots and label sets, given the distance of logits.

    d_rep <= 2 d / ((V - 1) sigma_min^2) d_logit^2. For a label set |h1 - A h2| <= |L_1^T h1 - L_2^T h2| / sigma_min,
    and the mean of the squared right side over all sets is 2 d / (V - 1) d_logit^2 exactly.

    Parameters
    ----------
    distance : float
        Distance of logits.
    sigma_min : float
        The least sigma_min of any label set, above 0. With 1 it is a bound on the mean of sigma_min^2 |h1 - A h2|^2.
    d, labels : int
        Hidden size and number of labels.

    Returns
    -------
    float
        Bound on the mean over all label sets of the squared residual.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range.

    Examples
    --------
    >>> import gramless as gl
    >>> gl.bounds.d_rep_from_logit_distance(0.5, 1.0, 2, 5)
    0.25
    """
    function = "d_rep_from_logit_distance"
    _least(function, "distance", distance)
    arguments.above_zero(function, "sigma_min", sigma_min)
    for name, number in (("d", d), ("labels", labels)):
        arguments.positive(function, name, number)
    if labels <= d:
        raise ValueError(f"{function}: expected more labels than hidden size, got labels={labels} and d={d}")
    # a power of floats raises where a product is infinite; so does a quotient of ints
    ratio = _quotient(distance, sigma_min)
    return 2 * (float(d) / float(labels - 1)) * ratio * ratio


def logit_distance_from_correlations(
    h1: Array, w1: Array, h2: Array, *, sharp: bool = False, centred: bool = True
) -> float:
    """Return what the distance of logits is at least, whatever the unembedding of the second model is.

    d^2 >= min over B of E|z - B h2|^2 >= sum of lambda_i (1 - rho_i^2), with z the centred logits of the first model,
    lambda the eigenvalues of their second moment, and rho the canonical correlations of z and h2, both falling; the
    second step is von Neumann's trace inequality. So a small distance of logits forces the embeddings to be correlated
    (after Theorem F.1 of Nielsen et al. 2026).

    Parameters
    ----------
    h1, w1 : array of shape (N, d1) and (V, d1)
        The first model.
    h2 : array of shape (N, d2)
        Embeddings of the second model.
    sharp : bool
        Return the larger lower bound in the middle, the residual of the best linear map.
    centred : bool
        Whether second moments and correlations are about the means over inputs. Both must be of the same kind: the
        inequality does not hold for correlations about the mean with eigenvalues about zero.

    Returns
    -------
    float
        At least 0, for the distance, not its square.

    Raises
    ------
    TypeError, ValueError
        If an argument is no array, shapes do not fit, or values are not finite.

    Notes
    -----
    About 3 N (d1 + d2)^2 + 3 V d1^2 flops.

    Examples
    --------
    >>> import numpy as np
    >>> import gramless as gl
    >>> h, w, other = np.random.default_rng(0).standard_normal((3, 50, 2))
    >>> round(gl.bounds.logit_distance_from_correlations(h, w, h @ other[:2]), 6)
    0.0
    >>> round(gl.bounds.logit_distance_from_correlations(h, w, other), 3)
    9.089
    """
    function = "logit_distance_from_correlations"
    arrays = model_pair.model(function, h1, w1, "1") | {"h2": arguments.rows(function, "h2", h2)}
    embeddings = {name: arrays[name] for name in ("h1", "h2")}
    arguments.same_rows(function, embeddings)
    root = root_of_rows(function, embeddings)
    d1, n = int(arrays["h1"].shape[1]), root.n
    second = root.factor / np.sqrt(n) if centred else root.second
    with np.errstate(over="ignore", invalid="ignore"):
        logits = second[:, :d1] @ root_of_rows(function, {"w1": arrays["w1"]}).factor.T
    basis = _basis(second[:, d1:])
    # only scale-free parts are taken of what is scaled
    size = power_of_two(logits)
    if not np.isfinite(logits).all():
        raise ValueError(f"{function}: logits overflow; scale the data down")
    logits = np.ldexp(logits, -size)
    if sharp:
        residual = np.linalg.norm(logits - basis @ (basis.T @ logits))
        return _times(function, float(residual), size)
    own = _basis(logits)
    values = np.linalg.svd(logits, compute_uv=False)[: own.shape[1]]
    correlations = np.zeros(len(values))
    found = np.linalg.svd(own.T @ basis, compute_uv=False)
    correlations[: len(found)] = found
    return _times(function, float(np.sqrt(values**2 @ (1 - correlations**2).clip(0.0))), size)


def _times(function: str, value: float, exponent: int) -> float:
    try:
        return math.ldexp(value, exponent)
    except OverflowError:
        raise ValueError(f"{function}: the distance overflows; scale the data down") from None


def _basis(columns: Float64) -> Float64:
    """Return an orthonormal basis of the columns, without directions that are rounding."""
    return column_basis(columns, max(columns.shape) * _EPS)


def d_svd_from_d_llv(epsilon: float) -> float:
    """Return what `gramless.d_svd` is at most, given the larger of the first two terms of `gramless.d_llv`.

    d_svd <= 2 e^2. Coordinates of both models with variance 1 differ by at most e in the label and e in the pivot, 2 e
    in all, so their correlation is at least 1 - 2 e^2, and so is the mean singular value of the matrix of correlations,
    whose trace it bounds. Theorem 4.7 of Nielsen et al. (2025) has 2 d e; this one says something for all e < 0.707.

    Parameters
    ----------
    epsilon : float
        `max(found.terms[:2])` of the result of d_llv with reduction="max".

    Returns
    -------
    float
        Bound for the pivot, label left out and inputs of that result.

    Raises
    ------
    ValueError
        If epsilon is negative or not finite.

    Examples
    --------
    >>> import gramless as gl
    >>> gl.bounds.d_svd_from_d_llv(0.5)
    0.5
    """
    _least("d_svd_from_d_llv", "epsilon", epsilon)
    # a power of floats raises where a product is infinite
    return 2 * float(epsilon) * float(epsilon)


def _quotient(a: Any, b: Any) -> float:
    """Return a / b as floats, infinite on overflow, without a warning of NumPy."""
    return float(a) / float(b)


def _least(function: str, name: str, value: Any) -> None:
    """Refuse all but a finite number of at least 0."""
    if arguments.finite(function, name, value) < 0:
        raise ValueError(f"{function}: expected {name} of at least 0, got {value!r}")

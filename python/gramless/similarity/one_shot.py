"""The one-shot measures: two arrays, or the state of a pass over them, in; a number out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .._base import arguments
from .._base.arrays import Array
from ..measures import hsic_from_gram as _gram
from ..measures import hsic_from_moments as _linear
from ..states.gram import GramState
from ..states.moments import MomentState
from . import random_features
from .pair_request import KernelPass
from .pair_sampling import checked_fraction, sampled
from .permutation_null import calibrated
from .random_features import checked_frequencies, feature_moments


def hsic(
    x: Array | MomentState | GramState,
    y: Array | None = None,
    *,
    kernel: str = "linear",
    estimator: str = "unbiased",
    bandwidth: str | float | None = None,
    bandwidth_scale: float = 1.0,
    degree: int = 3,
    coef0: float = 1.0,
    method: str = "exact",
    n_features: int = 512,
    fraction: float | None = None,
    null: str | None = None,
    n_permutations: int = 999,
    seed: int = 0,
    precision: str = "high",
    backend: str = "auto",
) -> float:
    """Return the Hilbert-Schmidt independence criterion of two representations of the same rows.

    Parameters
    ----------
    x : array of shape (n, p), float16, bfloat16, float32 or float64, or MomentState or GramState
        NumPy, torch on the CPU or a GPU, or anything with DLPack; or the state of a pass over x and y. "rff" and null
        read host memory alone.
    y : array of shape (n, q)
        Left out if x is a state.
    kernel : {"linear", "rbf", "laplacian", "polynomial", "cosine", "distance"}
        The kernel of both Gram matrices, as in `gramless.gram_sums`. HSIC of "distance" is the squared distance
        covariance. A state has its own kernel.
    estimator : {"unbiased", "biased", "feature_corrected"}
        "unbiased" is HSIC_1 (Song et al. 2012, eq. 5), the mean over distinct quadruples of rows; "biased" is
        tr(K H L H) / (n - 1)^2; "feature_corrected" is HSIC_1 / (p q), the mean over pairs of features.
    bandwidth : {"median", "kornblith"} or number, optional
        Of rbf and laplacian: a rule, which gives x and y each its own, see `gramless.bandwidth`, or one number for
        both. Default: "median".
    bandwidth_scale : float
        What the bandwidths are multiplied by.
    degree, coef0 : int, float
        Of the polynomial kernel (u.v / p + coef0)^degree.
    method, n_features, fraction, null, n_permutations, seed
        As in `cka`.
    precision : {"fast", "high", "exact"}
        Of products on a GPU, as in `gramless.moments`.
    backend : {"auto", "reference", "cpu", "cuda"}
        A named backend never falls back to another. It is not used if x is a state.

    Returns
    -------
    float
        An `Estimate` or a `Calibrated` where `cka` returns one. 0 in expectation for independent rows if unbiased,
        where it may be negative; at least 0 if biased.

    Raises
    ------
    TypeError
        If an argument is no array, or its dtype is none of the four.
    ValueError
        If shapes do not fit, values are not finite, x or y is constant, n < 4 (biased: n < 2), a bandwidth is so small
        or large that the kernel cannot tell rows apart, two of null, fraction and "rff" are given, or a parameter that
        has no effect: n_features without "rff", n_permutations without null, one that the kernel does not have.
    RuntimeError
        If x and y are not on one device, the named backend does not read that, or it is missing.

    Notes
    -----
    Linear: n (p (p + 1) + q (q + 1) + 2 p q) flops, one read of x and y, 8 (p^2 + q^2 + p q) bytes. Other kernels, and
    linear if 2 n <= p + q, by Gram tiles: n^2 (p + q) flops and O(n) bytes, see `gramless.GramSums`. A rule adds the
    cost of `gramless.bandwidth`. No n x n matrix is held; `gramless.explain` says which path is taken.

    Examples
    --------
    >>> import numpy as np
    >>> import gramless as gl
    >>> x = np.array([[0.0], [1.0], [2.0], [4.0]])
    >>> y = np.array([[1.0], [0.0], [2.0], [3.0]])
    >>> round(gl.hsic(x, y, estimator="biased"), 6)
    3.361111
    >>> round(gl.hsic(x, y), 6)
    2.666667
    """
    request = KernelPass("hsic", kernel, estimator, bandwidth, bandwidth_scale, degree, coef0, backend, precision)
    return _answer(request, x, y, ComputeOptions(method, n_features, fraction, null, n_permutations, seed))


def cka(
    x: Array | MomentState | GramState,
    y: Array | None = None,
    *,
    kernel: str = "linear",
    estimator: str = "unbiased",
    bandwidth: str | float | None = None,
    bandwidth_scale: float = 1.0,
    degree: int = 3,
    coef0: float = 1.0,
    method: str = "exact",
    n_features: int = 512,
    fraction: float | None = None,
    null: str | None = None,
    n_permutations: int = 999,
    seed: int = 0,
    precision: str = "high",
    backend: str = "auto",
) -> float:
    """Return the centred kernel alignment HSIC(x, y) / sqrt(HSIC(x, x) HSIC(y, y)).

    The linear one does not change under rotation, shift or common scale of the features of x or y (Kornblith et al.
    2019, arXiv:1905.00414); nor do rbf, laplacian and distance, with a rule as bandwidth.

    Parameters
    ----------
    x : array of shape (n, p), float16, bfloat16, float32 or float64, or MomentState or GramState
        NumPy, torch on the CPU or a GPU, or anything with DLPack; or the state of a pass over x and y. "rff" and null
        read host memory alone.
    y : array of shape (n, q)
        Left out if x is a state.
    kernel : {"linear", "rbf", "laplacian", "polynomial", "cosine", "distance"}
        The kernel of both Gram matrices, as in `gramless.gram_sums`. CKA of "distance" is the squared distance
        correlation. A state has its own kernel.
    estimator : {"unbiased", "biased", "feature_corrected"}
        "unbiased" has no bias towards 1 when features are many and rows few; "feature_corrected" also corrects for few
        features, after Chun et al. (2025), arXiv:2502.15104. See `hsic`.
    bandwidth : {"median", "kornblith"} or number, optional
        Of rbf and laplacian: a rule, which gives x and y each its own, see `gramless.bandwidth`, or one number for
        both. Default: "median".
    bandwidth_scale : float
        What the bandwidths are multiplied by.
    degree, coef0 : int, float
        Of the polynomial kernel (u.v / p + coef0)^degree.
    method : {"exact", "rff"}
        "rff" estimates the rbf kernel by random features: one pass whose cost does not grow with n^2. With it, and
        kernel="rbf", the state of a stream of `gramless.RandomFeatures` is read, too.
    n_features : int
        Frequencies of "rff", at least 8; the standard error falls as their root.
    fraction : float, optional
        Part of the n^2 pairs of rows, above 0, at most 1, from random batches of rows; unbiased only.
    null : {"permutation"}, optional
        Also compute the value for random permutations of the rows of y; not with "feature_corrected".
    n_permutations : int
        Number of these permutations.
    seed : int
        Of random features, batches or permutations.
    precision : {"fast", "high", "exact"}
        Of products on a GPU, as in `gramless.moments`.
    backend : {"auto", "reference", "cpu", "cuda"}
        A named backend never falls back to another. It is not used if x is a state.

    Returns
    -------
    float
        A Python float, through which no gradient flows. With fraction or "rff" an `Estimate`, which has its standard
        error; with null a `Calibrated`, which has what the value is for unrelated rows.
        In [-1, 1] if unbiased, in [0, 1] if biased, each up to rounding, which is not clipped; without bounds if
        feature-corrected.

    Raises
    ------
    TypeError
        If an argument is no array, or its dtype is none of the four.
    ValueError
        If shapes do not fit, values are not finite, x or y is constant, n < 4 (biased: n < 2), a bandwidth is so small
        or large that the kernel cannot tell rows apart, a feature-corrected self term is negative, two of null,
        fraction and "rff" are given, or a parameter that has no effect: n_features without "rff", n_permutations
        without null, one that the kernel does not have.
    RuntimeError
        If x and y are not on one device, the named backend does not read that, or it is missing.

    Notes
    -----
    Linear: n (p (p + 1) + q (q + 1) + 2 p q) flops, one read of x and y, 8 (p^2 + q^2 + p q) bytes. Other kernels, and
    linear if 2 n <= p + q, by Gram tiles: n^2 (p + q) flops and O(n) bytes, see `gramless.GramSums`. A rule adds the
    cost of `gramless.bandwidth`. No n x n matrix is held; `gramless.explain` says which path is taken.

    "rff": 2 n m (p + q + 8 m) flops and 96 m^2 bytes for m frequencies. fraction: that part of the flops. null: cost of
    the permutations, and the matrices that are held up to 4096 rows, as in `gramless.hsic_test`.

    Examples
    --------
    >>> import numpy as np
    >>> import gramless as gl
    >>> x = np.array([[0.0], [1.0], [2.0], [4.0]])
    >>> y = np.array([[1.0], [0.0], [2.0], [3.0]])
    >>> round(gl.cka(x, y, estimator="biased"), 6)
    0.691429
    >>> round(gl.cka(x, y), 6)
    0.838628
    >>> round(gl.cka(x, 3 - 2 * x), 6)
    1.0
    >>> round(gl.cka(x, y, kernel="rbf", bandwidth="median"), 6)
    0.960922
    >>> value = gl.cka(x, y, null="permutation", n_permutations=99)
    >>> value.pvalue > 0.05
    True
    """
    request = KernelPass("cka", kernel, estimator, bandwidth, bandwidth_scale, degree, coef0, backend, precision)
    return _answer(request, x, y, ComputeOptions(method, n_features, fraction, null, n_permutations, seed))


def cka_distance(
    x: Array | MomentState | GramState,
    y: Array | None = None,
    *,
    kernel: str = "linear",
    estimator: str = "unbiased",
    bandwidth: str | float | None = None,
    bandwidth_scale: float = 1.0,
    degree: int = 3,
    coef0: float = 1.0,
    precision: str = "high",
    backend: str = "auto",
) -> float:
    """Return the angle whose cosine is CKA; if biased, a metric (Williams et al. 2021, arXiv:2110.14739).

    Parameters
    ----------
    x, y, kernel, estimator, bandwidth, bandwidth_scale, degree, coef0, precision, backend
        As in `cka`.

    Returns
    -------
    float
        Radians, in [0, pi] if unbiased, in [0, pi / 2] if biased.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As in `cka`; also ValueError if CKA is beyond 1 by more than rounding, as only the feature-corrected one may be.

    Notes
    -----
    CKA beyond 1 by no more than 1e-5, the rounding of float32 products, counts as 1. The angle is steep there: a CKA of
    1 - 1e-7 is an angle of 4.5e-4. Cost as in `cka`.

    Examples
    --------
    >>> import numpy as np
    >>> import gramless as gl
    >>> x = np.array([[0.0], [1.0], [2.0], [4.0]])
    >>> y = np.array([[1.0], [0.0], [2.0], [3.0]])
    >>> round(gl.cka_distance(x, y, estimator="biased"), 6)
    0.807332
    """
    request = KernelPass(
        "cka_distance", kernel, estimator, bandwidth, bandwidth_scale, degree, coef0, backend, precision
    )
    return _exact(request, x, y)


@dataclass(frozen=True)
class ComputeOptions:
    """How a value is computed, and what is told beside it."""

    # the defaults are those of `cka`
    method: str = "exact"
    n_features: int = 512
    fraction: float | None = None
    null: str | None = None
    n_permutations: int = 999
    seed: int = 0

    def check(self, request: KernelPass, x: Any) -> None:
        """Refuse what is out of range, what does not go together, and what has no effect."""
        function = request.function
        arguments.choice(function, "method", self.method, ("exact", "rff"))
        checked_frequencies(function, self.n_features)
        arguments.positive(function, "n_permutations", self.n_permutations)
        arguments.seed(function, self.seed)
        asked = []
        if self.null is not None:
            arguments.choice(function, "null", self.null, ("permutation",))
            asked.append(f"null={self.null!r}")
        if self.fraction is not None:
            checked_fraction(function, self.fraction)
            asked.append(f"fraction={self.fraction!r}")
        if self.method == "rff":
            asked.append("method='rff'")
        if len(asked) > 1:
            raise ValueError(f"{function}: expected one of null, fraction and method='rff', got {' and '.join(asked)}")
        for name, needed in (("n_features", "method='rff'"), ("n_permutations", "null='permutation'")):
            if needed not in asked and getattr(self, name) != getattr(ComputeOptions, name):
                raise ValueError(f"{function}: {name}={getattr(self, name)} has no effect without {needed}")
        for way in asked:
            if self.method == "rff" and request.kernel != "rbf":
                raise ValueError(f"{function}: {way} needs kernel='rbf', got kernel={request.kernel!r}")
            if request.estimator not in (("unbiased",) if self.fraction is not None else ("unbiased", "biased")):
                raise ValueError(f"{function}: {way} is not defined for estimator={request.estimator!r}")
            if isinstance(x, GramState) or (isinstance(x, MomentState) and self.method != "rff"):
                raise TypeError(f"{function}: {way} needs the arrays x and y, got a {type(x).__name__}")


def _answer(request: KernelPass, x: Array | MomentState | GramState, y: Array | None, way: ComputeOptions) -> float:
    """Return HSIC or CKA the way that was asked for."""
    way.check(request, x)
    if way.null is None and way.fraction is None and way.method == "exact":
        return _exact(request, x, y)
    normalised = request.function == "cka"
    of_features = random_features.cka if normalised else random_features.hsic
    if isinstance(x, MomentState):
        if y is not None or request.bandwidth is not None or request.bandwidth_scale != 1:
            raise ValueError(f"{request.function}: this MomentState has the bandwidth of its features, give it alone")
        return of_features(x, request.estimator)
    x, y = request.arrays(x, y, on_gpu=way.fraction is not None)
    if way.null is not None:
        return calibrated(request, x, y, n_permutations=way.n_permutations, seed=way.seed, normalised=normalised)
    if way.fraction is not None:
        return sampled(request, x, y, fraction=way.fraction, seed=way.seed, normalised=normalised)
    return of_features(feature_moments(request, x, y, n_features=way.n_features, seed=way.seed), request.estimator)


def _exact(request: KernelPass, x: Array | MomentState | GramState, y: Array | None) -> float:
    """Return the measure of the state of a pass."""
    state = request.state(x, y)
    value: float = getattr(_linear if isinstance(state, MomentState) else _gram, request.function)(
        state, request.estimator
    )
    return value

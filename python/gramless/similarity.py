"""The one-shot measures: two arrays, or the state of a pass over them, in; a number out."""

from __future__ import annotations

from . import _checks, _dispatch, ops
from ._checks import Array
from ._states import MomentState
from .measures import cka as _measures


def hsic(
    x: Array | MomentState,
    y: Array | None = None,
    *,
    kernel: str = "linear",
    estimator: str = "unbiased",
    bandwidth: float | None = None,
    backend: str = "auto",
) -> float:
    """Return the Hilbert-Schmidt independence criterion of two representations of the same rows.

    Parameters
    ----------
    x : array of shape (n, p), float16, bfloat16, float32 or float64, or MomentState
        NumPy, torch on the CPU, or anything with DLPack; or the state of a pass over x and y.
    y : array of shape (n, q)
        Left out if x is a state.
    kernel : {"linear"}
        The kernel of both Gram matrices.
    estimator : {"unbiased", "biased", "feature_corrected"}
        "unbiased" is HSIC_1 (Song et al. 2012, eq. 5), the mean over distinct quadruples of rows; "biased" is
        tr(K H L H) / (n - 1)^2; "feature_corrected" is HSIC_1 / (p q), the mean over pairs of features.
    bandwidth : None
        The linear kernel has none.
    backend : {"auto", "reference", "cpu"}
        A named backend never falls back to another. It is not used if x is a state.

    Returns
    -------
    float
        0 in expectation for independent rows if unbiased, where it may be negative; at least 0 if biased.

    Raises
    ------
    TypeError
        If an argument is no array, or its dtype is none of the four.
    ValueError
        If shapes do not fit, values are not finite, x or y is constant, or n < 4 (biased: n < 2).
    RuntimeError
        If an array is not in host memory, or the named backend is missing.

    Notes
    -----
    n (p (p + 1) + q (q + 1) + 2 p q) flops, one read of x and y, 8 (p^2 + q^2 + p q) bytes; no n x n matrix.

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
    state = _state("hsic", x, y, kernel, estimator, bandwidth, backend)
    return _measures.hsic(state, estimator)


def cka(
    x: Array | MomentState,
    y: Array | None = None,
    *,
    kernel: str = "linear",
    estimator: str = "unbiased",
    bandwidth: float | None = None,
    backend: str = "auto",
) -> float:
    """Return the centred kernel alignment HSIC(x, y) / sqrt(HSIC(x, x) HSIC(y, y)).

    It does not change under rotation, shift or common scale of the features of x or y (Kornblith et al. 2019,
    arXiv:1905.00414). ``cka(x, y)`` is ``cka(moments(x, y))``.

    Parameters
    ----------
    x : array of shape (n, p), float16, bfloat16, float32 or float64, or MomentState
        NumPy, torch on the CPU, or anything with DLPack; or the state of a pass over x and y.
    y : array of shape (n, q)
        Left out if x is a state.
    kernel : {"linear"}
        The kernel of both Gram matrices.
    estimator : {"unbiased", "biased", "feature_corrected"}
        "unbiased" has no bias towards 1 when features are many and rows few; "feature_corrected" also corrects for few
        features, after Chun et al. (2025), arXiv:2502.15104. See `hsic`.
    bandwidth : None
        The linear kernel has none.
    backend : {"auto", "reference", "cpu"}
        A named backend never falls back to another. It is not used if x is a state.

    Returns
    -------
    float
        In [-1, 1] if unbiased, in [0, 1] if biased, each up to rounding, which is not clipped; without bounds if
        feature-corrected.

    Raises
    ------
    TypeError
        If an argument is no array, or its dtype is none of the four.
    ValueError
        If shapes do not fit, values are not finite, x or y is constant, n < 4 (biased: n < 2), or a feature-corrected
        self term is negative.
    RuntimeError
        If an array is not in host memory, or the named backend is missing.

    Notes
    -----
    n (p (p + 1) + q (q + 1) + 2 p q) flops, one read of x and y, 8 (p^2 + q^2 + p q) bytes; no n x n matrix.

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
    """
    state = _state("cka", x, y, kernel, estimator, bandwidth, backend)
    return _measures.cka(state, estimator)


def cka_distance(
    x: Array | MomentState,
    y: Array | None = None,
    *,
    kernel: str = "linear",
    estimator: str = "unbiased",
    bandwidth: float | None = None,
    backend: str = "auto",
) -> float:
    """Return the angle whose cosine is CKA; if biased, a metric (Williams et al. 2021, arXiv:2110.14739).

    Parameters
    ----------
    x, y, kernel, estimator, bandwidth, backend
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
    state = _state("cka_distance", x, y, kernel, estimator, bandwidth, backend)
    return _measures.cka_distance(state, estimator)


def _state(
    function: str,
    x: Array | MomentState,
    y: Array | None,
    kernel: str,
    estimator: str,
    bandwidth: float | None,
    backend: str,
) -> MomentState:
    """Return the state of the pass, after every check that needs no pass."""
    _checks.kernel(function, kernel, bandwidth)
    _checks.choice(function, "estimator", estimator, _checks.ESTIMATORS)
    _dispatch.check_backend(function, backend)
    if isinstance(x, MomentState):
        if y is not None:
            raise TypeError(f"{function}: expected a MomentState alone, got y as well")
        return x
    if y is None:
        raise TypeError(f"{function}: expected two arrays or a MomentState, got {type(x).__name__} alone")
    arrays = {name: _checks.rows(function, name, a) for name, a in (("x", x), ("y", y))}
    _checks.enough_rows(function, estimator, _checks.same_rows(function, arrays))
    state: MomentState = ops.moments(arrays["x"], arrays["y"], backend=backend)
    return state

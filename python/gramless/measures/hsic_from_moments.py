"""HSIC and CKA of linear kernels, from second moments.

With C, a_i, b_i taken about the means, A = sum a_i, B = sum b_i and P = sum a_i b_i:

- unbiased: HSIC_1 = (|C|^2 - n P / (n - 2) + A B / ((n - 1) (n - 2))) / (n (n - 3)), the U-statistic of Song et al.
  (2012), JMLR 13, eq. 5, for K = X X^T and L = Y Y^T. CKA lies in [-1, 1].
- biased: |C|^2 / (n - 1)^2 = tr(K H L H) / (n - 1)^2, Kornblith et al. (2019), arXiv:1905.00414. CKA lies in [0, 1].
- feature_corrected: the mean of HSIC_1 over pairs of one feature of x and one of y; a self term is the mean over pairs
  of two different features. It corrects for few features as well as few rows, after Chun, Canatar, Chung and Lee
  (2025), arXiv:2502.15104. A self term is 0 on average if features are independent, and CKA has no value where it is
  not positive; so CKA has no bounds: a self term that is small by chance makes it large.
"""

from __future__ import annotations

import math
from typing import NoReturn, TypeVar

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray

from .._base import arguments
from .._base.arrays import Array
from ..states.layer_moments import LayerMoments
from ..states.moments import CrossMoments, MomentState, SelfMoments

NumbersT = TypeVar("NumbersT", float, NDArray[np.float64])

_EPS = 2.0**-52
# squares below this lose digits to underflow
_LEAST = 2.0**-1022 / _EPS
# how far rounding of float32 products may carry a CKA beyond 1
_ANGLE_EXCESS = 1e-5


def hsic(state: MomentState, estimator: str = "unbiased") -> float:
    """HSIC of a state; `gramless.hsic` documents it."""
    state = _varying("hsic", state, estimator)
    value = cross_hsic(state.x, state.y, state.cross, estimator)
    if _overflows(value, state.x, state.y):
        raise ValueError("hsic: x and y are so large that their HSIC overflows, scale them")
    return value


def cka(state: MomentState, estimator: str = "unbiased") -> float:
    """CKA of a state; `gramless.cka` documents it."""
    return _cka("cka", state, estimator)


def cka_distance(state: MomentState, estimator: str = "unbiased") -> float:
    """Angle of a state; `gramless.cka_distance` documents it."""
    return angle(_cka("cka_distance", state, estimator), estimator)


def angle(value: float, estimator: str) -> float:
    """Return the angle whose cosine is a CKA, which rounding may have carried beyond 1."""
    if abs(value) > 1 + _ANGLE_EXCESS:
        raise ValueError(f"cka_distance: the {estimator} CKA is {value:.6g}, which is no cosine")
    return math.acos(math.copysign(1.0, value) if abs(value) > 1 else value)


def layer_cka(sums: LayerMoments, estimator: str) -> tuple[NDArray[np.float64], dict[int, str]]:
    """Return CKA of each layer of x with each partner, and what keeps it from existing, by the place of a layer.

    It is NaN for such a layer. Without y, CKA of a layer with itself is 1.
    """
    n, sides = sums.n, [sums.x] if sums.y is None else [sums.x, sums.y]
    roots: list[float] = []
    traces: list[float] = []
    problems: dict[int, str] = {}
    for place, part in enumerate(part for side in sides for part in side.parts(n)):
        centred = part.centred()
        value, problem = self_hsic(centred, estimator)
        traces.append(float(centred.trace))
        if is_constant(part):
            problem = "is constant"
        if problem:
            problems[place] = problem
        roots.append(math.nan if problem else math.sqrt(value))
    count = len(sums.x.widths)
    of_x, of_y = slice(0, count), slice(-len(sums.partners.widths), None)
    squares, norms = (_on_host(table) for table in sums.centred_pairs(n - 1 if estimator == "biased" else n))
    with np.errstate(over="ignore", invalid="ignore"):
        hsic = squares
        if estimator != "biased":
            trace = np.array(traces)
            hsic = _unbiased(n, squares, norms, trace[of_x, None], trace[None, of_y])[0]
        if estimator == "feature_corrected":
            hsic = hsic / np.outer(sums.x.widths, sums.partners.widths)
        # each root by itself: the product of the two self terms overflows long before they do
        root = np.array(roots)
        values = hsic / root[of_x, None] / root[None, of_y]
    if sums.y is None:
        above = np.triu(values, 1)
        values = above + above.T + np.diag(np.ones(count))
    return values, problems


def cross_hsic(x: SelfMoments, y: SelfMoments, cross: CrossMoments, estimator: str) -> float:
    """Return HSIC between two arrays, from moments about their means."""
    if estimator == "biased":
        return _square(cross.second, x.n - 1)
    value = _unbiased(x.n, _square(cross.second, x.n), float(cross.norms), float(x.trace), float(y.trace))[0]
    return value / (x.width * y.width) if estimator == "feature_corrected" else value


def self_hsic(x: SelfMoments, estimator: str) -> tuple[float, str]:
    """Return HSIC of an array with itself, from moments about its mean, and what keeps CKA from existing."""
    trace = float(x.trace)
    if trace / x.n * (trace / x.n) < _LEAST:
        return 0.0, "is so small that its HSIC underflows, scale it"
    value, rounding = _square(x.second, x.n - 1), 0.0
    if estimator != "biased":
        value, rounding = _unbiased(x.n, _square(x.second, x.n), float(x.norms), trace, trace)
    if _overflows(value, x):
        return value, "is so large that its HSIC overflows, scale it"
    if value <= rounding:
        return value, "has no variation that the unbiased estimator can see, as when all rows but one are equal"
    if estimator != "feature_corrected":
        return value, ""
    if x.width < 2:
        return math.nan, "has one feature, and the feature-corrected estimator needs two"
    own = _feature_terms(x)
    if not math.isfinite(own):
        return math.nan, "overflows in the fourth powers of the feature-corrected estimator, scale it"
    value = (value - own) / (x.width * (x.width - 1))
    if value <= 0:
        return value, (
            f"has the feature-corrected self term {value:.3g}, which is not positive: its features are nearly "
            "independent, or rows or features are too few"
        )
    return value, ""


def is_constant(x: SelfMoments) -> bool:
    """Return whether the rows differ by no more than the rounding of float64 sums about this pivot."""
    trace = float(x.trace)
    centred = trace - float(x.sum @ x.sum) / x.n
    return centred <= 16 * _EPS * trace or centred <= x.n * (4 * _EPS) ** 2 * float(x.pivot @ x.pivot)


def _overflows(value: float, *parts: SelfMoments) -> bool:
    """Return whether a value is not finite although all rows are, as their means tell."""
    means = (part.pivot for part in parts)
    return not math.isfinite(value) and all(bool(array_namespace(m).all(array_namespace(m).isfinite(m))) for m in means)


def _cka(function: str, state: MomentState, estimator: str) -> float:
    state = _varying(function, state, estimator)
    roots = []
    for name, part in (("x", state.x), ("y", state.y)):
        value, problem = self_hsic(part, estimator)
        if problem:
            _refuse(function, name, problem)
        roots.append(math.sqrt(value))
    # each root by itself: the product of the two self terms overflows long before they do
    return cross_hsic(state.x, state.y, state.cross, estimator) / roots[0] / roots[1]


def _varying(function: str, state: MomentState, estimator: str) -> MomentState:
    """Return the state about the means, if there are rows enough and neither side is constant."""
    arguments.choice(function, "estimator", estimator, arguments.ESTIMATORS)
    arguments.enough_rows(function, estimator, state.n)
    for name, part in (("x", state.x), ("y", state.y)):
        if is_constant(part):
            _refuse(function, name, "is constant, its rows do not differ beyond rounding")
    return state.centred()


def _refuse(function: str, name: str, problem: str) -> NoReturn:
    raise ValueError(f"{function}: {name} {problem}")


@np.errstate(over="ignore")
def _square(second: Array, divisor: int) -> float:
    """Return the squared Frobenius norm of the matrix divided by a number, before large moments can overflow."""
    xp = array_namespace(second)
    scaled = second / divisor
    return float(xp.sum(scaled * scaled))


def _on_host(table: Array) -> NDArray[np.float64]:
    made: NDArray[np.float64] = table if isinstance(table, np.ndarray) else table.cpu().numpy()
    return made


def _unbiased(
    n: int, square: NumbersT, norms: NumbersT, trace_x: NumbersT, trace_y: NumbersT
) -> tuple[NumbersT, NumbersT]:
    """Return HSIC_1 from |C / n|^2 and plain sums about the means, and a bound on its rounding."""
    row = norms / n / (n - 2)
    total = trace_x / n * (trace_y / n) / ((n - 1) * (n - 2))
    scale = n / (n - 3)
    return scale * (square - row + total), 32 * _EPS * scale * (square + row + total)


def _feature_terms(x: SelfMoments) -> float:
    """Return the sum over features of the HSIC_1 of each feature with itself."""
    xp = array_namespace(x.second)
    n = x.n
    square = xp.linalg.diagonal(x.second) / n
    terms = square * square * (1 + 1 / ((n - 1) * (n - 2))) - x.fourths / n / (n - 2)
    return n / (n - 3) * float(xp.sum(terms))

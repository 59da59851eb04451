"""HSIC and CKA of any kernel, from sums over pairs of rows.

With S = sum k l over i != j, row sums r and s over j != i, totals T and U, and r' = r - T / n, s' = s - U / n:

- unbiased: HSIC_1 = (S - 2 r'.s' / (n - 2) - T U / (n (n - 1))) / (n (n - 3)), the U-statistic of Song et al. (2012),
  JMLR 13, eq. 5. CKA lies in [-1, 1].
- biased: tr(K H L H) / (n - 1)^2, the same sums with the diagonals: (S + d.e - 2 r'.s' / n - T U / n^2) / (n - 1)^2.
  CKA lies in [0, 1].

Of the distance kernel these are the squared distance covariance, and CKA is the squared distance correlation (Szekely
and Rizzo 2014, arXiv:1310.2926).
"""

from __future__ import annotations

import math

from .._base import arguments
from ..states.gram import GramSide, GramState
from . import hsic_from_moments as _linear

# mean kernel values of different rows below and above which a kernel cannot tell the rows apart
LEAST_MEAN = 1e-6
MOST_MEAN = 1 - 1e-9
# sum of k^2 over i != j, of that over i = j, below which a biased CKA is that of the diagonals: 1 whatever the data
LEAST_SHARE = 1e-2
# what rounding of kernel values may leave of a self term, in roundings of its terms
_NOISE = 8.0


def hsic(state: GramState, estimator: str = "unbiased") -> float:
    """HSIC of a state; `gramless.hsic` documents it."""
    _check_varying("hsic", state, estimator)
    return cross_hsic(state, estimator)


def cka(state: GramState, estimator: str = "unbiased") -> float:
    """CKA of a state; `gramless.cka` documents it."""
    return _cka("cka", state, estimator)


def cka_distance(state: GramState, estimator: str = "unbiased") -> float:
    """Angle of a state; `gramless.cka_distance` documents it."""
    return _linear.angle(_cka("cka_distance", state, estimator), estimator)


def cross_hsic(state: GramState, estimator: str) -> float:
    """Return HSIC of x and y of a state that has both, whether or not they vary."""
    if state.y is None or state.product is None:
        raise ValueError("cross_hsic: expected a state of x and y, got one of x alone")
    return _hsic(state, state.x, state.y, float(state.product[0]), estimator)[0]


def self_hsic(state: GramState, side: GramSide, estimator: str) -> tuple[float, str]:
    """Return HSIC of an array with itself, and what keeps CKA from existing."""
    value, rounding = _self_term(state, side, estimator)
    problem = _degeneracy(state, side, estimator)
    if not problem and value <= rounding:
        problem = "has no variation that the unbiased estimator can see, as when all rows but one are equal"
    return value, problem


def mean_value(n: int, side: GramSide) -> tuple[float, float]:
    """Return the mean of k over i != j and, with all its digits, its distance from 1."""
    mean = float(side.rows[0].sum()) / (n * (n - 1))
    offset = float(side.offset[0])
    return mean + offset, (1 - offset) - mean


def _self_term(state: GramState, side: GramSide, estimator: str) -> tuple[float, float]:
    return _hsic(state, side, side, float(side.square[0]), estimator)


def _degeneracy(state: GramState, side: GramSide, estimator: str) -> str:
    """Return how a kernel fails to tell the rows apart, if it does."""
    problem = _saturation(state, side, estimator)
    value, rounding = _self_term(state, side, "biased")
    # neither of NaN, which goes its way
    if problem or not value <= rounding:
        return problem
    if state.kernel in ("cosine", "polynomial"):
        return f"is constant, or its {state.kernel} kernel does not vary beyond rounding; subtract the mean of its rows"
    return "is constant, its rows do not differ beyond rounding"


def _saturation(state: GramState, side: GramSide, estimator: str) -> str:
    if state.kernel not in arguments.WITH_BANDWIDTH:
        return ""
    mean, below_one = mean_value(state.n, side)
    width = f"bandwidth {float(side.bandwidth[0]):.6g}"
    # less an offset of 1 the squares are not those of k, which is then far from 0
    alone = not side.offset[0] and float(side.square[0]) < LEAST_SHARE * state.n
    if mean < LEAST_MEAN or (estimator == "biased" and alone):
        return (
            f"has a {state.kernel} kernel that is 0 between different rows (mean {mean:.3g}): its {width} is too small"
        )
    if below_one < 1 - MOST_MEAN:
        limit = {"rbf": "linear", "laplacian": "distance"}[state.kernel]
        return (
            f"is constant or its {width} is too large: the {state.kernel} kernel is 1 between all rows "
            f"(1 - mean {below_one:.3g}); kernel={limit!r} is the limit of large ones"
        )
    return ""


def _cka(function: str, state: GramState, estimator: str) -> float:
    roots = []
    for name, side in _check_varying(function, state, estimator).items():
        value, problem = self_hsic(state, side, estimator)
        if problem:
            raise ValueError(f"{function}: {name} {problem}")
        roots.append(math.sqrt(value))
    # each root by itself: the product of the two self terms overflows long before they do
    return cross_hsic(state, estimator) / roots[0] / roots[1]


def _check_varying(function: str, state: GramState, estimator: str) -> dict[str, GramSide]:
    """Return both sides by name, if they are of one bandwidth, complete, and neither is constant."""
    arguments.choice(function, "estimator", estimator, ("unbiased", "biased"))
    if state.y is None or state.product is None:
        raise ValueError(f"{function}: expected a state of x and y, got one of x alone")
    if state.bandwidths != 1:
        raise ValueError(f"{function}: the state is of {state.bandwidths} bandwidths, choose one with state.select(k)")
    arguments.enough_rows(function, estimator, state.n)
    if not state.complete:
        raise ValueError(
            f"{function}: the state holds {state.pairs} of {state.all_pairs} pairs of rows, merge the others"
        )
    sides = {"x": state.x, "y": state.y}
    for name, side in sides.items():
        problem = _degeneracy(state, side, estimator)
        if problem:
            raise ValueError(f"{function}: {name} {problem}")
    return sides


def _hsic(state: GramState, x: GramSide, y: GramSide, product: float, estimator: str) -> tuple[float, float]:
    """Return HSIC, and what may be rounding in it if x and y are the same."""
    n, r, s = state.n, x.rows[0], y.rows[0]
    whole = estimator == "biased"
    if whole:
        product += float(x.diagonal[0] @ y.diagonal[0])
        r, s = r + x.diagonal[0], s + y.diagonal[0]
    divisor = (n - 1) ** 2 if whole else n * (n - 3)
    total_r, total_s = float(r.sum()), float(s.sum())
    of_rows = 2 / (n if whole else n - 2) * float((r - total_r / n) @ (s - total_s / n))
    of_totals = total_r / n * (total_s / (n if whole else n - 1))
    terms = abs(product) + abs(of_rows) + abs(of_totals)
    return (product - of_rows - of_totals) / divisor, _NOISE * state.eps * terms / divisor

"""What HSIC is where rows of x and y have nothing to do with each other: the null of a test, by permuted rows of y.

A permutation of the rows of y changes neither HSIC of x, nor that of y, nor the row sums of their kernels, but only the
sum of k l. It is taken in one of three ways:

- of linear kernels from second moments, only those between x and permuted y: 2 n p q flops for each permutation;
- up to 4096 rows both kernel matrices are held, 12 n^2 bytes: with that of x centred the sum is HSIC itself, and takes
  n^2 / 2 look-ups in that of y;
- of more rows by Gram tiles, n^2 (p + q) flops for each permutation and O(n) bytes.

Mean and variance over all n! permutations have closed forms (Kazi-Aoual, Hitier, Sabatier, Lebreton (1995),
Computational Statistics & Data Analysis 20), which the gamma null takes; Gretton, Fukumizu, Teo, Song, Schoelkopf,
Smola (2008), NIPS 20, fit the same distribution to their limits for large n.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from . import _checks, _dispatch, ops
from ._checks import Array
from ._gram import GramSide, GramState
from ._progress import watched
from ._states import MomentState
from .estimates import Calibrated
from .kernel_pass import KernelPass
from .measures import cka as _linear
from .measures import gram as _gram

# most rows whose kernel matrices are held
HELD_ROWS = 4096
# of hsic_test; the gamma null draws none, and refuses another number
_DEFAULT_PERMUTATIONS = 999
# rows that are looked up at a time, so that they stay in the cache
_BLOCK_ROWS = 16
# values nearer than this, relative to the largest, count as equal: float32 sums of the same terms in another order
_TIE = 2e-6

Float64 = NDArray[np.float64]
Order: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class HSICTest:
    """Result of a test of independence.

    Parameters
    ----------
    statistic : float
        The biased HSIC, tr(K H L H) / (n - 1)^2.
    pvalue : float
        Probability of a statistic at least as large if x and y are independent.
    null : str
        "permutation" or "gamma".
    null_mean, null_std : float
        Mean and standard deviation of the statistic over all n! permutations of the rows of y, in closed form.
    n : int
        Number of rows.
    kernel : str
        Kernel of both arrays.
    bandwidth_x, bandwidth_y : float or None
        Their bandwidths, in units of x and of y; None for a kernel without.
    n_permutations : int
        Permutations drawn, 0 for the gamma null.
    seed : int or None
        Seed of the permutations, None for the gamma null.

    Examples
    --------
    >>> import numpy as np
    >>> import gramless as gl
    >>> x = np.random.default_rng(0).standard_normal((200, 2))
    >>> found = gl.hsic_test(x, x[:, :1] ** 2, n_permutations=199)
    >>> found.pvalue
    0.005
    >>> found.statistic == gl.hsic(x, x[:, :1] ** 2, kernel="rbf", estimator="biased")
    True
    """

    statistic: float
    pvalue: float
    null: str
    null_mean: float
    null_std: float
    n: int
    kernel: str
    bandwidth_x: float | None
    bandwidth_y: float | None
    n_permutations: int
    seed: int | None


class _Centred(NamedTuple):
    """What the closed forms take of A = H K H / (n - 1)."""

    trace: float
    square: float  # sum of A_ij^2, the biased HSIC of x with itself
    diagonal: float  # sum of A_ii^2


def hsic_test(
    x: Array,
    y: Array,
    *,
    null: str = "permutation",
    kernel: str = "rbf",
    bandwidth: str | float | None = None,
    bandwidth_scale: float = 1.0,
    degree: int = 3,
    coef0: float = 1.0,
    n_permutations: int = 999,
    seed: int = 0,
    progress: bool = False,
    backend: str = "auto",
) -> HSICTest:
    """Test whether the rows of x and y are independent.

    Parameters
    ----------
    x : array of shape (n, p), float16, bfloat16, float32 or float64
        NumPy, torch on the CPU, or anything with DLPack. Rows are independent draws; n is at least 4.
    y : array of shape (n, q)
        The other representation of the same rows.
    null : {"permutation", "gamma"}
        "permutation" compares with random permutations of the rows of y: p-values are never too small, whatever n.
        "gamma" compares with the gamma distribution that has the mean and variance of all permutations: one pass, and
        good where p-values are not small.
    kernel, bandwidth, bandwidth_scale, degree, coef0
        As in `gramless.cka`. With rbf and laplacian kernels any dependence is found, given rows enough.
    n_permutations : int
        The least p-value is 1 / (1 + n_permutations).
    seed : int
        Same seed, same permutations.
    progress : bool
        Show a progress bar over the permutations.
    backend : {"auto", "reference", "cpu"}
        A named backend never falls back to another.

    Returns
    -------
    HSICTest
        With statistic and pvalue in (0, 1]; by permutation pvalue is (1 + permutations whose statistic is at least
        this one) / (1 + n_permutations).

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As `gramless.hsic`; ValueError if n < 4, n_permutations < 1 or seed < 0, and for the gamma null if
        n_permutations is given, or where the mean over permutations is not above 0, as a polynomial kernel may have it.

    Notes
    -----
    One pass as `gramless.hsic`. Then for each permutation: linear kernel, 2 n p q flops and a copy of y; other kernels,
    and linear if 2 n <= p + q, n^2 / 2 look-ups up to 4096 rows, with 12 n^2 bytes held (192 MiB at most), and beyond
    that n^2 (p + q) flops, O(n) bytes and a copy of y. It can be interrupted between permutations.

    Statistic and gamma null: Gretton et al. (2008), NIPS 20, with exact moments for any n of Kazi-Aoual et al. (1995).

    Examples
    --------
    >>> import numpy as np
    >>> import gramless as gl
    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((100, 1))
    >>> y = np.cos(3 * x) + rng.standard_normal((100, 1)) / 2
    >>> gl.hsic_test(x, y, bandwidth_scale=0.5, n_permutations=199).pvalue
    0.005
    >>> gl.hsic_test(x, y, bandwidth_scale=0.5, null="gamma").pvalue < 0.01
    True
    >>> gl.hsic_test(x, rng.permutation(y)).pvalue > 0.05
    True
    """
    function = "hsic_test"
    seed = checked_null(function, null, n_permutations, seed)
    request = KernelPass(function, kernel, "biased", bandwidth, bandwidth_scale, degree, coef0, backend)
    x, y = checked_rows(request, x, y)
    n = int(x.shape[0])
    state = request.state(x, y)
    selves = _self_hsics(request, state)
    statistic = _hsic(request, state)
    mean, variance = _permutation_moments(_centred(state, "x", selves["x"]), _centred(state, "y", selves["y"]), n)
    widths = {f"bandwidth_{name}": _width(state, name) for name in ("x", "y")}
    facts: dict[str, Any] = {"null_mean": mean, "null_std": math.sqrt(variance), "n": n, "kernel": kernel, **widths}
    if null == "gamma":
        pvalue = _gamma_tail(function, statistic, mean, variance)
        return HSICTest(statistic, pvalue, null, n_permutations=0, seed=None, **facts)
    observed, values = permuted_hsics(request, state, x, y, n_permutations, seed, progress=progress)
    return HSICTest(statistic, _pvalue(observed, values), null, n_permutations=n_permutations, seed=seed, **facts)


def checked_null(function: str, null: Any, n_permutations: Any, seed: Any) -> int:
    """Return the seed of a null of the test, all of it checked."""
    _checks.choice(function, "null", null, ("permutation", "gamma"))
    _checks.positive(function, "n_permutations", n_permutations)
    if null == "gamma" and n_permutations != _DEFAULT_PERMUTATIONS:
        raise ValueError(f"{function}: n_permutations={n_permutations} has no effect with null='gamma'")
    return _checks.seed(function, seed)


def checked_rows(request: KernelPass, x: Any, y: Any) -> tuple[Array, Array]:
    """Return both arrays, checked, if they have as many rows as the closed forms need."""
    x, y = request.arrays(x, y, on_gpu=False)
    n = int(x.shape[0])
    if n < _checks.LEAST_ROWS:
        raise ValueError(f"{request.function}: expected at least {_checks.LEAST_ROWS} rows, got n = {n}")
    return x, y


def calibrated(
    request: KernelPass, x: Array, y: Array, *, n_permutations: int, seed: int, normalised: bool
) -> Calibrated:
    """Return HSIC of checked arrays, or CKA if normalised, beside its values for permuted rows of y."""
    state = request.state(x, y)
    selves = _self_hsics(request, state).values()
    value = _hsic(request, state)
    observed, values = permuted_hsics(request, state, x, y, n_permutations, seed)
    pvalue = _pvalue(observed, values)
    # each root by itself: the product of the two self terms overflows long before they do
    for term in selves if normalised else ():
        value, values = value / math.sqrt(term), values / math.sqrt(term)
    return Calibrated(
        value,
        null_mean=float(values.mean()),
        null_quantile=float(np.quantile(values, 0.95)),
        pvalue=pvalue,
        n_permutations=n_permutations,
        seed=seed,
    )


def permuted_by(stem: str, n: int) -> str:
    """Choose how HSIC of permuted rows is taken, where a kernel has taken the pass: "moments", "matrices", "tiles"."""
    if stem == "moments":
        return "moments"
    return "matrices" if n <= HELD_ROWS else "tiles"


def permuted_hsics(
    request: KernelPass,
    state: MomentState | GramState,
    x: Array,
    y: Array,
    n_permutations: int,
    seed: int,
    *,
    progress: bool = False,
) -> tuple[float, Float64]:
    """Return HSIC for rows as they are, and for random permutations of those of y, rounded alike."""
    if isinstance(state, MomentState):
        hsic_of = _by_moments(request, state, x, y)
    elif permuted_by("gram_sums", state.n) == "matrices":
        hsic_of = _by_held_kernels(request, state, x, y)
    else:
        hsic_of = _by_tiles(request, state, x, y)
    rng = np.random.default_rng(seed)
    draws = watched(range(n_permutations), "permutations", shown=progress)
    values = np.array([hsic_of(rng.permutation(state.n)) for _ in draws])
    return hsic_of(np.arange(state.n)), values


def _by_moments(request: KernelPass, state: MomentState, x: Array, y: Array) -> Callable[[Order], float]:
    centred = state.centred()

    def hsic_of(order: Order) -> float:
        cross = ops.moments(
            x, y[order], pivot_x=state.x.pivot, pivot_y=state.y.pivot, self_terms=False, backend=request.backend
        )
        return _linear.cross_hsic(centred.x, centred.y, cross.centred(state.x, state.y), request.estimator)

    return hsic_of


def _by_tiles(request: KernelPass, state: GramState, x: Array, y: Array) -> Callable[[Order], float]:
    keywords = request.keywords(_width(state, "x"), _width(state, "y"))
    return lambda order: _gram.hsic(ops.gram_sums(x, y[order], **keywords), request.estimator)


def _by_held_kernels(request: KernelPass, state: GramState, x: Array, y: Array) -> Callable[[Order], float]:
    n, whole = state.n, request.estimator == "biased"
    left = _held_kernel(request, state, "x", x)
    if not whole:
        np.fill_diagonal(left, 0.0)
    rows = left.sum(axis=1) / (n if whole else n - 2)
    left -= rows[:, None]
    left -= rows[None, :]
    left += rows.sum() / (n if whole else n - 1)
    if not whole:
        np.fill_diagonal(left, 0.0)
    left /= (n - 1) ** 2 if whole else n * (n - 3)
    # what is below the diagonal is above it once more
    starts = range(0, n, _BLOCK_ROWS)
    blocks = [np.triu(left[start : start + _BLOCK_ROWS, start:]) for start in starts]
    for block in blocks:
        block += np.triu(block, 1)
    del left
    right = _held_kernel(request, state, "y", y)

    def hsic_of(order: Order) -> float:
        return math.fsum(
            # not by a BLAS, whose threads would fight over the cores for so short a product
            np.einsum("ij,ij->", block, right[order[start : start + _BLOCK_ROWS]].take(order[start:], axis=1))
            for start, block in zip(starts, blocks, strict=True)
        )

    return hsic_of


def _held_kernel(request: KernelPass, state: GramState, name: str, a: Array) -> Float64:
    """Return the kernel matrix (n, n) of an array, less its offset."""
    side: GramSide = getattr(state, name)
    chosen = _dispatch.resolve_gram_values(request.backend)
    values = chosen.kernel(
        [_checks.to_numpy(a) if chosen.backend == "reference" else a],
        kernel=request.kernel,
        bandwidths=side.bandwidth.tolist() if request.kernel in _checks.WITH_BANDWIDTH else None,
        degree=request.degree,
        coef0=float(request.coef0),
    )["values"][0]
    matrix = np.empty((state.n, state.n))
    np.fill_diagonal(matrix, side.diagonal[0])
    for i, end in enumerate(np.cumsum(np.arange(state.n - 1, 0, -1))):
        matrix[i, i + 1 :] = matrix[i + 1 :, i] = values[end - (state.n - 1 - i) : end]
    return matrix


def _pvalue(observed: float, values: Float64) -> float:
    slack = _TIE * max(abs(observed), float(np.abs(values).max()))
    return (1 + int((values >= observed - slack).sum())) / (1 + len(values))


def _hsic(request: KernelPass, state: MomentState | GramState) -> float:
    if isinstance(state, MomentState):
        return _linear.hsic(state, request.estimator)
    return _gram.hsic(state, request.estimator)


def _self_hsics(request: KernelPass, state: MomentState | GramState) -> dict[str, float]:
    """Return HSIC of x with itself and of y with itself, above 0."""
    found = {}
    for name in ("x", "y"):
        side = getattr(state, name)
        if isinstance(state, GramState):
            value, problem = _gram.self_hsic(state, side, request.estimator)
        elif _linear.is_constant(side):
            value, problem = 0.0, "is constant, its rows do not differ beyond rounding"
        else:
            value, problem = _linear.self_hsic(side.centred(), request.estimator)
        if problem:
            raise ValueError(f"{request.function}: {name} {problem}")
        found[name] = value
    return found


def _width(state: MomentState | GramState, name: str) -> float | None:
    if isinstance(state, MomentState) or state.kernel not in _checks.WITH_BANDWIDTH:
        return None
    return float(getattr(state, name).bandwidth[0])


def _centred(state: MomentState | GramState, name: str, self_hsic: float) -> _Centred:
    n, side = state.n, getattr(state, name)
    if isinstance(state, MomentState):
        about_mean = side.centred()
        return _Centred(float(about_mean.trace) / (n - 1), self_hsic, float(about_mean.norms) / (n - 1) ** 2)
    rows = (side.rows[0] + side.diagonal[0]) / n
    diagonal = (side.diagonal[0] - 2 * rows + rows.mean()) / (n - 1)
    return _Centred(float(diagonal.sum()), self_hsic, float(diagonal @ diagonal))


def _permutation_moments(a: _Centred, b: _Centred, n: int) -> tuple[float, float]:
    """Return mean and variance of sum A_ij B_pi(i)pi(j) over all permutations pi."""

    def apart(c: _Centred) -> float:
        return (n - 1) * c.square - c.trace**2

    def along(c: _Centred) -> float:
        return n * (n + 1) * c.diagonal - (n - 1) * (c.trace**2 + 2 * c.square)

    variance = 2 * apart(a) * apart(b) / ((n - 1) ** 2 * (n + 1) * (n - 2))
    variance += along(a) * along(b) / ((n + 1) * n * (n - 1) * (n - 2) * (n - 3))
    return a.trace * b.trace / (n - 1), max(variance, 0.0)


def _gamma_tail(function: str, statistic: float, mean: float, variance: float) -> float:
    """Return how much of the gamma distribution with this mean and variance is at or above a statistic."""
    from scipy.special import gammaincc

    if not (mean > 0 and variance > 0):
        raise ValueError(
            f"{function}: null='gamma' needs a mean and a variance over permutations above 0, got {mean:.3g} and "
            f"{variance:.3g}; use null='permutation'"
        )
    return float(gammaincc(mean**2 / variance, max(statistic, 0.0) * mean / variance))

"""HSIC and CKA under random permutations of the rows of y: the null distribution of independent rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .. import ops
from .._base import arguments
from .._base.annotated_floats import Calibrated
from .._base.arrays import Array, Float64
from .._base.progress import progress_bar
from ..measures import hsic_from_gram as _gram
from ..measures import hsic_from_moments as _linear
from ..ops import backends
from ..states.gram import GramSide, GramState
from ..states.moments import MomentState
from .pair_request import KernelPass

# most rows whose kernel matrices are held
HELD_ROWS = 4096
# of hsic_test; the gamma null draws none, and refuses another number
_DEFAULT_PERMUTATIONS = 999
# rows that are looked up at a time, so that they stay in the cache
_BLOCK_ROWS = 16
# values nearer than this, relative to the largest, count as equal: float32 sums of the same terms in another order
_TIE = 2e-6

Order: TypeAlias = NDArray[np.int64]


class _Centred(NamedTuple):
    """What the closed forms take of A = H K H / (n - 1)."""

    trace: float
    square: float  # sum of A_ij^2, the biased HSIC of x with itself
    diagonal: float  # sum of A_ii^2


def checked_null(function: str, null: Any, n_permutations: Any, seed: Any) -> int:
    """Return the seed of a null of the test, all of it checked."""
    arguments.choice(function, "null", null, ("permutation", "gamma"))
    arguments.positive(function, "n_permutations", n_permutations)
    if null == "gamma" and n_permutations != _DEFAULT_PERMUTATIONS:
        raise ValueError(f"{function}: n_permutations={n_permutations} has no effect with null='gamma'")
    return arguments.seed(function, seed)


def checked_rows(request: KernelPass, x: Any, y: Any) -> tuple[Array, Array]:
    """Return both arrays, checked, if they have as many rows as the closed forms need."""
    x, y = request.arrays(x, y, on_gpu=False)
    n = int(x.shape[0])
    if n < arguments.LEAST_ROWS:
        raise ValueError(f"{request.function}: expected at least {arguments.LEAST_ROWS} rows, got n = {n}")
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
    draws = progress_bar(range(n_permutations), "permutations", shown=progress)
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
    chosen = backends.resolve_gram_values(request.backend)
    values = chosen.kernel(
        [arguments.to_numpy(a) if chosen.backend == "reference" else a],
        kernel=request.kernel,
        bandwidths=side.bandwidth.tolist() if request.kernel in arguments.WITH_BANDWIDTH else None,
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
    if isinstance(state, MomentState) or state.kernel not in arguments.WITH_BANDWIDTH:
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

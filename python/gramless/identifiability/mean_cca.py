"""Mean canonical correlation of the representations of two models."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._base import arguments
from .._base.annotated_floats import AnnotatedFloat
from .._base.arrays import Array
from ..accumulators.moments import Moments
from ..measures import identifiability as _measures
from ..states.moments import CrossMoments, MomentState, SelfMoments
from .square_roots import float64_blocks

# eigenvalues that products in float32 leave of a correlation matrix without full rank
_FLOAT32_RTOL = 2.0**-20
# bytes of a block of rows in float64
_BLOCK_BYTES = 1 << 25
# of two, of values whose fourth powers, which moments hold as well, can be added up
_MOST_POWER = 200


class MeanCorrelation(AnnotatedFloat):
    """A float with the ranks that it was computed at.

    Attributes
    ----------
    rank_x, rank_y : int
        Directions of x and of y that were told from rounding.

    Examples
    --------
    >>> import numpy as np
    >>> import gramless as gl
    >>> x = np.random.default_rng(0).standard_normal((100, 3))
    >>> gl.mean_cca(x, x @ np.ones((3, 2))).rank_y
    1
    """

    rank_x: int
    rank_y: int


def mean_cca(
    x: Array | MomentState, y: Array | None = None, *, rtol: float | None = None, backend: str = "auto"
) -> MeanCorrelation:
    """Return the mean of the canonical correlations of two representations of the same rows.

    It does not change under any invertible affine map of x or of y, and so says nothing of what their unembeddings make
    of them: two models may have 1 here for embeddings and for unembeddings, and different predictions.

    Parameters
    ----------
    x : array of shape (n, p), float16, bfloat16, float32 or float64, or MomentState
        NumPy, torch on the CPU, or anything with DLPack; or the state of a pass over x and y.
    y : array of shape (n, q)
        Left out if x is a state.
    rtol : float, optional
        Features are scaled to variance 1; directions whose share of that variance is at most rtol times the largest are
        left out, since canonical correlations give each direction the same weight, also those that are rounding.
        Default: 2^-52 max(p, q) for arrays, whose products are taken in float64; 2^-20 for a state, whose products may
        have been float32.
    backend : {"auto", "reference", "cpu"}
        A named backend never falls back to another. It is not used if x is a state.

    Returns
    -------
    MeanCorrelation
        A float in [0, 1] up to rounding: the sum of the canonical correlations over the smaller of both ranks, which it
        has as rank_x and rank_y. It is above 0 for unrelated rows: about 0.85 sqrt(p / n) if p = q << n.

    Raises
    ------
    TypeError
        If an argument is no array, or its dtype is none of the four.
    ValueError
        If shapes do not fit, values are not finite, x or y is constant, or n <= max(p, q) + 1, where every canonical
        correlation is 1.
    RuntimeError
        If an array is not in host memory, or the named backend is missing.

    Notes
    -----
    n (p (p + 1) + q (q + 1) + 2 p q) flops in float64, O((p + q)^3) more, and about 80 (p + q)^2 bytes. The published
    computation (scikit-learn's CCA, an iteration over rows) gives the same number where it converges.

    Examples
    --------
    >>> import numpy as np
    >>> import gramless as gl
    >>> rng = np.random.default_rng(0)
    >>> x, noise = rng.standard_normal((2, 1000, 3))
    >>> round(gl.mean_cca(x, x @ rng.standard_normal((3, 3))), 6)
    1.0
    >>> round(gl.mean_cca(x, x + noise), 6)
    0.70905
    """
    function = "mean_cca"
    if rtol is not None:
        arguments.finite(function, "rtol", rtol)
        if not 0 <= rtol < 1:
            raise ValueError(f"{function}: expected rtol in [0, 1), got {rtol}")
    if isinstance(x, MomentState):
        if y is not None:
            raise TypeError(f"{function}: expected a MomentState alone, got y as well")
        state, rtol = x, _FLOAT32_RTOL if rtol is None else rtol
    else:
        state = _wide_moments(function, x, y, backend)
    values, rank_x, rank_y = _measures.canonical_correlations(function, state, rtol)
    return MeanCorrelation(float(values.sum()) / min(rank_x, rank_y), rank_x=rank_x, rank_y=rank_y)


def _wide_moments(function: str, x: Any, y: Any, backend: str) -> MomentState:
    """Return the moments of two arrays, products in float64."""
    if hasattr(type(x), "finalize"):
        raise TypeError(
            f"{function}: expected two arrays or a MomentState, got the accumulator {type(x).__name__}; "
            "call .finalize() first"
        )
    if isinstance(x, SelfMoments | CrossMoments):
        raise TypeError(f"{function}: expected a MomentState, got {type(x).__name__}; pass moments(x, y)")
    if y is None:
        raise TypeError(f"{function}: expected two arrays or a MomentState, got {type(x).__name__} alone")
    arrays = {name: arguments.rows(function, name, a) for name, a in (("x", x), ("y", y))}
    arguments.same_rows(function, arrays)
    stream = Moments(backend=backend)
    width = sum(int(a.shape[1]) for a in arrays.values())
    size = max(256, _BLOCK_BYTES // (8 * width))
    powers = {name: _column_powers(function, name, a, size) for name, a in arrays.items()}
    for _, blocks in float64_blocks(function, arrays, size):
        stream.update(*(np.ldexp(block, -powers[name]) for name, block in blocks.items()))
    return stream.finalize()


def _column_powers(function: str, name: str, a: Array, size: int) -> NDArray[np.int64]:
    """Return the powers of two that no canonical correlation depends on; 0 where no fourth power can overflow."""
    largest = np.zeros(int(a.shape[1]))
    if "float64" in str(a.dtype):
        for _, blocks in float64_blocks(function, {name: a}, size):
            np.maximum(largest, abs(blocks[name]).max(axis=0), out=largest)
    powers = np.frexp(largest)[1].astype(np.int64)
    # most data are read as they are
    return np.where(abs(powers) > _MOST_POWER, powers, 0)

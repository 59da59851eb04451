"""The kernels as functions: check the arguments, choose a backend, call it, hand back a state."""

from __future__ import annotations

from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from . import _checks, _dispatch
from ._checks import Array
from ._gram import GramSide, GramState
from ._states import CrossMoments, MomentState, SelfMoments
from .logit_ops import logit_divergences as logit_divergences
from .logit_ops import logit_pairs as logit_pairs
from .logit_ops import logsumexp as logsumexp


@overload
def moments(
    x: Array,
    y: None = None,
    *,
    pivot_x: Array | None = None,
    pivot_y: None = None,
    self_terms: Literal[True] = True,
    nonfinite: str = "raise",
    backend: str = "auto",
) -> SelfMoments: ...
@overload
def moments(
    x: Array,
    y: Array,
    *,
    pivot_x: Array | None = None,
    pivot_y: Array | None = None,
    self_terms: Literal[True] = True,
    nonfinite: str = "raise",
    backend: str = "auto",
) -> MomentState: ...
@overload
def moments(
    x: Array,
    y: Array,
    *,
    pivot_x: Array,
    pivot_y: Array,
    self_terms: Literal[False],
    nonfinite: str = "raise",
    backend: str = "auto",
) -> CrossMoments: ...
def moments(
    x: Array,
    y: Array | None = None,
    *,
    pivot_x: Array | None = None,
    pivot_y: Array | None = None,
    self_terms: bool = True,
    nonfinite: str = "raise",
    backend: str = "auto",
) -> MomentState | SelfMoments | CrossMoments:
    """Second moments of x and y in one pass: the state that every linear measure is computed from.

    Parameters
    ----------
    x : array of shape (n, p), float16, bfloat16, float32 or float64
        NumPy, torch on the CPU, or anything with DLPack. Never copied, never changed.
    y : array of shape (n, q), optional
        The other representation of the same rows; its dtype may differ. Without it, the moments of x alone.
    pivot_x, pivot_y : float64 array of shape (p,) and (q,), optional
        What to subtract before multiplying; anything near the mean will do. Default: the medians of the first 64 rows.
        They are rounded to float32 unless x or y is float64.
    self_terms : bool
        False leaves out the moments of x and of y, for many pairs of the same arrays; it needs y and both pivots.
    nonfinite : {"raise", "propagate"}
        What NaN and infinity do.
    backend : {"auto", "reference", "cpu"}
        A named backend never falls back to another.

    Returns
    -------
    MomentState
        `SelfMoments` without y, `CrossMoments` with self_terms=False. All fields are float64.

    Raises
    ------
    TypeError
        If an argument is no array, or its dtype is none of the four.
    ValueError
        If shapes do not fit, an array is empty, or values are not finite or overflow.
    RuntimeError
        If an array is not in host memory, or the named backend is missing.

    Notes
    -----
    n (p (p + 1) + q (q + 1) + 2 p q) flops, one read of x and y, 8 (p^2 + q^2 + p q) bytes of result. Products are
    taken in float32, for float64 input in float64, and summed in float64.

    Examples
    --------
    >>> import numpy as np
    >>> import gramless as gl
    >>> x = np.random.default_rng(0).standard_normal((100, 8))
    >>> state = gl.moments(x, 2 * x)
    >>> state
    MomentState(n=100, p=8, q=8)
    >>> round(gl.cka(state), 6)
    1.0
    """
    function = "moments"
    _checks.choice(function, "nonfinite", nonfinite, ("raise", "propagate"))
    arrays = {"x": _checks.rows(function, "x", x)}
    if y is not None:
        arrays["y"] = _checks.rows(function, "y", y)
    _checks.same_rows(function, arrays)
    pivots = {
        "pivot_x": _checks.pivot(function, "pivot_x", pivot_x, arrays["x"]),
        "pivot_y": _checks.pivot(function, "pivot_y", pivot_y, arrays.get("y")),
    }
    if not self_terms and (y is None or pivot_x is None or pivot_y is None):
        raise ValueError("moments: self_terms=False needs y, pivot_x and pivot_y, those of the self moments")
    chosen = _dispatch.resolve(function, backend)
    if chosen.backend == "reference":
        arrays = {name: _checks.to_numpy(a) for name, a in arrays.items()}
    try:
        flat = chosen.kernel(*arrays.values(), **pivots, self_terms=self_terms, nonfinite=nonfinite)
    except ValueError as error:
        raise _checks.advise_on_nonfinite(error, *arrays.values()) from None
    if y is None:
        return _self_moments(flat, "x")
    cross = CrossMoments(flat["sxy"], flat["weighted_xy"], flat["weighted_yx"], np.asarray(flat["norms_xy"]))
    return MomentState(_self_moments(flat, "x"), _self_moments(flat, "y"), cross) if self_terms else cross


def gram_sums(
    x: Array,
    y: Array | None = None,
    *,
    kernel: str = "linear",
    bandwidth_x: Any = None,
    bandwidth_y: Any = None,
    degree: int = 3,
    coef0: float = 1.0,
    block_rows: int | None = None,
    pairs: Any = None,
    nonfinite: str = "raise",
    backend: str = "auto",
) -> GramState:
    """Sum kernel matrices of x and y over all pairs of rows, tile by tile: no n x n matrix is held.

    Parameters
    ----------
    x : array of shape (n, p), float16, bfloat16, float32 or float64
        NumPy, torch on the CPU, or anything with DLPack. Never copied, never changed.
    y : array of shape (n, q), optional
        The other representation of the same rows; its dtype may differ. Without it, the sums of x alone.
    kernel : {"linear", "rbf", "laplacian", "polynomial", "cosine", "distance"}
        k(u, v): linear u.v; rbf exp(-|u - v|^2 / (2 s^2)); laplacian exp(-|u - v| / s); polynomial
        (u.v / p + coef0)^degree; cosine u.v / (|u| |v|); distance |u - v|.
    bandwidth_x, bandwidth_y : number or array of shape (s,), optional
        Bandwidths s of x and of y, which rbf and laplacian need: the k-th of x goes with the k-th of y.
    degree : int
        Degree of the polynomial kernel, from 1 to 64.
    coef0 : float
        Constant of the polynomial kernel.
    block_rows : int, optional
        Rows of a block. Default: chosen from p and q.
    pairs : int array of shape (m, 2), optional
        Pairs (I, J), I <= J, of blocks of rows to count; states of different pairs merge. Default: all.
    nonfinite : {"raise", "propagate"}
        What NaN and infinity do.
    backend : {"auto", "reference", "cpu"}
        A named backend never falls back to another.

    Returns
    -------
    GramState
        All arrays are float64. Linear, cosine and polynomial k are less what they are at a sampled centre, rbf and
        laplacian with wide bandwidths less 1, which keeps their digits: no HSIC depends on either.

    Raises
    ------
    TypeError
        If an argument is no array, or its dtype is none of the four.
    ValueError
        If shapes, kernel, bandwidths or pairs do not fit, values are not finite or overflow, or a row is zero for
        the cosine kernel.
    RuntimeError
        If an array is not in host memory, or the named backend is missing.

    Notes
    -----
    n^2 (p + q) flops, since only pairs i <= j are computed; x and y are read n / (2 block_rows) times. 32 n s bytes of
    result, and two blocks of rows of each array. Kernel values are in float32, for float64 input and up to 1024 rows in
    float64, and summed in float64. The result does not depend on the number of threads.

    Examples
    --------
    >>> import numpy as np
    >>> import gramless as gl
    >>> x = np.random.default_rng(0).standard_normal((100, 8))
    >>> state = gl.gram_sums(x, 2 * x, kernel="rbf", bandwidth_x=3.0, bandwidth_y=6.0)
    >>> state
    GramState(n=100, kernel='rbf', bandwidths=1)
    >>> round(gl.cka(state), 6)
    1.0
    """
    function = "gram_sums"
    _checks.choice(function, "nonfinite", nonfinite, ("raise", "propagate"))
    _checks.gram_kernel(function, kernel, "unbiased", None, degree, coef0)
    arrays = {"x": _checks.rows(function, "x", x)}
    if y is not None:
        arrays["y"] = _checks.rows(function, "y", y)
    n = _checks.same_rows(function, arrays)
    if y is None and bandwidth_y is not None:
        raise ValueError("gram_sums: bandwidth_y given without y")
    width_x = _checks.bandwidths(function, "bandwidth_x", bandwidth_x, kernel)
    width_y = None if y is None else _checks.bandwidths(function, "bandwidth_y", bandwidth_y, kernel)
    if width_x is not None and width_y is not None and width_x.size != width_y.size:
        raise ValueError(
            f"gram_sums: expected as many bandwidths of x as of y, got {width_x.size} of x and {width_y.size} of y"
        )
    chosen = _dispatch.resolve(function, backend)
    if block_rows is None:
        p, q = (int(arrays[name].shape[1]) if name in arrays else 0 for name in ("x", "y"))
        block_rows = _dispatch.gram_block_rows(chosen.backend, p, q)
    _checks.positive(function, "block_rows", block_rows)
    blocks = None if pairs is None else _checks.block_pairs(function, pairs, -(-n // block_rows))
    in_float64 = _dispatch.gram_in_float64(chosen.backend, n, [str(a.dtype) for a in arrays.values()], kernel)
    if chosen.backend == "reference":
        arrays = {name: _checks.to_numpy(a) for name, a in arrays.items()}
    try:
        # an overflow, and infinities that may propagate, are judged on the results
        with np.errstate(over="ignore", invalid="ignore"):
            flat = chosen.kernel(
                *arrays.values(),
                kernel=kernel,
                bandwidth_x=width_x,
                bandwidth_y=width_y,
                degree=degree,
                coef0=float(coef0),
                block_rows=block_rows,
                pairs=blocks,
                nonfinite=nonfinite,
            )
    except ValueError as error:
        raise _checks.advise_on_nonfinite(error, *arrays.values()) from None
    if nonfinite == "raise" and not all(np.isfinite(flat[key]).all() for key in flat if key.startswith("sum_")):
        raise ValueError("gram_sums: sums of kernel values overflow; scale the data down")
    return GramState(
        n=n,
        kernel=kernel,
        degree=degree,
        coef0=float(coef0),
        pairs=_counted(n, block_rows, blocks),
        eps=float(np.finfo(np.float64 if in_float64 else np.float32).eps),
        x=_gram_side(flat, "x", width_x),
        y=None if y is None else _gram_side(flat, "y", width_y),
        product=flat.get("sum_xy"),
    )


def _counted(n: int, block_rows: int, pairs: NDArray[np.int64] | None) -> int:
    """Return the number of pairs i < j of rows in pairs of blocks."""
    if pairs is None:
        return n * (n - 1) // 2
    first, second = (np.minimum(n - block * block_rows, block_rows) for block in pairs.T)
    return int(np.where(pairs[:, 0] == pairs[:, 1], first * (first - 1) // 2, first * second).sum())


def _gram_side(flat: dict[str, Any], name: str, widths: NDArray[np.float64] | None) -> GramSide:
    return GramSide(
        bandwidth=np.zeros(1) if widths is None else widths,
        offset=flat[f"offset_{name}"],
        square=flat[f"sum_{name}{name}"],
        rows=flat[f"rows_{name}"],
        diagonal=flat[f"diagonal_{name}"],
    )


def _self_moments(flat: dict[str, Any], name: str) -> SelfMoments:
    return SelfMoments(
        n=flat["n"],
        pivot=flat[f"pivot_{name}"],
        sum=flat[f"sum_{name}"],
        second=flat[f"s{name}{name}"],
        weighted=flat[f"weighted_{name}{name}"],
        norms=np.asarray(flat[f"norms_{name}{name}"]),
        cubes=flat[f"cubes_{name}"],
        fourths=flat[f"fourths_{name}"],
    )

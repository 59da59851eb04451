"""The kernels as functions: check the arguments, choose a backend, call it, hand back a state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from . import _checks, _device, _dispatch
from ._checks import Array
from ._gram import GramSide, GramState
from ._states import CrossMoments, MomentState, SelfMoments
from .logit_ops import logit_divergences as logit_divergences
from .logit_ops import logit_pairs as logit_pairs
from .logit_ops import logsumexp as logsumexp

_GRAM_OVERFLOW = "gram_sums: sums of kernel values overflow; scale the data down"


@overload
def moments(
    x: Array,
    y: None = None,
    *,
    pivot_x: Array | None = None,
    pivot_y: None = None,
    self_terms: Literal[True] = True,
    nonfinite: str = "raise",
    precision: str = "high",
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
    precision: str = "high",
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
    precision: str = "high",
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
    precision: str = "high",
    backend: str = "auto",
) -> MomentState | SelfMoments | CrossMoments:
    """Second moments of x and y in one pass: the state that every linear measure is computed from.

    Parameters
    ----------
    x : array of shape (n, p), float16, bfloat16, float32 or float64
        NumPy, torch on the CPU or a GPU, or anything with DLPack. Never copied, never changed.
    y : array of shape (n, q), optional
        The other representation of the same rows; its dtype may differ. Without it, the moments of x alone.
    pivot_x, pivot_y : float64 array of shape (p,) and (q,), optional
        What to subtract before multiplying; anything near the mean will do. Default: the medians of the first 64 rows.
        They are rounded to float32 unless x or y is float64.
    self_terms : bool
        False leaves out the moments of x and of y, for many pairs of the same arrays; it needs y and both pivots.
    nonfinite : {"raise", "propagate"}
        What NaN and infinity do.
    precision : {"fast", "high", "exact"}
        Of products on a GPU: one bfloat16 for each value, two (16 bits), or float64. float64 input is always "exact";
        so is the host, but for products in float32.
    backend : {"auto", "reference", "cpu", "cuda"}
        A named backend never falls back to another.

    Returns
    -------
    MomentState
        `SelfMoments` without y, `CrossMoments` with self_terms=False. All fields are float64, on the device of x.

    Raises
    ------
    TypeError
        If an argument is no array, or its dtype is none of the four.
    ValueError
        If shapes do not fit, an array is empty, or values are not finite or overflow.
    RuntimeError
        If x and y are not on one device, the named backend does not read that, or it is missing.

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
    _checks.choice(function, "precision", precision, _dispatch.PRECISIONS)
    arrays = {"x": _checks.rows(function, "x", x, on_gpu=True)}
    if y is not None:
        arrays["y"] = _checks.rows(function, "y", y, on_gpu=True)
    _checks.same_rows(function, arrays)
    if not self_terms and (y is None or pivot_x is None or pivot_y is None):
        raise ValueError("moments: self_terms=False needs y, pivot_x and pivot_y, those of the self moments")
    chosen = _dispatch.resolve(function, backend, arrays=arrays, precision=precision)
    pivots = {
        "pivot_x": _checks.pivot(function, "pivot_x", pivot_x, arrays["x"]),
        "pivot_y": _checks.pivot(function, "pivot_y", pivot_y, arrays.get("y")),
    }
    keywords = {**pivots, "self_terms": self_terms, "nonfinite": nonfinite}
    if chosen.backend == "cuda":
        flat = _on_gpu(function, chosen, arrays, **keywords)
    else:
        flat = _on_host(chosen, arrays, **keywords)
    return _moment_state(flat, y is not None, self_terms)


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
    sample_x: Array | None = None,
    sample_y: Array | None = None,
    nonfinite: str = "raise",
    precision: str = "high",
    backend: str = "auto",
) -> GramState:
    """Sum kernel matrices of x and y over all pairs of rows, tile by tile: no n x n matrix is held.

    Parameters
    ----------
    x : array of shape (n, p), float16, bfloat16, float32 or float64
        NumPy, torch on the CPU or a GPU, or anything with DLPack. Never copied, never changed.
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
    sample_x, sample_y : array of shape (k, p) and (k, q), of the dtype of x and of y, optional
        Rows that say where x and y lie, which decides what is taken off k. Default: up to 7 rows, evenly spaced. Where
        x is a part of an array, those of the whole, so that the states of its parts add up.
    nonfinite : {"raise", "propagate"}
        What NaN and infinity do.
    precision : {"fast", "high", "exact"}
        Of products on a GPU: one bfloat16 for each value, two (16 bits), or float64. float64 input is always "exact";
        so is the host, but for products in float32.
    backend : {"auto", "reference", "cpu", "cuda"}
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
        If x and y are not on one device, the named backend does not read that, or it is missing.

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
    _checks.choice(function, "precision", precision, _dispatch.PRECISIONS)
    _checks.gram_kernel(function, kernel, "unbiased", None, degree, coef0)
    arrays = {"x": _checks.rows(function, "x", x, on_gpu=True)}
    if y is not None:
        arrays["y"] = _checks.rows(function, "y", y, on_gpu=True)
    n = _checks.same_rows(function, arrays)
    if y is None and bandwidth_y is not None:
        raise ValueError("gram_sums: bandwidth_y given without y")
    width_x = _checks.bandwidths(function, "bandwidth_x", bandwidth_x, kernel)
    width_y = None if y is None else _checks.bandwidths(function, "bandwidth_y", bandwidth_y, kernel)
    if width_x is not None and width_y is not None and width_x.size != width_y.size:
        raise ValueError(
            f"gram_sums: expected as many bandwidths of x as of y, got {width_x.size} of x and {width_y.size} of y"
        )
    chosen = _dispatch.resolve(function, backend, arrays=arrays, precision=precision)
    if block_rows is None:
        p, q = (int(arrays[name].shape[1]) if name in arrays else 0 for name in ("x", "y"))
        block_rows = _dispatch.gram_block_rows(chosen.backend, p, q, precision)
    _checks.positive(function, "block_rows", block_rows)
    blocks = None if pairs is None else _checks.block_pairs(function, pairs, -(-n // block_rows))
    samples = {
        f"sample_{name}": _checks.sample(function, f"sample_{name}", sample, arrays.get(name))
        for name, sample in (("x", sample_x), ("y", sample_y))
    }
    dtypes = [str(a.dtype) for a in arrays.values()]
    in_float64 = _dispatch.gram_in_float64(chosen.backend, n, dtypes, kernel, precision)
    keywords = {
        "kernel": kernel,
        "bandwidth_x": width_x,
        "bandwidth_y": width_y,
        "degree": degree,
        "coef0": float(coef0),
        "block_rows": block_rows,
        "pairs": blocks,
        "nonfinite": nonfinite,
        **samples,
    }
    if chosen.backend == "cuda":
        flat = _device.on_host(_on_gpu(function, chosen, arrays, **keywords))
    else:
        flat = _on_host(chosen, arrays, **keywords)
        if nonfinite == "raise" and not all(np.isfinite(flat[key]).all() for key in flat if key.startswith("sum_")):
            raise ValueError(_GRAM_OVERFLOW)
    return GramState(
        n=n,
        kernel=kernel,
        degree=degree,
        coef0=float(coef0),
        pairs=_counted(n, block_rows, blocks),
        # on a GPU it is rows that are rounded further, once for all their kernel values
        eps=float(np.finfo(np.float64 if in_float64 else np.float32).eps),
        x=_gram_side(flat, "x", width_x),
        y=None if y is None else _gram_side(flat, "y", width_y),
        product=flat.get("sum_xy"),
        error=max(float(flat.get(f"error_{name}", 0.0)) for name in arrays),
    )


def _on_host(chosen: _dispatch.Choice, arrays: Mapping[str, Array], **keywords: Any) -> dict[str, Any]:
    """Return the results of a kernel that reads host memory."""
    if chosen.backend == "reference":
        arrays = {name: _checks.to_numpy(a) for name, a in arrays.items()}
        given = {name: value for name, value in keywords.items() if name.startswith("sample_") and value is not None}
        keywords |= {name: _checks.to_numpy(value) for name, value in given.items()}
    try:
        # an overflow, and infinities that may propagate, are judged on the results
        with np.errstate(over="ignore", invalid="ignore"):
            return chosen.kernel(*arrays.values(), **keywords)
    except ValueError as error:
        raise _checks.advise_on_nonfinite(error, *arrays.values()) from None


def unread_moments(
    arrays: Mapping[str, Array], pivots: Mapping[str, Array], precision: str, backend: str
) -> tuple[Any, _device.Unread]:
    """Return the state of `moments` of checked arrays on a GPU, and what it has found, without a wait for either."""
    chosen = _dispatch.resolve("moments", backend, arrays=arrays, precision=precision)
    about = {f"pivot_{name}": pivots.get(name) for name in arrays}
    flat = _on_gpu("moments", chosen, arrays, **about, self_terms=True, nonfinite="propagate")
    rounded = all("float64" not in str(a.dtype) for a in arrays.values())
    return _moment_state(flat, len(arrays) == 2, self_terms=True), _device.Unread(_device.first_rows(flat), rounded)


def _on_gpu(function: str, chosen: _dispatch.Choice, arrays: Mapping[str, Array], **keywords: Any) -> dict[str, Any]:
    """Return the results of a kernel on a GPU, and what rows it finds fault with; it waits if that is to be refused."""
    tensors = {name: _device.tensor(a) for name, a in arrays.items()}
    for name, x in tensors.items():
        if keywords.get(f"sample_{name}") is not None:
            keywords[f"sample_{name}"] = _device.tensor(keywords[f"sample_{name}"])
        if f"pivot_{name}" in keywords:
            keywords[f"pivot_{name}"] = _device.beside(keywords[f"pivot_{name}"], x)
    flat = chosen.kernel(*tensors.values(), **keywords)
    if keywords["nonfinite"] == "raise":
        _refuse_faults(function, flat, arrays)
    return flat


def _refuse_faults(function: str, flat: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
    """Refuse what a kernel on a GPU finds fault with; this waits for the device."""
    n = int(next(iter(arrays.values())).shape[0])
    try:
        finite = _device.judge(function, flat, n)
    except ValueError as error:
        raise _checks.advise_on_nonfinite(error, *arrays.values()) from None
    for key, is_finite in finite.items():
        if is_finite or key.startswith(("cubes", "fourths")):
            continue
        if function == "gram_sums":
            raise ValueError(_GRAM_OVERFLOW)
        raise ValueError(f"{function}: {key} overflows although the input is finite; scale the input")


def _moment_state(flat: dict[str, Any], paired: bool, self_terms: bool) -> MomentState | SelfMoments | CrossMoments:
    if not paired:
        return _self_moments(flat, "x")
    cross = CrossMoments(flat["sxy"], flat["weighted_xy"], flat["weighted_yx"], _scalar(flat["norms_xy"]))
    return MomentState(_self_moments(flat, "x"), _self_moments(flat, "y"), cross) if self_terms else cross


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
        norms=_scalar(flat[f"norms_{name}{name}"]),
        cubes=flat[f"cubes_{name}"],
        fourths=flat[f"fourths_{name}"],
    )


def _scalar(value: Any) -> Array:
    """Return a number as an array without a dimension; a tensor is one already."""
    return value if _checks.is_torch(value) else np.asarray(value)

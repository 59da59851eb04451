"""Second moments: check the arguments, choose a backend, call it, return a state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, overload

import numpy as np

from .._base import arguments, gpu_arrays
from .._base.arrays import Array
from ..states.moments import CrossMoments, MomentState, SelfMoments
from . import backends
from .array_calls import run_on_gpu, run_on_host


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
    arguments.choice(function, "nonfinite", nonfinite, ("raise", "propagate"))
    arguments.choice(function, "precision", precision, backends.PRECISIONS)
    arrays = {"x": arguments.rows(function, "x", x, on_gpu=True)}
    if y is not None:
        arrays["y"] = arguments.rows(function, "y", y, on_gpu=True)
    arguments.same_rows(function, arrays)
    if not self_terms and (y is None or pivot_x is None or pivot_y is None):
        raise ValueError("moments: self_terms=False needs y, pivot_x and pivot_y, those of the self moments")
    chosen = backends.resolve(function, backend, arrays=arrays, precision=precision)
    pivots = {
        "pivot_x": arguments.pivot(function, "pivot_x", pivot_x, arrays["x"]),
        "pivot_y": arguments.pivot(function, "pivot_y", pivot_y, arrays.get("y")),
    }
    keywords = {**pivots, "self_terms": self_terms, "nonfinite": nonfinite}
    if chosen.backend == "cuda":
        flat = run_on_gpu(function, chosen, arrays, **keywords)
    else:
        flat = run_on_host(chosen, arrays, **keywords)
    return _moment_state(flat, y is not None, self_terms)


def unread_moments(
    arrays: Mapping[str, Array], pivots: Mapping[str, Array], precision: str, backend: str
) -> tuple[Any, gpu_arrays.Unread]:
    """Return the state of `moments` of checked arrays on a GPU, and what it has found, without a wait for either."""
    chosen = backends.resolve("moments", backend, arrays=arrays, precision=precision)
    about = {f"pivot_{name}": pivots.get(name) for name in arrays}
    flat = run_on_gpu("moments", chosen, arrays, **about, self_terms=True, nonfinite="propagate")
    rounded = all("float64" not in str(a.dtype) for a in arrays.values())
    return _moment_state(flat, len(arrays) == 2, self_terms=True), gpu_arrays.Unread(
        gpu_arrays.first_rows(flat), rounded
    )


def _moment_state(flat: dict[str, Any], paired: bool, self_terms: bool) -> MomentState | SelfMoments | CrossMoments:
    if not paired:
        return _self_moments(flat, "x")
    cross = CrossMoments(flat["sxy"], flat["weighted_xy"], flat["weighted_yx"], _scalar(flat["norms_xy"]))
    return MomentState(_self_moments(flat, "x"), _self_moments(flat, "y"), cross) if self_terms else cross


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
    return value if arguments.is_torch(value) else np.asarray(value)

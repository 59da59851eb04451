"""The kernels as functions: check the arguments, choose a backend, call it, hand back a state."""

from __future__ import annotations

from typing import Any, Literal, overload

import numpy as np

from . import _checks, _dispatch
from ._checks import Array
from ._states import CrossMoments, MomentState, SelfMoments


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
        What to subtract before multiplying; anything near the mean will do. Default: the mean of the first 64 rows.
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

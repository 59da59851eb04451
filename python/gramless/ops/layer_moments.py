"""The kernel `layer_moments` as a function: many layers over the same rows, each of which is packed once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .._base import arguments, gpu_arrays
from .._base.arrays import Array
from ..states.layer_moments import LayerMoments
from . import backends

_FIELDS = {
    "pivot_{0}": "{0}.pivot",
    "sum_{0}": "{0}.sum",
    "s{0}{0}": "{0}.second",
    "weighted_{0}{0}": "{0}.weighted",
    "norms_{0}{0}": "{0}.norms",
    "cubes_{0}": "{0}.cubes",
    "fourths_{0}": "{0}.fourths",
}
_PAIRS = {
    "sxy": "pairs.second",
    "weighted_xy": "pairs.weighted_x",
    "weighted_yx": "pairs.weighted_y",
    "norms_xy": "pairs.norms",
}
# state fields by keys of the kernel
_KEYS = {key.format(name): field.format(name) for name in "xy" for key, field in _FIELDS.items()} | _PAIRS


def layer_moments(
    xs: Sequence[Array],
    ys: Sequence[Array] | None = None,
    *,
    pivots_x: Sequence[Array] | None = None,
    pivots_y: Sequence[Array] | None = None,
    nonfinite: str = "raise",
    precision: str = "high",
    backend: str = "auto",
) -> LayerMoments:
    """Second moments of many layers, and of all pairs of one of x with one of y, in one pass.

    Parameters
    ----------
    xs : sequence of arrays of shape (n, p), float16, bfloat16, float32 or float64
        Layers over the same rows; p and the dtype may differ.
    ys : sequence of arrays of shape (n, q), optional
        The layers that those of xs are paired with. Without it, all pairs of two layers of xs.
    pivots_x, pivots_y : sequence of float64 arrays of shape (p,) and (q,), optional
        As in `moments`, one for each layer; of a layer that is not float64 they are rounded to float32.
    nonfinite, precision, backend
        As in `moments`.

    Returns
    -------
    LayerMoments
        All arrays are float64, on the device of the layers.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As `moments`; a ValueError about the values of a layer is a `LayerError`, which has its place among all.

    Notes
    -----
    n (sum p (p + 1) + sum q (q + 1) + 2 sum p sum q) flops, and one read of each layer. On the host a layer has the
    same sums whatever others there are; where some are in float64, the other layers are read twice. On a GPU one layer
    in float64 makes products of all "exact".

    Examples
    --------
    >>> import numpy as np
    >>> from gramless.ops import layer_moments
    >>> x = np.random.default_rng(0).standard_normal((100, 8))
    >>> layer_moments([x, x[:, :3]], [x[:, 2:]])
    LayerMoments(n=100, layers=2 x 1)
    """
    function = "layer_moments"
    arguments.choice(function, "nonfinite", nonfinite, ("raise", "propagate"))
    arguments.choice(function, "precision", precision, backends.PRECISIONS)
    sides = {"xs": list(xs), "ys": list(ys or [])}
    if not sides["xs"] or (ys is not None and not sides["ys"]):
        raise ValueError(f"{function}: expected at least one layer of xs, and of ys if it is given")
    arrays = {
        f"{side}[{k}]": arguments.rows(function, f"{side}[{k}]", x, on_gpu=True)
        for side, layers in sides.items()
        for k, x in enumerate(layers)
    }
    arguments.same_rows(function, arrays)
    pivots = {"xs": pivots_x, "ys": pivots_y}
    given: list[Any] = []
    for side, layers in sides.items():
        own = pivots[side]
        if own is not None and len(own) != len(layers):
            raise ValueError(f"{function}: expected {len(layers)} pivots of {side}, got {len(own)}")
        names = [f"{side}[{k}]" for k in range(len(layers))]
        given += [
            arguments.pivot(function, f"pivot of {name}", None if own is None else own[k], arrays[name])
            for k, name in enumerate(names)
        ]
    split = len(sides["xs"])
    made, flat = _sums(list(arrays.values()), split, given, nonfinite, precision, backend)
    if nonfinite == "raise" and "bad" in flat:
        _refuse_faults(flat, made.n)
    return made


def unread_layer_moments(
    arrays: Sequence[Array], split: int, pivots: Sequence[Array | None], precision: str, backend: str
) -> tuple[LayerMoments, Array]:
    """Return the state of `layer_moments` of checked layers on a GPU, and the first row of each that is not finite.

    Layers of x are the first ones, up to the split. This waits for neither.
    """
    made, flat = _sums(arrays, split, pivots, "propagate", precision, backend)
    return made, flat["bad"]


def _sums(
    arrays: Sequence[Array],
    split: int,
    pivots: Sequence[Array | None],
    nonfinite: str,
    precision: str,
    backend: str,
) -> tuple[LayerMoments, dict[str, Any]]:
    """Return the state of checked layers, those of x before those of y, and all that the kernel has returned."""
    function = "layer_moments"
    named = {str(k): x for k, x in enumerate(arrays)}
    chosen = backends.resolve("moments", backend, function, arrays=named, precision=precision)
    taken: list[Any] = list(arrays)
    if chosen.backend == "reference":
        taken = [arguments.to_numpy(x) for x in arrays]
    about: list[Any] = list(pivots)
    if chosen.backend == "cuda":
        taken = [gpu_arrays.tensor(x) for x in arrays]
        about = [gpu_arrays.with_pivot(pivot, x) for pivot, x in zip(pivots, taken, strict=True)]
    paired, with_pivots = split < len(arrays), about[0] is not None
    try:
        # an overflow, and infinities that may propagate, are judged on the results
        with np.errstate(over="ignore", invalid="ignore"):
            flat = chosen.kernel(
                taken[:split],
                taken[split:] if paired else None,
                pivots_x=about[:split] if with_pivots else None,
                pivots_y=about[split:] if with_pivots and paired else None,
                nonfinite=nonfinite,
            )
    except ValueError as error:
        layer = getattr(error, "layer", None)
        if layer is None:
            raise
        reason = arguments.advise_on_nonfinite(ValueError(getattr(error, "reason", "")), arrays[layer])
        raise arguments.LayerError(function, layer, str(reason)) from None
    widths = [int(x.shape[1]) for x in arrays]
    state = {_KEYS[key]: value for key, value in flat.items() if key in _KEYS}
    return LayerMoments.from_flat(flat["n"], widths[:split], widths[split:], state), flat


def _refuse_faults(flat: dict[str, Any], n: int) -> None:
    """Refuse rows and sums on a GPU that are not finite; this waits for the device."""
    for layer, row in enumerate(flat["bad"].tolist()):
        if row < n:
            reason = str(gpu_arrays.nonfinite("", "", row, n)).removeprefix(":  ")
            raise arguments.LayerError("layer_moments", layer, reason)

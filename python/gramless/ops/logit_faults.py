"""What is wrong with models whose logits are not finite on a GPU: looked for once rows have come back as NaN."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._base import gpu_arrays
from .._base.arrays import Array
from .logit_arguments import Choice, OutputHead

# values of an array that are looked at together
_VALUES = 1 << 26


def refuse(function: str, models: Sequence[OutputHead], chosen: Choice, flat: Mapping[str, Any]) -> None:
    """Refuse what has made results NaN, or infinite where no label is masked in one model only.

    Parameters
    ----------
    flat : dict
        Results of a kernel over logits, in host memory.

    Raises
    ------
    ValueError
        Naming an array and its rows, as kernels of the host do.
    """
    sides = ("",) if len(models) == 1 else ("_p", "_q")
    for model, side in zip(models, sides, strict=True):
        if np.isnan(flat.get(f"lse{side}", 0.0)).any():
            raise _fault(function, models, [model], chosen) or _overflow(function)
    refuse_overflow(function, flat)
    if "lse_p" not in flat and np.isnan(flat.get("js", 0.0)).any():
        raise _fault(function, models, models, chosen) or _overflow(function)


def refuse_overflow(function: str, flat: Mapping[str, Any]) -> None:
    """Refuse squares that overflow; where a label is masked in one model only, they are infinite."""
    endless = np.isinf(flat.get("delta_max", 0.0))
    if not (np.isfinite(flat.get("delta_square", 0.0)) | endless).all():
        raise _overflow(function)


def _overflow(function: str) -> ValueError:
    return ValueError(f"{function}: logits overflow although the input is finite; scale it down")


def _fault(
    function: str, models: Sequence[OutputHead], suspects: Iterable[OutputHead], chosen: Choice
) -> ValueError | None:
    """Return the error of the first array that is not finite, or of the first row that can have no label."""
    possible = np.logical_or.reduce([model.possible for model in models])
    labels = np.flatnonzero(possible) if chosen.labels is None else chosen.labels[possible[chosen.labels]]
    rows = None if chosen.mask is None else np.flatnonzero(chosen.mask)
    for model in suspects:
        arrays = {f"w{model.number}": (model.w, labels)} if model.w is not None else {}
        for name, (array, kept) in {**arrays, f"h{model.number}": (model.h, rows)}.items():
            given = model.w is None
            found = _first(array, kept, lambda x, given=given: _unusable(x, labels if given else None))
            if found is not None:
                return gpu_arrays.nonfinite(function, name, found, int(array.shape[0]))
        if model.w is None:
            bias = np.zeros(model.labels) if model.b is None else model.b
            open_labels = labels[np.isfinite(bias[labels])]
            found = _first(model.h, rows, lambda x, kept=open_labels: _without_labels(x, kept))
            if found is not None:
                return ValueError(
                    f"{function}: row {found} of h{model.number} has no label that can be: all its logits are -inf"
                )
    return None


def _first(array: Array, rows: NDArray[np.int64] | None, wrong: Any) -> int | None:
    """Return the first of these rows of which something is true."""
    n, width = (int(length) for length in array.shape)
    numbers = np.arange(n) if rows is None else rows
    size = max(1, _VALUES // width)
    tensor = gpu_arrays.tensor(array)
    for start in range(0, len(numbers), size):
        some = numbers[start : start + size]
        bad = np.flatnonzero(wrong(tensor[some.tolist()] if rows is not None else tensor[start : start + size]))
        if len(bad):
            return int(some[bad[0]])
    return None


def _unusable(x: Any, labels: NDArray[np.int64] | None) -> NDArray[np.bool_]:
    """Return which rows are not finite; of logits given, those of some labels, where -inf may be."""
    if labels is None:
        return np.asarray((~x.isfinite().all(dim=1)).cpu())
    values = x[:, labels.tolist()]
    return np.asarray((~(values.isfinite() | values.isneginf()).all(dim=1)).cpu())


def _without_labels(x: Any, labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    return np.asarray(x[:, labels.tolist()].isneginf().all(dim=1).cpu())

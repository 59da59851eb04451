"""Kernel values of many layers over one batch of rows, which every pair of layers is compared by."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from .._base import arguments
from .._base.arrays import Array
from ..ops import backends

# how the backends name the layer that they refuse
_NON_FINITE = re.compile(r"gram_\w+: (?:layer )?(\d+) (has non-finite values in rows) (\d+)\.\.(\d+)")
_OVERFLOW = re.compile(r"of layer (\d+) overflow")


def gram_values(
    layers: Sequence[Array],
    others: Sequence[Array] | None = None,
    *,
    names: Sequence[str],
    first_row: int = 0,
    kernel: str = "linear",
    bandwidths: Sequence[float] | None = None,
    pivots: Sequence[Array] | None = None,
    nonfinite: str = "raise",
    backend: str = "auto",
) -> dict[str, Any]:
    """Return kernel values of checked layers as `reference.gram_sums.gram_values` defines them.

    Errors give the layers these names, and count rows from the given one.
    """
    chosen = backends.resolve_gram_values(backend)
    arrays = list(layers) + list(others or [])
    if chosen.backend == "reference":
        arrays = [arguments.to_numpy(a) for a in arrays]
    count = len(layers)
    try:
        # an overflow is judged on the result
        with np.errstate(over="ignore", invalid="ignore"):
            found = chosen.kernel(
                arrays[:count],
                None if others is None else arrays[count:],
                kernel=kernel,
                bandwidths=bandwidths,
                pivots=pivots,
                nonfinite=nonfinite,
            )
    except ValueError as error:
        raise _named(error, layers, names, first_row) from None
    overflown = [name for name, square in zip(names, found["squares"], strict=True) if not np.isfinite(square)]
    if overflown and nonfinite == "raise":
        raise overflow(overflown[0])
    return found


def overflow(name: str) -> ValueError:
    """Return the error of a layer whose rows are finite and whose kernel values are not."""
    return ValueError(f"layer {name}: kernel values overflow although the input is finite; scale the input")


def _named(error: ValueError, layers: Sequence[Array], names: Sequence[str], first_row: int) -> ValueError:
    text = str(error)
    found = _NON_FINITE.search(text)
    if found:
        index, what, first, last = int(found[1]), found[2], int(found[3]) + first_row, int(found[4]) + first_row
        plain = ValueError(f"layer {names[index]}: {what} {first}..{last}")
        return arguments.advise_on_nonfinite(plain, layers[index])
    found = _OVERFLOW.search(text)
    return overflow(names[int(found[1])]) if found else error

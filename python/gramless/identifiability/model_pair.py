"""The arguments that measures of two models share: hidden states, unembeddings, and which of their rows are meant."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._base import arguments
from .._base import arrays as base_arrays
from .._base.arrays import Array

Indices = NDArray[np.int64]


def model(function: str, h: Any, w: Any, suffix: str = "") -> dict[str, Array]:
    """Return hidden states and unembedding of a model by name, checked."""
    names = f"h{suffix}", f"w{suffix}"
    h, w = (arguments.rows(function, name, a) for name, a in zip(names, (h, w), strict=True))
    if h.shape[1] != w.shape[1]:
        raise ValueError(
            f"{function}: expected {names[0]} (N, d) and {names[1]} (V, d) with the same d, "
            f"got {names[0]} {tuple(h.shape)} and {names[1]} {tuple(w.shape)}"
        )
    return {names[0]: h, names[1]: w}


def pair(function: str, h1: Any, w1: Any, h2: Any, w2: Any) -> dict[str, Array]:
    """Return h1, w1, h2 and w2, checked: as many inputs and labels in both."""
    arrays = model(function, h1, w1, "1") | model(function, h2, w2, "2")
    arguments.same_rows(function, {name: arrays[name] for name in ("h1", "h2")})
    if arrays["w1"].shape[0] != arrays["w2"].shape[0]:
        raise ValueError(
            f"{function}: expected w1 and w2 with the same number of labels, got w1 {tuple(arrays['w1'].shape)} and "
            f"w2 {tuple(arrays['w2'].shape)}; pass the rows of labels that both have, in one order: w1[ids1], w2[ids2]"
        )
    return arrays


def same_size(function: str, arrays: dict[str, Array], why: str) -> int:
    """Return the hidden size of both models."""
    sizes = [int(arrays[name].shape[1]) for name in ("h1", "h2")]
    if sizes[0] != sizes[1]:
        raise ValueError(f"{function}: expected models of one hidden size, got d = {sizes[0]} and {sizes[1]}: {why}")
    return sizes[0]


def index(function: str, name: str, value: Any, count: int) -> int:
    """Return one index in 0..count-1."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{function}: expected {name} to be an int, got {type(value).__name__}")
    if not 0 <= value < count:
        raise ValueError(f"{function}: expected {name} in 0..{count - 1}, got {value}")
    return int(value)


def flag(function: str, name: str, value: Any) -> bool:
    """Return True or False."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{function}: expected {name} to be a bool, got {type(value).__name__}")
    return bool(value)


def indices(function: str, name: str, values: Any, count: int, least: int = 1) -> Indices:
    """Return distinct indices in 0..count-1, at least so many of them."""
    made = base_arrays.try_as_numpy(values)
    if made is None or made.ndim != 1 or made.dtype.kind not in "iu":
        found = type(values).__name__ if made is None else f"{made.dtype} {made.shape}"
        raise TypeError(f"{function}: expected {name} to be whole numbers of shape (m,), got {found}")
    if len(made) < least:
        raise ValueError(f"{function}: expected at least {least} {name}, got {len(made)}")
    outside = made[(made < 0) | (made >= count)]
    if len(outside):
        raise ValueError(f"{function}: expected {name} in 0..{count - 1}, got {int(outside[0])}")
    if len(np.unique(made)) != len(made):
        raise ValueError(f"{function}: expected each of {name} once")
    return made.astype(np.int64)


def several(numbers: Indices, most: int = 8) -> str:
    """Return numbers as text, the first of them if they are many."""
    return ", ".join(map(str, numbers[:most].tolist())) + (", .." if len(numbers) > most else "")

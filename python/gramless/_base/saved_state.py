"""Checks of saved states: flat dicts of plain arrays, read back one field at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from array_api_compat import array_namespace, is_array_api_obj

from .arrays import Array, try_as_numpy

# float64 counts rows exactly below this
MOST_ROWS = 2**53
# sums of several processes may be added in another order above the diagonal than below
_ASYMMETRY = 2.0**-40


def header(function: str, state: Any, expected: str) -> int:
    """Return the number of rows of a saved state of the expected format."""
    if not isinstance(state, Mapping):
        raise TypeError(f"{function}: expected a dict, got {type(state).__name__}")
    strange = [key for key in state if not isinstance(key, str)]
    if strange:
        raise TypeError(f"{function}: expected keys to be str, got {strange[0]!r}")
    found = as_text(state.get("format"))
    if found != expected:
        raise ValueError(f"{function}: expected a state of format {expected!r}, got format {found!r}")
    n = whole(function, state, "n", " of rows")
    if n >= MOST_ROWS:
        raise ValueError(f"{function}: expected 'n' below 2^53, got {n}")
    return n


def whole(function: str, state: Mapping[str, Any], key: str, what: str = "") -> int:
    """Return a whole number of a saved state, at least 0. It may be a 0-d array."""
    value: Any = state.get(key)
    number = value.item() if is_array_api_obj(value) and value.ndim == 0 else value
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise ValueError(f"{function}: expected {key!r} to be a whole number{what}, got {value!r}")
    return number


def text(function: str, state: Mapping[str, Any], key: str) -> str:
    """Return a text of a saved state."""
    if key not in state:
        raise ValueError(f"{function}: the state has no {key!r}")
    value = as_text(state[key])
    if value is None:
        raise TypeError(f"{function}: expected {key!r} to be a text, got {_kind(state, key)}")
    return value


def as_text(value: Any) -> str | None:
    """Return a text, also one that is a 0-d array or the bytes of its UTF-8 as uint8; None if it is none of these."""
    if isinstance(value, str):
        return value
    made = try_as_numpy(value)
    if made is not None and made.ndim == 0 and made.dtype.kind == "U":
        return str(made)
    if made is None or made.ndim != 1 or made.dtype != np.uint8:
        return None
    try:
        return made.tobytes().decode()
    except UnicodeDecodeError:
        return None


def width(function: str, state: Mapping[str, Any], key: str) -> int:
    """Return the length of a 1-d array of a saved state."""
    value: Any = state.get(key)
    if not is_array_api_obj(value) or value.ndim != 1 or value.shape[0] == 0:
        raise ValueError(f"{function}: expected {key!r} to be a 1-d array, got {_kind(state, key)}")
    return int(value.shape[0])


def array(
    function: str, state: Mapping[str, Any], key: str, shape: tuple[int, ...], *, infinite: bool = False
) -> Array:
    """Return a copy of a float64 array of a saved state. It is finite, except sums that may overflow."""
    value: Any = state.get(key)
    if isinstance(value, float):
        value = np.asarray(value)
    if not is_array_api_obj(value) or tuple(value.shape) != shape:
        raise ValueError(f"{function}: expected {key!r} to be an array of shape {shape}, got {_kind(state, key)}")
    if str(value.dtype).removeprefix("torch.") != "float64":
        raise TypeError(f"{function}: expected {key!r} to be float64, got {value.dtype}")
    xp = array_namespace(value)
    # third and fourth powers may overflow; the one estimator that reads them refuses by itself
    wrong = xp.isnan(value) if infinite else ~xp.isfinite(value)
    if not key.endswith(("cubes", "fourths")) and bool(xp.any(wrong)):
        raise ValueError(f"{function}: {key!r} has non-finite values")
    return xp.asarray(value, copy=True)


def squares(function: str, name: str, second: Array, norms: Array) -> None:
    """Refuse second moments and squared norms that no rows have."""
    if norms < 0:
        raise ValueError(f"{function}: expected '{name}.norms' of at least 0, got {float(norms)}")
    xp = array_namespace(second)
    if xp.max(xp.abs(second - second.T)) > _ASYMMETRY * xp.max(xp.abs(second)):
        raise ValueError(f"{function}: expected '{name}.second' to be symmetric")


def no_other_keys(function: str, state: Mapping[str, Any], expected: set[str]) -> None:
    """Refuse a key that this version does not know."""
    unknown = sorted(set(state) - expected)
    if unknown:
        raise ValueError(f"{function}: unknown keys {unknown}")


def _kind(state: Mapping[str, Any], key: str) -> str:
    if key not in state:
        return "nothing"
    value = state[key]
    return f"shape {tuple(value.shape)}" if is_array_api_obj(value) else type(value).__name__

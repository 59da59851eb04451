"""Every argument check and every error message that more than one place needs."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, TypeAlias

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray

# an array of any library that the array API knows
Array: TypeAlias = Any

FLOATS = ("float16", "bfloat16", "float32", "float64")
ESTIMATORS = ("unbiased", "biased", "feature_corrected")
# device codes of DLPack for memory that the host reads directly
_HOST_DEVICES = (1, 3)


def rows(function: str, name: str, x: Any, *, allow_empty: bool = False) -> Array:
    """Return a 2-d floating array on the host, NumPy or torch, without a copy."""
    if isinstance(x, np.ndarray):
        array = _numpy_rows(function, name, x)
    elif is_torch(x):
        array = _torch_rows(function, name, x)
    elif hasattr(x, "__dlpack__") and hasattr(x, "__dlpack_device__"):
        return rows(function, name, _from_dlpack(function, name, x), allow_empty=allow_empty)
    else:
        _refuse_kind(function, name, x)
    shape = tuple(int(length) for length in array.shape)
    if len(shape) != 2:
        raise ValueError(
            f"{function}: {name}: expected a 2-d array (rows, features), got shape {shape}, flatten or pool first"
        )
    if shape[1] == 0 or (shape[0] == 0 and not allow_empty):
        raise ValueError(f"{function}: expected {name} with at least one row and one feature, got shape {shape}")
    return array


def is_torch(x: Any) -> bool:
    """Return whether this is a torch tensor; torch is never imported for it."""
    torch = sys.modules.get("torch")
    tensor = getattr(torch, "Tensor", None)
    return tensor is not None and isinstance(x, tensor)


def _numpy_rows(function: str, name: str, x: NDArray[Any]) -> NDArray[Any]:
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{function}: {name} is a masked array; drop the masked rows and pass a plain array")
    _check_dtype(function, name, x.dtype.name, f"{name}.astype(np.float32)")
    if not x.dtype.isnative:
        raise TypeError(f"{function}: {name} has foreign byte order; use {name}.astype(np.{x.dtype.name})")
    return np.asarray(x)


def _torch_rows(function: str, name: str, x: Any) -> Any:
    if str(x.layout) != "torch.strided":
        raise TypeError(f"{function}: expected a dense tensor for {name}, got layout {x.layout}; use {name}.to_dense()")
    _check_dtype(function, name, str(x.dtype).removeprefix("torch."), f"{name}.float()")
    if x.device.type != "cpu":
        _refuse_device(function, name, str(x.device))
    return x.detach()


def _from_dlpack(function: str, name: str, x: Any) -> Array:
    kind, index = x.__dlpack_device__()
    if int(kind) not in _HOST_DEVICES:
        _refuse_device(function, name, f"DLPack type {int(kind)}, index {index}")
    torch = sys.modules.get("torch")
    try:
        return np.from_dlpack(x)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        # numpy has no bfloat16 of its own
        if torch is not None and hasattr(torch, "from_dlpack"):
            return torch.from_dlpack(x)
        raise TypeError(f"{function}: cannot read {name} ({type(x).__name__}) through DLPack: {error}") from error


def _refuse_kind(function: str, name: str, x: Any) -> NoReturn:
    advice = f"np.asarray({name}, dtype=np.float32)"
    if hasattr(x, "to_numpy"):
        advice = f"{name}.to_numpy()"
    elif hasattr(x, "toarray"):
        advice = f"{name}.toarray()"
    raise TypeError(
        f"{function}: expected {name} to be a NumPy array, a torch tensor or an array with DLPack, "
        f"got {type(x).__name__}; use {advice}"
    )


def _refuse_device(function: str, name: str, device: str) -> NoReturn:
    raise RuntimeError(
        f"{function}: {name} is on device {device} and this version has no GPU kernel; move it to host memory first"
    )


def _check_dtype(function: str, name: str, dtype: str, advice: str) -> None:
    if dtype not in FLOATS:
        known = ", ".join(FLOATS[:-1]) + f" or {FLOATS[-1]}"
        # a cast would drop what a complex or object array holds
        use = "" if dtype.startswith(("complex", "object", "void", "str")) else f"; use {advice}"
        raise TypeError(f"{function}: expected {name} of dtype {known}, got {dtype}{use}")


def same_rows(function: str, arrays: Mapping[str, Array]) -> int:
    """Return the common number of rows of named arrays."""
    (first, x), *others = arrays.items()
    for name, y in others:
        if y.shape[0] != x.shape[0]:
            raise ValueError(
                f"{function}: expected {first} and {name} with the same number of rows, "
                f"got {first} {tuple(x.shape)} and {name} {tuple(y.shape)}"
            )
    return int(x.shape[0])


def same_widths(function: str, earlier: Mapping[str, int], later: Mapping[str, int]) -> None:
    """Refuse other names or other numbers of features than before."""
    missing = [name for name in earlier if name not in later]
    unknown = [name for name in later if name not in earlier]
    common = [name for name in earlier if name in later]
    changed = [f"{name} {earlier[name]} to {later[name]}" for name in common if earlier[name] != later[name]]
    problems = {"missing": missing, "unknown": unknown, "changed number of features": changed}
    found = "; ".join(f"{problem}: {', '.join(names)}" for problem, names in problems.items() if names)
    if found:
        raise ValueError(f"{function}: expected the same arrays with the same features as before; {found}")


def layers(function: str, name: str, xs: Any) -> dict[str, Array]:
    """Return layers by name, each checked; rows may be none."""
    if isinstance(xs, Mapping):
        named = dict(xs)
    elif isinstance(xs, Sequence) and not isinstance(xs, str | bytes):
        named = {str(index): x for index, x in enumerate(xs)}
    else:
        raise TypeError(f"{function}: expected {name} to be a dict or a list of layers, got {type(xs).__name__}")
    if not named:
        raise ValueError(f"{function}: expected at least one layer in {name}, got none")
    for key in named:
        if not isinstance(key, str):
            raise TypeError(f"{function}: expected layer names of {name} to be str, got {key!r}")
    return {key: rows(function, f"{name}[{key!r}]", x, allow_empty=True) for key, x in named.items()}


def pivot(function: str, name: str, value: Any, x: Array | None) -> NDArray[np.float64] | None:
    """Return a pivot as float64 of shape (p,)."""
    if value is None:
        return None
    if x is None:
        raise ValueError(f"{function}: {name} given without its array")
    made = np.ascontiguousarray(value, dtype=np.float64)
    width = (int(x.shape[1]),)
    if made.shape != width:
        raise ValueError(f"{function}: expected {name} of shape {width}, got {made.shape}")
    if not np.all(np.isfinite(made)):
        raise ValueError(f"{function}: {name} has non-finite values")
    return made


def positive(function: str, name: str, value: Any) -> None:
    """Refuse all but a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{function}: expected {name} to be an int, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{function}: expected {name} of at least 1, got {value}")


def choice(function: str, name: str, value: Any, allowed: Sequence[str]) -> None:
    """Refuse all but a few words."""
    if value not in allowed:
        raise ValueError(f"{function}: expected {name} to be one of {', '.join(map(repr, allowed))}, got {value!r}")


def kernel(function: str, value: str, bandwidth: Any) -> None:
    """Refuse all but the kernel of this version, which has no bandwidth."""
    if value != "linear":
        raise ValueError(f"{function}: kernel {value!r} is not in this version, use kernel='linear'")
    if bandwidth is not None:
        raise ValueError(f"{function}: kernel='linear' has no bandwidth, got bandwidth={bandwidth!r}")


def enough_rows(function: str, estimator: str, n: int) -> None:
    """Refuse fewer rows than an estimator is defined for."""
    least = 2 if estimator == "biased" else 4
    if n < least:
        raise ValueError(f"{function}: estimator={estimator!r} needs at least {least} rows, got n = {n}")


def advise_on_nonfinite(error: ValueError, *arrays: Array) -> ValueError:
    """Return the error of a kernel, with the usual cause where float16 can be it."""
    overflow = any(str(x.dtype).endswith("float16") and "bfloat16" not in str(x.dtype) for x in arrays)
    if "non-finite" in str(error) and overflow:
        return ValueError(f"{error} (float16 holds at most 65504; keep such activations in bfloat16 or float32)")
    return error


def to_numpy(x: Array) -> NDArray[Any]:
    """Return a host array as NumPy, without a copy but for bfloat16 tensors, which become float32."""
    if not is_torch(x):
        return np.asarray(x)
    return np.asarray((x.float() if "bfloat16" in str(x.dtype) else x).numpy())


def fits(function: str, needed: int, available: int | None, source: str) -> None:
    """Refuse sums that do not fit into memory."""
    if available is not None and needed > available:
        raise MemoryError(
            f"{function}: mode='exact' needs {needed:,} bytes for the moments of these layers, {source} is "
            f"{available:,} bytes; mode='minibatch' is the way for such grids, or compare fewer layers"
        )


def state_header(function: str, state: Any, expected: str) -> int:
    """Return the number of rows of a saved state of the expected format."""
    if not isinstance(state, Mapping):
        raise TypeError(f"{function}: expected a dict, got {type(state).__name__}")
    found = str(state.get("format", "none"))
    if found != expected:
        raise ValueError(f"{function}: expected a state of format {expected!r}, got format {found!r}")
    n: Any = state.get("n")
    number = n.item() if hasattr(n, "item") and getattr(n, "ndim", None) == 0 else n
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise ValueError(f"{function}: expected 'n' to be a whole number of rows, got {n!r}")
    return number


def state_text(function: str, state: Mapping[str, Any], key: str) -> str:
    """Return a text of a saved state, which may have become a 0-d array on the way."""
    if key not in state:
        raise ValueError(f"{function}: the state has no {key!r}")
    value = state[key].item() if isinstance(state[key], np.ndarray) and state[key].ndim == 0 else state[key]
    if not isinstance(value, str):
        raise TypeError(f"{function}: expected {key!r} to be a text, got {type(value).__name__}")
    return value


def state_width(function: str, state: Mapping[str, Any], key: str) -> int:
    """Return the length of a 1-d array of a saved state."""
    shape = tuple(getattr(state.get(key), "shape", ()))
    if len(shape) != 1 or shape[0] == 0:
        raise ValueError(f"{function}: expected {key!r} to be a 1-d array, got {_kind(state, key)}")
    return int(shape[0])


def state_array(function: str, state: Mapping[str, Any], key: str, shape: tuple[int, ...]) -> Array:
    """Return a copy of a float64 array of a saved state."""
    value: Any = state.get(key)
    if isinstance(value, float):
        value = np.asarray(value)
    if not hasattr(value, "dtype") or tuple(value.shape) != shape:
        raise ValueError(f"{function}: expected {key!r} to be an array of shape {shape}, got {_kind(state, key)}")
    if str(value.dtype).removeprefix("torch.") != "float64":
        raise TypeError(f"{function}: expected {key!r} to be float64, got {value.dtype}")
    xp = array_namespace(value)
    # third and fourth powers may overflow; the one estimator that reads them refuses by itself
    if not key.endswith(("cubes", "fourths")) and not bool(xp.all(xp.isfinite(value))):
        raise ValueError(f"{function}: {key!r} has non-finite values")
    return xp.asarray(value, copy=True)


def no_other_keys(function: str, state: Mapping[str, Any], expected: set[str]) -> None:
    """Refuse a key that this version does not know."""
    unknown = sorted(set(state) - expected)
    if unknown:
        raise ValueError(f"{function}: unknown keys {unknown}")


def _kind(state: Mapping[str, Any], key: str) -> str:
    if key not in state:
        return "nothing"
    value = state[key]
    return f"shape {tuple(value.shape)}" if hasattr(value, "shape") else type(value).__name__

"""Checks of arguments, and the errors that they raise."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import Array as Array
from .arrays import gpu_of as gpu_of
from .arrays import is_torch as is_torch
from .arrays import rows as rows
from .arrays import to_numpy as to_numpy
from .arrays import try_as_numpy

ESTIMATORS = ("unbiased", "biased", "feature_corrected")
KERNELS = ("linear", "rbf", "laplacian", "polynomial", "cosine", "distance")
WITH_BANDWIDTH = ("rbf", "laplacian")
# rows that HSIC_1, the unbiased estimator, is defined for
LEAST_ROWS = 4
# a power is a product of factors, one after the other
MOST_DEGREE = 64


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


def same_device(function: str, arrays: Mapping[str, Array]) -> str:
    """Return the name of the GPU that holds all arrays, "" if the host does."""
    (first, x), *others = arrays.items()
    where = gpu_of(x)
    for name, y in others:
        if gpu_of(y) != where:
            found = f"{first} on {where or 'the host'} and {name} on {gpu_of(y) or 'the host'}"
            raise RuntimeError(f"{function}: expected {first} and {name} on the same device, got {found}")
    return where


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
    """Return layers by name, each checked, on the host or on a GPU; rows may be none."""
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
    return {key: rows(function, f"{name}[{key!r}]", x, allow_empty=True, on_gpu=True) for key, x in named.items()}


def pivot(function: str, name: str, value: Any, x: Array | None) -> Array | None:
    """Return a pivot as float64 of shape (p,); one on a GPU stays there, and is not looked at."""
    if value is None:
        return None
    if x is None:
        raise ValueError(f"{function}: {name} given without its array")
    width = int(x.shape[1])
    if gpu_of(value) and str(value.dtype) == "torch.float64" and tuple(value.shape) == (width,):
        return value
    return vector(function, name, value, width)


def sample(function: str, name: str, value: Any, x: Array | None) -> Array | None:
    """Return rows of an array that stand for all, beside it and of its dtype."""
    if value is None:
        return None
    if x is None:
        raise ValueError(f"{function}: {name} given without its array")
    made = rows(function, name, value, on_gpu=True)
    found, expected = ((int(a.shape[1]), str(a.dtype), gpu_of(a)) for a in (made, x))
    if found != expected:
        raise ValueError(
            f"{function}: expected {name} with the features, dtype and device {expected} of x, got {found}"
        )
    return made


def vector(function: str, name: str, value: Any, width: int) -> NDArray[np.float64]:
    """Return a copy of finite numbers as float64 of shape (width,)."""
    made = _numbers(function, name, value)
    if made.shape != (width,):
        raise ValueError(f"{function}: expected {name} of shape {(width,)}, got {made.shape}")
    if not np.isfinite(made).all():
        raise ValueError(f"{function}: {name} has non-finite values")
    return made


def _numbers(function: str, name: str, value: Any) -> NDArray[np.float64]:
    """Return a copy of real numbers as float64, whatever holds them."""
    made = try_as_numpy(value)
    if made is None or made.dtype.kind not in "fiu":
        found = type(value).__name__ if made is None else f"dtype {made.dtype}"
        raise TypeError(f"{function}: expected {name} to be an array of real numbers, got {found}")
    return np.array(made, dtype=np.float64)


def positive(function: str, name: str, value: Any) -> None:
    """Refuse all but a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{function}: expected {name} to be an int, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{function}: expected {name} of at least 1, got {value}")
    if value >= 2**63:
        raise ValueError(f"{function}: expected {name} below 2^63, got {value}")


def seed(function: str, value: Any) -> int:
    """Return a whole number of at least 0."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{function}: expected seed to be an int, got {type(value).__name__}")
    if value < 0:
        raise ValueError(f"{function}: expected seed of at least 0, got {value}")
    return int(value)


def finite(function: str, name: str, value: Any) -> float:
    """Return a finite number as a float."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{function}: expected {name} to be a number, got {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{function}: expected {name} to be finite, got {number}")
    return number


def above_zero(function: str, name: str, value: Any) -> float:
    """Return a finite number above 0 as a float."""
    if finite(function, name, value) <= 0:
        raise ValueError(f"{function}: expected {name} above 0, got {value!r}")
    return float(value)


def choice(function: str, name: str, value: Any, allowed: Sequence[str]) -> None:
    """Refuse all but a few words."""
    expected = f"{function}: expected {name} to be one of {', '.join(map(repr, allowed))}"
    if not isinstance(value, str):
        raise TypeError(f"{expected}, got {type(value).__name__}")
    if value not in allowed:
        raise ValueError(f"{expected}, got {value!r}")


def gram_kernel(function: str, kernel: str, estimator: str, bandwidth: Any, degree: Any, coef0: Any) -> None:
    """Refuse an unknown kernel, parameters that it does not have, and an estimator that is not defined for it."""
    choice(function, "kernel", kernel, KERNELS)
    if bandwidth is not None and kernel not in WITH_BANDWIDTH:
        raise ValueError(f"{function}: kernel={kernel!r} has no bandwidth, got bandwidth={bandwidth!r}")
    positive(function, "degree", degree)
    if degree > MOST_DEGREE:
        raise ValueError(f"{function}: expected degree of at most {MOST_DEGREE}, got {degree}")
    finite(function, "coef0", coef0)
    if estimator == "feature_corrected" and kernel != "linear":
        raise ValueError(f"{function}: estimator='feature_corrected' needs kernel='linear', got kernel={kernel!r}")


def bandwidths(function: str, name: str, value: Any, kernel: str) -> NDArray[np.float64] | None:
    """Return a copy of bandwidths as float64 of shape (s,), None for a kernel without."""
    if kernel not in WITH_BANDWIDTH:
        if value is not None:
            raise ValueError(f"{function}: kernel={kernel!r} has no bandwidth, got {name}={value!r}")
        return None
    if value is None:
        raise ValueError(f"{function}: kernel={kernel!r} needs {name}")
    made = np.atleast_1d(_numbers(function, name, value))
    if made.ndim != 1 or made.size == 0 or not (np.isfinite(made) & (made > 0)).all():
        raise ValueError(f"{function}: expected {name} above 0 and finite, of shape (s,), got {value!r}")
    return made


def block_pairs(function: str, pairs: Any, blocks: int) -> NDArray[np.int64]:
    """Return pairs of blocks as int64 of shape (m, 2), each once and in order."""
    made = try_as_numpy(pairs)
    if made is None or made.ndim != 2 or made.shape[1] != 2 or made.dtype.kind not in "iu":
        found = type(pairs).__name__ if made is None else f"{made.dtype} {made.shape}"
        raise ValueError(f"{function}: expected pairs to be whole numbers of shape (m, 2), got {found}")
    first, second = made[:, 0], made[:, 1]
    if (first < 0).any() or (first > second).any() or (second >= blocks).any():
        raise ValueError(f"{function}: expected pairs (i, j) of blocks with 0 <= i <= j < {blocks}")
    if len(np.unique(made, axis=0)) != len(made):
        raise ValueError(f"{function}: expected each pair of blocks once")
    return made.astype(np.int64)


def enough_rows(function: str, estimator: str, n: int) -> None:
    """Refuse fewer rows than an estimator is defined for."""
    least = 2 if estimator == "biased" else LEAST_ROWS
    if n < least:
        raise ValueError(f"{function}: estimator={estimator!r} needs at least {least} rows, got n = {n}")


class LayerError(ValueError):
    """An error of one of many layers, by its place among all."""

    def __init__(self, function: str, layer: int, reason: str) -> None:
        super().__init__(f"{function}: layer {layer}: {reason}")
        self.layer, self.reason = layer, reason


def advise_on_nonfinite(error: ValueError, *arrays: Array) -> ValueError:
    """Return the error of a kernel, with the usual cause where float16 can be it."""
    overflow = any(str(x.dtype).endswith("float16") and "bfloat16" not in str(x.dtype) for x in arrays)
    if "non-finite" in str(error) and overflow:
        return ValueError(f"{error} (float16 holds at most 65504; keep such activations in bfloat16 or float32)")
    return error


def nonfinite_row(function: str, arrays: Mapping[str, Array], rows: NDArray[np.int64]) -> ValueError | None:
    """Return an error that names the first row that is not finite, by its number among all; None if there is none."""
    for name, x in arrays.items():
        bad = np.flatnonzero(~np.isfinite(to_numpy(x).astype(np.float64)).all(axis=1))
        if len(bad):
            error = ValueError(f"{function}: {name} has non-finite values in row {int(rows[bad[0]])}")
            return advise_on_nonfinite(error, x)
    return None


def path_suffix(function: str, path: str | os.PathLike[str], allowed: Sequence[str]) -> str:
    """Return the suffix of the path of a file, one of a few, in lower case."""
    suffix = Path(path).suffix.lower()
    if suffix not in allowed:
        expected = " or ".join(allowed)
        raise ValueError(f"{function}: expected a path that ends in {expected}, got {os.fspath(path)!r}")
    return suffix


def fits(function: str, needed: int, available: int | None, source: str) -> None:
    """Refuse sums that do not fit into memory."""
    if available is not None and needed > available:
        raise MemoryError(
            f"{function}: this grid needs {needed:,} bytes for the moments of its layers, {source} is {available:,} "
            "bytes; average over batches, with LayerGrid(mode='minibatch') or cka_matrix(batch_size=...), or compare "
            "fewer layers"
        )

"""Call a kernel on checked arrays, on the host or on a GPU, and judge its results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .._base import arguments, gpu_arrays
from .._base.arrays import Array
from . import backends

GRAM_OVERFLOW = "gram_sums: sums of kernel values overflow; scale the data down"


def run_on_host(chosen: backends.Choice, arrays: Mapping[str, Array], **keywords: Any) -> dict[str, Any]:
    """Return the results of a kernel that reads host memory."""
    if chosen.backend == "reference":
        arrays = {name: arguments.to_numpy(a) for name, a in arrays.items()}
        given = {name: value for name, value in keywords.items() if name.startswith("sample_") and value is not None}
        keywords |= {name: arguments.to_numpy(value) for name, value in given.items()}
    try:
        # an overflow, and infinities that may propagate, are judged on the results
        with np.errstate(over="ignore", invalid="ignore"):
            return chosen.kernel(*arrays.values(), **keywords)
    except ValueError as error:
        raise arguments.advise_on_nonfinite(error, *arrays.values()) from None


def run_on_gpu(function: str, chosen: backends.Choice, arrays: Mapping[str, Array], **keywords: Any) -> dict[str, Any]:
    """Return the results of a kernel on a GPU, and what rows it finds fault with; it waits if that is to be refused."""
    tensors = {name: gpu_arrays.tensor(a) for name, a in arrays.items()}
    for name, x in tensors.items():
        if keywords.get(f"sample_{name}") is not None:
            keywords[f"sample_{name}"] = gpu_arrays.tensor(keywords[f"sample_{name}"])
        if f"pivot_{name}" in keywords:
            keywords[f"pivot_{name}"] = gpu_arrays.with_pivot(keywords[f"pivot_{name}"], x)
    flat = chosen.kernel(*tensors.values(), **keywords)
    if keywords["nonfinite"] == "raise":
        _refuse_faults(function, flat, arrays)
    return flat


def _refuse_faults(function: str, flat: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
    """Refuse what a kernel on a GPU finds fault with; this waits for the device."""
    n = int(next(iter(arrays.values())).shape[0])
    try:
        finite = gpu_arrays.judge(function, flat, n)
    except ValueError as error:
        raise arguments.advise_on_nonfinite(error, *arrays.values()) from None
    for key, is_finite in finite.items():
        if is_finite or key.startswith(("cubes", "fourths")):
            continue
        if function == "gram_sums":
            raise ValueError(GRAM_OVERFLOW)
        raise ValueError(f"{function}: {key} overflows although the input is finite; scale the input")

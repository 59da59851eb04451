"""How a kernel over logits is called on what was checked, on the host or on a GPU, and what its errors say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from .._base import arguments, gpu_arrays
from . import backends, logit_faults
from .logit_arguments import Choice, OutputHead


def run(
    function: str,
    kernel: backends.Choice,
    models: Sequence[OutputHead],
    chosen: Choice,
    given: Sequence[Any],
    **keywords: Any,
) -> dict[str, Any]:
    """Return the results of a kernel in host memory; its errors bear the name of the function."""
    inputs = [array for model in models for array in model.arrays(kernel.backend)]
    where = partial(_on_gpu, function, kernel, models, chosen) if kernel.backend == "cuda" else kernel.kernel
    call = partial(where, *inputs, *given, labels=chosen.labels, mask=chosen.mask, **keywords)
    try:
        return call()
    except ValueError as error:
        found = _blame_temperature(error, call, keywords["temperature"])
        raise arguments.advise_on_nonfinite(found, *(array for array in inputs if array is not None)) from None


def _on_gpu(
    function: str,
    kernel: backends.Choice,
    models: Sequence[OutputHead],
    chosen: Choice,
    *inputs: Any,
    nonfinite: str,
    **keywords: Any,
) -> dict[str, Any]:
    """Return the results of a kernel on a GPU in host memory, and refuse what it finds fault with."""
    tensors = [None if array is None else gpu_arrays.tensor(array) for array in inputs[: 2 * len(models)]]
    given = [gpu_arrays.with_pivot(array, gpu_arrays.tensor(models[0].h)) for array in inputs[2 * len(models) :]]
    flat = gpu_arrays.on_host(kernel.kernel(*tensors, *given, **keywords, nonfinite=nonfinite))
    if nonfinite == "raise":
        logit_faults.refuse(function, models, chosen, flat)
    return flat


def _blame_temperature(error: ValueError, call: Callable[..., Any], temperature: float) -> ValueError:
    """Return the error, with the temperature named if it alone makes logits overflow."""
    if temperature >= 1 or "logits overflow" not in str(error):
        return error
    try:
        call(temperature=1.0)
    except ValueError:
        return error
    return ValueError(str(error).replace("scale it down", f"raise temperature={temperature}, or scale it down"))


def without_targets(flat: dict[str, Any], chosen: Choice, keys: Sequence[str]) -> Mapping[str, Any]:
    """Return the result with NaN for rows that have no target."""
    if chosen.without_target is not None:
        for key in keys:
            flat[key][chosen.without_target] = np.nan
    return flat

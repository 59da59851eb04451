"""Arrays on a GPU and what its kernels leave there: brought in, and judged in one wait for the device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .arrays import Array, gpu_of, is_torch

if TYPE_CHECKING:
    import torch

# rows that an error names together
_NAMED_ROWS = 256


@dataclass(frozen=True)
class Unread:
    """What a kernel has left on a GPU about the rows it has seen, and nobody has waited for."""

    first_bad: Mapping[str, torch.Tensor]  # by array, the first row that is not finite; none below n if all are
    # pivots are numbers of float32: given to a kernel again, it keeps them to the bit
    rounded: bool

    @classmethod
    def of_layers(cls, layers: Mapping[str, Unread]) -> Unread:
        """Return what is known of several arrays x, by the names of their layers."""
        return cls({name: of.first_bad["x"] for name, of in layers.items()}, all(of.rounded for of in layers.values()))

    def followed_by(self, other: Unread, n: int) -> Unread:
        """Return what is known of these n rows and others after them."""
        first = {}
        for name, row in self.first_bad.items():
            later = other.first_bad[name] + n
            first[name] = row.where(row < n, later)
        return Unread(first, self.rounded)

    def refuse_faults(self, function: str, n: int) -> None:
        """Refuse rows that are not finite; this waits for the device."""
        judge(function, {f"bad_{name}": row for name, row in self.first_bad.items()}, n)


def is_asked_for(arrays: Mapping[str, Array], backend: str) -> bool:
    """Return whether checked arrays are for a kernel on a GPU."""
    return backend == "cuda" or any(map(gpu_of, arrays.values()))


def tensor(x: Array) -> torch.Tensor:
    """Return an array as a tensor where it lies; arrays in host memory are for Triton's interpreter."""
    import torch

    if is_torch(x):
        made: torch.Tensor = x
        return made
    # torch has no negative strides, and warns of arrays that it may not write to
    array = np.array(x) if min(x.strides) < 0 or not x.flags.writeable else np.asarray(x)
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def to_device(values: NDArray[Any], device: torch.device) -> torch.Tensor:
    """Return an array on a device without a wait for it: a copy out of memory that is not pinned would be one."""
    made = tensor(values)
    return made if device.type == "cpu" else made.pin_memory().to(device, non_blocking=True)


def with_pivot(pivot: Any, x: torch.Tensor) -> torch.Tensor | None:
    """Return a pivot on the device of an array; one that is there already is taken as it is, without a wait."""
    import torch

    if pivot is None:
        return None
    # as_tensor returns what is a tensor of that kind there already
    return torch.as_tensor(pivot, dtype=torch.float64, device=x.device)


def first_rows(flat: Mapping[str, Any], prefix: str = "bad_") -> dict[str, torch.Tensor]:
    """Return the first row of each array that a kernel has found fault with, on the device."""
    return {key.removeprefix(prefix): value for key, value in flat.items() if key.startswith(prefix)}


def judge(function: str, flat: Mapping[str, Any], n: int) -> dict[str, bool]:
    """Refuse rows that are not finite, or zero for cosines, and return whether each other result is finite.

    Raises
    ------
    ValueError
        Naming the array and its rows.
    """
    import torch

    bad, zero = first_rows(flat), first_rows(flat, "zero_")
    results = {
        key: value
        for key, value in flat.items()
        if isinstance(value, torch.Tensor) and not key.startswith(("bad_", "zero_"))
    }
    found = [*bad.values(), *zero.values(), *(torch.isfinite(value).all() for value in results.values())]
    # the one wait for the device
    told = torch.stack([value.to(torch.int64) for value in found]).tolist()
    rows, zeros, finite = told[: len(bad)], told[len(bad) : len(bad) + len(zero)], told[len(bad) + len(zero) :]
    for name, first in zip(bad, rows, strict=True):
        if first < n:
            raise nonfinite(function, name, first, n)
    for name, first in zip(zero, zeros, strict=True):
        if first < n:
            raise ValueError(f"{function}: row {first} of {name} is zero, and has no cosine")
    return {key: bool(value) for key, value in zip(results, finite, strict=True)}


def nonfinite(function: str, name: str, first: int, n: int) -> ValueError:
    """Return the error of an array whose first row that is not finite is this one."""
    start = first // _NAMED_ROWS * _NAMED_ROWS
    return ValueError(f"{function}: {name} has non-finite values in rows {start}..{min(start + _NAMED_ROWS, n) - 1}")


def on_host(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return all results in host memory, as NumPy."""
    return {key: value.cpu().numpy() if is_torch(value) else value for key, value in flat.items()}

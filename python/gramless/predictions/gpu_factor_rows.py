"""Hidden states on a GPU and the factor of two unembeddings there: squared distances, read at once or never."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .._base import arguments, gpu_arrays, saved_state
from .._base.arrays import Array, Float64
from ..ops import backends, logit_arguments

if TYPE_CHECKING:
    import torch

# relative error of a squared distance that is not worth a warning
RESOLVED = 1e-6


class Sums(NamedTuple):
    """What is known of the squared distances of rows of a stream."""

    n: int
    mean: float
    square: float  # sum of squares about the mean
    unresolved: int  # rows that rounding may change by more than is worth a warning
    worst: float  # the most that it may change one of them
    first_bad: dict[str, int]  # by array, the first row that is not finite

    @classmethod
    def of(cls, numbers: list[float]) -> Sums:
        """Return what the numbers of a kernel say."""
        n, mean, square, unresolved, worst, *first = numbers
        bad = {name: int(row) for name, row in zip(("h1", "h2"), first, strict=True) if row < saved_state.MOST_ROWS}
        return cls(int(n), mean, square, int(unresolved), worst, bad)


class _States(NamedTuple):
    """Checked hidden states on a GPU, or for Triton's interpreter in host memory."""

    module: Any  # the kernels
    arrays: Mapping[str, Array]
    h1: torch.Tensor
    h2: torch.Tensor
    mask: torch.Tensor | None

    @classmethod
    def of(cls, function: str, arrays: Mapping[str, Array], mask: Any, backend: str) -> _States:
        """Return hidden states with the rows that count; a mask on the GPU is not looked at."""
        where = arguments.same_device(function, arrays)
        module = backends.gpu_module(function, backend, where, "factor.rows")
        h1, h2 = (gpu_arrays.tensor(h) for h in arrays.values())
        return cls(module, arrays, h1, h2, _counted(function, arrays, mask, h1))


class HeldFactor:
    """A factor where it was made or used, on the host and on GPUs; copies and pickles have it on the host alone."""

    def __init__(self, matrix: Any, sizes: tuple[int, int, bool], rounding: float) -> None:
        self._sizes, self._rounding = sizes, rounding
        self.count = len(matrix)
        self._matrix: Float64 | None = None
        # by device, the matrix itself, or as products take it
        self._devices: dict[str, Any] = {}
        if arguments.is_torch(matrix):
            self._devices[str(matrix.device)] = matrix
        else:
            self._matrix = matrix

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_matrix": self.matrix(), "_devices": {}}

    def matrix(self) -> Float64:
        """Return the factor in host memory, where it is brought from a GPU once, which waits for that."""
        if self._matrix is None:
            held = next(iter(self._devices.values()))
            found = held if arguments.is_torch(held) else held.matrix()
            self._matrix = np.ascontiguousarray(found.cpu().numpy())
        self._matrix.flags.writeable = False
        return self._matrix

    def precisions(self, where: str) -> tuple[str, ...]:
        """Return those in which a device has it as products take it."""
        held = self._devices.get(where)
        return () if held is None or arguments.is_torch(held) else held.precisions

    def squares(
        self, function: str, arrays: Mapping[str, Array], mask: Any, precision: str, backend: str
    ) -> tuple[Float64, Float64]:
        """Return squared distances of the rows that count, and what rounding may do to them; this waits for the GPU.

        Raises
        ------
        ValueError
            Naming the first row that is not finite.
        """
        states = _States.of(function, arrays, mask, backend)
        found = self._beside(states).rows(states.h1, states.h2, states.mask, precision)
        squares, cancelled = _read(function, states, found)
        return squares, self._rounding * cancelled

    def add(
        self, before: Any, first: int, function: str, arrays: Mapping[str, Array], mask: Any, options: tuple[str, str]
    ) -> Any:
        """Return the numbers of `Sums` with more rows, numbered from the first, on the GPU and without a wait."""
        precision, backend = options
        states = _States.of(function, arrays, mask, backend)
        found = self._beside(states).rows(states.h1, states.h2, states.mask, precision, first)
        numbers = found.squares, found.cancelled, states.mask, found.first_bad
        return states.module.add_rows(before, *numbers, self._rounding, RESOLVED)

    def _beside(self, states: _States) -> Any:
        """Return the factor on the device of the states, which is copied there if it is not yet."""
        where = str(states.h1.device)
        found = self._devices.get(where)
        if not isinstance(found, states.module.DeviceFactor):
            on_device = gpu_arrays.tensor(self.matrix()).to(states.h1.device) if found is None else found
            found = self._devices[where] = states.module.DeviceFactor(on_device, *self._sizes)
        return found


def _counted(function: str, arrays: Mapping[str, Array], mask: Any, beside: torch.Tensor) -> torch.Tensor | None:
    """Return which rows count, on the device of a tensor, without a wait."""
    if mask is None:
        return None
    n = int(beside.shape[0])
    if not arguments.gpu_of(mask):
        return gpu_arrays.to_device(logit_arguments.row_mask(function, mask, n), beside.device)
    arguments.same_device(function, {"h1": arrays["h1"], "mask": mask})
    if str(mask.dtype) != "torch.bool":
        raise TypeError(
            f"{function}: expected mask to be an array of bool, True for rows that count, got dtype {mask.dtype}"
        )
    if tuple(mask.shape) != (n,):
        raise ValueError(f"{function}: expected mask of shape {(n,)}, one for each row, got {tuple(mask.shape)}")
    made: torch.Tensor = mask.detach().contiguous()
    return made


def _read(function: str, states: _States, found: Any) -> tuple[Float64, Float64]:
    """Return squared distances, and what cancels in them, of the rows that count; this waits for the device.

    Raises
    ------
    ValueError
        Naming the first row that is not finite.
    """
    import torch

    n = int(states.h1.shape[0])
    parts = [found.squares, found.cancelled, found.first_bad.double()]
    if states.mask is not None:
        parts.append(states.mask.double())
    told = torch.cat(parts).cpu().numpy()
    squares, cancelled, first_bad, counted = np.split(told, [n, 2 * n, 2 * n + 2])
    for (name, h), row in zip(states.arrays.items(), first_bad, strict=True):
        if row < n:
            raise arguments.advise_on_nonfinite(nonfinite(function, name, int(row)), h)
    if states.mask is not None:
        squares, cancelled = squares[counted != 0], cancelled[counted != 0]
    return squares, cancelled


def nonfinite(function: str, name: str, row: int) -> ValueError:
    """Return the error of an array whose first row that is not finite is this one."""
    return ValueError(f"{function}: {name} has non-finite values in row {row}")


def warn_of_cancellation(function: str, unresolved: int, n: int, worst: float, stacklevel: int) -> None:
    """Warn of rows that rounding may have changed."""
    digits = 0 if worst >= 1 else int(-np.log10(worst))
    warnings.warn(
        f"{function}: the logits of both models nearly cancel in {unresolved} of {n} rows; "
        f"{digits} digits of their distance are left in float64",
        RuntimeWarning,
        stacklevel=stacklevel,
    )

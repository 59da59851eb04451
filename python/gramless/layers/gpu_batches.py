"""HSIC of batches on a GPU: the table of `batches`, kept and changed where the layers are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from types import ModuleType

import numpy as np

from .._base import arguments
from .._base.arrays import Array
from .batch_moments import BatchTable
from .kernel_values import overflow
from .leftover_rows import Carry
from .names import sides, split
from .tiles import GridKernel

# n, batches, sums of w and of w^2 before the arrays; update, layer and row of the first one that is not finite behind
_COUNTERS, _RECORD = 4, 3


class DeviceBatches:
    """A table of moments of the HSIC of batches on one device, and rows too few for a batch, changed in place.

    Updates launch kernels and wait for nothing. What they find in the values of a batch is therefore told when the
    table is read: the first layer and row that is not finite, by the number of the batch since the last reset. In a
    CUDA graph an update adds on each replay what lies where its tensors lay. One update has to run before, so that the
    moments and the compiled kernels are there. Batches of fewer than 4 rows cannot be captured, nor can what follows
    them.

    Parameters
    ----------
    kernels : module
        `gramless._triton.layer_grid.grid`.
    function : str
        Which function errors name.
    widths : dict
        The number of features of each layer, by the names of both sides.
    kernel : GridKernel
        The kernel of all layers.
    by_rows : bool
        Whether batches count by their rows, or each the same.
    precision : {"fast", "high", "exact"}
        Of products of rows; float64 layers are always exact.
    like : tensor
        Any layer: it tells the device.
    max_bytes : int, optional
        The most bytes to take on the device.
    """

    def __init__(
        self,
        kernels: ModuleType,
        function: str,
        widths: Mapping[str, int],
        kernel: GridKernel,
        *,
        by_rows: bool,
        precision: str,
        like: Array,
        max_bytes: int | None = None,
    ) -> None:
        self.widths = dict(widths)
        # whether nothing has been added or loaded, so that other layers may follow
        self.untouched = True
        self._kernels = kernels
        self._kernel = kernel
        self._by_rows = by_rows
        names = tuple(self.widths)
        self._grid = kernels.Grid(
            function,
            list(self.widths.values()),
            split(names),
            like.device,
            kernel=kernel.name,
            bandwidth=kernel.bandwidth,
            scale=kernel.scale,
            precision=precision,
            max_bytes=max_bytes,
        )
        self._held: list[dict[str, Array]] = []
        self._held_rows = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the moments, and of rows that wait for others."""
        return int(self._grid.state.nbytes + sum(rows.nbytes for part in self._held for rows in part.values()))

    @property
    def n(self) -> int:
        """Number of rows so far, with those that wait for others; this waits for the device."""
        return round(float(self._grid.read()[0])) + self._held_rows

    def update(self, function: str, arrays: Mapping[str, Array]) -> None:
        """Add one batch of checked layers of the device by the names of both sides.

        Raises
        ------
        MemoryError
            If the workspace is more than max_bytes.
        RuntimeError
            If the layers are on another device than before, or a CUDA graph is captured where rows are too few for a
            batch or some of an earlier one wait.
        """
        ordered = {name: arrays[name] for name in self.widths}
        first = next(iter(ordered.values()))
        n = int(first.shape[0])
        if n == 0:
            return
        here, there = first.device, self._grid.state.device
        if here != there:
            raise RuntimeError(f"{function}: expected layers on {there}, as before, got some on {here}")
        if self._grid.capturing() and (self._held or n < arguments.LEAST_ROWS):
            raise RuntimeError(
                f"{function}: expected batches of at least {arguments.LEAST_ROWS} rows in a CUDA graph, and no rows "
                f"that wait for others, got {n} and {self._held_rows}"
            )
        self.untouched, total = False, self._held_rows + n
        if total < arguments.LEAST_ROWS:
            self._held.append({name: self._kernels.kept(rows) for name, rows in ordered.items()})
            self._held_rows = total
            return
        if self._held:
            ordered = {name: self._kernels.joined([*self._parts(name), rows]) for name, rows in ordered.items()}
        self._grid.update(function, list(ordered.values()), float(total) if self._by_rows else 1.0)
        self._held, self._held_rows = [], 0

    def table(self, function: str) -> BatchTable | None:
        """Return the table of all batches so far, None without one; this waits for the device.

        Raises
        ------
        ValueError
            If a layer of a batch was not finite. It stays so until `reset` or `load`.
        """
        vector = self._grid.read()
        update, layer, row = vector[-_RECORD:].astype(int).tolist()
        if update:
            raise self._refusal(function, update, layer, row)
        n, batches, weight, square = vector[:_COUNTERS].tolist()
        arrays = {key: vector[place].reshape(shape) for key, place, shape in self._layout()}
        names = tuple(self.widths)
        return BatchTable(names, round(n), round(batches), weight, square, arrays) if batches else None

    def carry(self, function: str) -> Carry:
        """Return rows that wait for others; this waits for the device."""
        if not self._held:
            return Carry()
        rows = {name: self._kernels.joined(self._parts(name)).cpu().numpy() for name in self.widths}
        return Carry().extended(function, rows)

    def load(self, table: BatchTable | None, carry: Carry) -> None:
        """Replace all batches and rows, in place."""
        vector = np.zeros(self._grid.state.numel())
        if table is not None:
            table = table.in_order(tuple(self.widths))
            vector[:_COUNTERS] = table.n, table.batches, table.weight, table.square
            for key, place, _ in self._layout():
                vector[place] = table.arrays[key].ravel()
        self._grid.write(vector)
        self.untouched = table is None and carry.n == 0
        self._held_rows = carry.n
        self._held = (
            [{name: self._kernels.placed(carry.rows[name], self._grid) for name in self.widths}] if carry.n else []
        )

    def reset(self) -> None:
        """Forget all batches and rows."""
        self._grid.state.zero_()
        self._held, self._held_rows, self.untouched = [], 0, True

    def _parts(self, name: str) -> list[Array]:
        return [part[name] for part in self._held]

    def _layout(self) -> Iterator[tuple[str, slice, tuple[int, ...]]]:
        """Yield the arrays of the state, where each lies in it, and its shape."""
        x, y = sides(tuple(self.widths))
        start = _COUNTERS
        for key, dims in self._kernels.KEYS.items():
            shape = (len(x), len(y)) if dims == 2 else (len(self.widths),)
            stop = start + math.prod(shape)
            yield key, slice(start, stop), shape
            start = stop

    def _refusal(self, function: str, batch: int, layer: int, row: int) -> ValueError:
        name = list(self.widths)[layer]
        if row < 0:
            return ValueError(f"{function}: batch {batch}: {overflow(name)}")
        error = ValueError(
            f"{function}: batch {batch}: layer {name}: has non-finite values, or values whose squares overflow, "
            f"in row {row}"
        )
        half = [np.empty(0, dtype=np.float16)] if layer in self._grid.half else []
        return arguments.advise_on_nonfinite(error, *half)

"""A grid of layers from batches, wholly on a GPU: moments that stay where they are, and how a batch is added to them.

An update is centres, products, values, row sums, products of values and moments: 6 launches, 8 with a bandwidth by
rule; more for layers of several dtypes, and where a batch goes by bands of rows. What is a batch's own, addresses,
strides and weight, is a table of whole numbers on the device, kept by its content; all else is that of its shape, and
listed once.
Cost: that of the launches. The state has 48 l1 l2 + 56 l bytes; the workspace, which stays for the next batch, 2 n^2 l
of products for each 1024 features and 2 n^2 l of values, twice as many in float64, by bands of rows 512 MiB or what one
takes; beside these a twentieth, 8 n l bytes, and up to 1 KB for each pair of layers.
Numerics: nothing is read back, and all is written in place: an update runs in a CUDA graph, for what lies where its
tensors lay.
Rejected: addresses as arguments: a grid of 64 layers has more of them than a launch.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..tiles import launch
from ..tiles.launch import cdiv
from .hsic_table import COUNTERS, OF_PAIRS, RECORD
from .hsic_table import KEYS as KEYS
from .kernel_values import COLUMNS, HEAD
from .launches import Fixed, Step, steps
from .plan import STEP, Group, Layers, Plan

# tables that are kept by their content, and those that graphs may capture
_TABLES, _CAPTURED = 64, 32
# bytes that tensors of one block of memory begin at, and that a load of rows takes at once
_ALIGNMENT, _LOAD = 256, 16
# processors of the interpreter: enough for two parts of everything
_INTERPRETED = 16

# address, strides and dtype of a layer
Place = tuple[int, tuple[int, ...], torch.dtype]
Entry = tuple[torch.Tensor, list[Step]]


class Grid:
    """Moments of the HSIC of batches of layers on one device; x before y, none of which means x against itself."""

    def __init__(
        self,
        function: str,
        widths: Sequence[int],
        count_x: int,
        device: torch.device,
        *,
        kernel: str,
        bandwidth: float | str | None,
        scale: float,
        precision: str,
        max_bytes: int | None = None,
    ) -> None:
        self._on_gpu = device.type == "cuda"
        if self.capturing():
            raise RuntimeError(f"{function}: expected an update before a CUDA graph is captured, got none")
        count = len(widths)
        self._max_bytes = max_bytes
        self._layers = Layers(
            widths=tuple(widths),
            count_x=count_x,
            kernel=kernel,
            rule=bandwidth if isinstance(bandwidth, str) else None,
            precision=precision,
            device=device,
            processors=launch.processors(device) if self._on_gpu else _INTERPRETED,
            # the rest is for what does not go by bands of rows
            workspace=min(launch.WORKSPACE_BYTES, (max_bytes or 2 * launch.WORKSPACE_BYTES) // 2),
        )
        width = 1.0 if bandwidth is None or isinstance(bandwidth, str) else bandwidth * scale
        pairs = OF_PAIRS * self._layers.pairs
        size = COUNTERS + pairs + (len(KEYS) - OF_PAIRS) * count + RECORD
        self._fixed = Fixed(
            state=torch.zeros(size, dtype=torch.float64, device=device),
            before=torch.zeros(COUNTERS + count, dtype=torch.float64, device=device),
            bandwidths=torch.full((count,), width, dtype=torch.float64, device=device),
            scale=torch.full((1,), scale, dtype=torch.float64, device=device),
            offsets=torch.zeros(count, dtype=torch.float64, device=device),
            lacking=torch.zeros(count, dtype=torch.float64, device=device),
        )
        # layers that have been float16, whose range is small
        self.half: set[int] = set()
        self._memory = torch.empty(0, dtype=torch.uint8, device=device)
        self._plans: dict[tuple[int, tuple[Group, ...]], list[Step]] = {}
        self._entries: OrderedDict[tuple[Any, ...], Entry] = OrderedDict()
        # what captured graphs go on reading, and memory of the host that they copy tables from
        self._kept: list[object] = []
        self._spare: list[torch.Tensor] = []
        if self._on_gpu:
            length = HEAD.value + count * COLUMNS.value
            self._spare = list(torch.empty((_CAPTURED, length), dtype=torch.int64, pin_memory=True))

    @property
    def state(self) -> torch.Tensor:
        """The moments, as `_batch_table` orders them; updates change it in place."""
        return self._fixed.state

    def capturing(self) -> bool:
        """Return whether launches are captured in a graph and not run."""
        return self._on_gpu and torch.cuda.is_current_stream_capturing()

    def update(self, function: str, layers: Sequence[torch.Tensor], weight: float) -> None:
        """Add a batch of layers (n, p), n >= 4, that lie on the device; nothing waits for it.

        Raises
        ------
        MemoryError
            If the workspace is more than max_bytes.
        RuntimeError
            If graphs have captured more updates than there are tables for.
        """
        n = int(layers[0].shape[0])
        places: list[Place] = [(x.data_ptr(), x.stride(), x.dtype) for x in layers]
        key = (n, weight, *places)
        capturing = self.capturing()
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entry(function, n, weight, places, capturing=capturing)
            # a table that is copied by a graph holds nothing before its replay
            if not capturing:
                self._entries[key] = entry
                if len(self._entries) > _TABLES:
                    self._entries.popitem(last=False)
        if capturing:
            self._kept.append(entry)
        table, launches = entry
        for kernel, grid, arguments, keywords, has_table in launches:
            if has_table:
                launch.launch(kernel, grid, table, *arguments, **keywords)
            else:
                launch.launch(kernel, grid, *arguments, **keywords)

    def read(self) -> NDArray[np.float64]:
        """Return a copy of the state in host memory; this waits for the device."""
        return np.array(self.state.cpu().numpy())

    def write(self, vector: NDArray[np.float64]) -> None:
        """Replace the state in place."""
        self.state.copy_(torch.from_numpy(vector))

    def _entry(self, function: str, n: int, weight: float, places: Sequence[Place], *, capturing: bool) -> Entry:
        """Return the table of a batch, and the launches of its shape."""
        widths = self._layers.widths
        kinds = [(place[2], _is_even(place, p)) for place, p in zip(places, widths, strict=True)]
        groups = tuple(
            Group(*kind, tuple(i for i, other in enumerate(kinds) if other == kind)) for kind in dict.fromkeys(kinds)
        )
        key = (n, groups)
        if key not in self._plans:
            self._plans[key] = self._launches(function, Plan(self._layers, n, groups))
            self.half.update(*(group.layers for group in groups if group.dtype == torch.float16))
        numbers = list(struct.unpack("q", struct.pack("d", weight)))
        for group in groups:
            for layer in group.layers:
                address, strides, _ = places[layer]
                numbers += [address, *strides, widths[layer], layer]
        return self._on_device(function, numbers, capturing=capturing), self._plans[key]

    def _launches(self, function: str, plan: Plan) -> list[Step]:
        """Return the launches of a plan, on a block of memory that all plans share."""
        needed = {key: (dtype, size * dtype.itemsize) for key, (dtype, size) in plan.memory().items()}
        total = sum(cdiv(size, _ALIGNMENT) * _ALIGNMENT for _, size in needed.values())
        if self._max_bytes is not None and total + self.state.nbytes > self._max_bytes:
            raise MemoryError(
                f"{function}: this grid needs {total + self.state.nbytes:,} bytes for batches of {plan.n} rows, "
                f"max_bytes is {self._max_bytes:,} bytes; compare fewer layers"
            )
        if total > self._memory.numel():
            # captured graphs hold the block before, with their launches
            self._plans.clear()
            self._entries.clear()
            self._memory = torch.empty(total, dtype=torch.uint8, device=self._layers.device)
        buffers, start = {}, 0
        for key, (dtype, size) in needed.items():
            buffers[key] = self._memory[start : start + size].view(dtype)
            start += cdiv(size, _ALIGNMENT) * _ALIGNMENT
        return steps(plan, self._fixed, buffers)

    def _on_device(self, function: str, numbers: list[int], *, capturing: bool) -> torch.Tensor:
        """Return whole numbers on the device, copied without a wait for it."""
        if not self._on_gpu:
            return torch.tensor(numbers, dtype=torch.int64)
        table = torch.empty(len(numbers), dtype=torch.int64, device=self._layers.device)
        if not capturing:
            # what allocates such memory does not hand it out again before the copy is done
            return table.copy_(torch.tensor(numbers, dtype=torch.int64, pin_memory=True), non_blocking=True)
        if not self._spare:
            raise RuntimeError(
                f"{function}: expected at most {_CAPTURED} updates in CUDA graphs, got another; use another LayerGrid"
            )
        source = self._spare.pop()
        source.copy_(torch.tensor(numbers, dtype=torch.int64))
        self._kept.append(source)
        return table.copy_(source, non_blocking=True)


def kept(rows: torch.Tensor) -> torch.Tensor:
    """Return a copy of rows, float64 or else float32."""
    return rows.to(rows.dtype if rows.dtype == torch.float64 else torch.float32, copy=True)


def placed(rows: NDArray[Any], grid: Grid) -> torch.Tensor:
    """Return rows of host memory where those of a grid lie."""
    return torch.tensor(rows, device=grid.state.device)


def joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return rows one after the other."""
    return torch.cat(list(parts))


def _is_even(place: Place, p: int) -> bool:
    """Return whether rows are whole steps that begin at multiples of 16 bytes."""
    address, (stride_n, stride_p), dtype = place
    return stride_p == 1 and p % STEP == 0 and address % _LOAD == 0 and stride_n * dtype.itemsize % _LOAD == 0

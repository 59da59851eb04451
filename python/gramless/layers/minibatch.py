"""A grid of layers from batches: HSIC of each batch, averaged, and standard errors from how the batches differ."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .._base import arguments, saved_state
from .._base.arrays import Array
from .._base.gpu_arrays import is_asked_for, tensor
from .._base.memory import available_bytes
from .._base.process_group import Agreement, gather
from ..accumulators.base import Accumulator
from ..ops.backends import resolve_grid
from ..states.moments import as_flat_arrays
from .batch_moments import BatchTable, decode, encode
from .gpu_batches import DeviceBatches
from .leftover_rows import Carry
from .names import matrix_of, widths_of
from .plan import check_estimator
from .similarity_matrix import SimilarityMatrix
from .tiles import BlockPlan, GridKernel, grid_sums, plan_blocks

FORMAT = "gramless.layer_grid.minibatch/1"
WEIGHTS = ("rows", "equal")


@dataclass(frozen=True)
class _State:
    """The batches so far, and rows too few for a batch. Replaced as a whole, so that no interruption halves it."""

    widths: dict[str, int]
    table: BatchTable | None = None
    carry: Carry = field(default_factory=Carry)

    @property
    def n(self) -> int:
        return (self.table.n if self.table else 0) + self.carry.n

    @property
    def nbytes(self) -> int:
        return self.carry.nbytes + (self.table.nbytes if self.table else 0)

    def with_batch(self, batch: BatchTable | None) -> _State:
        if batch is None:
            return self
        return replace(self, table=self.table.merge(batch) if self.table else batch.in_order(tuple(self.widths)))


class MinibatchGrid(Accumulator[_State]):
    """What `gramless.LayerGrid` does in mode="minibatch"."""

    def __init__(self, kernel: GridKernel, weights: str, max_bytes: int | None, precision: str, backend: str) -> None:
        self._kernel = kernel
        self._weights = weights
        self._max_bytes = max_bytes
        self._precision = precision
        self._backend = backend
        self._roomy = 0
        self._on_host: _State | None = None
        self._on_gpu: DeviceBatches | None = None

    @property
    def n(self) -> int:
        """Number of rows so far, with those that wait for the next batch."""
        return super().n if self._on_gpu is None else self._on_gpu.n

    @property
    def nbytes(self) -> int:
        """Bytes held by the sums, and by up to 3 rows that wait for the next batch."""
        return super().nbytes if self._on_gpu is None else self._on_gpu.nbytes

    @property
    def names(self) -> tuple[str, ...]:
        """Layers so far, by the names of both sides."""
        if self._on_gpu is not None:
            return () if self._on_gpu.untouched else tuple(self._on_gpu.widths)
        return tuple(self._on_host.widths) if self._on_host else ()

    def __getstate__(self) -> dict[str, Any]:
        # what lies on a GPU does not go elsewhere
        return super().__getstate__() | {"_on_host": self._state, "_on_gpu": None}

    # batches of tensors on a GPU are added there, and stay until somebody reads them

    @property
    def _state(self) -> _State | None:
        return self._read("LayerGrid")

    @_state.setter
    def _state(self, state: _State | None) -> None:
        if self._on_gpu is None:
            self._on_host = state
        elif state is None:
            self._on_gpu.reset()
        elif dict(state.widths) == dict(self._on_gpu.widths):
            self._on_gpu.load(state.table, state.carry)
        else:
            self._on_host, self._on_gpu = state, None

    def _read(self, function: str) -> _State | None:
        if self._on_gpu is None:
            return self._on_host
        state = _State(self._on_gpu.widths, self._on_gpu.table(function), self._on_gpu.carry(function))
        return state if state.n else None

    def _filled(self, function: str) -> _State:
        state = self._read(function)
        if state is None:
            raise ValueError(f"{function}: no rows yet, update first")
        return state

    def add(self, function: str, arrays: dict[str, Array]) -> None:
        """Add one batch of checked layers by the names of both sides."""
        n, widths = arguments.same_rows(function, arrays), widths_of(arrays)
        if self._on_gpu is not None and self._on_gpu.untouched and self._on_gpu.widths != widths:
            # no batch of the layers that its buffers are for
            self._on_gpu = None
        before = self._on_host if self._on_gpu is None else self._on_gpu
        if before is not None:
            arguments.same_widths(function, before.widths, widths)
        if n == 0:
            return
        if is_asked_for(arrays, self._backend):
            tensors = {name: tensor(x) for name, x in arrays.items()}
            self._there(function, tensors).update(function, tensors)
            return
        if self._on_gpu is not None:
            # rows of the host go on there
            self._on_host, self._on_gpu = self._read(function), None
        self._on_host = self._extended(function, self._on_host or _State(widths), arrays)

    def _there(self, function: str, tensors: dict[str, Array]) -> DeviceBatches:
        """Return the batches on the GPU of these layers, which go on from those of the host."""
        if self._on_gpu is None:
            where = arguments.same_device(function, tensors)
            state = self._on_host
            self._on_gpu = DeviceBatches(
                resolve_grid(function, self._backend, where),
                function,
                state.widths if state else widths_of(tensors),
                self._kernel,
                by_rows=self._weights == "rows",
                precision=self._precision,
                like=next(iter(tensors.values())),
                max_bytes=self._max_bytes,
            )
            if state is not None:
                self._on_gpu.load(state.table, state.carry)
        return self._on_gpu

    def result(self, function: str, estimator: str) -> SimilarityMatrix:
        """Return the averages so far, with errors in the name of a function."""
        check_estimator(function, estimator, self._kernel, of_batches=True)
        state = self._filled(function)
        if state.table is None:
            raise ValueError(f"{function}: expected at least {arguments.LEAST_ROWS} rows, got n = {state.n}")
        if state.carry.n:
            warnings.warn(
                f"{function}: the last {state.carry.n} rows are left out: a batch needs {arguments.LEAST_ROWS}",
                RuntimeWarning,
                stacklevel=3,
            )
        names, n, measure = state.table.names, state.table.n, self._kernel.measure
        values, errors = state.table.cka()
        problems = state.table.problems(self._kernel, estimator)
        return matrix_of(function, names, values, errors, problems, n=n, measure=measure, estimator=estimator)

    def state_dict(self) -> dict[str, Any]:
        """Return a flat dict of copied arrays."""
        state = self._read("LayerGrid.state_dict")
        if state is None:
            return as_flat_arrays({}, format=FORMAT, n=0)
        arrays = state.carry.to_dict() | (state.table.to_dict() if state.table else {})
        return as_flat_arrays(arrays, format=FORMAT, n=state.n, layout=self._layout(state))

    def _refuse_other(self, function: str, other: Any) -> None:
        super()._refuse_other(function, other)
        if other._settings != self._settings:
            raise ValueError(f"{function}: expected the same settings {self._settings}, got {other._settings}")

    def _layout(self, state: _State) -> str:
        return encode(state.widths, self._settings)

    def _reduced(self, function: str, agreed: Agreement, group: Any) -> _State:
        _, settings = decode(function, agreed.text)
        if settings == self._settings:
            return super()._reduced(function, agreed, group)
        # the others wait for it
        gather(self.state_dict(), group)
        raise ValueError(f"{function}: expected the same settings on every process, got {settings} elsewhere")

    @property
    def _host_backend(self) -> str:
        # of what is left of batches on a GPU, the few rows that several streams make together are in host memory
        return "auto" if self._backend == "cuda" else self._backend

    @property
    def _settings(self) -> dict[str, Any]:
        kernel = self._kernel
        return {
            "kernel": kernel.name,
            "bandwidth": kernel.bandwidth,
            "bandwidth_scale": kernel.scale,
            "weights": self._weights,
        }

    def _extended(self, function: str, state: _State, arrays: Mapping[str, Array]) -> _State:
        """Return the state with more rows, as a batch if they are enough."""
        arrays = {name: arrays[name] for name in state.widths}
        n = state.carry.n + next(iter(arrays.values())).shape[0]
        if n < arguments.LEAST_ROWS:
            return replace(state, carry=state.carry.extended(function, arrays))
        rows = state.carry.followed_by(arrays) if state.carry.n else arrays
        return replace(state.with_batch(self._batch(function, rows)), carry=Carry())

    def _joined(self, function: str, mine: _State, theirs: _State) -> _State:
        """Return the batches of both; rows that both were left with make a batch if they are enough."""
        arguments.same_widths(function, mine.widths, theirs.widths)
        joined = mine.with_batch(theirs.table)
        return self._extended(function, joined, theirs.carry.rows) if theirs.carry.n else joined

    def _batch(self, function: str, arrays: Mapping[str, Array]) -> BatchTable:
        names, layers = list(arrays), list(arrays.values())
        n = int(layers[0].shape[0])
        plan = self._plan(function, n, layers)
        try:
            sums = grid_sums(layers, self._kernel, names=names, block=plan.block, backend=self._host_backend)
        except ValueError as error:
            raise ValueError(f"{function}: {error}") from None
        return BatchTable.of(names, sums, weight=float(n) if self._weights == "rows" else 1.0)

    def _plan(self, function: str, n: int, layers: list[Array]) -> BlockPlan:
        limit = self._max_bytes
        plan = plan_blocks(n, layers, self._kernel, self._host_backend, limit)
        if limit is None and plan.needed > self._roomy:
            # what is free is asked for once, and again when a batch needs more than any before: half a millisecond
            limit = available_bytes()
            plan = plan_blocks(n, layers, self._kernel, self._host_backend, limit)
            self._roomy = plan.needed
        plan.refuse_beyond(function, limit, "available" if self._max_bytes is None else "max_bytes")
        return plan

    def _loaded(self, function: str, state: Mapping[str, Any]) -> _State | None:
        n = saved_state.header(function, state, FORMAT)
        if n == 0:
            return None
        widths, settings = decode(function, saved_state.text(function, state, "layout"))
        if settings != self._settings:
            raise ValueError(f"{function}: expected a state of settings {self._settings}, got {settings}")
        carry = Carry.from_dict(function, state, widths, arguments.LEAST_ROWS - 1)
        batched = n - carry.n
        table = BatchTable.from_dict(function, state, tuple(widths), batched) if "batches" in state else None
        if batched != (0 if table is None else table.weight if self._weights == "rows" else batched):
            raise ValueError(f"{function}: the state does not hold the rows that it counts")
        known = {"format", "n", "layout", *carry.to_dict(), *(table.to_dict() if table else {})}
        saved_state.no_other_keys(function, state, known)
        return _State(widths, table, carry)

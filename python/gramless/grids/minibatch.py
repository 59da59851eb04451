"""A grid of layers from batches: HSIC of each batch, averaged, and standard errors from how the batches differ."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import _checks
from .._checks import Array
from .._matrix import SimilarityMatrix
from .._memory import available_bytes
from .._states import saved
from ..accumulators import Accumulator, agree, gather
from .batches import BatchTable, decode, encode
from .carry import Carry
from .plan import check_estimator
from .sides import matrix_of, named_layers, widths_of
from .tiles import BlockPlan, GridKernel, grid_sums, plan_blocks

if TYPE_CHECKING:
    from typing import Self

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

    def with_batch(self, batch: BatchTable | None) -> _State:
        if batch is None:
            return self
        return replace(self, table=self.table.merge(batch) if self.table else batch.in_order(tuple(self.widths)))

    def flat(self) -> NDArray[np.float64]:
        table = self.table.flat() if self.table else np.zeros(BatchTable.flat_size(tuple(self.widths)))
        return np.concatenate([table, self.carry.flat()])

    @classmethod
    def from_flat(cls, widths: dict[str, int], vector: NDArray[np.float64]) -> _State:
        names = tuple(widths)
        size = BatchTable.flat_size(names)
        table = BatchTable.from_flat(names, vector[:size]) if vector[:size].any() else None
        return cls(widths, table, Carry.from_flat(widths, vector[size:]))


class MinibatchGrid(Accumulator):
    """What `gramless.LayerGrid` does in mode="minibatch"."""

    def __init__(self, title: str, kernel: GridKernel, weights: str, max_bytes: int | None, backend: str) -> None:
        self._title = title
        self._kernel = kernel
        self._weights = weights
        self._max_bytes = max_bytes
        self._backend = backend
        self._state: _State | None = None
        self._roomy = 0

    @property
    def n(self) -> int:
        """Number of rows so far, with those that wait for the next batch."""
        return self._state.n if self._state else 0

    @property
    def names(self) -> tuple[str, ...]:
        """Layers so far, by the names of both sides."""
        return tuple(self._state.widths) if self._state else ()

    @property
    def nbytes(self) -> int:
        """Bytes held by the sums, and by up to 3 rows that wait for the next batch."""
        state = self._state
        if state is None:
            return 0
        return state.carry.nbytes + (state.table.nbytes if state.table else 0)

    def update(self, xs: Any, ys: Any = None) -> Self:
        """Add one batch."""
        function = f"{self._title}.update"
        self.add(function, named_layers(function, xs, ys))
        return self

    def add(self, function: str, arrays: dict[str, Array]) -> None:
        """Add one batch of checked layers by the names of both sides."""
        n = _checks.same_rows(function, arrays)
        state = self._state or _State(widths_of(arrays))
        _checks.same_widths(function, state.widths, widths_of(arrays))
        if n > 0:
            self._state = self._extended(function, state, arrays)

    def merge(self, other: Self) -> Self:
        """Add all batches of another grid; rows that both were left with make a batch if they are enough."""
        function = f"{self._title}.merge"
        if other._settings != self._settings:
            raise ValueError(f"{function}: expected the same settings {self._settings}, got {other._settings}")
        mine, theirs = self._state, other._state
        if mine is not None and theirs is not None:
            _checks.same_widths(function, mine.widths, theirs.widths)
            self._state = self._joined(function, mine, theirs)
        else:
            self._state = mine or theirs
        return self

    def finalize(self, *, estimator: str = "unbiased") -> SimilarityMatrix:
        """Return the averages so far."""
        return self.result(f"{self._title}.finalize", estimator)

    def result(self, function: str, estimator: str) -> SimilarityMatrix:
        """Return the averages so far, with errors in the name of a function."""
        check_estimator(function, estimator, self._kernel, of_batches=True)
        state = self._state
        if state is None:
            raise ValueError(f"{function}: no rows yet, update first")
        if state.table is None:
            raise ValueError(f"{function}: expected at least {_checks.LEAST_ROWS} rows, got n = {state.n}")
        if state.carry.n:
            warnings.warn(
                f"{function}: the last {state.carry.n} rows are left out: a batch needs {_checks.LEAST_ROWS}",
                RuntimeWarning,
                stacklevel=3,
            )
        names, n, measure = state.table.names, state.table.n, self._kernel.measure
        values, errors = state.table.cka()
        problems = state.table.problems(self._kernel, estimator)
        return matrix_of(function, names, values, errors, problems, n=n, measure=measure, estimator=estimator)

    def reset(self) -> None:
        """Forget all batches."""
        self._state = None

    def state_dict(self) -> dict[str, Any]:
        """Return a flat dict of copied arrays."""
        state = self._state
        if state is None:
            return saved({}, format=FORMAT, n=0)
        arrays = state.carry.to_dict() | (state.table.to_dict() if state.table else {})
        return saved(arrays, format=FORMAT, n=state.n, layout=encode(state.widths, self._settings))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace all batches by those of a dict made by `state_dict`."""
        function = f"{self._title}.load_state_dict"
        self._state = self._loaded(function, state)

    def all_reduce(self, group: Any = None) -> Self:
        """Replace the batches of each process by those of all."""
        function = f"{self._title}.all_reduce"
        text = encode(self._state.widths, self._settings) if self._state else ""
        agreed = agree(function, self.n, text, group)
        if agreed is None:
            return self
        widths, settings = decode(function, agreed.text)
        everyone = _gathered((self._state or _State(widths)).flat(), group)
        if settings != self._settings:
            raise ValueError(f"{function}: expected the same settings on every process, got {settings} elsewhere")
        state = _State(widths)
        for vector in everyone:
            state = self._joined(function, state, _State.from_flat(widths, vector))
        self._state = state
        return self

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
        if n < _checks.LEAST_ROWS:
            return replace(state, carry=state.carry.extended(function, arrays))
        rows = state.carry.followed_by(arrays) if state.carry.n else arrays
        return replace(state.with_batch(self._batch(function, rows)), carry=Carry())

    def _joined(self, function: str, state: _State, other: _State) -> _State:
        joined = state.with_batch(other.table)
        return self._extended(function, joined, other.carry.rows) if other.carry.n else joined

    def _batch(self, function: str, arrays: Mapping[str, Array]) -> BatchTable:
        names, layers = list(arrays), list(arrays.values())
        n = int(layers[0].shape[0])
        plan = self._plan(function, n, layers)
        try:
            sums = grid_sums(layers, self._kernel, names=names, block=plan.block, backend=self._backend)
        except ValueError as error:
            raise ValueError(f"{function}: {error}") from None
        return BatchTable.of(names, sums, weight=float(n) if self._weights == "rows" else 1.0)

    def _plan(self, function: str, n: int, layers: list[Array]) -> BlockPlan:
        limit = self._max_bytes
        plan = plan_blocks(n, layers, self._kernel, self._backend, limit)
        if limit is None and plan.needed > self._roomy:
            # what is free is asked for once, and again when a batch needs more than any before: half a millisecond
            limit = available_bytes()
            plan = plan_blocks(n, layers, self._kernel, self._backend, limit)
            self._roomy = plan.needed
        plan.refuse_beyond(function, limit, "available" if self._max_bytes is None else "max_bytes")
        return plan

    def _loaded(self, function: str, state: Mapping[str, Any]) -> _State | None:
        n = _checks.state_header(function, state, FORMAT)
        if n == 0:
            return None
        widths, settings = decode(function, _checks.state_text(function, state, "layout"))
        if settings != self._settings:
            raise ValueError(f"{function}: expected a state of settings {self._settings}, got {settings}")
        carry = Carry.from_dict(function, state, widths, _checks.LEAST_ROWS - 1)
        batched = n - carry.n
        table = BatchTable.from_dict(function, state, tuple(widths), batched) if "batches" in state else None
        if batched != (0 if table is None else table.weight if self._weights == "rows" else batched):
            raise ValueError(f"{function}: the state does not hold the rows that it counts")
        known = {"format", "n", "layout", *carry.to_dict(), *(table.to_dict() if table else {})}
        _checks.no_other_keys(function, state, known)
        return _State(widths, table, carry)


def _gathered(vector: NDArray[np.float64], group: Any) -> list[NDArray[np.float64]]:
    """Return the vectors of all processes, whose lengths may differ."""
    lengths = [int(length) for (length,) in gather(np.array([float(len(vector))]), group)]
    padded = gather(np.pad(vector, (0, max(lengths) - len(vector))), group)
    return [found[:length] for found, length in zip(padded, lengths, strict=True)]

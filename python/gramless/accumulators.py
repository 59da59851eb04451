"""Accumulators: feed batches to a kernel and add up the states. Batches may come in any size and order."""

from __future__ import annotations

import functools
import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from . import _checks, ops
from ._checks import Array
from ._device import is_asked_for
from ._dispatch import PRECISIONS
from ._processes import Agreement, agree, gather
from ._states import FORMAT as PAIR_FORMAT
from ._states import MomentState, saved, sealed
from ._tables import PIVOT_ROWS, Layout, MomentTable

if TYPE_CHECKING:
    from typing import Self

StateT = TypeVar("StateT")
_MethodT = TypeVar("_MethodT", bound=Callable[..., Any])

# what replaces the sums; all else reads them once, as they are between two of these calls
_ONE_AT_A_TIME = ("update", "add", "merge", "reset", "load_state_dict", "all_reduce")


def _alone(method: _MethodT) -> _MethodT:
    """Return a method that waits until no other thread is in such a method of the same object."""

    @functools.wraps(method)
    def waiting(self: Any, *arguments: Any, **keywords: Any) -> Any:
        # made on first use, so that no constructor, copy or pickle has to know of it
        with vars(self).setdefault("_lock", threading.RLock()):
            return method(self, *arguments, **keywords)

    return cast("_MethodT", waiting)


class Accumulator(ABC, Generic[StateT]):
    """What all accumulators share: sums of the rows so far as one state, which merges, saves and goes to processes.

    A call that raises leaves the accumulator as it was. Neither rows nor the order or sizes of batches are kept.
    Threads may share an accumulator: no rows are lost. How it updates and finalizes is for each to say.
    """

    # None without rows; never changed, only replaced
    _state: StateT | None = None

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        for name in vars(cls).keys() & set(_ONE_AT_A_TIME):
            setattr(cls, name, _alone(vars(cls)[name]))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    @property
    def n(self) -> int:
        """Number of rows so far."""
        state: Any = self._state
        return 0 if state is None else state.n

    @property
    def nbytes(self) -> int:
        """Bytes held by the sums, and by rows that are kept or wait for others; weights are not counted."""
        state: Any = self._state
        return 0 if state is None else state.nbytes

    @_alone
    def reset(self) -> None:
        """Forget all rows."""
        self._state = None

    @_alone
    def merge(self, other: Self) -> Self:
        """Add all rows of another accumulator, which stays as it is. An empty one changes nothing.

        Raises
        ------
        TypeError
            If other is of another kind or mode.
        ValueError
            If the arrays, their numbers of features or labels, the weights or the options differ.
        """
        function = self._name("merge")
        self._refuse_other(function, other)
        theirs = other._state
        if theirs is not None:
            self._take(function, theirs)
        return self

    @abstractmethod
    def state_dict(self) -> dict[str, Array]:
        """Return a flat dict of copied arrays, which saves without pickle."""

    @_alone
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace all rows by those of a dict made by `state_dict`, which is copied.

        Raises
        ------
        TypeError, ValueError
            If the dict is not one of these, or one of another mode, other weights or options. The rows so far are kept.
        """
        self._state = self._loaded(self._name("load_state_dict"), state)

    @_alone
    def all_reduce(self, group: Any = None) -> Self:
        """Replace the rows of each process by those of all, with torch.distributed.

        Every process of the group calls it, once; calling it twice counts rows twice. Processes without rows take part.

        Raises
        ------
        RuntimeError
            If torch.distributed is not initialised, or this process is not in the group.
        ValueError
            If processes differ in what `merge` refuses: on all alike if those with rows do, else on those without.
        """
        function, state = self._name("all_reduce"), self._state
        agreed = agree(function, self.n, "" if state is None else self._layout(state), group)
        if agreed is not None:
            self._state = self._reduced(function, agreed, group)
        return self

    def _take(self, function: str, state: Any) -> None:
        """Add the rows of a state, also none."""
        before = self._state
        if before is not None:
            self._state = self._joined(function, before, state)
        elif state.n:
            self._state = state

    def _refuse_other(self, function: str, other: Any) -> None:
        """Refuse an accumulator of another kind, or of other weights or options."""
        if not isinstance(other, type(self)):
            raise TypeError(f"{function}: expected another {type(self).__name__}, got {type(other).__name__}")

    @abstractmethod
    def _joined(self, function: str, mine: StateT, theirs: StateT) -> StateT:
        """Return the rows of two states, neither of them changed."""

    @abstractmethod
    def _loaded(self, function: str, state: Mapping[str, Any]) -> StateT | None:
        """Return the state of a dict, copied and checked."""

    @abstractmethod
    def _layout(self, state: StateT) -> str:
        """Return what processes with rows have to agree on, as a text."""

    def _reduced(self, function: str, agreed: Agreement, group: Any) -> StateT:
        """Return the rows of all processes of a group, some of which have none: by default, what each would save."""
        found = [self._loaded(function, state) for state in gather(self.state_dict(), group) if int(state["n"])]
        return functools.reduce(functools.partial(self._joined, function), filter(None, found))

    def _name(self, method: str) -> str:
        return f"{type(self).__name__}.{method}"

    def _filled(self, function: str) -> StateT:
        state = self._state
        if state is None:
            raise ValueError(f"{function}: no rows yet, update first")
        return state


class MomentAccumulator(Accumulator[MomentTable]):
    """An accumulator whose state is a table of moments."""

    def __init__(self, precision: str, backend: str) -> None:
        self._precision = precision
        self._backend = backend

    def _filled(self, function: str) -> MomentTable:
        return super()._filled(function).settled(function)

    def _joined(self, function: str, mine: MomentTable, theirs: MomentTable) -> MomentTable:
        _checks.same_widths(function, mine.widths, theirs.widths)
        return mine.merge(theirs)

    def _layout(self, state: MomentTable) -> str:
        return state.layout.encode()

    def _reduced(self, function: str, agreed: Agreement, group: Any) -> MomentTable:
        """Send the pivots of the first process that has rows to all, then add the sums about these."""
        import torch
        import torch.distributed as dist

        # rows at fault are found by all processes in the sums
        table, layout = self._state, Layout.decode(function, agreed.text)
        pivots = list(table.pivots.values()) if table else []
        home = pivots[0].device if pivots and _checks.is_torch(pivots[0]) else None
        device = agreed.device

        def bring_home(tensor: Any) -> Array:
            return tensor.cpu().numpy() if home is None else tensor.to(home)

        pivot = torch.zeros(sum(layout.widths.values()), dtype=torch.float64, device=device)
        if dist.get_rank() == agreed.source:
            pivot = torch.cat([torch.as_tensor(p, device=device) for p in pivots])
        dist.broadcast(pivot, agreed.source, group=group)
        shared = layout.split_pivots(bring_home(pivot))
        if table:
            sums = table.translate(shared).flat(copy=False)
            packed = torch.cat([torch.as_tensor(sums[key], device=device).reshape(-1) for key in layout.slots()])
        else:
            packed = torch.zeros(sum(map(math.prod, layout.slots().values())), dtype=torch.float64, device=device)
        dist.all_reduce(packed, group=group)
        flat = layout.split_sums(bring_home(packed))
        flat |= {f"self.{i}.pivot": value for i, value in enumerate(shared.values())}
        return MomentTable.from_flat(function, layout, agreed.n, flat)


class Moments(MomentAccumulator):
    """Second moments of a stream of pairs of batches; finalizing gives the state that `gramless.moments` would.

    Parameters
    ----------
    precision : {"fast", "high", "exact"}
        As in `gramless.moments`, like backend.
    backend : {"auto", "reference", "cpu", "cuda"}
        A named backend never falls back to another.

    Notes
    -----
    It holds 8 (p^2 + q^2 + p q) bytes whatever the number of rows, and twice that while an update is under way.

    Sums of tensors on a GPU stay there, and `update` does not wait for it: rows that are not finite are told by what
    reads the sums, `finalize` or `state_dict`, and `reset` takes them away.
    `all_reduce` sends the pivots of the first process that has rows to all; then one float64 sum of 8 bytes per moment.

    Examples
    --------
    >>> import numpy as np
    >>> import gramless as gl
    >>> rng = np.random.default_rng(0)
    >>> x, y = rng.standard_normal((100, 4)), rng.standard_normal((100, 3))
    >>> stream = gl.Moments()
    >>> for start in range(0, 100, 30):
    ...     _ = stream.update(x[start : start + 30], y[start : start + 30])
    >>> stream
    Moments(n=100, p=4, q=3)
    >>> stream.finalize()
    MomentState(n=100, p=4, q=3)
    >>> bool(np.isclose(gl.cka(stream.finalize()), gl.cka(x, y)))
    True
    """

    def __init__(self, *, precision: str = "high", backend: str = "auto") -> None:
        _checks.choice("Moments", "precision", precision, PRECISIONS)
        super().__init__(precision, backend)

    def __repr__(self) -> str:
        table = self._state
        return f"Moments(n={table.n}, p={table.widths['x']}, q={table.widths['y']})" if table else "Moments(n=0)"

    def update(self, x: Array, y: Array) -> Self:
        """Add rows.

        Parameters
        ----------
        x, y : array of shape (n, p) and (n, q), float16, bfloat16, float32 or float64
            Any n, also none; p and q as in the first update.

        Raises
        ------
        TypeError, ValueError, RuntimeError
            As `gramless.moments`, and ValueError if p or q has changed. The rows so far are kept.
        """
        function = self._name("update")
        given = (("x", x), ("y", y))
        arrays = {name: _checks.rows(function, name, a, allow_empty=True, on_gpu=True) for name, a in given}
        n = _checks.same_rows(function, arrays)
        before = self._state
        if before is not None:
            _checks.same_widths(function, before.widths, {name: int(a.shape[1]) for name, a in arrays.items()})
        if n == 0:
            return self
        batch = self._batch(arrays, before.pivots_for(n) if before else {})
        if before is not None:
            batch = batch.about_kept(before).beside(before)
            batch = (before if before.n >= PIVOT_ROWS else before.translate(batch.pivots)).merge(batch)
        self._state = batch
        return self

    def _batch(self, arrays: Mapping[str, Array], pivots: Mapping[str, Array]) -> MomentTable:
        """Return the moments of checked rows."""
        if is_asked_for(arrays, self._backend):
            state, unread = ops.unread_moments(arrays, pivots, self._precision, self._backend)
            return replace(_pair_table(state), unread=unread)
        pivot_x, pivot_y = (pivots.get(name) for name in arrays)
        x, y = arrays["x"], arrays["y"]
        found: Any = ops.moments(x, y, pivot_x=pivot_x, pivot_y=pivot_y, backend=self._backend)
        return _pair_table(found)

    def finalize(self) -> MomentState:
        """Return the state of all rows so far, in arrays that are read-only; more rows may follow.

        Raises
        ------
        ValueError
            If there are no rows yet, or rows that came on a GPU are not finite.
        """
        table = self._filled(self._name("finalize"))
        return MomentState(sealed(table.selfs["x"]), sealed(table.selfs["y"]), sealed(table.crosses["x", "y"]))

    def state_dict(self) -> dict[str, Array]:
        """Return the flat dict of `MomentState.to_dict`, which says how to save it; without rows, format and n alone.

        Examples
        --------
        >>> import numpy as np
        >>> import gramless as gl
        >>> stream = gl.Moments().update(np.eye(5), np.eye(5)[:, :3])
        >>> np.savez("stream.npz", **stream.state_dict())
        >>> restored = gl.Moments()
        >>> with np.load("stream.npz") as arrays:
        ...     restored.load_state_dict(arrays)
        >>> restored
        Moments(n=5, p=5, q=3)
        """
        if self._state is None:
            return saved({}, format=PAIR_FORMAT, n=0)
        table = self._filled(self._name("state_dict"))
        return MomentState(table.selfs["x"], table.selfs["y"], table.crosses["x", "y"]).to_dict()

    def _loaded(self, function: str, state: Mapping[str, Any]) -> MomentTable | None:
        empty = _checks.state_header(function, state, PAIR_FORMAT) == 0
        return None if empty else _pair_table(MomentState.from_dict(state))


def _pair_table(state: MomentState) -> MomentTable:
    return MomentTable({"x": state.x, "y": state.y}, {("x", "y"): state.cross})

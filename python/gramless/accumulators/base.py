"""The base class of all accumulators: sums of batches that merge, save and reduce over processes."""

from __future__ import annotations

import functools
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from .._base.arrays import Array
from .._base.process_group import Agreement, agree_on_layout, gather
from ..states.layer_table import LayerTable
from ..states.moment_table import MomentTable

if TYPE_CHECKING:
    from typing import Self

StateT = TypeVar("StateT")
_MethodT = TypeVar("_MethodT", bound=Callable[..., Any])

# what replaces the sums; all else reads them once, as they are between two of these calls
_ONE_AT_A_TIME = ("update", "add", "merge", "reset", "load_state_dict", "all_reduce")


def synchronized(method: _MethodT) -> _MethodT:
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
            setattr(cls, name, synchronized(vars(cls)[name]))

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

    @synchronized
    def reset(self) -> None:
        """Forget all rows."""
        self._state = None

    @synchronized
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

    @synchronized
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace all rows by those of a dict made by `state_dict`, which is copied.

        Raises
        ------
        TypeError, ValueError
            If the dict is not one of these, or one of another mode, other weights or options. The rows so far are kept.
        """
        self._state = self._loaded(self._name("load_state_dict"), state)

    @synchronized
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
        agreed = agree_on_layout(function, self.n, "" if state is None else self._layout(state), group)
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


TableT = TypeVar("TableT", MomentTable, LayerTable)

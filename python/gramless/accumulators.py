"""Accumulators: feed batches to a kernel and add up the states. Batches may come in any size and order."""

from __future__ import annotations

import functools
import hashlib
import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import _checks, ops
from ._checks import Array
from ._states import FORMAT as PAIR_FORMAT
from ._states import MomentState, saved, sealed
from ._tables import Layout, MomentTable

if TYPE_CHECKING:
    from typing import Self

# as many rows as a kernel takes its pivot from
PIVOT_ROWS = 64
# what replaces the sums; all else reads them once, as they are between two of these calls
_ONE_AT_A_TIME = ("update", "merge", "reset", "load_state_dict", "all_reduce")


def _alone(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method that waits until no other thread is in such a method of the same object."""

    @functools.wraps(method)
    def waiting(self: Any, *arguments: Any, **keywords: Any) -> Any:
        # made on first use, so that no constructor, copy or pickle has to know of it
        with vars(self).setdefault("_lock", threading.RLock()):
            return method(self, *arguments, **keywords)

    return waiting


class Accumulator(ABC):
    """What every accumulator promises.

    A call that raises leaves the accumulator as it was. Neither rows nor the order or sizes of batches are kept.
    Threads may share an accumulator: no rows are lost.
    """

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        for name in _ONE_AT_A_TIME:
            if name in vars(cls):
                setattr(cls, name, _alone(vars(cls)[name]))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    @abstractmethod
    def update(self, x: Any, y: Any) -> Self:
        """Add rows; no rows change nothing."""

    @abstractmethod
    def merge(self, other: Self) -> Self:
        """Add all rows of another accumulator, which stays as it is. An empty one changes nothing."""

    @abstractmethod
    def finalize(self) -> Any:
        """Return the result for all rows so far; more rows may follow."""

    @abstractmethod
    def reset(self) -> None:
        """Forget all rows."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return a flat dict of copied arrays, which saves without pickle."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace all rows by those of a dict made by `state_dict`, which is copied."""

    @abstractmethod
    def all_reduce(self, group: Any = None) -> Self:
        """Replace the rows of each process by those of all, with torch.distributed. Call it once, on every process."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes held by the sums."""


class MomentAccumulator(Accumulator):
    """An accumulator whose state is a table of moments. Tables are never changed, only replaced."""

    def __init__(self, backend: str) -> None:
        self._backend = backend
        self._table: MomentTable | None = None

    @property
    def n(self) -> int:
        """Number of rows so far."""
        table = self._table
        return table.n if table else 0

    @property
    def nbytes(self) -> int:
        """Bytes held by the sums; they do not grow with the rows."""
        table = self._table
        return table.nbytes if table else 0

    def reset(self) -> None:
        """Forget all rows."""
        self._table = None

    def merge(self, other: Self) -> Self:
        """Add all rows of another accumulator, which stays as it is. An empty one changes nothing.

        Raises
        ------
        TypeError
            If other is of another kind.
        ValueError
            If the arrays or their numbers of features differ.
        """
        if not isinstance(other, type(self)):
            kinds = f"expected another {type(self).__name__}, got {type(other).__name__}"
            raise TypeError(f"{self._name('merge')}: {kinds}")
        mine, theirs = self._table, other._table
        if mine is not None and theirs is not None:
            _checks.same_widths(self._name("merge"), mine.widths, theirs.widths)
            self._table = mine.merge(theirs)
        else:
            self._table = mine or theirs
        return self

    def all_reduce(self, group: Any = None) -> Self:
        """Replace the rows of each process by those of all, with torch.distributed.

        Every process of the group calls it, once; calling it twice counts rows twice. Processes without rows take part.

        Raises
        ------
        RuntimeError
            If torch.distributed is not initialised, or this process is not in the group.
        ValueError
            On every process alike, if the arrays or their numbers of features differ between processes.

        Notes
        -----
        The pivots of the first process that has rows go to all; then one float64 sum of 8 bytes per moment.
        """
        import torch
        import torch.distributed as dist

        function = self._name("all_reduce")
        table = self._table
        agreed = agree(function, self.n, table.layout.encode() if table else "", group)
        if agreed is None:
            return self
        layout = Layout.decode(function, agreed.text)
        pivots = list(table.pivots.values()) if table else []
        home = pivots[0].device if pivots and _checks.is_torch(pivots[0]) else None
        device, source = agreed.device, agreed.source

        def bring_home(tensor: Any) -> Array:
            return tensor.cpu().numpy() if home is None else tensor.to(home)

        pivot = torch.zeros(sum(layout.widths.values()), dtype=torch.float64, device=device)
        if dist.get_rank() == source:
            pivot = torch.cat([torch.as_tensor(p, device=device) for p in pivots])
        dist.broadcast(pivot, source, group=group)
        shared = layout.split_pivots(bring_home(pivot))

        if table:
            sums = table.translate(shared).flat(copy=False)
            packed = torch.cat([torch.as_tensor(sums[key], device=device).reshape(-1) for key in layout.slots()])
        else:
            packed = torch.zeros(sum(map(math.prod, layout.slots().values())), dtype=torch.float64, device=device)
        dist.all_reduce(packed, group=group)
        flat = layout.split_sums(bring_home(packed))
        flat |= {f"self.{i}.pivot": value for i, value in enumerate(shared.values())}
        self._table = MomentTable.from_flat(function, layout, agreed.n, flat)
        return self

    def _name(self, method: str) -> str:
        return f"{type(self).__name__}.{method}"

    def _pivots_for(self, rows: int) -> dict[str, Array]:
        """Return the pivots for the next rows, none where the kernel shall choose.

        A pivot of few rows is far from the mean, which costs digits in float32. So until enough rows have been seen it
        follows them: the mean so far, or that of the new rows if these are more.
        """
        table = self._table
        if table is None or rows > table.n < PIVOT_ROWS:
            return {}
        return (
            table.pivots if table.n >= PIVOT_ROWS else {name: p.pivot + p.sum / p.n for name, p in table.selfs.items()}
        )

    def _filled(self, method: str) -> MomentTable:
        table = self._table
        if table is None:
            raise ValueError(f"{self._name(method)}: no rows yet, update first")
        return table


class Moments(MomentAccumulator):
    """Second moments of a stream of pairs of batches; finalizing gives the state that `gramless.moments` would.

    Parameters
    ----------
    backend : {"auto", "reference", "cpu"}
        As in `gramless.moments`.

    Notes
    -----
    It holds 8 (p^2 + q^2 + p q) bytes whatever the number of rows, and twice that while an update is under way.

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

    def __init__(self, *, backend: str = "auto") -> None:
        super().__init__(backend)

    def __repr__(self) -> str:
        table = self._table
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
        arrays = {name: _checks.rows(function, name, a, allow_empty=True) for name, a in (("x", x), ("y", y))}
        n = _checks.same_rows(function, arrays)
        before = self._table
        if before is not None:
            _checks.same_widths(function, before.widths, {name: int(a.shape[1]) for name, a in arrays.items()})
        if n == 0:
            return self
        pivots = {f"pivot_{name}": pivot for name, pivot in self._pivots_for(n).items()}
        batch = _pair_table(ops.moments(arrays["x"], arrays["y"], **pivots, backend=self._backend))
        if before is not None:
            batch = batch.beside(before)
            batch = (before if before.n >= PIVOT_ROWS else before.translate(batch.pivots)).merge(batch)
        self._table = batch
        return self

    def finalize(self) -> MomentState:
        """Return the state of all rows so far, in arrays that are read-only; more rows may follow.

        Raises
        ------
        ValueError
            If there are no rows yet.
        """
        table = self._filled("finalize")
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
        table = self._table
        if table is None:
            return saved({}, format=PAIR_FORMAT, n=0)
        return MomentState(table.selfs["x"], table.selfs["y"], table.crosses["x", "y"]).to_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace all rows by those of a dict made by `state_dict`, which is copied.

        Raises
        ------
        TypeError, ValueError
            If the dict is not one of these. The rows so far are kept.
        """
        function = self._name("load_state_dict")
        if _checks.state_header(function, state, PAIR_FORMAT) == 0:
            self._table = None
        else:
            self._table = _pair_table(MomentState.from_dict(state))


def _pair_table(state: MomentState) -> MomentTable:
    return MomentTable({"x": state.x, "y": state.y}, {("x", "y"): state.cross})


@dataclass(frozen=True)
class Agreement:
    """What the processes of a group hold together."""

    n: int
    text: str  # layout of the sums
    source: int  # the first process that has rows
    device: Any  # where tensors are exchanged


def agree(function: str, n: int, text: str, group: Any) -> Agreement | None:
    """Return the layout that all processes with rows share, and all their rows; None if there are no rows.

    Raises
    ------
    RuntimeError
        If torch.distributed is not initialised, or this process is not in the group.
    ValueError
        On every process alike, if the texts differ between processes.
    """
    import torch
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(f"{function}: torch.distributed is not initialised")
    rank = dist.get_rank(group)
    if rank < 0:
        raise RuntimeError(f"{function}: this process is not in the group")
    device, mine = _device(group), text.encode()
    digest = int.from_bytes(hashlib.sha256(mine).digest()[:7], "big")
    header = torch.tensor([n, len(mine), digest], dtype=torch.int64, device=device)
    gathered = [torch.empty_like(header) for _ in range(dist.get_world_size(group))]
    dist.all_gather(gathered, header, group=group)
    headers = torch.stack(gathered).tolist()
    filled = [r for r, (rows, _, _) in enumerate(headers) if rows]
    if not filled:
        return None
    first = filled[0]
    differing = [r for r in filled if headers[r][1:] != headers[first][1:]]
    if differing:
        raise ValueError(
            f"{function}: processes {differing} hold other arrays, order or numbers of features than {first}"
        )
    source = first if group is None else dist.get_global_rank(group, first)
    letters = torch.zeros(headers[first][1], dtype=torch.uint8, device=device)
    if rank == first:
        letters = torch.tensor(list(mine), dtype=torch.uint8, device=device)
    dist.broadcast(letters, source, group=group)
    return Agreement(sum(rows for rows, _, _ in headers), bytes(letters.tolist()).decode(), source, device)


def gather(vector: NDArray[np.float64], group: Any) -> list[NDArray[np.float64]]:
    """Return the vectors of all processes of a group, in their order."""
    import torch
    import torch.distributed as dist

    mine = torch.as_tensor(vector, device=_device(group))
    found = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(found, mine, group=group)
    return [tensor.cpu().numpy() for tensor in found]


def _device(group: Any) -> Any:
    """Return where the backend of a process group wants its tensors."""
    import torch
    import torch.distributed as dist

    on_gpu = dist.get_backend(group) == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")

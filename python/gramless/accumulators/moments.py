"""Second moments of a stream of batches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .. import ops
from .._base import arguments as base_arguments
from .._base import saved_state
from .._base.arrays import Array
from .._base.gpu_arrays import is_asked_for
from .._base.process_group import Agreement
from ..ops.backends import PRECISIONS
from ..states.moment_table import PIVOT_ROWS, Layout, MomentTable
from ..states.moments import FORMAT as PAIR_FORMAT
from ..states.moments import MomentState, as_flat_arrays, read_only
from .base import Accumulator, TableT

if TYPE_CHECKING:
    from typing import Self


class MomentAccumulator(Accumulator[TableT]):
    """An accumulator whose state is a table of moments."""

    # of the state and its layout
    _types: tuple[Any, Any]

    def __init__(self, precision: str, backend: str) -> None:
        self._precision = precision
        self._backend = backend

    def _filled(self, function: str) -> TableT:
        table: Any = super()._filled(function)
        settled: TableT = table.settled(function)
        return settled

    def _joined(self, function: str, mine: TableT, theirs: TableT) -> TableT:
        base_arguments.same_widths(function, mine.widths, theirs.widths)
        return mine.merge(theirs)

    def _layout(self, state: TableT) -> str:
        return state.layout.encode()

    def _reduced(self, function: str, agreed: Agreement, group: Any) -> TableT:
        """Send the pivots of the first process that has rows to all, then add the sums about these."""
        import torch
        import torch.distributed as dist

        # rows at fault are found by all processes in the sums
        tables, layouts = self._types
        table, layout = self._state, layouts.decode(function, agreed.text)
        pivots = list(table.pivots.values()) if table else []
        home = pivots[0].device if pivots and base_arguments.is_torch(pivots[0]) else None
        device = agreed.device

        def bring_home(tensor: Any) -> Array:
            return tensor.cpu().numpy() if home is None else tensor.to(home)

        pivot = torch.zeros(sum(layout.widths.values()), dtype=torch.float64, device=device)
        if dist.get_rank() == agreed.source:
            pivot = torch.cat([torch.as_tensor(p, device=device) for p in pivots])
        dist.broadcast(pivot, agreed.source, group=group)
        shared = bring_home(pivot)
        if table:
            sums = table.translate(layout.split_pivots(shared)).flat(copy=False)
            packed = torch.cat([torch.as_tensor(sums[key], device=device).reshape(-1) for key in layout.slots()])
        else:
            packed = torch.zeros(sum(map(math.prod, layout.slots().values())), dtype=torch.float64, device=device)
        dist.all_reduce(packed, group=group)
        flat = layout.split_sums(bring_home(packed)) | layout.keyed_pivots(shared)
        reduced: TableT = tables.from_flat(function, layout, agreed.n, flat)
        return reduced


class Moments(MomentAccumulator[MomentTable]):
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

    _types = MomentTable, Layout

    def __init__(self, *, precision: str = "high", backend: str = "auto") -> None:
        base_arguments.choice("Moments", "precision", precision, PRECISIONS)
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
        arrays = {name: base_arguments.rows(function, name, a, allow_empty=True, on_gpu=True) for name, a in given}
        n = base_arguments.same_rows(function, arrays)
        before = self._state
        if before is not None:
            base_arguments.same_widths(function, before.widths, {name: int(a.shape[1]) for name, a in arrays.items()})
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
        return MomentState(read_only(table.selfs["x"]), read_only(table.selfs["y"]), read_only(table.crosses["x", "y"]))

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
            return as_flat_arrays({}, format=PAIR_FORMAT, n=0)
        table = self._filled(self._name("state_dict"))
        return MomentState(table.selfs["x"], table.selfs["y"], table.crosses["x", "y"]).to_dict()

    def _loaded(self, function: str, state: Mapping[str, Any]) -> MomentTable | None:
        empty = saved_state.header(function, state, PAIR_FORMAT) == 0
        return None if empty else _pair_table(MomentState.from_dict(state))


def _pair_table(state: MomentState) -> MomentTable:
    return MomentTable({"x": state.x, "y": state.y}, {("x", "y"): state.cross})

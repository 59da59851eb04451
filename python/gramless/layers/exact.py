"""The exact grid of layers: the moments of all layers and of every pair, added up batch by batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import ops
from .._base import arguments, saved_state
from .._base.arrays import Array
from .._base.gpu_arrays import Unread, is_asked_for
from .._base.memory import available_bytes
from .._base.progress import progress_bar
from ..accumulators.moments import MomentAccumulator
from ..measures import hsic_from_moments as _measures
from ..states.layer_table import LayerLayout, LayerTable
from ..states.moments import as_flat_arrays
from . import plan
from .names import matrix_of, split, widths_of
from .similarity_matrix import SimilarityMatrix

FORMAT = "gramless.layer_grid/2"


class ExactGrid(MomentAccumulator[LayerTable]):
    """What `gramless.LayerGrid` does in mode="exact"."""

    _types = LayerTable, LayerLayout

    def __init__(self, max_bytes: int | None, precision: str, backend: str, *, progress: bool) -> None:
        super().__init__(precision, backend)
        self._max_bytes = max_bytes
        self._progress = progress

    @property
    def names(self) -> tuple[str, ...]:
        """Layers so far, by the names of both sides."""
        return self._state.names if self._state else ()

    def state_dict(self) -> dict[str, Any]:
        """Return a flat dict of copied arrays, which saves without pickle."""
        if self._state is None:
            return as_flat_arrays({}, format=FORMAT, n=0)
        return self._filled(self._name("state_dict")).to_dict(FORMAT)

    def _loaded(self, function: str, state: Mapping[str, Any]) -> LayerTable | None:
        empty = saved_state.header(function, state, FORMAT) == 0
        return None if empty else LayerTable.from_dict(function, state, FORMAT)

    def add(self, function: str, arrays: dict[str, Array]) -> None:
        """Add the rows of one batch of checked layers by the names of both sides."""
        n = arguments.same_rows(function, arrays)
        widths = widths_of(arrays)
        before = self._state
        if before is not None:
            arguments.same_widths(function, before.widths, widths)
            arrays = {name: arrays[name] for name in before.names}
        if n == 0:
            return
        if before is None:
            self._check_memory(function, widths, arguments.same_device(function, arrays))
        pivots = before.pivots_for(n) if before else {}
        # the kernel takes all layers at once
        for layers in progress_bar([arrays], "pairs of layers", shown=self._progress):
            batch = self._batch(function, layers, pivots)
        if before is not None:
            batch = batch.about_kept(before).beside(before).added_to(before)
        self._state = batch

    def result(self, function: str, estimator: str) -> SimilarityMatrix:
        """Return CKA of all pairs for all rows so far, with errors in the name of a function."""
        arguments.choice(function, "estimator", estimator, arguments.ESTIMATORS)
        table = self._filled(function)
        arguments.enough_rows(function, estimator, table.n)
        values, found = _measures.layer_cka(table.sums, estimator)
        names = table.names
        problems = {names[place]: problem for place, problem in found.items()}
        return matrix_of(function, names, values, None, problems, n=table.n, measure="cka", estimator=estimator)

    def _batch(self, function: str, arrays: Mapping[str, Array], pivots: Mapping[str, Array]) -> LayerTable:
        """Return the moments of the rows of one batch, about these pivots if there are any."""
        names, layers, cut = tuple(arrays), list(arrays.values()), split(list(arrays))
        about = [pivots[name] for name in names] if pivots else None
        try:
            if is_asked_for(arrays, self._backend):
                given = about or [None] * len(names)
                sums, bad = ops.unread_layer_moments(layers, cut, given, self._precision, self._backend)
                rounded = all("float64" not in str(x.dtype) for x in layers)
                return LayerTable(names, sums, Unread(dict(zip(names, bad, strict=True)), rounded))
            sums = ops.layer_moments(
                layers[:cut],
                layers[cut:] or None,
                pivots_x=about and about[:cut],
                pivots_y=(about and about[cut:]) or None,
                backend=self._backend,
            )
        except arguments.LayerError as error:
            raise ValueError(f"{function}: layer {names[error.layer]}: {error.reason}") from None
        return LayerTable(names, sums)

    def _check_memory(self, function: str, widths: dict[str, int], where: str) -> None:
        of_x = [width for name, width in widths.items() if name.startswith("x/")]
        of_y = [width for name, width in widths.items() if name.startswith("y/")]
        needed = plan.grid_bytes(of_x, of_y or None)
        most, source = self._max_bytes, "max_bytes"
        if most is None:
            most, source = available_bytes(where), "available"
        arguments.fits(function, needed, most, source)

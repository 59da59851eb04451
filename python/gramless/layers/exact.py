"""The exact grid of layers: the cross moments of every pair, added up batch by batch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .. import ops
from .._base import arguments, saved_state
from .._base.arrays import Array
from .._base.gpu_arrays import Unread, is_asked_for
from .._base.memory import available_bytes
from .._base.progress import progress_bar
from ..accumulators.moments import MomentAccumulator
from ..measures import hsic_from_moments as _measures
from ..states.moment_table import PIVOT_ROWS, MomentTable
from ..states.moments import CrossMoments, SelfMoments, add_into, as_flat_arrays, to_device_of
from . import plan
from .names import are_sides, matrix_of, sides, widths_of
from .similarity_matrix import SimilarityMatrix

FORMAT = "gramless.layer_grid/1"


class ExactGrid(MomentAccumulator):
    """What `gramless.LayerGrid` does in mode="exact"."""

    def __init__(self, max_bytes: int | None, precision: str, backend: str, *, progress: bool) -> None:
        super().__init__(precision, backend)
        self._max_bytes = max_bytes
        self._progress = progress

    @property
    def names(self) -> tuple[str, ...]:
        """Layers so far, by the names of both sides."""
        return tuple(self._state.widths) if self._state else ()

    def state_dict(self) -> dict[str, Any]:
        """Return a flat dict of copied arrays, which saves without pickle."""
        if self._state is None:
            return as_flat_arrays({}, format=FORMAT, n=0)
        return self._filled(self._name("state_dict")).to_dict(FORMAT)

    def _loaded(self, function: str, state: Mapping[str, Any]) -> MomentTable | None:
        if saved_state.header(function, state, FORMAT) == 0:
            return None
        table = MomentTable.from_dict(function, state, FORMAT)
        if not are_sides(list(table.selfs)) or set(table.crosses) != set(_pairs(list(table.selfs))):
            raise ValueError(f"{function}: the layout of the state is not that of a layer grid")
        return table

    def add(self, function: str, arrays: dict[str, Array]) -> None:
        """Add the rows of one batch of checked layers by the names of both sides."""
        n = arguments.same_rows(function, arrays)
        widths = widths_of(arrays)
        before = self._state
        if before is not None:
            arguments.same_widths(function, before.widths, widths)
            arrays = {name: arrays[name] for name in before.widths}
        if n == 0:
            return
        if before is None:
            self._check_memory(function, widths, arguments.same_device(function, arrays))
        fresh = self._self_terms(function, arrays, before.pivots_for(n) if before else {})
        selfs = dict((fresh.about_kept(before) if before else fresh).selfs)
        about = {name: part.pivot for name, part in selfs.items()}
        if before is not None:
            selfs = {name: to_device_of(part, before.selfs[name]) for name, part in selfs.items()}
            # the pivots follow the rows until enough have been seen
            target = {name: part.pivot for name, part in (before.selfs if before.n >= PIVOT_ROWS else selfs).items()}
        crosses = {}
        for a, b in progress_bar(_pairs(list(arrays)), "pairs of layers", shown=self._progress):
            cross = self._cross_terms(arrays[a], arrays[b], about[a], about[b])
            # added at once and in place: a table of this batch alone would cost as much as the sums
            if before is not None:
                old = before.crosses[a, b].translate(before.selfs[a], before.selfs[b], target[a], target[b])
                new = to_device_of(cross, selfs[a]).translate(selfs[a], selfs[b], target[a], target[b])
                cross = add_into(new, old)
            crosses[a, b] = cross
        if before is not None:
            for name, part in before.selfs.items():
                selfs[name] = add_into(selfs[name].about(target[name]), part.about(target[name]))
        self._state = MomentTable(selfs, crosses, before.unread_with(fresh) if before else fresh.unread)

    def result(self, function: str, estimator: str) -> SimilarityMatrix:
        """Return CKA of all pairs for all rows so far, with errors in the name of a function."""
        arguments.choice(function, "estimator", estimator, arguments.ESTIMATORS)
        table = self._filled(function)
        arguments.enough_rows(function, estimator, table.n)
        centred = {name: part.centred() for name, part in table.selfs.items()}
        roots: dict[str, float] = {}
        problems: dict[str, str] = {}
        for name, part in table.selfs.items():
            value, problem = _measures.self_hsic(centred[name], estimator)
            if _measures.is_constant(part):
                problem = "is constant"
            if problem:
                problems[name] = problem
            else:
                roots[name] = math.sqrt(value)
        names = list(table.selfs)
        x, y = ({names[k]: i for i, k in enumerate(side)} for side in sides(names))
        values = np.full((len(x), len(y)), np.nan)
        if x == y:
            np.fill_diagonal(values, 1.0)
        for (a, b), cross in table.crosses.items():
            if a in roots and b in roots:
                about_means = cross.centred(table.selfs[a], table.selfs[b])
                with np.errstate(over="ignore", invalid="ignore"):
                    hsic = _measures.cross_hsic(centred[a], centred[b], about_means, estimator)
                values[x[a], y[b]] = hsic / roots[a] / roots[b]
                if x == y:
                    values[x[b], y[a]] = values[x[a], y[b]]
        return matrix_of(function, names, values, None, problems, n=table.n, measure="cka", estimator=estimator)

    def _self_terms(self, function: str, arrays: Mapping[str, Array], pivots: Mapping[str, Array]) -> MomentTable:
        """Return the moments of each layer with itself."""
        found = {name: self._self_term(function, name, x, pivots.get(name)) for name, x in arrays.items()}
        unread = {name: of for name, (_, of) in found.items() if of is not None}
        selfs = {name: part for name, (part, _) in found.items()}
        return MomentTable(selfs, {}, Unread.of_layers(unread) if unread else None)

    def _self_term(self, function: str, name: str, x: Array, pivot: Array | None) -> tuple[SelfMoments, Unread | None]:
        try:
            if is_asked_for({"x": x}, self._backend):
                return ops.unread_moments({"x": x}, {"x": pivot}, self._precision, self._backend)
            return ops.moments(x, pivot_x=pivot, backend=self._backend), None
        except ValueError as error:
            raise ValueError(f"{function}: layer {name}: {error}") from None

    def _cross_terms(self, x: Array, y: Array, pivot_x: Array, pivot_y: Array) -> CrossMoments:
        # by Cauchy-Schwarz these sums are finite if the self terms are, which have been checked
        return ops.moments(
            x,
            y,
            pivot_x=pivot_x,
            pivot_y=pivot_y,
            self_terms=False,
            nonfinite="propagate",
            precision=self._precision,
            backend=self._backend,
        )

    def _check_memory(self, function: str, widths: dict[str, int], where: str) -> None:
        of_x = [width for name, width in widths.items() if name.startswith("x/")]
        of_y = [width for name, width in widths.items() if name.startswith("y/")]
        needed = plan.grid_bytes(of_x, of_y or None)
        most, source = self._max_bytes, "max_bytes"
        if most is None:
            most, source = available_bytes(where), "available"
        arguments.fits(function, needed, most, source)


def _pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """Return all layers of x with all of y, or each pair of layers of x once."""
    x, y = sides(names)
    return [(names[a], names[b]) for a in x for b in y if a < b]

"""The exact grid of layers: the cross moments of every pair, added up batch by batch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _checks, _dispatch, ops
from .._checks import Array
from .._matrix import SimilarityMatrix
from .._memory import available_bytes
from .._progress import watched
from .._states import CrossMoments, SelfMoments, add_into, beside, saved
from .._tables import MomentTable
from ..accumulators import PIVOT_ROWS, MomentAccumulator
from ..measures import cka as _measures
from .sides import are_sides, matrix_of, named_layers, sides, widths_of

if TYPE_CHECKING:
    from typing import Self

FORMAT = "gramless.layer_grid/1"


class ExactGrid(MomentAccumulator):
    """What `gramless.LayerGrid` does in mode="exact"."""

    def __init__(self, title: str, max_bytes: int | None, backend: str, *, progress: bool) -> None:
        super().__init__(backend)
        self._title = title
        self._max_bytes = max_bytes
        self._progress = progress

    @property
    def names(self) -> tuple[str, ...]:
        """Layers so far, by the names of both sides."""
        return tuple(self._table.widths) if self._table else ()

    def update(self, xs: Any, ys: Any = None) -> Self:
        """Add the rows of one batch."""
        self.add(self._name("update"), named_layers(self._name("update"), xs, ys))
        return self

    def finalize(self, *, estimator: str = "unbiased") -> SimilarityMatrix:
        """Return CKA of all pairs for all rows so far."""
        return self.result(self._name("finalize"), estimator)

    def state_dict(self) -> dict[str, Any]:
        """Return a flat dict of copied arrays, which saves without pickle."""
        table = self._table
        return table.to_dict(FORMAT) if table else saved({}, format=FORMAT, n=0)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace all rows by those of a dict made by `state_dict`, which is copied.

        Raises
        ------
        TypeError, ValueError
            If the dict is not one of these. The rows so far are kept.
        """
        function = self._name("load_state_dict")
        if _checks.state_header(function, state, FORMAT) == 0:
            self._table = None
            return
        table = MomentTable.from_dict(function, state, FORMAT)
        if not are_sides(list(table.selfs)) or set(table.crosses) != set(_pairs(list(table.selfs))):
            raise ValueError(f"{function}: the layout of the state is not that of a layer grid")
        self._table = table

    def add(self, function: str, arrays: dict[str, Array]) -> None:
        """Add the rows of one batch of checked layers by the names of both sides."""
        n = _checks.same_rows(function, arrays)
        widths = widths_of(arrays)
        before = self._table
        if before is not None:
            _checks.same_widths(function, before.widths, widths)
            arrays = {name: arrays[name] for name in before.widths}
        if n == 0:
            return
        if before is None:
            self._check_memory(function, widths)
        pivots = self._pivots_for(n)
        selfs = {name: self._self_terms(function, name, a, pivots.get(name)) for name, a in arrays.items()}
        about = {name: part.pivot for name, part in selfs.items()}
        if before is not None:
            selfs = {name: beside(part, before.selfs[name]) for name, part in selfs.items()}
            # the pivots follow the rows until enough have been seen
            target = {name: part.pivot for name, part in (before.selfs if before.n >= PIVOT_ROWS else selfs).items()}
        crosses = {}
        for a, b in watched(_pairs(list(arrays)), "pairs of layers", shown=self._progress):
            cross = self._cross_terms(arrays[a], arrays[b], about[a], about[b])
            # added at once and in place: a table of this batch alone would cost as much as the sums
            if before is not None:
                old = before.crosses[a, b].translate(before.selfs[a], before.selfs[b], target[a], target[b])
                new = beside(cross, selfs[a]).translate(selfs[a], selfs[b], target[a], target[b])
                cross = add_into(new, old)
            crosses[a, b] = cross
        if before is not None:
            for name, part in before.selfs.items():
                selfs[name] = add_into(selfs[name].about(target[name]), part.about(target[name]))
        self._table = MomentTable(selfs, crosses)

    def result(self, function: str, estimator: str) -> SimilarityMatrix:
        """Return CKA of all pairs for all rows so far, with errors in the name of a function."""
        _checks.choice(function, "estimator", estimator, _checks.ESTIMATORS)
        table = self._filled("finalize")
        _checks.enough_rows(function, estimator, table.n)
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

    def _self_terms(self, function: str, name: str, x: Array, pivot: Array | None) -> SelfMoments:
        try:
            return ops.moments(x, pivot_x=pivot, backend=self._backend)
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
            backend=self._backend,
        )

    def _check_memory(self, function: str, widths: dict[str, int]) -> None:
        of_x = [width for name, width in widths.items() if name.startswith("x/")]
        of_y = [width for name, width in widths.items() if name.startswith("y/")]
        needed = _dispatch.grid_bytes(of_x, of_y or None)
        if self._max_bytes is None:
            _checks.fits(function, needed, available_bytes(), "available")
        else:
            _checks.fits(function, needed, self._max_bytes, "max_bytes")

    def _name(self, method: str) -> str:
        return f"{self._title}.{method}"


def _pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """Return all layers of x with all of y, or each pair of layers of x once."""
    x, y = sides(names)
    return [(names[a], names[b]) for a in x for b in y if a < b]

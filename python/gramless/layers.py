"""Many layers against many: every pair of them from one stream of batches."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _checks, _dispatch, ops
from ._checks import Array
from ._matrix import SimilarityMatrix
from ._memory import available_bytes
from ._states import CrossMoments, SelfMoments, add_into, beside
from ._tables import MomentTable
from .accumulators import PIVOT_ROWS, MomentAccumulator
from .measures import cka as _measures

if TYPE_CHECKING:
    from typing import Self

__all__ = ["LayerGrid", "SimilarityMatrix", "cka_matrix"]

FORMAT = "gramless.layer_grid/1"


class LayerGrid(MomentAccumulator):
    """CKA between all pairs of layers of two models, or of one, from a stream of batches.

    Parameters
    ----------
    mode : {"exact"}
        "exact" holds the cross moments of every pair; the result does not depend on the batches.
    max_bytes : int, optional
        The most memory that the sums may take. Default: what the machine and its control groups have free.
    backend : {"auto", "reference", "cpu"}
        As in `gramless.moments`.
    progress : bool
        Show a progress bar over the pairs of each update.

    Notes
    -----
    For widths p of the layers of x and q of y it takes 16 (sum p^2 + sum q^2 + sum p q) bytes: the sums, and their next
    value while an update is under way. Per row 2 sum p q flops for the pairs; self terms are computed once per layer.

    Examples
    --------
    >>> import numpy as np
    >>> import gramless as gl
    >>> rng = np.random.default_rng(0)
    >>> grid = gl.LayerGrid()
    >>> for _ in range(3):
    ...     x = rng.standard_normal((50, 4))
    ...     _ = grid.update({"in": x, "out": x[:, :2]}, {"other": -x})
    >>> print(grid.finalize())
    unbiased cka of 2 x 1 layers, n = 150
        other
    in  1.000
    out 0.624
    """

    def __init__(
        self, mode: str = "exact", *, max_bytes: int | None = None, backend: str = "auto", progress: bool = False
    ) -> None:
        super().__init__(backend)
        if mode == "minibatch":
            raise ValueError("LayerGrid: mode='minibatch' is not in this version, use mode='exact'")
        _checks.choice("LayerGrid", "mode", mode, ("exact",))
        _dispatch.check_backend("LayerGrid", backend)
        if max_bytes is not None:
            _checks.positive("LayerGrid", "max_bytes", max_bytes)
        self._max_bytes = max_bytes
        self._progress = progress

    def update(self, xs: Any, ys: Any = None) -> Self:
        """Add the rows of one batch.

        Parameters
        ----------
        xs : dict or list of arrays of shape (n, p), float16, bfloat16, float32 or float64
            The layers of one model. A list gets the names "0", "1", ...; p may differ between layers.
        ys : dict or list of arrays of shape (n, q), optional
            The layers of the other model. Without it, xs against itself.

        Raises
        ------
        TypeError, ValueError, RuntimeError
            As `gramless.moments`, and ValueError if layers are missing, unknown or of other width than before.
        MemoryError
            If the sums do not fit; the message says what they need.
        """
        self._consume(self._name("update"), xs, ys)
        return self

    def finalize(self, *, estimator: str = "unbiased") -> SimilarityMatrix:
        """Return CKA of all pairs for all rows so far; more rows may follow.

        A layer against itself is 1. A layer without CKA, such as a constant one, has NaN in its row, and one warning
        names all of these.

        Parameters
        ----------
        estimator : {"unbiased", "biased", "feature_corrected"}
            As in `gramless.cka`.

        Raises
        ------
        ValueError
            If there are no rows yet, or n < 4 (biased: n < 2).
        """
        return self._result(self._name("finalize"), estimator)

    def state_dict(self) -> dict[str, Any]:
        """Return a flat dict of copied arrays, numbers and texts, which saves without pickle."""
        return self._table.to_dict(FORMAT) if self._table else {"format": FORMAT, "n": 0}

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
        if not all(name.startswith(("x/", "y/")) for name in table.selfs) or set(table.crosses) != set(
            _pairs(table.selfs)
        ):
            raise ValueError(f"{function}: the layout of the state is not that of a layer grid")
        self._table = table

    def _consume(self, function: str, xs: Any, ys: Any) -> None:
        arrays = {f"x/{name}": x for name, x in _checks.layers(function, "xs", xs).items()}
        if ys is not None:
            arrays |= {f"y/{name}": y for name, y in _checks.layers(function, "ys", ys).items()}
        n = _checks.same_rows(function, arrays)
        widths = {name: int(a.shape[1]) for name, a in arrays.items()}
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
        for a, b in self._watched(_pairs(arrays)):
            cross = self._cross_terms(arrays[a], arrays[b], about[a], about[b])
            # added at once and in place: a table of this batch alone would cost as much as the sums
            if before is not None:
                old = before.crosses[a, b].translate(before.selfs[a], before.selfs[b], target[a], target[b])
                new = beside(cross, selfs[a]).translate(selfs[a], selfs[b], target[a], target[b])
                cross = add_into(new, old)
            crosses[a, b] = cross
        if before is not None:
            for name, part in before.selfs.items():
                selfs[name] = add_into(selfs[name].translate(target[name]), part.translate(target[name]))
        self._table = MomentTable(selfs, crosses)

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

    def _watched(self, pairs: list[tuple[str, str]]) -> Iterable[tuple[str, str]]:
        if not self._progress:
            return pairs
        from rich.progress import track

        return track(pairs, description="pairs of layers")

    def _result(self, function: str, estimator: str) -> SimilarityMatrix:
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
        if problems:
            named = "; ".join(f"layer {name} {problem}" for name, problem in problems.items())
            warnings.warn(f"{function}: no CKA, NaN instead: {named}", RuntimeWarning, stacklevel=3)

        names_x = [name for name in table.selfs if name.startswith("x/")]
        names_y = [name for name in table.selfs if name.startswith("y/")] or names_x
        values = np.full((len(names_x), len(names_y)), np.nan)
        for i, a in enumerate(names_x):
            for j, b in enumerate(names_y):
                if a in problems or b in problems:
                    continue
                if a == b:
                    values[i, j] = 1.0
                elif (a, b) in table.crosses:
                    cross = table.crosses[a, b].centred(table.selfs[a], table.selfs[b])
                    hsic = _measures.cross_hsic(centred[a], centred[b], cross, estimator)
                    values[i, j] = hsic / roots[a] / roots[b]
                else:
                    values[i, j] = values[j, i]
        layers_x, layers_y = (tuple(name[2:] for name in names) for names in (names_x, names_y))
        return SimilarityMatrix(values, None, layers_x, layers_y, table.n, "cka", estimator)


def cka_matrix(
    xs: Any,
    ys: Any = None,
    *,
    estimator: str = "unbiased",
    kernel: str = "linear",
    max_bytes: int | None = None,
    backend: str = "auto",
    progress: bool = False,
) -> SimilarityMatrix:
    """CKA between all pairs of layers of two models, or of one.

    Parameters
    ----------
    xs : dict or list of arrays of shape (n, p), float16, bfloat16, float32 or float64
        The layers of one model. A list gets the names "0", "1", ...; p may differ between layers.
    ys : dict or list of arrays of shape (n, q), optional
        The layers of the other model. Without it, xs against itself, where the diagonal is exactly 1.
    estimator : {"unbiased", "biased", "feature_corrected"}
        As in `gramless.cka`.
    kernel : {"linear"}
        The kernel of all Gram matrices.
    max_bytes : int, optional
        The most memory that the sums may take. Default: what the machine and its control groups have free.
    backend : {"auto", "reference", "cpu"}
        A named backend never falls back to another.
    progress : bool
        Show a progress bar over the pairs.

    Returns
    -------
    SimilarityMatrix
        Float64 values of shape (layers of xs, layers of ys), in the order given. A layer without CKA, such as a
        constant one, has NaN in its row, and one warning names all of these.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As `gramless.cka`.
    MemoryError
        If the sums do not fit; the message says what they need.

    Notes
    -----
    Cost as in `LayerGrid`, which takes the same layers batch by batch.

    Examples
    --------
    >>> import numpy as np
    >>> import gramless as gl
    >>> x = np.random.default_rng(0).standard_normal((100, 6))
    >>> matrix = gl.cka_matrix({"first": x, "second": x[:, :3]})
    >>> matrix.values.round(3)
    array([[1.   , 0.679],
           [0.679, 1.   ]])
    >>> matrix.layers_x
    ('first', 'second')
    """
    function = "cka_matrix"
    _checks.kernel(function, kernel, None)
    _checks.choice(function, "estimator", estimator, _checks.ESTIMATORS)
    _dispatch.check_backend(function, backend)
    first = next(iter(_checks.layers(function, "xs", xs).values()))
    _checks.enough_rows(function, estimator, int(first.shape[0]))
    grid = LayerGrid(max_bytes=max_bytes, backend=backend, progress=progress)
    grid._consume(function, xs, ys)
    return grid._result(function, estimator)


def _pairs(arrays: Iterable[str]) -> list[tuple[str, str]]:
    """Return all layers of x with all of y, or each pair of layers of x once."""
    names_x = [name for name in arrays if name.startswith("x/")]
    names_y = [name for name in arrays if name.startswith("y/")]
    if names_y:
        return [(a, b) for a in names_x for b in names_y]
    return [(a, b) for i, a in enumerate(names_x) for b in names_x[i + 1 :]]

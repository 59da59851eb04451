"""A grid of layers beside its null: what its values are where rows have nothing to do with each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._base.arrays import Float64
from .._base.text import decimal
from ..layers.similarity_matrix import SimilarityMatrix
from ..similarity.one_shot import cka

Layers = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, eq=False, repr=False)
class CalibratedMatrix(SimilarityMatrix):
    """A `gramless.SimilarityMatrix` beside what its values are for random permutations of the rows.

    Parameters
    ----------
    null_mean, null_quantile, pvalue : float64 arrays of shape (L1, L2)
        Mean and 95 % quantile of the permutations, and the share of them (with the value itself) that are no lower; NaN
        where there is no value.
    n_permutations, seed : int
        Number of permutations, and their seed.
    """

    null_mean: Float64  # (L1, L2)
    null_quantile: Float64  # (L1, L2)
    pvalue: Float64  # (L1, L2)
    n_permutations: int
    seed: int

    def text(self, i: int, j: int) -> str:
        """Return one value with the mean and the quantile of its null: 0.913 (0.002 0.011)."""
        value = super().text(i, j)
        if np.isnan(self.values[i, j]):
            return value
        return f"{value} ({decimal(self.null_mean[i, j])} {decimal(self.null_quantile[i, j])})"

    @property
    def within_null(self) -> NDArray[np.bool_]:
        """Which values (L1, L2) are no higher than the 95 % quantile of their null."""
        return np.asarray(self.values <= self.null_quantile)

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, texts and lists, None for NaN: what the JSON file holds."""
        arrays = {"mean": self.null_mean, "quantile": self.null_quantile, "pvalue": self.pvalue}
        lists = {name: [[None if np.isnan(x) else x for x in row] for row in a.tolist()] for name, a in arrays.items()}
        null = {"kind": "permutation", "n_permutations": self.n_permutations, "seed": self.seed}
        return super().to_dict() | {"null": null | lists}


def calibrated(
    matrix: SimilarityMatrix,
    xs: Layers,
    ys: Layers | None,
    *,
    n_permutations: int,
    seed: int,
    advance: Callable[[int], None],
    **options: Any,
) -> CalibratedMatrix:
    """Put each value of a matrix beside its null.

    Parameters
    ----------
    matrix : SimilarityMatrix
        CKA of all pairs.
    xs, ys : dict of arrays (n, p)
        The layers that the matrix is of; without ys, xs against itself.
    n_permutations, seed : int
        As in `gramless.cka`; every pair has the same permutations.
    advance : function
        Told the number of pairs done so far.
    options
        Those of `gramless.cka` that the matrix was made with.

    Examples
    --------
    >>> import numpy as np
    >>> import gramless as gl
    >>> from gramless.files.permutation_null import calibrated
    >>> x = np.random.default_rng(0).standard_normal((100, 3))
    >>> matrix = gl.cka_matrix({"h": x}, {"g": x**3, "other": x[::-1]})
    >>> found = calibrated(
    ...     matrix, {"h": x}, {"g": x**3, "other": x[::-1]}, n_permutations=50, seed=0, advance=lambda done: None
    ... )
    >>> found.within_null
    array([[False,  True]])
    """
    shape = matrix.values.shape
    found = np.full((3, *shape), np.nan)
    for done, (i, j) in enumerate(np.ndindex(shape), 1):
        if ys is None and j < i:
            found[:, i, j] = found[:, j, i]
        elif not np.isnan(matrix.values[i, j]):
            x, y = xs[matrix.layers_x[i]], (xs if ys is None else ys)[matrix.layers_y[j]]
            value: Any = cka(x, y, null="permutation", n_permutations=n_permutations, seed=seed, **options)
            found[:, i, j] = value.null_mean, value.null_quantile, value.pvalue
        advance(done)
    return CalibratedMatrix(
        matrix.values,
        matrix.stderr,
        matrix.layers_x,
        matrix.layers_y,
        matrix.n,
        matrix.measure,
        matrix.estimator,
        null_mean=found[0],
        null_quantile=found[1],
        pvalue=found[2],
        n_permutations=n_permutations,
        seed=seed,
    )

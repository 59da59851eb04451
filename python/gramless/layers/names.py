"""Layers by names that tell the sides of a matrix: x/... are its rows, y/..., if there are such, its columns."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._base import arguments
from .._base.arrays import Array
from .similarity_matrix import SimilarityMatrix


def named_layers(function: str, xs: Any, ys: Any) -> dict[str, Array]:
    """Return the layers of both sides, each checked."""
    arrays = {f"x/{name}": x for name, x in arguments.layers(function, "xs", xs).items()}
    if ys is not None:
        arrays |= {f"y/{name}": y for name, y in arguments.layers(function, "ys", ys).items()}
    arguments.same_device(function, arrays)
    return arrays


def are_sides(names: Sequence[str]) -> bool:
    """Return whether these can be the names of a grid."""
    return all(name.startswith(("x/", "y/")) for name in names) and sides(names)[0] == list(range(split(names)))


def sides(names: Sequence[str]) -> tuple[list[int], list[int]]:
    """Return the positions of the rows and of the columns; without layers of y, both are those of x."""
    x = [i for i, name in enumerate(names) if name.startswith("x/")]
    y = [i for i, name in enumerate(names) if name.startswith("y/")]
    return x, y or x


def split(names: Sequence[str]) -> int:
    """Return how many layers of x come before those of y; at least one."""
    return max(1, sum(name.startswith("x/") for name in names))


def widths_of(arrays: dict[str, Array]) -> dict[str, int]:
    """Return the number of features of each."""
    return {name: int(array.shape[1]) for name, array in arrays.items()}


def matrix_of(
    function: str,
    names: Sequence[str],
    values: NDArray[np.float64],  # (L1, L2)
    stderr: NDArray[np.float64] | None,  # (L1, L2)
    problems: Mapping[str, str],
    *,
    n: int,
    measure: str,
    estimator: str,
) -> SimilarityMatrix:
    """Return the matrix of layers by the names of both sides: NaN for those with a problem, and one warning of all.

    The warning is that of the line which called the caller of the caller: a public function, and what it has computed.
    """
    x, y = sides(names)
    dead = np.array([name in problems for name in names])
    gone = dead[x][:, None] | dead[y][None, :]
    lost = ~(np.isfinite(values) | gone)
    found = [f"layer {name} {problem}" for name, problem in problems.items()]
    found += [f"layers {names[x[i]]} and {names[y[j]]} have a value beyond float64" for i, j in np.argwhere(lost)]
    if found:
        warnings.warn(f"{function}: no CKA, NaN instead: {'; '.join(found)}", RuntimeWarning, stacklevel=4)
    values = np.where(gone | lost, np.nan, values)
    stderr = None if stderr is None else np.where(gone | lost, np.nan, stderr)
    layers_x, layers_y = (tuple(names[i][2:] for i in side) for side in (x, y))
    return SimilarityMatrix(values, stderr, layers_x, layers_y, n, measure, estimator)

"""The matrix that a comparison of layers ends in, with its names and its files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._base import arguments
from .._base.text import decimal

FORMAT = "gramless.similarity_matrix/1"
SUFFIXES = (".json", ".npz")
# a longer axis is printed by its ends
_PRINTED = 16
# values that differ by less are equal: the rounding of float32 products
_TIE = 1e-5


@dataclass(frozen=True, eq=False, repr=False)
class SimilarityMatrix:
    """How similar each layer of one model is to each of another.

    Parameters
    ----------
    values : float64 array of shape (L1, L2)
        NaN where a layer has no value.
    stderr : float64 array of shape (L1, L2) or None
        Standard errors, where they were computed; NaN where there are none, as from a single batch.
    layers_x, layers_y : tuple of str
        Names of the rows and columns, in the order given.
    n : int
        Number of rows of data.
    measure, estimator : str
        What the values are.

    Examples
    --------
    >>> import numpy as np
    >>> import gramless as gl
    >>> values = np.array([[0.9, 0.2], [0.3, 0.8]])
    >>> matrix = gl.SimilarityMatrix(values, None, ("a", "b"), ("c", "d"), 100, "cka", "unbiased")
    >>> matrix
    SimilarityMatrix(unbiased cka of 2 x 2 layers, n = 100)
    >>> matrix["a", "d"]
    0.2
    >>> matrix.best_match()
    {'a': 'c', 'b': 'd'}
    >>> matrix.save("matrix.json")
    >>> print(gl.SimilarityMatrix.load("matrix.json"))
    unbiased cka of 2 x 2 layers, n = 100
          c      d
    a 0.900  0.200
    b 0.300  0.800
    """

    values: NDArray[np.float64]  # (L1, L2)
    stderr: NDArray[np.float64] | None  # (L1, L2)
    layers_x: tuple[str, ...]
    layers_y: tuple[str, ...]
    n: int
    measure: str
    estimator: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers_x", tuple(self.layers_x))
        object.__setattr__(self, "layers_y", tuple(self.layers_y))
        shape = (len(self.layers_x), len(self.layers_y))
        for name in ("values", "stderr"):
            array = getattr(self, name)
            if array is None and name == "stderr":
                continue
            array = np.asarray(array, dtype=np.float64)
            if array.shape != shape:
                raise ValueError(f"SimilarityMatrix: expected {name} of shape {shape}, got {array.shape}")
            object.__setattr__(self, name, array)

    def __repr__(self) -> str:
        return f"SimilarityMatrix({self._title()})"

    def __getitem__(self, names: tuple[str, str]) -> float:
        for name, layers in zip(names, (self.layers_x, self.layers_y), strict=True):
            if name not in layers:
                raise KeyError(f"SimilarityMatrix: no layer {name!r} among {', '.join(layers)}")
        return float(self.values[self.layers_x.index(names[0]), self.layers_y.index(names[1])])

    def __str__(self) -> str:
        rows, columns = _shown(self.layers_x), _shown(self.layers_y)
        head = ["", *("..." if j is None else self.layers_y[j] for j in columns)]
        table = [head] + [[_cell(self.layers_x, i), *(self._number(i, j) for j in columns)] for i in rows]
        widths = [max(len(row[k]) for row in table) for k in range(len(head))]
        lines = [self._title()]
        for row in table:
            numbers = "  ".join(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
            lines.append(f"{row[0]:<{widths[0]}} {numbers}")
        return "\n".join(lines)

    def _title(self) -> str:
        shape = f"{len(self.layers_x)} x {len(self.layers_y)}"
        return f"{self.estimator} {self.measure} of {shape} layers, n = {self.n}"

    def _number(self, i: int | None, j: int | None) -> str:
        return "..." if i is None or j is None else self.text(i, j)

    def text(self, i: int, j: int) -> str:
        """Return one value as a text, with its standard error where there is one: 0.913 +- 0.004."""
        value = decimal(self.values[i, j])
        if self.stderr is None or np.isnan(self.stderr[i, j]):
            return value
        return f"{value} +- {decimal(self.stderr[i, j])}"

    def best_match(self) -> dict[str, str | None]:
        """Return for each layer of x the layer of y with the highest value, by name; None where there is none.

        As `best_columns`.
        """
        columns = zip(self.layers_x, self.best_columns(), strict=True)
        return {name: None if j is None else self.layers_y[j] for name, j in columns}

    def best_columns(self) -> list[int | None]:
        """Return for each layer of x the position of the layer of y with the highest value; None where there is none.

        Among values that differ by less than 1e-5, the layer of the same name comes first, then that of the same
        position, then the first. In the matrix of a model against itself, a layer is no match of its own. Values above
        1, which only noise gives to CKA, are none.
        """
        found: list[int | None] = []
        for i, (name, row) in enumerate(zip(self.layers_x, self.values, strict=True)):
            allowed = ~np.isnan(row)
            if self.measure.endswith("cka"):
                allowed &= row <= 1 + _TIE
            if self._of_itself:
                allowed[i] = False
            tied = np.flatnonzero(allowed & (row >= row[allowed].max(initial=-np.inf) - _TIE)).tolist()
            found.append(min(tied, key=lambda j: (self.layers_y[j] != name, j != i, j), default=None))
        return found

    @property
    def _of_itself(self) -> bool:
        """Whether both models are one: then the diagonal is 1 by definition, and the rest symmetric."""
        if self.layers_x != self.layers_y or len(self.layers_x) == 1:
            return False
        own = np.diagonal(self.values)
        return bool((np.isnan(own) | (own == 1)).all()) and np.array_equal(self.values, self.values.T, equal_nan=True)

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, texts and lists, None for NaN: what the JSON file holds."""
        return {
            "format": FORMAT,
            "measure": self.measure,
            "estimator": self.estimator,
            "n": self.n,
            "layers_x": list(self.layers_x),
            "layers_y": list(self.layers_y),
            "values": _lists(self.values),
            "stderr": None if self.stderr is None else _lists(self.stderr),
        }

    def to_pandas(self) -> Any:
        """Return a pandas DataFrame, with the layers as index and columns. It needs pandas."""
        try:
            import pandas as pd
        except ImportError as error:
            raise ModuleNotFoundError("to_pandas: pandas is not installed: pip install pandas") from error

        return pd.DataFrame(self.values, index=list(self.layers_x), columns=list(self.layers_y))

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Draw a heat map, saved if a path is given. It needs matplotlib."""
        from . import heatmap

        return heatmap.heatmap(self, path)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a .json or .npz file, which `load` reads; neither needs pickle.

        Raises
        ------
        ValueError
            If the path ends in neither.
        """
        if arguments.path_suffix("SimilarityMatrix.save", path, SUFFIXES) == ".json":
            Path(path).write_text(json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n", encoding="utf-8")
            return
        header = np.array(json.dumps({k: v for k, v in self.to_dict().items() if k not in ("values", "stderr")}))
        errors: dict[str, Any] = {} if self.stderr is None else {"stderr": self.stderr}
        # numpy gives a path without .npz another name
        with Path(path).open("wb") as file:
            np.savez(file, header=header, values=self.values, **errors)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SimilarityMatrix:
        """Read a file that `save` wrote.

        Raises
        ------
        ValueError
            If the file is not one of these.
        OSError
            If it cannot be opened.
        """
        suffix = arguments.path_suffix("SimilarityMatrix.load", path, SUFFIXES)
        with Path(path).open("rb") as file:
            try:
                if suffix == ".json":
                    return _from_dict(json.loads(file.read().decode()))
                with np.load(file, allow_pickle=False) as arrays:
                    found = json.loads(str(arrays["header"]))
                    return _from_dict(found | {k: arrays[k] for k in ("values", "stderr") if k in arrays.files})
            except Exception as error:
                # what a damaged file makes its parsers raise has no useful bound
                raise ValueError(f"SimilarityMatrix.load: cannot read {os.fspath(path)!r}: {error}") from error


def _from_dict(found: Mapping[str, Any]) -> SimilarityMatrix:
    if found.get("format") != FORMAT:
        raise ValueError(f"expected format {FORMAT!r}, got format {found.get('format')!r}")
    stderr = found.get("stderr")
    return SimilarityMatrix(
        values=np.array(found["values"], dtype=np.float64),
        stderr=None if stderr is None else np.array(stderr, dtype=np.float64),
        layers_x=tuple(str(name) for name in found["layers_x"]),
        layers_y=tuple(str(name) for name in found["layers_y"]),
        n=int(found["n"]),
        measure=str(found["measure"]),
        estimator=str(found["estimator"]),
    )


def _lists(values: NDArray[np.float64]) -> list[list[float | None]]:
    return [[None if np.isnan(value) else value for value in row] for row in values.tolist()]


def _shown(names: tuple[str, ...]) -> list[int | None]:
    """Return positions to print, None for those left out."""
    count, half = len(names), _PRINTED // 2
    return list(range(count)) if count <= _PRINTED else [*range(half), None, *range(count - half, count)]


def _cell(names: tuple[str, ...], i: int | None) -> str:
    return "..." if i is None else names[i]

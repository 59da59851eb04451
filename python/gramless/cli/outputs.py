"""Files that a command writes: places that are checked before the work, and results that are written after it."""

from __future__ import annotations

import csv
import importlib.util
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .._base.output_files import check_place
from .._base.text import printable
from ..files.permutation_null import CalibratedMatrix
from ..layers.similarity_matrix import SimilarityMatrix

SUFFIXES = {"json": (".json",), "csv": (".csv",), "plot": (".png", ".pdf", ".svg")}


def check_outputs(outputs: Mapping[str, Path], inputs: Iterable[Path]) -> None:
    """Fail before the work, not after it.

    Parameters
    ----------
    outputs : dict of str to Path
        Where to write, by the name of the option.
    inputs : iterable of Path
        What must not be overwritten.

    Raises
    ------
    OSError
        If a place cannot be written.
    ValueError
        If a place is that of an input or of another output, by whatever name; if its suffix is not that of the format.
    """
    taken = {_identity(path): "an input" for path in inputs}
    for form, path in outputs.items():
        label = f"--{form} {printable(path)}"
        if form in SUFFIXES and path.suffix.lower() not in SUFFIXES[form]:
            raise ValueError(f"{label}: expected a name that ends in {', '.join(SUFFIXES[form])}")
        if form == "plot" and importlib.util.find_spec("matplotlib") is None:
            raise ValueError('--plot needs matplotlib: pip install "gramless[plot]"')
        check_place(label, path)
        identity = _identity(path)
        if identity in taken:
            raise ValueError(f"{label}: would overwrite {taken[identity]}")
        taken[identity] = f"--{form}"
        # only an attempt tells: rights, read-only and full disks, names that are too long
        existed = path.exists()
        path.open("ab").close()
        if not existed:
            path.unlink()


def _identity(path: Path) -> object:
    """Return what is the same for all names of one file, hard links among them."""
    try:
        found = path.stat()
    except OSError:
        return path.resolve()
    return found.st_dev, found.st_ino


def write_outputs(outputs: Mapping[str, Path], matrix: SimilarityMatrix, facts: Mapping[str, Any]) -> list[str]:
    """Write all outputs that can be written.

    Parameters
    ----------
    outputs : dict of str to Path
        The forms "json", "csv" and "plot", as far as they are wanted.
    matrix : SimilarityMatrix
        What to write.
    facts : dict
        What the JSON file holds besides; "inputs" are the names of both models.

    Returns
    -------
    list of str
        What failed, one line each.
    """
    return [problem for form, path in outputs.items() if (problem := _problem_of_writing(form, path, matrix, facts))]


def _problem_of_writing(form: str, path: Path, matrix: SimilarityMatrix, facts: Mapping[str, Any]) -> str:
    """Write one output; say what failed, nothing if nothing did."""
    try:
        if form == "json":
            text = json.dumps(matrix.to_dict() | dict(facts), indent=1, allow_nan=False)
            path.write_text(text + "\n", encoding="utf-8")
        elif form == "csv":
            _write_csv(path, matrix)
        elif form == "plot":
            from ..layers.heatmap import heatmap

            names = [Path(name).name for name in facts["inputs"]]
            heatmap(matrix, path, name_x=names[0], name_y=names[-1])
    except (OSError, ValueError, RuntimeError, MemoryError, ImportError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        return f"--{form} {printable(path)}: cannot be written: {reason}"
    return ""


def _write_csv(path: Path, matrix: SimilarityMatrix) -> None:
    more = {} if matrix.stderr is None else {"stderr": matrix.stderr}
    if isinstance(matrix, CalibratedMatrix):
        more |= {"null mean": matrix.null_mean, "null quantile": matrix.null_quantile, "pvalue": matrix.pvalue}
    values = np.hstack([matrix.values, *more.values()])
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["layer", *matrix.layers_y, *(f"{name} {what}" for what in more for name in matrix.layers_y)])
        writer.writerows([name, *row] for name, row in zip(matrix.layers_x, values.tolist(), strict=True))

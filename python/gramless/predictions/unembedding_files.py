"""What saving and loading a pair of unembeddings share: the kind of file, a checksum, and what cannot be opened."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from .._base import arguments, saved_state
from .factorization import Factor
from .stacked_weights import without_zeros

SUFFIXES = (".safetensors", ".npz")


def checksum(matrix: NDArray[np.float64]) -> str:
    """Return a hash of the values of a matrix, row by row."""
    return hashlib.sha256(matrix.tobytes()).hexdigest()


def failed(what: str, path: str | os.PathLike[str], error: OSError) -> OSError:
    """Return an error of the same kind that names method and path."""
    return type(error)(f"UnembeddingPair.{what} {os.fspath(path)!r}: {error.strerror or error}")


def opened(what: str, path: str | os.PathLike[str], mode: str) -> IO[Any]:
    """Open a file; an error names method and path."""
    try:
        return Path(path).open(mode)
    except OSError as error:
        raise failed(what, path, error) from None


def parts_of(
    function: str, state: Mapping[str, Any], form: str, methods: Sequence[str]
) -> tuple[tuple[int, int], int, NDArray[np.int64] | None, bool, Factor]:
    """Return the sizes, the number of labels, those given, whether there is a bias, and the factor of a saved pair.

    Raises
    ------
    TypeError, ValueError
        If the dict is not one of these.
    """
    labels = saved_state.header(function, state, form)
    d1, d2, biased = (saved_state.whole(function, state, key) for key in ("d1", "d2", "biased"))
    method, fingerprint = (saved_state.text(function, state, key) for key in ("method", "fingerprint"))
    arguments.choice(function, "method", method, methods)
    width, rows = d1 + d2 + biased, np.shape(state.get("factor", ()))[:1]
    if not (labels and d1 and d2 and rows) or rows[0] > min(width, labels) or biased > 1:
        raise ValueError(f"{function}: no factor of {labels} labels, d1 = {d1} and d2 = {d2} has {rows} rows")
    matrix = np.ascontiguousarray(saved_state.array(function, state, "factor", (rows[0], width)))
    if saved_state.text(function, state, "checksum") != checksum(matrix):
        raise ValueError(f"{function}: 'factor' is not the one that was saved, its checksum differs")
    known = {"format", "n", "d1", "d2", "biased", "method", "fingerprint", "checksum", "factor", "given"}
    saved_state.no_other_keys(function, state, known)
    given = np.array(state["given"]) if "given" in state else None
    if given is not None and (given.dtype != np.int64 or given.ndim != 1 or (np.diff(given, prepend=-1) < 1).any()):
        raise ValueError(f"{function}: expected 'given' to be distinct labels in order")
    return (d1, d2), labels, given, bool(biased), Factor(without_zeros(matrix), method, fingerprint)


def write(path: str | os.PathLike[str], suffix: str, arrays: Mapping[str, Any]) -> None:
    """Write arrays in the kind of file that a suffix says."""
    try:
        # numpy gives a path without .npz another name
        with Path(path).open("wb") as file:
            if suffix == ".npz":
                np.savez(file, **arrays)
                return
            from safetensors.numpy import save

            file.write(save(dict(arrays)))
    except OSError as error:
        raise failed("save: cannot write", path, error) from None


def read(path: str | os.PathLike[str], suffix: str, file: IO[Any]) -> dict[str, Any]:
    """Return the arrays of an open file of the kind that a suffix says."""
    if suffix == ".safetensors":
        from safetensors.numpy import load_file

        return load_file(path)
    with np.load(file, allow_pickle=False) as arrays:
        # it is never compressed, so it cannot unpack to more than its size
        if sum(info.file_size for info in arrays.zip.infolist()) > os.fstat(file.fileno()).st_size:
            raise ValueError("written by something else")
        return dict(arrays)

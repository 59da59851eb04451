"""What saving and loading a pair of unembeddings share: the kind of file, a checksum, and what cannot be opened."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

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

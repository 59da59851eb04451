"""Places of files that are written: checked before the work."""

from __future__ import annotations

import os
from pathlib import Path

from .text import printable


def check_place(label: str, path: Path) -> None:
    """Refuse a place that is no plain file and cannot become one: a folder, a pipe, a link to nothing."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{label}: the folder {printable(path.parent)} does not exist")
    if path.is_dir():
        raise ValueError(f"{label}: expected a file, got a folder")
    # opening a pipe would wait for its reader, and a link to nothing makes a file elsewhere
    if os.path.lexists(path) and not path.is_file():
        raise ValueError(f"{label}: expected a regular file")

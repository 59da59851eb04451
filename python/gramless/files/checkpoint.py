"""A comparison that was cut off, on disk: the sums so far, and what they are the sums of."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .._base.output_files import check_place
from .._base.text import printable
from .._version import __version__
from ..layers.grid import LayerGrid
from .formats import ZIP_MAGICS, first_line
from .layer_source import LayerSource

KEY = "gramless.checkpoint"
SAMPLE_BYTES = 1 << 16


class Checkpoint:
    """The file of a checkpoint, written in one step and bound to its inputs.

    Parameters
    ----------
    path : path
        An ``.npz`` file, whatever its name.
    sources : sequence of LayerSource
        The inputs: names, sizes, and both ends of their files, names, shapes and dtypes of their layers.
    rows : int
        Rows of a chunk.
    options : dict
        Whatever else the sums depend on: plain numbers and texts.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        sources: Sequence[LayerSource],
        rows: int,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = Path(path)
        check_place(f"checkpoint {printable(self.path)}", self.path)
        self._rows, self._n = rows, sources[0].n
        self._marks: dict[str, Any] = {f"input {i}": _fingerprint(source) for i, source in enumerate(sources, 1)}
        self._marks |= {"rows of a chunk": rows, "version": __version__, **(options or {})}

    def resume(self, grid: LayerGrid) -> None:
        """Let an empty grid go on from the file, if there is one.

        Raises
        ------
        OSError
            If the file cannot be opened.
        ValueError
            If it is no checkpoint, or one of another comparison.
        """
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            try:
                if file.read(4) not in ZIP_MAGICS:
                    raise ValueError("not a zip file, as .npz is")
                file.seek(0)
                with np.load(file, allow_pickle=False) as arrays:
                    # a checkpoint is never compressed, so it cannot unpack to more than its size
                    if KEY not in arrays.files or sum(info.file_size for info in arrays.zip.infolist()) > size:
                        raise ValueError("written by something else")
                    marks = dict(json.loads(str(arrays[KEY])))
                    different = [name for name in self._marks | marks if marks.get(name) != self._marks.get(name)]
                    if not different:
                        grid.load_state_dict({name: arrays[name] for name in arrays.files if name != KEY})
                if grid.n > self._n or (grid.n % self._rows and grid.n != self._n):
                    raise ValueError(f"{grid.n} of {self._n} rows are no whole number of chunks")
            except Exception as error:
                # what a damaged file makes its parsers raise has no useful bound
                grid.reset()
                raise ValueError(f"{printable(self.path)}: not a gramless checkpoint: {first_line(error)}") from error
        if different:
            named = printable(", ".join(different)) + " differ" + "s" * (len(different) == 1)
            raise ValueError(
                f"{printable(self.path)}: a checkpoint of another comparison ({named}); delete it to start again"
            )

    def save(self, state: Mapping[str, Any]) -> None:
        """Write the state; the file is the old one or the new one at any time."""
        arrays: dict[str, Any] = {KEY: np.array(json.dumps(self._marks)), **state}
        temporary = self.path.with_name(f".gramless-{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                np.savez(file, **arrays)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _fingerprint(source: LayerSource) -> dict[str, Any]:
    root = source.path
    files = [[os.path.relpath(path, root), path.stat().st_size, _sample(path)] for path in source.files]
    layers = [[layer.name, layer.dtype, layer.width, [s.shape[0] for s in layer.shards]] for layer in source.layers]
    return {"files": files, "layers": layers}


def _sample(path: Path) -> int:
    """Checksum of both ends of a file: cheap, and other activations of the same shape differ in it."""
    with path.open("rb") as file:
        head = file.read(SAMPLE_BYTES)
        file.seek(max(0, path.stat().st_size - SAMPLE_BYTES))
        return zlib.crc32(file.read(SAMPLE_BYTES), zlib.crc32(head))

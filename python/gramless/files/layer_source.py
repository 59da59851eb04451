"""Layers on disk as a stream of rows: one file, a folder of row shards, or a folder of such folders."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .._base.text import printable
from .formats import Entry
from .row_reader import OpenFiles, RowReader

if TYPE_CHECKING:
    from typing import Self

# bytes of a value in memory; bfloat16 is widened
FLOATS = {"float16": 2, "bfloat16": 4, "float32": 4, "float64": 8}
CHUNK_BYTES = 64 << 20
MIN_ROWS, MAX_ROWS = 256, 65536
# up to here a chunk keeps its 256 rows, whatever CHUNK_BYTES says
HUGE_CHUNK_BYTES = 4 * CHUNK_BYTES


@dataclass(frozen=True)
class Layer:
    """One array, cut by rows into one or more files."""

    name: str
    shards: tuple[Entry, ...]

    @property
    def n(self) -> int:
        """Rows of all shards."""
        return sum(shard.shape[0] for shard in self.shards)

    @property
    def width(self) -> int:
        """Features."""
        return self.shards[0].shape[1]

    @property
    def dtype(self) -> str:
        """Name of the dtype in the files."""
        return self.shards[0].dtype


class LayerSource:
    """Layers of one model on disk; rows are read only by `chunks`. Made by `open_layers`.

    Attributes
    ----------
    path : Path
        As given.
    names : tuple of str
        The layers, in file order (``.safetensors`` and folders: natural order).
    n : int
        Rows, the same for all layers.
    widths, dtypes : dict
        Features, and ``"float16"``, ``"bfloat16"``, ``"float32"`` or ``"float64"``, of each layer.
    ids : Layer or None
        The entry named "ids", if there is one.
    """

    def __init__(self, path: Path, layers: Sequence[Layer], ids: Layer | None) -> None:
        self.path = path
        self.layers = tuple(layers)
        self.ids = ids
        self.names = tuple(layer.name for layer in layers)
        self.n = layers[0].n
        self.widths: dict[str, int] = {layer.name: layer.width for layer in layers}
        self.dtypes: dict[str, str] = {layer.name: layer.dtype for layer in layers}
        self._streams: list[Generator[Any, None, None]] = []

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that is read, in order."""
        layers = self.layers if self.ids is None else (*self.layers, self.ids)
        return tuple(dict.fromkeys(shard.path for layer in layers for shard in layer.shards))

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of all layers in memory; bfloat16 is widened to float32."""
        return sum(layer.width * FLOATS[layer.dtype] for layer in self.layers)

    def __str__(self) -> str:
        parts = [f"{len(self.names)} layer{'s' * (len(self.names) > 1)}", f"{self.n} rows"]
        shards = len(self.layers[0].shards)
        if shards > 1:
            parts.append(f"{shards} row shards")
        return f"{printable(self.path)}: {', '.join(parts)}"

    def chunks(self, rows: int, start: int = 0) -> Iterator[dict[str, npt.NDArray[Any]]]:
        """Yield all layers by chunks of rows.

        Parameters
        ----------
        rows : int
            Rows of a chunk; the last one may have fewer. Chunks cross the borders of shards.
        start : int
            First row.

        Yields
        ------
        dict of str to array (m, p)
            float16, float32 or float64; bfloat16 comes as float32, exactly. The arrays are views of buffers that the
            next chunk overwrites.

        Raises
        ------
        ValueError
            If a file is truncated or damaged.
        """
        halves = {layer.name: layer for layer in self.layers if layer.dtype == "bfloat16"}
        wide = {name: np.empty((min(rows, self.n), layer.width), np.float32) for name, layer in halves.items()}
        self._streams.append(stream := stream_rows(self.layers, rows, start))
        for chunk in stream:
            for name, buffer in wide.items():
                bits = chunk[name]
                chunk[name] = buffer[: len(bits)]
                # a bfloat16 is the upper half of a float32
                np.left_shift(bits, 16, out=chunk[name].view(np.uint32), dtype=np.uint32)
            yield chunk

    def close(self) -> None:
        """Close the files that a chunk iterator, left early, still holds."""
        while self._streams:
            self._streams.pop().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def stream_rows(
    layers: Sequence[Layer], rows: int, start: int = 0
) -> Generator[dict[str, npt.NDArray[Any]], None, None]:
    """Yield arrays as stored, in native byte order, by chunks of rows in buffers that the next chunk overwrites."""
    if rows < 1 or start < 0:
        raise ValueError(f"chunks: expected rows >= 1 and start >= 0, got {rows} and {start}")
    files = OpenFiles()
    n = layers[0].n
    cursors = {layer.name: _Cursor(layer, files) for layer in layers}
    buffers = {layer.name: _buffer(layer, min(rows, n)) for layer in layers}
    try:
        for first in range(start, n, rows):
            count = min(rows, n - first)
            for name, cursor in cursors.items():
                cursor.read(first, buffers[name][:count])
            yield {name: buffer[:count] for name, buffer in buffers.items()}
    finally:
        for cursor in cursors.values():
            cursor.close()


class _Cursor:
    """Reads the rows of one layer across its shards, one of which is open at a time."""

    def __init__(self, layer: Layer, files: OpenFiles) -> None:
        self._layer = layer
        self._files = files
        self._reader: RowReader | None = None

    def read(self, start: int, out: npt.NDArray[Any]) -> None:
        """Fill ``out`` with the rows from ``start`` on."""
        first = 0
        for shard in self._layer.shards:
            low, high = max(start, first), min(start + len(out), first + shard.shape[0])
            if low < high:
                self._read_shard(shard, low - first, high - first, out[low - start : high - start])
            first += shard.shape[0]

    def _read_shard(self, shard: Entry, start: int, stop: int, out: npt.NDArray[Any]) -> None:
        if self._reader is None or self._reader.entry is not shard:
            self.close()
            self._reader = RowReader(shard, self._files)
        native = shard.storage.newbyteorder("=")
        if native == out.dtype:
            self._reader.read(start, stop, out)
            return
        # ids of shards may differ in length
        rows = np.empty(out.shape, native)
        self._reader.read(start, stop, rows)
        out[...] = rows

    def close(self) -> None:
        """Close the open shard."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None


def _buffer(layer: Layer, rows: int) -> npt.NDArray[Any]:
    widest = max((shard.storage for shard in layer.shards), key=lambda storage: storage.itemsize)
    return np.empty((rows, *layer.shards[0].shape[1:]), widest.newbyteorder("="))


def rows_per_chunk(*sources: LayerSource) -> int:
    """Rows of a chunk such that all layers of all sources together take about 64 MB.

    Never fewer than 256 rows, unless these would take more than 256 MB. It depends on widths and dtypes alone, so that
    a run cut in two adds up the same chunks.

    Raises
    ------
    ValueError
        If a single row takes more than 64 MB.
    """
    row_bytes = sum(source.row_bytes for source in sources)
    if row_bytes > CHUNK_BYTES:
        widest = max((width, name) for source in sources for name, width in source.widths.items())
        raise ValueError(
            f"{printable(sources[0].path)}: one row of all layers takes {row_bytes:,} bytes (layer "
            f"{printable(widest[1])} is {widest[0]:,} wide); pool or project the layers first, or choose fewer"
        )
    rows = CHUNK_BYTES // row_bytes
    if rows < MIN_ROWS:
        return max(1, min(MIN_ROWS, HUGE_CHUNK_BYTES // row_bytes))
    return min(rows // MIN_ROWS * MIN_ROWS, MAX_ROWS)

"""Rows of arrays in files, read into the caller's buffer.

Nothing is memory-mapped: rows are read with seek and readinto, so that resident memory is the caller's buffer, and a
file that shrinks while it is read is an error, not a crash.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from .._base.text import printable
from .formats import ZIP_ERRORS, Entry, first_line, stamp_of

# decompressed pieces, and columns of a Fortran-ordered array, pass through a buffer of this size
PIECE_BYTES = 1 << 20


class OpenFiles:
    """Files shared by the readers of their arrays: each is opened once, and closed with its last reader."""

    def __init__(self) -> None:
        self._open: dict[Path, tuple[IO[bytes], zipfile.ZipFile | None, int]] = {}

    def acquire(self, entry: Entry) -> tuple[IO[bytes], zipfile.ZipFile | None]:
        """Open the file of an entry, or share it."""
        if entry.path in self._open:
            file, archive, users = self._open[entry.path]
        else:
            file, archive, users = entry.path.open("rb", buffering=0), None, 0
            if stamp_of(os.fstat(file.fileno())) != entry.stamp:
                file.close()
                raise ValueError(f"{printable(entry.path)}: changed after its header was read; start again")
        if entry.member is not None and archive is None:
            archive = zipfile.ZipFile(file)
        self._open[entry.path] = (file, archive, users + 1)
        return file, archive

    def release(self, entry: Entry) -> None:
        """Give a file back."""
        file, archive, users = self._open.pop(entry.path)
        if users > 1:
            self._open[entry.path] = (file, archive, users - 1)
        else:
            file.close()


class RowReader:
    """Rows of one entry, read into the caller's buffer.

    Peak extra memory: one piece (1 MiB) of decompressed bytes or of columns. A Fortran-ordered array that is compressed
    is first unpacked into a temporary file, as its rows cannot be read otherwise.
    """

    def __init__(self, entry: Entry, files: OpenFiles) -> None:
        self.entry = entry
        self._cleanup = ExitStack()
        self._stream: IO[bytes] | None = None
        self._file, archive = files.acquire(entry)
        self._cleanup.callback(files.release, entry)
        if entry.member is None or archive is None:
            return
        try:
            self._stream = self._cleanup.enter_context(archive.open(entry.member))
            if entry.fortran:
                self._file, self._stream = self._unpack(self._stream), None
        except (*ZIP_ERRORS, ValueError) as error:
            self.close()
            raise ValueError(f"{entry.label}: cannot be unpacked: {first_line(error)}") from error

    def _unpack(self, stream: IO[bytes]) -> IO[bytes]:
        if shutil.disk_usage(tempfile.gettempdir()).free < self.entry.nbytes:
            raise ValueError("compressed and Fortran-ordered, and the temporary folder is too small to unpack it")
        spill = self._cleanup.enter_context(tempfile.TemporaryFile(prefix="gramless-"))  # noqa: SIM115
        shutil.copyfileobj(stream, spill, PIECE_BYTES)
        spill.flush()
        return spill

    def close(self) -> None:
        """Give the file back."""
        self._cleanup.close()

    def read(self, start: int, stop: int, out: npt.NDArray[Any]) -> None:
        """Read rows start..stop-1 into ``out`` (stop - start, width), C-contiguous, of the native storage dtype."""
        if self.entry.fortran:
            self._read_columns(start, stop, out)
        else:
            row_bytes = self.entry.nbytes // self.entry.shape[0]
            self._fill(start * row_bytes, out)
        if not self.entry.storage.isnative:
            out.byteswap(inplace=True)

    def _read_columns(self, start: int, stop: int, out: npt.NDArray[Any]) -> None:
        n, width = self.entry.shape
        itemsize = self.entry.storage.itemsize
        block = max(1, PIECE_BYTES // ((stop - start) * itemsize))
        columns = np.empty((min(block, width), stop - start), dtype=out.dtype)
        for first in range(0, width, block):
            last = min(first + block, width)
            for j in range(first, last):
                self._fill((j * n + start) * itemsize, columns[j - first])
            out[:, first:last] = columns[: last - first].T

    def _fill(self, position: int, out: npt.NDArray[Any]) -> None:
        """Fill a contiguous array with the bytes from ``position`` of the values on."""
        view = out.reshape(-1).view(np.uint8).data
        done = 0
        try:
            if self._stream is not None:
                if self._stream.tell() != self.entry.offset + position:
                    self._stream.seek(self.entry.offset + position)
                while done < len(view) and (piece := self._stream.read(min(PIECE_BYTES, len(view) - done))):
                    view[done : done + len(piece)] = piece
                    done += len(piece)
            else:
                self._file.seek(self.entry.offset + position)
                while done < len(view) and (count := self._file.readinto(view[done:])):  # type: ignore[attr-defined]
                    done += count
        except ZIP_ERRORS as error:
            raise ValueError(f"{self.entry.label}: damaged: {first_line(error)}") from error
        if done < len(view):
            raise ValueError(f"{self.entry.label}: truncated: ends {len(view) - done} bytes early")

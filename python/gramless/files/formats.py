"""What ``.npy``, ``.npz`` and ``.safetensors`` files hold, from their headers alone.

Headers are checked against the bytes that are there. Nothing is ever unpickled. Every refusal is one ``ValueError``
that names the file.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import struct
import warnings
import zipfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from safetensors import SafetensorError, safe_open

from .._base.text import printable

try:
    from lzma import LZMAError
except ImportError:
    # Python may be built without it, and then reads no such member
    LZMAError = zlib.error  # type: ignore[misc,assignment]

SUFFIXES = (".npy", ".npz", ".safetensors")
NPY_MAGIC = b"\x93NUMPY"
ZIP_MAGICS = (b"PK\x03\x04", b"PK\x05\x06")
# numpy writes about 128 bytes for a matrix; a header far above that is hostile
MAX_NPY_HEADER = 10_000
SAFETENSORS_DTYPES = {
    "F16": ("float16", "<f2"),
    "F32": ("float32", "<f4"),
    "F64": ("float64", "<f8"),
    "BF16": ("bfloat16", "<u2"),
    "I8": ("int8", "|i1"),
    "I16": ("int16", "<i2"),
    "I32": ("int32", "<i4"),
    "I64": ("int64", "<i8"),
    "U8": ("uint8", "|u1"),
    "U16": ("uint16", "<u2"),
    "U32": ("uint32", "<u4"),
    "U64": ("uint64", "<u8"),
}
# what a compressed or damaged zip member can raise while it is read
ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, LZMAError, EOFError, RuntimeError, struct.error, OSError)


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key that puts shard-2 before shard-10, and digits before letters.

    Examples
    --------
    >>> from gramless.files.formats import natural_key
    >>> sorted(["b10", "b9", "b010"], key=natural_key)
    ['b9', 'b010', 'b10']
    """
    parts: list[tuple[int, int, str]] = []
    for part in re.findall(r"[0-9]+|[^0-9]+", name):
        digits = part.lstrip("0")
        # by length first, which orders numbers of any size without making them
        parts.append((0, len(digits), digits) if part[0] in "0123456789" else (1, 0, part))
    return (*parts, (0, 0, name))


@dataclass(frozen=True)
class Entry:
    """One array in one file.

    Attributes
    ----------
    path, name
        The file, and the name of the array in it (the file's stem for ``.npy``).
    shape, dtype
        Shape, and the name of the dtype: ``"float16"``, ``"bfloat16"``, ``"int64"``, ``"str12"``, ``"object"``, ...
    storage
        The NumPy dtype of the bytes in the file (``uint16`` for bfloat16).
    offset
        Byte of the first value, in the file or, with ``member``, in the decompressed member.
    fortran
        Whether columns, not rows, are contiguous.
    member
        Member of the zip file that must be streamed through the decompressor; None for bytes that lie as they are.
    stamp
        Size and time of change of the file when its header was read.
    """

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: str
    storage: np.dtype[Any]
    offset: int
    fortran: bool = False
    member: str | None = None
    stamp: tuple[int, int] = (0, 0)

    @property
    def label(self) -> str:
        """File and array, for messages."""
        return printable(self.path) if self.path.suffix.lower() == ".npy" else printable(f"{self.path}: {self.name}")

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return math.prod(self.shape) * self.storage.itemsize


def read_entries(path: Path) -> list[Entry]:
    """Describe the arrays in a file from its header alone.

    Parameters
    ----------
    path : Path
        A ``.npy``, ``.npz`` or ``.safetensors`` file.

    Returns
    -------
    list of Entry
        In file order; ``.safetensors`` keeps no order, so there in natural order of the names.

    Raises
    ------
    OSError
        If the file is missing or unreadable.
    ValueError
        If the file is damaged, truncated, misnamed or holds something else than arrays.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{printable(path)}: expected a .npy, .npz or .safetensors file{_advice(path)}")
    stamp = stamp_of(path.stat())
    if suffix == ".npy":
        entries = [_npy_entry(path)]
    else:
        entries = _npz_entries(path) if suffix == ".npz" else _safetensors_entries(path)
    return [replace(entry, stamp=stamp) for entry in entries]


def stamp_of(found: os.stat_result) -> tuple[int, int]:
    """Return what changes when a file is written again: its size, and the time."""
    return found.st_size, found.st_mtime_ns


def _advice(path: Path) -> str:
    if path.suffix.lower() in (".pt", ".pth", ".bin", ".pkl", ".ckpt"):
        return "; pickled files are not read: save the tensors with safetensors.torch.save_file"
    return ""


def _looks_like(head: bytes) -> str:
    if head.startswith(NPY_MAGIC):
        return "; the content looks like .npy"
    if head.startswith(ZIP_MAGICS):
        return "; the content looks like a zip file, as .npz is"
    if len(head) > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 27:
        return "; the content looks like .safetensors"
    return ""


def _npy_entry(path: Path) -> Entry:
    with path.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        head = file.read(16)
        file.seek(0)
        entry = _parse_npy(file, path, path.stem, printable(path), _looks_like(head))
    return _sized(entry, size - entry.offset, printable(path))


def _parse_npy(stream: IO[bytes], path: Path, name: str, label: str, hint: str = "") -> Entry:
    """Read the header of an array; numpy's own parser sees it only after its length has been bounded."""
    head = stream.read(12)
    if not head.startswith(NPY_MAGIC) or len(head) < 12 or head[6] not in (1, 2, 3):
        raise ValueError(f"{label}: not a .npy array (wrong magic bytes){hint}")
    wide = head[6] > 1
    length = struct.unpack("<I", head[8:12])[0] if wide else struct.unpack("<H", head[8:10])[0]
    start = 12 if wide else 10
    if length > MAX_NPY_HEADER:
        raise ValueError(f"{label}: the .npy header claims {length} bytes, more than any plain array needs")
    text = head[start:] + stream.read(length + start - len(head))
    if len(text) < length:
        raise ValueError(f"{label}: truncated in the .npy header")
    parse = np.lib.format.read_array_header_2_0 if wide else np.lib.format.read_array_header_1_0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            shape, fortran, dtype = parse(io.BytesIO(head[8:start] + text))
    except Exception as error:
        # the header is Python source: what a hostile one makes the parser raise has no useful bound
        raise ValueError(f"{label}: damaged .npy header") from error
    if any(isinstance(size, bool) or size < 0 for size in shape):
        raise ValueError(f"{label}: damaged .npy header: shape {shape}")
    return Entry(path, name, tuple(shape), _dtype_name(dtype), dtype, start + length, fortran and len(shape) > 1)


def _dtype_name(dtype: np.dtype[Any]) -> str:
    if dtype.hasobject:
        return "object"
    if dtype.kind in "US":
        return f"{'str' if dtype.kind == 'U' else 'bytes'}{dtype.itemsize // (4 if dtype.kind == 'U' else 1)}"
    return dtype.name if dtype.names is None else "structured"


def _sized(entry: Entry, held: int, label: str) -> Entry:
    """Check a header against the bytes that are really there."""
    if entry.dtype == "object":
        raise ValueError(f"{label}: holds pickled Python objects, which are never loaded; save a plain float array")
    if held < entry.nbytes:
        raise ValueError(
            f"{label}: truncated: shape {entry.shape} of {entry.dtype} needs {entry.nbytes} bytes, "
            f"the file holds {held}"
        )
    if held > entry.nbytes:
        raise ValueError(f"{label}: {held - entry.nbytes} bytes follow the array; expected one array per file")
    return entry


def _npz_entries(path: Path) -> list[Entry]:
    with path.open("rb") as file:
        head = file.read(16)
        try:
            archive = zipfile.ZipFile(file)
        except (*ZIP_ERRORS, ValueError) as error:
            hint = "; truncated?" if head.startswith(ZIP_MAGICS) else _looks_like(head)
            raise ValueError(f"{printable(path)}: not a readable .npz (zip) file{hint}") from error
        with archive:
            entries = [_npz_member(path, file, archive, info) for info in archive.infolist()]
    names = [entry.name for entry in entries]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{printable(path)}: holds two arrays named {printable(twice)}")
    return entries


def _npz_member(path: Path, file: IO[bytes], archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Entry:
    label = printable(f"{path}: {info.filename}")
    if not info.filename.endswith(".npy"):
        raise ValueError(f"{label}: not an array; an .npz file holds .npy members only")
    name = info.filename.removesuffix(".npy")
    label = printable(f"{path}: {name}")
    try:
        with archive.open(info) as stream:
            entry = _parse_npy(stream, path, name, label)
    except ZIP_ERRORS as error:
        raise ValueError(f"{label}: unreadable zip member: {first_line(error)}") from error
    _sized(entry, info.file_size - entry.offset, label)
    if info.compress_type == zipfile.ZIP_STORED and entry.fortran:
        # columns are far apart, so they are read where they lie, past the member's own small header
        file.seek(info.header_offset)
        header = file.read(30)
        name_length, extra_length = struct.unpack("<HH", header[26:30])
        return replace(entry, offset=entry.offset + info.header_offset + 30 + name_length + extra_length)
    return replace(entry, member=info.filename)


def _safetensors_entries(path: Path) -> list[Entry]:
    with path.open("rb") as file:
        head = file.read(16)
        try:
            # the library checks the whole header, and that the tensors fill the file without holes or overlaps
            with safe_open(path, framework="numpy"):
                pass
        except (SafetensorError, ValueError, OSError) as error:
            hint = _looks_like(head) if head[8:9] != b"{" else ""
            detail = first_line(error)
            raise ValueError(f"{printable(path)}: not a readable .safetensors file: {detail}{hint}") from error
        length = int.from_bytes(head[:8], "little")
        file.seek(8)
        header = json.loads(file.read(length))
    entries = []
    for name in sorted((key for key in header if key != "__metadata__"), key=natural_key):
        info = header[name]
        dtype, storage = SAFETENSORS_DTYPES.get(info["dtype"], (str(info["dtype"]), "|u1"))
        offset = 8 + length + info["data_offsets"][0]
        entries.append(Entry(path, name, tuple(info["shape"]), dtype, np.dtype(storage), offset))
    return entries


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, safe for a terminal."""
    return printable((str(error) or type(error).__name__).splitlines()[0])

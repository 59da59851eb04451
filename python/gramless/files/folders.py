"""Find the layers of a model in a file or a folder, and refuse all that is not a set of matrices over the same rows."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from .._base.text import printable
from .formats import SUFFIXES, Entry, natural_key, read_entries
from .layer_source import FLOATS, Layer, LayerSource

IDS = "ids"
# what is longer is no id, and buffers of them would not be small
MAX_ID_BYTES = 4096
CHOOSE = "choose the layers by a pattern (--layers-a, --layers-b)"

Arrays = dict[str, tuple[Entry, ...]]


def open_layers(path: str | os.PathLike[str], layers: str | None = None) -> LayerSource:
    """Open the layers of one model on disk; only headers are read.

    Parameters
    ----------
    path : path
        - a ``.npy`` file: one layer, named after the file;
        - a ``.npz`` or ``.safetensors`` file: one layer per entry;
        - a folder of files that are all of one of these formats: row shards of the same layers, put together in natural
          order of the file names (shard-2 before shard-10), each with the same entries, widths and dtypes; a ``.npy``
          shard belongs to one layer, named after the folder;
        - a folder of such folders, with one array in each file: each is a layer, named after its folder.

        Hidden files are passed over. What is named "ids" (1-d integers or strings) names the rows and is no layer: an
        entry, a file ``ids.npy`` in the folder, or a folder of shards beside those of the layers.
    layers : str, optional
        Only the layers that match this shell pattern, such as ``"block*.mlp"``.

    Returns
    -------
    LayerSource
        Its layers are (n, p), float16, bfloat16 (``.safetensors``), float32 or float64.

    Raises
    ------
    OSError
        If a file is missing or unreadable.
    ValueError
        If a file is damaged or truncated, holds anything else than finite-size float matrices with the same number of
        rows, or does not fit its shards. The message names the file. Nothing is ever unpickled.

    Examples
    --------
    >>> import numpy as np
    >>> from gramless.files.compare_layers import open_layers
    >>> np.savez("acts.npz", relu1=np.ones((5, 3), np.float32), relu2=np.ones((5, 2), np.float16))
    >>> with open_layers("acts.npz") as source:
    ...     print(source.names, source.n, source.widths)
    ...     for chunk in source.chunks(rows=3):
    ...         print({name: x.shape for name, x in chunk.items()})
    ('relu1', 'relu2') 5 {'relu1': 3, 'relu2': 2}
    {'relu1': (3, 3), 'relu2': (3, 2)}
    {'relu1': (2, 3), 'relu2': (2, 2)}
    """
    place = Path(path)
    if not place.exists():
        raise FileNotFoundError(f"{printable(place)}: no such file or folder")
    arrays, ids = _find(place)
    if layers is not None:
        chosen = {name: shards for name, shards in arrays.items() if fnmatch.fnmatchcase(name, layers)}
        if not chosen:
            raise ValueError(f"{printable(place)}: no layer matches {printable(layers)!r}; it holds {_listed(arrays)}")
        arrays = chosen
    if not arrays:
        raise ValueError(f"{printable(place)}: holds no layers")
    _check_shards(arrays if ids is None else arrays | {IDS: ids})
    for shards in arrays.values():
        for shard in shards:
            _check_matrix(shard)
    _check_rows(place, arrays if ids is None else arrays | {IDS: ids})
    named = None if ids is None else Layer(IDS, ids)
    if named is not None:
        _check_ids(named)
    return LayerSource(place, [Layer(name, shards) for name, shards in arrays.items()], named)


def open_ids(path: str | os.PathLike[str]) -> Layer:
    """Open the ids of rows: a ``.npy`` file, or the entry "ids" of the other formats, 1-d integers or strings.

    Raises
    ------
    OSError
        If the file is missing or unreadable.
    ValueError
        If it holds no ids.
    """
    place = Path(path)
    found = _file_arrays(place)
    entry = next(iter(found.values())) if place.suffix.lower() == ".npy" else found.get(IDS)
    if entry is None:
        raise ValueError(f"{printable(place)}: holds no entry named {IDS!r}; it holds {_listed(found)}")
    layer = Layer(IDS, (entry,))
    _check_ids(layer)
    return layer


def _file_arrays(path: Path) -> dict[str, Entry]:
    if not path.exists():
        raise FileNotFoundError(f"{printable(path)}: no such file")
    # a pipe would block, a device would never end
    if not path.is_file():
        raise ValueError(f"{printable(path)}: not a regular file")
    return {entry.name: entry for entry in read_entries(path)}


def _find(place: Path) -> tuple[Arrays, tuple[Entry, ...] | None]:
    """All arrays by name, each with its shards, and the ids."""
    if not place.is_dir():
        arrays: Arrays = {name: (entry,) for name, entry in _file_arrays(place).items()}
        return arrays, None if place.suffix.lower() == ".npy" else arrays.pop(IDS, None)
    children = _children(place)
    named = [child for child in children if child.name in (IDS, f"{IDS}.npy")]
    files, folders = _sorted_out(place, [child for child in children if child not in named])
    arrays = {folder.name: _one_array(folder) for folder in folders} if folders else _joined(place, files)
    found = [_one_array(child) if child.is_dir() else tuple(_file_arrays(child).values()) for child in named]
    if files and files[0].suffix.lower() != ".npy" and IDS in arrays:
        found.append(arrays.pop(IDS))
    if len(found) > 1:
        raise ValueError(f"{printable(place)}: holds ids more than once")
    return arrays, found[0] if found else None


def _children(folder: Path) -> list[Path]:
    children = sorted((c for c in folder.iterdir() if not c.name.startswith(".")), key=lambda c: natural_key(c.name))
    if not children:
        raise ValueError(f"{printable(folder)}: the folder is empty")
    return children


def _sorted_out(folder: Path, children: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Row shards, or folders of them."""
    files, folders = [c for c in children if not c.is_dir()], [c for c in children if c.is_dir()]
    if not children:
        raise ValueError(f"{printable(folder)}: holds no layers")
    if files and folders:
        raise ValueError(
            f"{printable(folder)}: expected row shards or one folder per layer, got both "
            f"({printable(files[0].name)} and {printable(folders[0].name)}{os.sep})"
        )
    suffixes = {file.suffix.lower() for file in files}
    if len(suffixes) > 1 or not suffixes <= set(SUFFIXES):
        odd = next(file for file in files if file.suffix.lower() not in SUFFIXES or file.suffix != files[0].suffix)
        raise ValueError(
            f"{printable(folder)}: expected row shards, files all of one format ({', '.join(SUFFIXES)}), "
            f"got {printable(odd.name)} among {len(files)} file{'s' * (len(files) > 1)}"
        )
    return files, folders


def _joined(folder: Path, files: Sequence[Path]) -> Arrays:
    """Join row shards, which must hold the same entries."""
    shards = [_file_arrays(file) for file in files]
    if files[0].suffix.lower() == ".npy":
        return {folder.resolve().name: tuple(entry for shard in shards for entry in shard.values())}
    first = shards[0]
    for file, shard in zip(files, shards, strict=True):
        if shard.keys() != first.keys():
            raise ValueError(
                f"{printable(file)}: holds {_listed(shard)}, but the shard {printable(files[0].name)} "
                f"holds {_listed(first)}"
            )
    return {name: tuple(shard[name] for shard in shards) for name in first}


def _one_array(folder: Path) -> tuple[Entry, ...]:
    files, folders = _sorted_out(folder, _children(folder))
    if folders:
        raise ValueError(f"{printable(folder)}: expected the row shards of one layer, got folders in it")
    arrays = _joined(folder, files)
    if len(arrays) != 1:
        raise ValueError(
            f"{printable(folder)}: expected one array in each file of a layer's folder, got {_listed(arrays)}"
        )
    return next(iter(arrays.values()))


def _check_matrix(entry: Entry) -> None:
    if entry.dtype not in FLOATS:
        advice = ""
        if entry.dtype == "void16":
            advice = "; .npy cannot name bfloat16, save it as .safetensors or float32"
        elif entry.dtype.startswith(("int", "uint", "bool")):
            advice = f"; convert it, or {CHOOSE}"
        raise ValueError(
            f"{entry.label}: expected float16, bfloat16, float32 or float64, got {printable(entry.dtype)}{advice}"
        )
    if len(entry.shape) == 1:
        raise ValueError(
            f"{entry.label}: expected shape (n, p), got {entry.shape}; x.reshape(-1, 1) makes it one feature; if it is "
            f"no layer, {CHOOSE}"
        )
    if len(entry.shape) != 2:
        raise ValueError(
            f"{entry.label}: expected shape (n, p), got {entry.shape}; flatten it with x.reshape(len(x), -1), "
            f"or pool it, as with x.mean(axis=1), or take tokens for rows, x.reshape(-1, x.shape[-1]); if it is no "
            f"layer, {CHOOSE}"
        )
    if 0 in entry.shape:
        raise ValueError(f"{entry.label}: shape {entry.shape} has no {'rows' if entry.shape[0] == 0 else 'features'}")


def _check_ids(layer: Layer) -> None:
    for entry in layer.shards:
        if len(entry.shape) != 1 or entry.dtype == "bfloat16" or entry.storage.kind not in "iuUS":
            raise ValueError(
                f"{entry.label}: expected 1-d integers or strings as ids, got shape {entry.shape} "
                f"of {printable(entry.dtype)}"
            )
        if entry.shape[0] == 0:
            raise ValueError(f"{entry.label}: no ids")
        if not 0 < entry.storage.itemsize <= MAX_ID_BYTES:
            raise ValueError(f"{entry.label}: ids of {entry.storage.itemsize} bytes, expected 1 to {MAX_ID_BYTES}")


def _check_shards(arrays: Arrays) -> None:
    for name, shards in arrays.items():
        for shard in shards:
            # ids of shards may be strings of other lengths
            same = shard.storage.kind == shards[0].storage.kind if name == IDS else shard.dtype == shards[0].dtype
            if shard.shape[1:] != shards[0].shape[1:] or not same:
                raise ValueError(
                    f"{printable(shard.path)}: {printable(name)} has rows {shard.shape[1:]} of {shard.dtype}, "
                    f"but in {printable(shards[0].path.name)} rows {shards[0].shape[1:]} of {shards[0].dtype}; the "
                    f"files of a folder are row shards of the same layers; for one layer per file, give each a folder"
                )


def _check_rows(place: Path, arrays: Arrays) -> None:
    """All arrays must have the same rows, file by file where they share files."""
    by_rows: dict[int, list[str]] = {}
    for name, shards in arrays.items():
        by_rows.setdefault(sum(shard.shape[0] for shard in shards), []).append(name)
    if len(by_rows) > 1:
        counts = "; ".join(f"{_listed(names)}: {rows}" for rows, names in by_rows.items())
        raise ValueError(f"{printable(place)}: layers have different numbers of rows: {counts}; {CHOOSE}")
    by_file: dict[Path, dict[str, int]] = {}
    for name, shards in arrays.items():
        for shard in shards:
            by_file.setdefault(shard.path, {})[name] = shard.shape[0]
    for path, rows in by_file.items():
        if len(set(rows.values())) > 1:
            counts = "; ".join(f"{printable(name)}: {count}" for name, count in list(rows.items())[:6])
            raise ValueError(
                f"{printable(path)}: expected the same rows of all entries in one row shard, got different numbers of "
                f"rows: {counts}"
            )


def _listed(names: Mapping[str, object] | Sequence[str]) -> str:
    shown = [printable(name) for name in names]
    return ", ".join(shown[:6]) + (f" and {len(shown) - 6} more" if len(shown) > 6 else "") if shown else "nothing"

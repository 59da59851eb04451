"""Ids of rows: the proof that both sides hold the same samples in the same order."""

from __future__ import annotations

import os
import warnings
from typing import Any

import numpy as np

from .._base.text import printable
from .folders import open_ids
from .layer_source import Layer, LayerSource, stream_rows

ID_CHUNK_BYTES = 4 << 20


def check_order(
    a: LayerSource,
    b: LayerSource,
    ids_a: str | os.PathLike[str] | None = None,
    ids_b: str | os.PathLike[str] | None = None,
) -> bool:
    """Check that the rows of both sides are the same samples in the same order.

    Returns
    -------
    bool
        True if both sides have ids, which agree; a warning says if one occurs twice within 4 MB of ids. False if not:
        then, if one side has an entry named "ids", a warning says so.

    Raises
    ------
    ValueError
        If the numbers of rows differ, or the ids: the message names the first row that differs. Also if a file of ids
        was given for one side, and the other has none.
    """
    if a.n != b.n:
        raise ValueError(
            f"expected the same number of rows on both sides, got {a.n} in {printable(a.path)} "
            f"and {b.n} in {printable(b.path)}"
        )
    found_a, found_b = _ids_of(a, ids_a), _ids_of(b, ids_b)
    if found_a is not None and found_b is not None:
        _compare_ids(a, b, found_a, found_b)
        return True
    if found_a is not None or found_b is not None:
        named, other = (a, b) if found_b is None else (b, a)
        text = f"{printable(named.path)} has ids, {printable(other.path)} has none: the order of rows was not checked"
        if ids_a is not None or ids_b is not None:
            raise ValueError(f"{text}; give --ids-a and --ids-b, or neither")
        warnings.warn(text, UserWarning, stacklevel=2)
    return False


def _ids_of(source: LayerSource, path: str | os.PathLike[str] | None) -> Layer | None:
    ids = source.ids if path is None else open_ids(path)
    if ids is not None and ids.n != source.n:
        raise ValueError(f"{ids.shards[0].label}: {ids.n} ids for {source.n} rows of {printable(source.path)}")
    return ids


def _compare_ids(a: LayerSource, b: LayerSource, ids_a: Layer, ids_b: Layer) -> None:
    kinds = ["integers" if ids.shards[0].storage.kind in "iu" else ids.shards[0].dtype[:3] for ids in (ids_a, ids_b)]
    if kinds[0] != kinds[1]:
        raise ValueError(
            f"{ids_a.shards[0].label} and {ids_b.shards[0].label}: ids of different kinds, "
            f"{ids_a.shards[0].dtype} and {ids_b.shards[0].dtype}"
        )
    width = max(shard.storage.itemsize for ids in (ids_a, ids_b) for shard in ids.shards)
    rows = max(1, ID_CHUNK_BYTES // width)
    start, repeated = 0, None
    for chunk_a, chunk_b in zip(stream_rows((ids_a,), rows), stream_rows((ids_b,), rows), strict=True):
        left, right = chunk_a[ids_a.name], chunk_b[ids_b.name]
        different = np.flatnonzero(left != right)
        if len(different):
            row = int(different[0])
            raise ValueError(
                f"the rows are not the same samples in the same order: row {start + row} is "
                f"{_shown_id(left[row])} in {printable(a.path)} and {_shown_id(right[row])} in {printable(b.path)}"
            )
        if repeated is None:
            found, counts = np.unique(left, return_counts=True)
            repeated = _shown_id(found[counts > 1][0]) if len(found) < len(left) else None
        start += len(left)
    if repeated is not None:
        warnings.warn(
            f"{printable(a.path)}: the id {repeated} occurs more than once, so that ids do not prove the order of rows",
            UserWarning,
            stacklevel=3,
        )


def _shown_id(value: Any) -> str:
    return printable(repr(value.item()))

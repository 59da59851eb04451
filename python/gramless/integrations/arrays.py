"""Compare models by their activations on disk, in bounded memory.

See `open_layers` for what a path may be.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import repeat
from typing import Any

import numpy as np
import numpy.typing as npt

from gramless.integrations.checkpoints import Checkpoint
from gramless.integrations.folders import open_ids, open_layers
from gramless.integrations.formats import printable
from gramless.integrations.sources import Layer, LayerSource, rows_per_chunk, stream_rows
from gramless.layers import LayerGrid, SimilarityMatrix

__all__ = ["LayerSource", "check_order", "compare_files", "compare_sources", "open_layers", "rows_per_chunk"]

Rows = npt.NDArray[Any]

ID_CHUNK_BYTES = 4 << 20
# a checkpoint at most this often (seconds), and never for more than a twentieth of the time
CHECKPOINT_SECONDS = 60.0
CHECKPOINT_SHARE = 20


def compare_files(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str] | None = None,
    *,
    estimator: str = "unbiased",
    layers_a: str | None = None,
    layers_b: str | None = None,
    ids_a: str | os.PathLike[str] | None = None,
    ids_b: str | os.PathLike[str] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = False,
    max_bytes: int | None = None,
    backend: str = "auto",
) -> SimilarityMatrix:
    """CKA between all pairs of layers of two models, from activations on disk.

    Parameters
    ----------
    a, b : path
        Layers (n, p) of each model, as `open_layers` reads them; row i of both must be the same sample. Without b, the
        layers of a against each other.
    estimator : {"unbiased", "biased", "feature_corrected"}
        As in `gramless.cka`.
    layers_a, layers_b : str, optional
        Only the layers that match this shell pattern.
    ids_a, ids_b : path, optional
        Files with the ids of the rows, (n,) integers or strings. Default: the entry "ids" of a and b. If both sides
        have ids, they must agree row by row; if one has, a warning says that the order was not checked.
    checkpoint : path, optional
        Write the sums to this file now and then, and on interruption; go on from it if it exists. It is deleted when
        the comparison is complete. The result is the same to the last bit.
    progress : bool
        Show a progress bar on standard error, if that is a terminal.
    max_bytes, backend
        As in `gramless.LayerGrid`.

    Returns
    -------
    SimilarityMatrix
        Float64 values of shape (layers of a, layers of b).

    Raises
    ------
    OSError
        If a file is missing or unreadable.
    ValueError
        If a file is damaged, the numbers of rows differ, the ids differ, a value is not finite, or the checkpoint is of
        other inputs.
    MemoryError
        If the sums do not fit.

    Notes
    -----
    Each file is read once. Peak extra bytes beyond those of `LayerGrid`: 64 MB of rows, and 2 MB of buffers.

    Examples
    --------
    >>> import numpy as np
    >>> from gramless.integrations.arrays import compare_files
    >>> x = np.random.default_rng(0).standard_normal((500, 8))
    >>> np.save("a.npy", x)
    >>> np.savez("b.npz", same=2 * x, half=x[:, :4])
    >>> compare_files("a.npy", "b.npz").values.round(2)
    array([[1.  , 0.68]])
    """
    with ExitStack() as stack:
        source_a = stack.enter_context(open_layers(a, layers_a))
        source_b = None if b is None else stack.enter_context(open_layers(b, layers_b))
        if source_b is not None:
            check_order(source_a, source_b, ids_a, ids_b)
        return compare_sources(
            source_a,
            source_b,
            estimator=estimator,
            checkpoint=checkpoint,
            progress=progress,
            max_bytes=max_bytes,
            backend=backend,
        )


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
        True if both sides have ids, which agree. False if not: then, if one side has, a warning says so.

    Raises
    ------
    ValueError
        If the numbers of rows differ, or the ids: the message names the first row that differs.
    """
    if a.n != b.n:
        raise ValueError(
            f"expected the same number of rows on both sides, got {a.n} in {printable(a.path)} "
            f"and {b.n} in {printable(b.path)}"
        )
    found = [_ids_of(a, ids_a), _ids_of(b, ids_b)]
    sides = [source for source in found if source is not None]
    if len(sides) == 1:
        named = a if found[0] is not None else b
        other = b if named is a else a
        warnings.warn(
            f"{printable(named.path)} has ids, {printable(other.path)} has none: the order of rows was not checked",
            UserWarning,
            stacklevel=2,
        )
    if len(sides) < 2:
        return False
    _compare_ids(a, b, sides[0], sides[1])
    return True


def compare_sources(
    a: LayerSource,
    b: LayerSource | None = None,
    *,
    estimator: str = "unbiased",
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = False,
    max_bytes: int | None = None,
    backend: str = "auto",
) -> SimilarityMatrix:
    """`compare_files` of sources that are open, without the check of the ids."""
    sources = (a,) if b is None else (a, b)
    rows = rows_per_chunk(*sources)
    grid = LayerGrid(mode="exact", max_bytes=max_bytes, backend=backend)
    saved = None if checkpoint is None else Checkpoint(checkpoint, sources, rows)
    state = saved.load() if saved else None
    if state is not None:
        grid.load_state_dict(state)
    try:
        with _progress_bar(a.n, shown=progress) as advance:
            advance(grid.n)
            _stream(grid, a, b, rows, saved, advance)
    except KeyboardInterrupt:
        if saved is None or grid.n == 0:
            raise
        # an update that is cut off leaves the grid at the end of the chunk before
        saved.save(grid.state_dict())
        raise KeyboardInterrupt(
            f"{grid.n} of {a.n} rows are done; the same call goes on from {printable(saved.path)}"
        ) from None
    matrix = grid.finalize(estimator=estimator)
    if saved is not None:
        saved.remove()
    return matrix


def _stream(
    grid: LayerGrid,
    a: LayerSource,
    b: LayerSource | None,
    rows: int,
    saved: Checkpoint | None,
    advance: Callable[[int], None],
) -> None:
    """Feed all rows that the grid has not seen."""
    due = time.monotonic() + CHECKPOINT_SECONDS
    chunks_b = repeat(None) if b is None else b.chunks(rows, grid.n)
    for xs, ys in zip(a.chunks(rows, grid.n), chunks_b, strict=b is not None):
        try:
            grid.update(xs, ys)
        except ValueError:
            for source, chunk in ((a, xs), (b, ys)):
                _refuse_nonfinite(source, chunk, grid.n)
            raise
        advance(grid.n)
        now = time.monotonic()
        if saved is not None and now >= due and grid.n < a.n:
            saved.save(grid.state_dict())
            after = time.monotonic()
            due = after + max(CHECKPOINT_SECONDS, CHECKPOINT_SHARE * (after - now))


def _refuse_nonfinite(source: LayerSource | None, chunk: Mapping[str, Rows] | None, start: int) -> None:
    """Name the file, layer and row of the first value that is not finite."""
    if source is None or chunk is None:
        return
    for name, x in chunk.items():
        bad = np.flatnonzero(~np.isfinite(x).all(axis=1))
        if len(bad):
            raise ValueError(
                f"{printable(source.path)}: layer {printable(name)} has a non-finite value in row {start + int(bad[0])}"
            ) from None


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
    start = 0
    for chunk_a, chunk_b in zip(stream_rows((ids_a,), rows), stream_rows((ids_b,), rows), strict=True):
        left, right = chunk_a[ids_a.name], chunk_b[ids_b.name]
        different = np.flatnonzero(left != right)
        if len(different):
            row = int(different[0])
            raise ValueError(
                f"the rows are not the same samples in the same order: row {start + row} is "
                f"{_shown_id(left[row])} in {printable(a.path)} and {_shown_id(right[row])} in {printable(b.path)}"
            )
        start += len(left)


def _shown_id(value: Any) -> str:
    return printable(repr(value.item()))


@contextmanager
def _progress_bar(total: int, *, shown: bool) -> Iterator[Callable[[int], None]]:
    """Give a function that is told the rows done so far."""
    if not (shown and sys.stderr.isatty()):
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("rows"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("rows", total=total)
        yield lambda done: progress.update(task, completed=done)

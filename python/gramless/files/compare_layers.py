"""Compare models by their activations on disk, in bounded memory.

See `open_layers` for what a path may be.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .._base import arguments
from .._base.memory import available_bytes
from .._base.text import printable
from ..layers.cka_matrix import cka_matrix
from ..layers.grid import LayerGrid
from ..layers.plan import batch_bounds
from ..layers.similarity_matrix import SimilarityMatrix
from .checkpoint import Checkpoint
from .folders import open_layers
from .layer_source import LayerSource, rows_per_chunk
from .permutation_null import calibrated
from .row_ids import check_order

__all__ = ["LayerSource", "check_order", "compare_files", "compare_sources", "open_layers", "rows_per_chunk"]

Chunk = Mapping[str, npt.NDArray[Any]]

NULLS = ("permutation",)
# of compare_files
_DEFAULT_PERMUTATIONS = 200
# a checkpoint at most this often (seconds), and never for more than a twentieth of the time
CHECKPOINT_SECONDS = 60.0
CHECKPOINT_SHARE = 20


def compare_files(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str] | None = None,
    *,
    estimator: str = "unbiased",
    kernel: str = "linear",
    bandwidth: float | str | None = None,
    bandwidth_scale: float = 1.0,
    batch_size: int | None = None,
    weights: str = "rows",
    null: str | None = None,
    n_permutations: int = 200,
    seed: int = 0,
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
        As in `gramless.cka_matrix`.
    kernel, bandwidth, bandwidth_scale, weights
        As in `gramless.LayerGrid`. The rbf kernel over all rows at once needs the rows of all layers in memory.
    batch_size : int, optional
        Average over batches of so many consecutive rows, with standard errors, which take it that the rows of the files
        are in no order. Default: all rows at once, exactly.
    null : {"permutation"}, optional
        Put each value beside its mean and 95 % quantile over random permutations of the rows. It needs all rows at once
        and in memory.
    n_permutations, seed : int
        Of the null, as in `gramless.cka`.
    layers_a, layers_b : str, optional
        Only the layers that match this shell pattern.
    ids_a, ids_b : path, optional
        Files with the ids of the rows, (n,) integers or strings. Default: the entry "ids" of a and b. If both sides
        have ids, they must agree row by row; if one has such an entry, a warning says that the order was not checked,
        and if one was given a file, that is an error.
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
        Float64 values of shape (layers of a, layers of b). With a null, a
        `gramless.files.permutation_null.CalibratedMatrix`.

    Raises
    ------
    OSError
        If a file is missing or unreadable.
    ValueError
        If a file is damaged, the numbers of rows differ, the ids differ, a value is not finite, or the checkpoint is of
        other inputs.
    MemoryError
        If the sums do not fit, or the rows where these must be in memory.

    Notes
    -----
    Each file is read once. Peak extra bytes beyond those of `LayerGrid`: 64 MB of rows, and 2 MB of buffers. The rbf
    kernel over all rows, and the null, hold all rows; else their cost is that of `gramless.cka_matrix`, and for the
    null that of `gramless.cka` of each pair of layers.

    Examples
    --------
    >>> import numpy as np
    >>> from gramless.files.compare_layers import compare_files
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
        matrix = compare_sources(
            source_a,
            source_b,
            estimator=estimator,
            kernel=kernel,
            bandwidth=bandwidth,
            bandwidth_scale=bandwidth_scale,
            batch_size=batch_size,
            weights=weights,
            null=null,
            n_permutations=n_permutations,
            seed=seed,
            checkpoint=checkpoint,
            progress=progress,
            max_bytes=max_bytes,
            backend=backend,
        )
    if checkpoint is not None:
        Path(checkpoint).unlink(missing_ok=True)
    return matrix


def compare_sources(
    a: LayerSource,
    b: LayerSource | None = None,
    *,
    estimator: str = "unbiased",
    kernel: str = "linear",
    bandwidth: float | str | None = None,
    bandwidth_scale: float = 1.0,
    batch_size: int | None = None,
    weights: str = "rows",
    null: str | None = None,
    n_permutations: int = 200,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = False,
    max_bytes: int | None = None,
    backend: str = "auto",
) -> SimilarityMatrix:
    """`compare_files` of sources that are open, without the check of the ids; the checkpoint is left in place."""
    if null is not None:
        arguments.choice("compare_files", "null", null, NULLS)
        arguments.positive("compare_files", "n_permutations", n_permutations)
        arguments.seed("compare_files", seed)
    elif n_permutations != _DEFAULT_PERMUTATIONS:
        raise ValueError(f"compare_files: n_permutations={n_permutations} has no effect without null='permutation'")
    if batch_size is None and weights != "rows":
        raise ValueError(f"compare_files: weights={weights!r} needs batches, give batch_size")
    if batch_size is not None:
        batch_bounds("compare_files", a.n, batch_size)
        if null is not None or estimator != "unbiased":
            other = f"estimator={estimator!r}" if null is None else f"null={null!r}"
            raise ValueError(f"compare_files: batches have estimator='unbiased' alone, and no null, got {other}")
    options: dict[str, Any] = {"kernel": kernel, "bandwidth": bandwidth, "bandwidth_scale": bandwidth_scale}
    memory: dict[str, Any] = {"max_bytes": max_bytes, "backend": backend}
    if batch_size is None and (null is not None or kernel != "linear"):
        why = f"null={null!r}" if null else f"kernel={kernel!r} without batch_size"
        if checkpoint is not None:
            raise ValueError(f"compare_files: {why} has no checkpoint: it holds all rows at once")
        calibration = None if null is None else {"n_permutations": n_permutations, "seed": seed}
        return _compare_held(a, b, why, calibration, options | {"estimator": estimator}, memory, progress=progress)
    grid = LayerGrid("exact" if batch_size is None else "minibatch", weights=weights, **options, **memory)
    sources = (a,) if b is None else (a, b)
    rows = rows_per_chunk(*sources)
    if batch_size is not None:
        rows = max(rows // batch_size, 1) * batch_size
        _check_memory(min(rows, a.n), sources, f"batch_size={batch_size}")
    step = batch_size or rows
    saved = None if checkpoint is None else Checkpoint(checkpoint, sources, step, options | {"weights": weights})
    if saved is not None:
        saved.resume(grid)
    try:
        with _progress_bar(a.n, "rows", shown=progress) as advance:
            advance(grid.n)
            _stream(grid, a, b, rows, step, saved, advance)
    except KeyboardInterrupt:
        if saved is None or grid.n == 0:
            raise
        # an update that is cut off leaves the grid at the end of the one before
        saved.save(grid.state_dict())
        raise KeyboardInterrupt(
            f"{grid.n} of {a.n} rows are done; the same call goes on from {printable(saved.path)}"
        ) from None
    return grid.finalize(estimator=estimator)


def _compare_held(
    a: LayerSource,
    b: LayerSource | None,
    why: str,
    calibration: Mapping[str, Any] | None,
    options: Mapping[str, Any],
    memory: Mapping[str, Any],
    *,
    progress: bool,
) -> SimilarityMatrix:
    """Compare all rows at once, in memory; put them beside their null if it is to be calibrated."""
    xs, ys = _held(a, why), None if b is None else _held(b, why)
    with _naming_nonfinite((a, xs, 0), (b, ys, 0)):
        matrix = cka_matrix(xs, ys, progress=_is_shown(progress), **options, **memory)
    if calibration is None:
        return matrix
    with _progress_bar(matrix.values.size, "pairs", shown=progress) as advance:
        return calibrated(matrix, xs, ys, advance=advance, backend=memory["backend"], **calibration, **options)


def _stream(
    grid: LayerGrid,
    a: LayerSource,
    b: LayerSource | None,
    rows: int,
    step: int,
    saved: Checkpoint | None,
    advance: Callable[[int], None],
) -> None:
    """Feed all rows that the grid has not seen, in chunks, each by one or more steps."""
    due = time.monotonic() + CHECKPOINT_SECONDS
    chunks_b = repeat(None) if b is None else b.chunks(rows, grid.n)
    for xs, ys in zip(a.chunks(rows, grid.n), chunks_b, strict=b is not None):
        with _naming_nonfinite((a, xs, grid.n), (b, ys, grid.n)):
            for start in range(0, len(next(iter(xs.values()))), step):
                grid.update(_cut(xs, start, start + step), None if ys is None else _cut(ys, start, start + step))
        advance(grid.n)
        now = time.monotonic()
        if saved is not None and now >= due and grid.n < a.n:
            saved.save(grid.state_dict())
            after = time.monotonic()
            due = after + max(CHECKPOINT_SECONDS, CHECKPOINT_SHARE * (after - now))


def _cut(chunk: Chunk, start: int, stop: int) -> Chunk:
    return {name: x[start:stop] for name, x in chunk.items()}


def _held(source: LayerSource, why: str) -> Chunk:
    """Return all rows of all layers, in memory."""
    _check_memory(source.n, (source,), why)
    return next(source.chunks(source.n))


def _check_memory(rows: int, sources: Sequence[LayerSource], why: str) -> None:
    needed, limit = rows * sum(source.row_bytes for source in sources), available_bytes()
    if limit is not None and needed > limit:
        raise MemoryError(
            f"compare_files: {why} needs {rows:,} rows in memory at once: {needed:,} bytes, available is {limit:,} "
            "bytes; give a smaller batch_size, or choose fewer layers"
        )


@contextmanager
def _naming_nonfinite(*sides: tuple[LayerSource | None, Chunk | None, int]) -> Iterator[None]:
    """Name the file, layer and row of the first value that is not finite, if that is why an update fails."""
    try:
        yield
    except ValueError:
        for source, chunk, first in sides:
            for name, x in (chunk or {}).items():
                bad = np.flatnonzero(~np.isfinite(x).all(axis=1))
                if source is not None and len(bad):
                    place = f"{printable(source.path)}: layer {printable(name)}"
                    raise ValueError(f"{place} has a non-finite value in row {first + int(bad[0])}") from None
        raise


def _is_shown(progress: bool) -> bool:
    return progress and sys.stderr.isatty()


@contextmanager
def _progress_bar(total: int, what: str, *, shown: bool) -> Iterator[Callable[[int], None]]:
    """Give a function that is told how much is done so far."""
    if not _is_shown(shown):
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.update(task, completed=done)

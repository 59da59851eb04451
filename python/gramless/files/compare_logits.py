"""Compare what two models predict, by their hidden states and unembeddings on disk, in bounded memory.

Hidden states are read once, in batches of rows; the unembeddings are held in memory, as they are stored.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing
from typing import Any

import numpy as np
import numpy.typing as npt

from .._base import arguments
from .._base.memory import available_bytes
from .._base.progress import progress_bar
from .._base.text import printable
from ..predictions.batching import rows_at_a_time
from ..predictions.compare import LogitComparison
from ..predictions.stream import LogitPairs
from .formats import Entry
from .layer_source import FLOATS, Layer, stream_rows
from .logit_models import TARGETS, LogitModel, PathLike, open_logit_model, open_targets
from .row_ids import check_order
from .row_reader import OpenFiles, RowReader

# bytes of an unembedding that are read at a time
_PIECE_BYTES = 64 << 20


def compare_logit_files(
    a: PathLike,
    b: PathLike,
    *,
    unembedding_a: PathLike | None = None,
    unembedding_b: PathLike | None = None,
    bias_a: PathLike | None = None,
    bias_b: PathLike | None = None,
    logits: bool = False,
    ids_a: PathLike | None = None,
    ids_b: PathLike | None = None,
    **options: Any,
) -> LogitComparison:
    """Compare what two models predict, from files.

    Parameters
    ----------
    a, b, unembedding_a, unembedding_b, bias_a, bias_b : path
        As in `open_logit_model`, of model 1 and model 2; row i of both must be the same token.
    logits : bool
        Files hold logits.
    ids_a, ids_b : path, optional
        As in `gramless.files.compare_layers.compare_files`.
    **options
        As in `compare_logit_models`.

    Raises
    ------
    OSError, ValueError, MemoryError
        As `open_logit_model` and `compare_logit_models`, or if rows or ids differ.

    Examples
    --------
    >>> import numpy as np
    >>> from gramless.files.compare_logits import compare_logit_files
    >>> rng = np.random.default_rng(0)
    >>> h, w = rng.standard_normal((500, 8)), rng.standard_normal((100, 8))
    >>> np.savez("a.npz", hidden=h, unembedding=w)
    >>> np.savez("b.npz", hidden=h, unembedding=w + 0.01 * rng.standard_normal((100, 8)))
    >>> compare_logit_files("a.npz", "b.npz")
    LogitComparison(n=500, labels=100, kl_pq=0.0002608, kl_qp=0.0002603, logit_distance=0.2797)
    """
    with ExitStack() as stack:
        first = stack.enter_context(open_logit_model("A", a, unembedding_a, bias_a, logits=logits))
        second = stack.enter_context(open_logit_model("B", b, unembedding_b, bias_b, logits=logits))
        check_order(first.source, second.source, ids_a, ids_b)
        return compare_logit_models(first, second, **options)[0]


def compare_logit_models(
    a: LogitModel,
    b: LogitModel,
    *,
    vocab_size: int | None = None,
    targets: PathLike | None = None,
    ignore_index: int | None = None,
    temperature: float = 1.0,
    softcap_a: float | None = None,
    softcap_b: float | None = None,
    divergences: bool = True,
    keep_rows: bool = False,
    batch_rows: int | None = None,
    progress: bool = False,
    backend: str = "auto",
) -> tuple[LogitComparison, npt.NDArray[np.int64]]:
    """Compare models that are open, without the check of the ids.

    Parameters
    ----------
    a, b : LogitModel
    vocab_size : int, optional
        Only the first labels, so many: without the rows that pad an unembedding.
    targets : path, optional
        A ``.npy`` file, or one with the entry "targets", or ``file:entry``: (N,) integers, -1 for none.
    ignore_index : int, optional
        Rows with this target do not count.
    temperature, softcap_a, softcap_b, divergences, backend
        As in `gramless.compare_logits`.
    keep_rows : bool
        Keep the values of each row.
    batch_rows : int, optional
        Rows at a time. Default: about 64 MB of hidden states.
    progress : bool
        Show a progress bar on standard error, if that is a terminal.

    Returns
    -------
    comparison : LogitComparison
    numbers : int64 array
        The numbers of the rows that count, if values are kept; else empty.

    Raises
    ------
    OSError, ValueError
        If a file is damaged or changes, labels differ, a value is not finite, or targets are no labels.
    MemoryError
        If the unembeddings and a batch do not fit into memory.

    Notes
    -----
    Both unembeddings and a batch of rows, as stored (bfloat16 is widened to float32 unless ml_dtypes is installed), and
    what `gramless.logit_pairs` takes of a batch.
    """
    function = "compare_logit_files"
    for name, count in (("vocab_size", vocab_size), ("batch_rows", batch_rows)):
        if count is not None:
            arguments.positive(function, name, count)
    if ignore_index is not None and targets is None:
        raise ValueError(f"{function}: ignore_index={ignore_index} needs targets")
    labels = _common_labels(a, b, vocab_size)
    goals = None if targets is None else open_targets(targets, a.source)
    widths = [0 if model.unembedding is None else model.hidden.width for model in (a, b)]
    row_bytes = sum(model.hidden.width * _itemsize(model.hidden.dtype) for model in (a, b))
    size = min(batch_rows or rows_at_a_time(labels, sum(widths), row_bytes), a.source.n)
    _check_memory(a, b, labels, size * row_bytes)
    heads = [_head(model, labels) for model in (a, b)]
    try:
        stream = LogitPairs(
            heads[0][0],
            heads[1][0],
            b1=heads[0][1],
            b2=heads[1][1],
            temperature=temperature,
            softcap1=softcap_a,
            softcap2=softcap_b,
            divergences=divergences,
            ignore_index=ignore_index,
            keep_rows=keep_rows,
            backend=backend,
        )
    except ValueError as error:
        raise _in_files(error, a, b) from None
    numbers = [np.zeros(0, np.int64)]
    try:
        for start, h1, h2, aim in _rows(a, b, goals, labels, size, shown=progress and sys.stderr.isatty()):
            counted = np.ones(len(h1), bool) if aim is None or ignore_index is None else aim != ignore_index
            try:
                stream.update(h1, h2, targets=aim)
            except ValueError as error:
                raise _in_files(error, a, b, start, counted, h1, h2) from None
            if keep_rows:
                numbers.append(start + np.flatnonzero(counted))
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{stream.n} of {a.source.n} rows were done") from None
    if not stream.n:
        raise ValueError(f"{function}: every target is {ignore_index}, no row counts")
    return stream.finalize(), np.concatenate(numbers)


def _rows(a: LogitModel, b: LogitModel, goals: Layer | None, labels: int, size: int, *, shown: bool) -> Iterator[Any]:
    """Yield batches: the number of the first row, hidden states or logits of both models, and targets."""
    with ExitStack() as stack:
        batches = [stack.enter_context(closing(_batches(layer, size))) for layer in (a.hidden, b.hidden)]
        aims = None if goals is None else stack.enter_context(closing(stream_rows((goals,), size)))
        for start in progress_bar(range(0, a.source.n, size), "batches of rows", shown=shown):
            h1, h2 = map(next, batches)
            if a.unembedding is None:
                h1, h2 = h1[:, :labels], h2[:, :labels]
            yield start, h1, h2, None if aims is None else next(aims)[TARGETS]


def _common_labels(a: LogitModel, b: LogitModel, vocab_size: int | None) -> int:
    """Return how many labels are compared, the first ones of both models."""
    least = min(a.labels, b.labels)
    if vocab_size is not None:
        if vocab_size > least:
            raise ValueError(f"--vocab-size: expected at most {least}, the labels of both models, got {vocab_size}")
        return vocab_size
    if a.labels != b.labels:
        raise ValueError(
            f"expected the same labels on both sides, got {a.labels} of {printable(a.source.path)} and {b.labels} of "
            f"{printable(b.source.path)}; --vocab-size {least} compares the first {least}, if these are the same"
        )
    return least


def _itemsize(dtype: str) -> int:
    return 2 if dtype == "bfloat16" and _bfloat16() is not None else FLOATS[dtype]


def _check_memory(a: LogitModel, b: LogitModel, labels: int, batch: int) -> None:
    heads = [entry for entry in (a.unembedding, b.unembedding) if entry is not None]
    needed = batch + sum(labels * entry.shape[1] * _itemsize(entry.dtype) for entry in heads)
    limit = available_bytes()
    if limit is not None and needed > limit:
        raise MemoryError(
            f"both unembeddings and a batch of rows need {needed:,} bytes in memory, available is {limit:,} bytes; "
            "give a smaller --vocab-size or --batch-rows"
        )


def _head(model: LogitModel, labels: int) -> list[npt.NDArray[Any] | None]:
    """Read the first labels of unembedding and bias."""
    return [None if entry is None else _read(entry, labels) for entry in (model.unembedding, model.bias)]


def _read(entry: Entry, rows: int) -> npt.NDArray[Any]:
    """Read the first rows of an array, in pieces, so that an interruption need not wait."""
    out = np.empty((rows, *entry.shape[1:]), entry.storage.newbyteorder("="))
    step = max(1, _PIECE_BYTES // max(1, out[:1].nbytes))
    with closing(RowReader(entry, OpenFiles())) as reader:
        for start in range(0, rows, step):
            reader.read(start, min(start + step, rows), out[start : start + step])
    return _floats(out, entry.dtype)


def _batches(layer: Layer, rows: int) -> Generator[npt.NDArray[Any], None, None]:
    """Yield batches of rows, in a buffer that the next one overwrites."""
    with closing(stream_rows((layer,), rows)) as stream:
        for chunk in stream:
            yield _floats(chunk[layer.name], layer.dtype)


def _floats(array: npt.NDArray[Any], dtype: str) -> npt.NDArray[Any]:
    """Return an array as read as one of floats: NumPy has no bfloat16 of its own."""
    if dtype != "bfloat16":
        return array
    kind = _bfloat16()
    # a bfloat16 is the upper half of a float32
    return (array.astype(np.uint32) << 16).view(np.float32) if kind is None else array.view(kind)


def _bfloat16() -> Any:
    try:
        import ml_dtypes
    except ImportError:
        return None
    return ml_dtypes.bfloat16


def _in_files(
    error: ValueError,
    a: LogitModel,
    b: LogitModel,
    start: int = 0,
    counted: npt.NDArray[np.bool_] | None = None,
    *batch: npt.NDArray[Any],
) -> ValueError:
    """Say what is wrong in the names of the files and options, with rows numbered among all."""
    text = re.sub(r"^LogitPairs(\.\w+)?: ", "", str(error))
    for number, model, h in zip("12", (a, b), batch, strict=False):
        if text.startswith(f"h{number} has non-finite"):
            # logits may be -inf
            wrong = ~np.isfinite(h) if model.unembedding else np.isnan(h) | (h == np.inf)
            row = start + int(np.argmax(wrong.any(axis=1) & counted))
            return ValueError(
                f"{printable(model.source.path)}: {printable(model.hidden.name)} has a non-finite value in row {row}"
            )

    def said(found: re.Match[str]) -> str:
        if found["row"]:
            return f"row {int(found['row']) + start}"
        model = a if found["number"] == "1" else b
        if found["letter"] == "softcap":
            return f"--softcap-{model.side.lower()}"
        entry = model.unembedding if found["letter"] == "w" else model.bias
        return found[0] if entry is None else entry.label

    text = re.sub(r"\brow (?P<row>\d+)\b|\b(?P<letter>[wb]|softcap)(?P<number>[12])\b", said, text)
    return ValueError(text.replace("; mask= leaves rows out", "; --ignore-index leaves rows out"))

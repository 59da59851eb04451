"""Compare what two models predict over all rows: divergences, distances and entropies, with their standard errors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from . import _checks, _logit_checks, ops
from ._arrays import readable
from ._checks import Array
from ._comparison import LogitComparison as LogitComparison
from ._device import is_asked_for
from ._dispatch import PRECISIONS, check_backend
from ._logit_checks import Head
from ._logits import LogitPairState
from ._progress import watched
from ._row_values import RowTable, check_state
from ._unread_pairs import Options, PairsOnTheWay
from ._unread_pairs import without_ignored as without_ignored

# with fewer rows at a time, reading the unembeddings begins to cost more than what is done with them
LEAST_ROWS = 1024
MOST_ROWS = 65536
# on a GPU, which has its rows at hand: launches and the copies of results are to cost nothing
LEAST_ROWS_ON_GPU = 16384
# of hidden states, and flops, of the rows of a batch
_BATCH_BYTES, _BATCH_FLOPS = 1 << 26, 1e12


@overload
def compare_logits(h1: LogitPairState, *, rows: bool = False) -> LogitComparison: ...
@overload
def compare_logits(
    h1: Array,
    w1: Array | None,
    h2: Array,
    w2: Array | None,
    *,
    b1: Array | None = None,
    b2: Array | None = None,
    labels: Any = None,
    mask: Any = None,
    targets: Any = None,
    ignore_index: int | None = None,
    temperature: float = 1.0,
    softcap1: float | None = None,
    softcap2: float | None = None,
    divergences: bool = True,
    rows: bool = False,
    workspace: int | None = None,
    batch_rows: int | None = None,
    progress: bool = False,
    nonfinite: str = "raise",
    precision: str = "high",
    backend: str = "auto",
) -> LogitComparison: ...
def compare_logits(
    h1: Array | LogitPairState,
    w1: Array | None = None,
    h2: Array | None = None,
    w2: Array | None = None,
    *,
    b1: Array | None = None,
    b2: Array | None = None,
    labels: Any = None,
    mask: Any = None,
    targets: Any = None,
    ignore_index: int | None = None,
    temperature: float = 1.0,
    softcap1: float | None = None,
    softcap2: float | None = None,
    divergences: bool = True,
    rows: bool = False,
    workspace: int | None = None,
    batch_rows: int | None = None,
    progress: bool = False,
    nonfinite: str = "raise",
    precision: str = "high",
    backend: str = "auto",
) -> LogitComparison:
    """Compare what two models predict for the same rows: KL both ways, JS, logit distance, agreement and others.

    Parameters
    ----------
    h1 : array of shape (N, d1), float16, bfloat16, float32 or float64; or a LogitPairState
        Hidden states of model 1, also memory-mapped, or on a GPU, as all others then. A state, of one pass or of merged
        slices of the vocabulary, stands for both models: then there is nothing else to give but rows. It may lack js
        and tv.
    w1 : array of shape (V, d1) or None
        Its unembedding. None: h1 holds its logits (N, V).
    h2, w2 : array of shape (N, d2) and (V, d2)
        Those of model 2, of the same rows and labels; d2 and the dtypes may differ.
    b1, b2 : array of shape (V,), optional
        Biases; -inf masks a label.
    labels : int array of shape (V',), optional
        The labels to compare, as all but those that pad the vocabulary. Default: all.
    mask : bool array of shape (N,), optional
        Rows that count. Default: all.
    targets : int array of shape (N,), optional
        The label of each row, for nll and perplexity; -1 is none.
    ignore_index : int, optional
        Rows with this target do not count, such as -100.
    temperature : float
        What the logits of both models are divided by, above 0.
    softcap1, softcap2 : float, optional
        c above 0 of c tanh(z / c), which logits go through before that.
    divergences : bool
        js and tv, too, which may cost as much again.
    rows : bool
        Keep the values of each row.
    workspace : int, optional
        As in `gramless.logit_pairs`.
    batch_rows : int, optional
        Rows at a time. Default: 64 MiB of hidden states, or fewer where there are many labels, at least 1024; on a GPU
        at least 16384.
    progress : bool
        Show a progress bar over the batches on standard error.
    nonfinite : {"raise", "propagate"}
        What NaN and infinity do; "propagate" makes what they reach NaN.
    precision : {"fast", "high", "exact"}
        Of products on a GPU, as in `gramless.logit_pairs`.
    backend : {"auto", "reference", "cpu", "cuda"}
        A named backend never falls back to another.

    Returns
    -------
    LogitComparison

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As `gramless.logit_pairs`, and ValueError if no row counts, or ignore_index is given without targets.

    Notes
    -----
    2 N V (d1 + d2) flops, twice that for divergences where their workspace is too small: no N x V array. Beside what
    `gramless.logit_pairs` takes of a batch, 240 KB; with rows, 112 bytes for each. A GPU is given the next batch while
    results of the last one are on their way.

    Examples
    --------
    >>> import numpy as np
    >>> import gramless as gl
    >>> rng = np.random.default_rng(0)
    >>> h, w = rng.standard_normal((100, 16)), rng.standard_normal((1000, 16))
    >>> found = gl.compare_logits(h, w, h, w + 0.01 * rng.standard_normal(w.shape), targets=np.arange(100))
    >>> print(f"{found.kl_pq:.5f} +- {found.stderr['kl_pq']:.5f}")
    0.00058 +- 0.00004
    >>> found.n_targets, found.top1_agreement
    (100, 0.98)
    >>> state = gl.logit_pairs(h, w, h, w)
    >>> gl.compare_logits(state).kl_pq, gl.compare_logits(state).js
    (0.0, None)
    """
    function = "compare_logits"
    if isinstance(h1, LogitPairState):
        _check_alone(function, locals())
        return _of_state(function, h1, rows=rows)
    if h2 is None:
        raise TypeError(f"{function}: expected h1, w1, h2 and w2, or a LogitPairState, got no h2")
    check_backend(function, backend, "logit_pairs")
    _checks.choice(function, "precision", precision, PRECISIONS)
    if batch_rows is not None:
        _checks.positive(function, "batch_rows", batch_rows)
    first, second = (
        _logit_checks.head(function, h, w, b, softcap, number)
        for h, w, b, softcap, number in ((h1, w1, b1, softcap1, "1"), (h2, w2, b2, softcap2, "2"))
    )
    _logit_checks.pair(function, first, second)
    n = int(first.h.shape[0])
    mask = without_ignored(function, mask, targets, ignore_index, n)
    chosen = _logit_checks.choice(function, [first, second], labels, mask, targets)
    if not chosen.n:
        raise ValueError(f"{function}: expected at least one row that counts, got none")
    _checks.choice(function, "nonfinite", nonfinite, ("raise", "propagate"))
    heat = _checks.above_zero(function, "temperature", temperature)
    if workspace is not None:
        _checks.positive(function, "workspace", workspace)
    on_gpu = is_asked_for(_logit_checks.named(first, second), backend)
    row_bytes, width = (sum(measure(of) for of in (first, second)) for measure in (_row_bytes, _width))
    options = Options(
        function,
        # rows to be ignored are no longer in the mask
        ignore_index=None,
        labels=chosen.labels,
        temperature=heat,
        divergences=divergences,
        workspace=workspace,
        nonfinite=nonfinite,
        precision=precision,
        backend=backend,
    )
    size = batch_rows or (rows_on_gpu(row_bytes) if on_gpu else rows_at_a_time(first.labels, width, row_bytes))
    targets = None if targets is None else readable(targets)
    batches = _Batches((first, second), chosen.mask, targets, size, options)
    starts = watched(range(0, n, batches.size), "batches of rows", shown=progress and n > batches.size)
    states = batches.on_gpu(starts) if on_gpu else batches.on_host(starts)
    tables = (RowTable.of(function, state, divergences=divergences, keep=rows) for state in states)
    return LogitComparison._of(reduce(RowTable.merge, tables))


def rows_at_a_time(labels: int, width: int, row_bytes: int) -> int:
    """Return how many rows of both models make a batch: blocks of 256, so many that more gain nothing.

    Parameters
    ----------
    labels, width : int
        V and d1 + d2.
    row_bytes : int
        Bytes of a row of both hidden states.

    Examples
    --------
    >>> from gramless.logit_comparison import rows_at_a_time
    >>> rows_at_a_time(128_256, 8192, 16384), rows_at_a_time(50257, 1536, 6144), rows_at_a_time(100, 64, 256)
    (1024, 6400, 65536)
    """
    most = min(_BATCH_BYTES / max(row_bytes, 1), _BATCH_FLOPS / (2 * labels * max(width, 1)))
    return min(max(int(most) // 256 * 256, LEAST_ROWS), MOST_ROWS)


def rows_on_gpu(row_bytes: int) -> int:
    """Return how many rows of both models make a batch on a GPU, given the bytes of a row of both hidden states.

    Examples
    --------
    >>> from gramless.logit_comparison import rows_on_gpu
    >>> rows_on_gpu(16384), rows_on_gpu(2048)
    (16384, 32768)
    """
    return min(max(_BATCH_BYTES // max(row_bytes, 1) // 256 * 256, LEAST_ROWS_ON_GPU), MOST_ROWS)


@dataclass(frozen=True)
class _Batches:
    """Rows of two checked models in batches, and how to compute them."""

    heads: tuple[Head, Head]
    mask: NDArray[np.bool_] | None
    targets: Any
    size: int
    options: Options

    def on_host(self, starts: Iterable[int]) -> Iterator[LogitPairState]:
        """Yield the state of each batch in which rows count, given their first rows."""
        for start in starts:
            if self.mask is None or self.mask[start : start + self.size].any():
                yield self._state(start)

    def on_gpu(self, starts: Iterable[int]) -> Iterator[LogitPairState]:
        """Yield the same of a GPU, which is given the next batches before those are waited for."""
        on_the_way = PairsOnTheWay()
        for start in starts:
            on_the_way.launch(self.options, *self._rows(start), start)
            yield from map(self._judged, on_the_way.arrived())
        yield from map(self._judged, on_the_way.all())

    def _judged(self, arrival: tuple[int, LogitPairState | ValueError]) -> LogitPairState:
        start, found = arrival
        if isinstance(found, ValueError):
            # computed again, it is told in more detail
            self._state(start)
            raise _numbered(self.options.function, found, start)
        return found

    def _rows(self, start: int) -> tuple[tuple[Head, Head], Any, Any]:
        """Return models, mask and targets of a batch."""
        batch = slice(start, start + self.size)
        first, second = (replace(of, h=of.h[batch]) for of in self.heads)
        mask, targets = (None if rows is None else rows[batch] for rows in (self.mask, self.targets))
        return (first, second), mask, targets

    def _state(self, start: int) -> LogitPairState:
        (first, second), mask, targets = self._rows(start)
        try:
            return ops.logit_pairs(
                first.h,
                first.w,
                second.h,
                second.w,
                b1=first.b,
                b2=second.b,
                mask=mask,
                targets=targets,
                softcap1=first.softcap,
                softcap2=second.softcap,
                nonfinite=self.options.nonfinite,
                **self.options.keywords,
            )
        except (TypeError, ValueError) as error:
            raise _numbered(self.options.function, error, start) from None


def _width(of: Head) -> int:
    return 0 if of.w is None else int(of.w.shape[1])


def _row_bytes(of: Head) -> int:
    kind = str(of.h.dtype)
    return int(of.h.shape[1]) * (8 if "64" in kind else 4 if "32" in kind else 2)


def _numbered(function: str, error: Exception, start: int) -> Exception:
    """Return the error of a batch with its name and its rows numbered among all."""

    def moved(found: re.Match[str]) -> str:
        return re.sub(r"\d+", lambda row: str(int(row[0]) + start), found[0])

    text = re.sub(r"(?<=\bh[12] has non-finite values in rows )\d+\.\.\d+|\brow \d+(?= of h[12]\b)", moved, str(error))
    return type(error)(text.replace("logit_pairs", function, 1))


def _check_alone(function: str, given: dict[str, Any]) -> None:
    """Refuse what a state cannot take into account any more."""
    plain: dict[str, Any] = {"temperature": 1.0, "divergences": True, "progress": False, "nonfinite": "raise"}
    plain |= {"precision": "high", "backend": "auto"}
    for name, value in given.items():
        if name in ("h1", "rows", "function") or value is None:
            continue
        if name not in plain or type(value) is not type(plain[name]) or value != plain[name]:
            raise TypeError(f"{function}: a LogitPairState stands for both models, got {name}, too")


def _of_state(function: str, state: LogitPairState, *, rows: bool) -> LogitComparison:
    check_state(function, state)
    if not state.n:
        raise ValueError(f"{function}: expected at least one row, got a state of none")
    predicted = ~np.isnan(state.lse_p + state.lse_q)
    complete = not (predicted & np.isnan(state.js + state.tv)).any()
    return LogitComparison._of(RowTable.of(function, state, divergences=complete, keep=rows))

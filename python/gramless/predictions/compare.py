"""Compare what two models predict over all rows: divergences, distances and entropies, with their standard errors."""

from __future__ import annotations

from functools import reduce
from typing import Any, overload

import numpy as np

from .._base import arguments
from .._base.arrays import Array, try_as_numpy
from .._base.gpu_arrays import is_asked_for
from .._base.progress import progress_bar
from ..ops import logit_arguments
from ..ops.backends import PRECISIONS, check_backend
from ..states.logits import LogitPairState
from .batching import Batches, row_bytes_of, rows_at_a_time, rows_on_gpu, width_of
from .comparison import LogitComparison as LogitComparison
from .in_flight_batches import Options
from .in_flight_batches import without_ignored as without_ignored
from .row_statistics import RowTable, check_state


@overload
def compare_logits(h1: LogitPairState, *, keep_rows: bool = False) -> LogitComparison: ...
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
    keep_rows: bool = False,
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
    keep_rows: bool = False,
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
        slices of the vocabulary, stands for both models: then only keep_rows may be given beside it. It may lack js and
        tv.
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
    keep_rows : bool
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
    `gramless.logit_pairs` takes of a batch, 240 KB; with keep_rows, 112 bytes for each row. On a GPU the next batch is
    launched before the results of the last one arrive.

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
        return _of_state(function, h1, keep_rows=keep_rows)
    if h2 is None:
        raise TypeError(f"{function}: expected h1, w1, h2 and w2, or a LogitPairState, got no h2")
    check_backend(function, backend, "logit_pairs")
    arguments.choice(function, "precision", precision, PRECISIONS)
    if batch_rows is not None:
        arguments.positive(function, "batch_rows", batch_rows)
    first, second = (
        logit_arguments.head(function, h, w, b, softcap, number)
        for h, w, b, softcap, number in ((h1, w1, b1, softcap1, "1"), (h2, w2, b2, softcap2, "2"))
    )
    logit_arguments.pair(function, first, second)
    n = int(first.h.shape[0])
    mask = without_ignored(function, mask, targets, ignore_index, n)
    chosen = logit_arguments.choice(function, [first, second], labels, mask, targets)
    if not chosen.n:
        raise ValueError(f"{function}: expected at least one row that counts, got none")
    arguments.choice(function, "nonfinite", nonfinite, ("raise", "propagate"))
    heat = arguments.above_zero(function, "temperature", temperature)
    if workspace is not None:
        arguments.positive(function, "workspace", workspace)
    on_gpu = is_asked_for(logit_arguments.arrays_by_name(first, second), backend)
    row_bytes, width = (sum(measure(of) for of in (first, second)) for measure in (row_bytes_of, width_of))
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
    targets = None if targets is None else try_as_numpy(targets)
    batches = Batches((first, second), chosen.mask, targets, size, options)
    starts = progress_bar(range(0, n, batches.size), "batches of rows", shown=progress and n > batches.size)
    states = batches.on_gpu(starts) if on_gpu else batches.on_host(starts)
    tables = (RowTable.of(function, state, divergences=divergences, keep=keep_rows) for state in states)
    return LogitComparison._of(reduce(RowTable.merge, tables))


def _check_alone(function: str, given: dict[str, Any]) -> None:
    """Refuse what a state cannot take into account any more."""
    plain: dict[str, Any] = {"temperature": 1.0, "divergences": True, "progress": False, "nonfinite": "raise"}
    plain |= {"precision": "high", "backend": "auto"}
    for name, value in given.items():
        if name in ("h1", "keep_rows", "function") or value is None:
            continue
        if name not in plain or type(value) is not type(plain[name]) or value != plain[name]:
            raise TypeError(f"{function}: a LogitPairState stands for both models, got {name}, too")


def _of_state(function: str, state: LogitPairState, *, keep_rows: bool) -> LogitComparison:
    check_state(function, state)
    if not state.n:
        raise ValueError(f"{function}: expected at least one row, got a state of none")
    predicted = ~np.isnan(state.lse_p + state.lse_q)
    complete = not (predicted & np.isnan(state.js + state.tv)).any()
    return LogitComparison._of(RowTable.of(function, state, divergences=complete, keep=keep_rows))

"""What two models predict, compared over a stream of batches of hidden states."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import ops
from .._base import arguments, saved_state
from .._base.arrays import Array
from .._base.gpu_arrays import is_asked_for
from .._base.process_group import agree_on_layout, raise_on_all_ranks
from ..accumulators.base import Accumulator, synchronized
from ..ops.backends import PRECISIONS, check_backend
from ..states.logits import OPTIONS, LogitPairState
from ..states.moments import as_flat_arrays
from .comparison import LogitComparison
from .in_flight_batches import InFlightBatches, Options, without_ignored
from .output_heads import HeadWeights
from .row_statistics import RowTable, check_state

if TYPE_CHECKING:
    from typing import Self

FORMAT = "gramless.logit_pairs/1"


class LogitPairs(Accumulator[RowTable]):
    """Comparison of two models over a stream of batches; finalizing gives what `gramless.compare_logits` would.

    Parameters
    ----------
    w1, w2 : array of shape (V, d1) and (V, d2), or None
        Unembeddings of the same labels, never copied. None: batches hold the logits of that model.
    b1, b2 : array of shape (V,), optional
        Biases; -inf masks a label.
    labels : int array of shape (V',), optional
        The labels to compare. Default: all.
    temperature, softcap1, softcap2, divergences, ignore_index, workspace, nonfinite, precision, backend
        As in `gramless.compare_logits`.
    keep_rows : bool
        Keep the values of each row, 112 bytes, for `rows` and exact quantiles.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As `gramless.logit_pairs`, for what is known without rows.

    Notes
    -----
    It holds 240 KB whatever the number of rows, unless these are kept: for each value, the number of rows, mean and sum
    of squares about it, and a sketch of its quantiles. The order and the sizes of batches change results by rounding
    only. Weights are no part of the state. They are told apart by a fingerprint: shapes, dtypes, biases, labels, and
    the values of 64 rows of each, evenly spaced, when the stream is made: where weights change in place, as in
    training, make another stream for the new ones. `all_reduce` gathers 240 KB from each process, and rows where they
    are kept.

    With tensors on a GPU, where the weights have to be, too, `update` does not wait for it: what a row amounts to, 168
    bytes, goes to pinned host memory while more is launched, and is added when a later call finds it there. Of this 64
    MiB may be pending, and the newest batch; beyond that, `update` waits for the oldest. What shows on the GPU only,
    values that are not finite and targets that are wrong, is told once, with the number of the update, by what is read
    next: `finalize`, `state_dict`, `all_reduce`, or `merge` of the other one. That batch is left out, all others stay.
    `n` and `nbytes` wait, but tell nothing. A CUDA graph cannot hold an update.

    Where each process has a slice of the vocabulary, as with tensor-parallel heads, states of the slices are merged,
    and added by `add`, which shows how; `gramless.distributed.logit_pairs` does it for torch.distributed.

    Examples
    --------
    >>> import numpy as np
    >>> import gramless as gl
    >>> rng = np.random.default_rng(0)
    >>> h1, w1 = rng.standard_normal((100, 8)), rng.standard_normal((500, 8))
    >>> h2, w2 = rng.standard_normal((100, 6)), rng.standard_normal((500, 6))
    >>> stream = gl.LogitPairs(w1, w2)
    >>> for start in range(0, 100, 30):
    ...     _ = stream.update(h1[start : start + 30], h2[start : start + 30])
    >>> stream
    LogitPairs(n=100, labels=500)
    >>> bool(np.isclose(stream.finalize().kl_pq, gl.compare_logits(h1, w1, h2, w2).kl_pq))
    True
    """

    _table: RowTable | None = None
    # batches that a GPU is at work on, what is wrong with some that have come, and how many updates there were
    _pending: InFlightBatches | None = None
    _faults: tuple[str, ...] = ()
    _updates = 0

    def __init__(
        self,
        w1: Array | None = None,
        w2: Array | None = None,
        *,
        b1: Array | None = None,
        b2: Array | None = None,
        labels: Any = None,
        temperature: float = 1.0,
        softcap1: float | None = None,
        softcap2: float | None = None,
        divergences: bool = True,
        ignore_index: int | None = None,
        keep_rows: bool = False,
        workspace: int | None = None,
        nonfinite: str = "raise",
        precision: str = "high",
        backend: str = "auto",
    ) -> None:
        function = "LogitPairs"
        check_backend(function, backend, "logit_pairs")
        arguments.choice(function, "precision", precision, PRECISIONS)
        arguments.choice(function, "nonfinite", nonfinite, ("raise", "propagate"))
        if workspace is not None:
            arguments.positive(function, "workspace", workspace)
        without_ignored(function, None, np.zeros(0, np.int64), ignore_index, 0)
        self._weights = HeadWeights.checked(function, (w1, b1, softcap1), (w2, b2, softcap2), labels)
        self._ignore_index = ignore_index
        # what the values of a row depend on, beside the weights
        self._settings: dict[str, Any] = {
            "temperature": arguments.above_zero(function, "temperature", temperature),
            **{
                name: None if cap is None else arguments.above_zero(function, name, cap)
                for name, cap in (("softcap1", softcap1), ("softcap2", softcap2))
            },
            "divergences": _flag(function, "divergences", divergences),
            "keep_rows": _flag(function, "keep_rows", keep_rows),
        }
        self._fingerprint = self._weights.fingerprint()
        self._run: dict[str, Any] = {"workspace": workspace, "nonfinite": nonfinite, "backend": backend}
        self._precision = precision

    def __getstate__(self) -> dict[str, Any]:
        if self._pending:
            self._settle()
        return {name: value for name, value in super().__getstate__().items() if name != "_pending"}

    def __repr__(self) -> str:
        table = self._state
        return f"LogitPairs(n={table.n}, labels={table.labels})" if table else "LogitPairs(n=0)"

    def update(self, h1: Array, h2: Array, *, mask: Any = None, targets: Any = None) -> Self:
        """Add rows.

        Parameters
        ----------
        h1, h2 : array of shape (N, d1) and (N, d2), float16, bfloat16, float32 or float64
            Hidden states, or logits (N, V) where there is no unembedding. Any N, also none.
        mask : bool array of shape (N,), optional
            Rows that count. Default: all.
        targets : int array of shape (N,), optional
            The label of each row; -1 is none. On the host or beside h1, like mask.

        Raises
        ------
        TypeError, ValueError, RuntimeError
            As `gramless.logit_pairs`, and ValueError if the number of labels has changed, or ignore_index was given and
            there are no targets. The rows so far are kept.
        """
        function = self._name("update")
        given, weights = (("h1", h1), ("h2", h2)), self._weights
        arrays = {name: arguments.rows(function, name, h, allow_empty=True, on_gpu=True) for name, h in given}
        n = arguments.same_rows(function, arrays)
        if is_asked_for(arrays | weights.arrays, self._run["backend"]):
            self._launch(function, arrays, mask, targets)
            return self
        mask = without_ignored(function, mask, targets, self._ignore_index, n)
        settings = {name: self._settings[name] for name in ("temperature", "softcap1", "softcap2", "divergences")}
        chosen = {"b1": weights.b1, "b2": weights.b2, "labels": weights.labels, "mask": mask, "targets": targets}
        h1, h2 = arrays.values()
        try:
            state = ops.logit_pairs(h1, weights.w1, h2, weights.w2, **chosen, **settings, **self._run)
        except (TypeError, ValueError) as error:
            raise type(error)(str(error).replace("logit_pairs", function, 1)) from None
        self._take(function, RowTable.of(function, state, **self._options))
        self._updates += 1
        return self

    def _launch(self, function: str, arrays: Mapping[str, Array], mask: Any, targets: Any) -> None:
        """Launch a batch on a GPU, and add what has come of those before."""
        options = Options(
            function,
            labels=self._weights.labels,
            ignore_index=self._ignore_index,
            temperature=self._settings["temperature"],
            divergences=self._settings["divergences"],
            precision=self._precision,
            **self._run,
        )
        before, pending = self._table, self._pending or InFlightBatches()
        known = pending.labels or (before.labels if before else 0)
        pending.launch(options, self._weights.heads(function, arrays), mask, targets, self._updates + 1, known)
        self._pending, self._updates = pending, self._updates + 1
        self._add_arrived(pending.arrived())

    @property
    def _state(self) -> RowTable | None:
        if self._pending:
            self._settle()
        return self._table

    @_state.setter
    def _state(self, table: RowTable | None) -> None:
        self._table = table

    @synchronized
    def _settle(self) -> None:
        """Wait for all that a GPU has to tell."""
        if self._pending:
            self._add_arrived(self._pending.all())

    def _add_arrived(self, batches: Iterable[tuple[int, LogitPairState | ValueError]]) -> None:
        """Add batches that have come from a GPU; what is wrong with others is kept."""
        function = self._name("update")
        for number, found in batches:
            try:
                if isinstance(found, ValueError):
                    raise found
                table = RowTable.of(function, found, **self._options)
            except ValueError as error:
                text = str(error).removeprefix(f"{function}: ")
                self._faults = (*self._faults, f"in update {number}, {text}; its rows are left out")
                continue
            if table.n:
                self._table = table if self._table is None else self._joined(function, self._table, table)

    def _tell(self, function: str) -> None:
        """Raise what is wrong with batches that have come from a GPU, once."""
        if self._pending:
            self._settle()
        faults, self._faults = self._faults, ()
        if faults:
            more = f", as are those of {len(faults) - 1} more" if len(faults) > 1 else ""
            raise ValueError(f"{function}: {faults[0]}{more}")

    def add(self, state: LogitPairState) -> Self:
        """Add the rows of a state, of one pass or of merged slices of the vocabulary.

        It is taken on trust that the state is of the same models; js and tv it must have, unless divergences=False.
        ignore_index is for `update`: rows of a state count as they are.

        Parameters
        ----------
        state : LogitPairState

        Raises
        ------
        TypeError, ValueError
            If it is no state, is of another temperature, softcap or number of labels, or has no js and tv. The rows so
            far are kept.

        Examples
        --------
        Two processes, each with a slice of the labels; what they exchange are states, and shares of js and tv.

        >>> from dataclasses import replace
        >>> import numpy as np
        >>> import gramless as gl
        >>> rng = np.random.default_rng(0)
        >>> h1, w1, h2, w2 = (rng.standard_normal((k, 8)) for k in (100, 500, 100, 500))
        >>> slices = [slice(0, 300), slice(300, 500)]
        >>> stream = gl.LogitPairs()
        >>> for rows in (slice(0, 60), slice(60, 100)):
        ...     heads = [(h1[rows], w1[part], h2[rows], w2[part]) for part in slices]
        ...     low, high = (gl.logit_pairs(*head) for head in heads)
        ...     whole = low.merge(high.numbered_from(300))
        ...     shares = [gl.logit_divergences(*head, whole.lse_p, whole.lse_q) for head in heads]
        ...     sums = {name: shares[0][name] + shares[1][name] for name in ("js", "tv")}
        ...     _ = stream.add(replace(whole, **sums))
        >>> bool(np.isclose(stream.finalize().js, gl.compare_logits(h1, w1, h2, w2).js))
        True
        """
        function = self._name("add")
        if not isinstance(state, LogitPairState):
            raise TypeError(f"{function}: expected a LogitPairState, got {type(state).__name__}")
        check_state(function, state)
        for name in (option for option in OPTIONS if option in self._settings):
            if getattr(state, name) != self._settings[name]:
                raise ValueError(
                    f"{function}: expected a state with {name}={self._settings[name]}, as of this stream, got "
                    f"{name}={getattr(state, name)}"
                )
        if state.n:
            self._take(function, RowTable.of(function, state, **self._options))
        return self

    def finalize(self) -> LogitComparison:
        """Return the comparison over all rows so far; more rows may follow.

        Raises
        ------
        ValueError
            If there are no rows yet, or something is wrong with those of a batch that came on a GPU.
        """
        function = self._name("finalize")
        self._tell(function)
        return LogitComparison._of(self._filled(function))

    def state_dict(self) -> dict[str, Array]:
        """Return a flat dict of arrays, which saves without pickle; the weights are not in it.

        Raises
        ------
        ValueError
            If something is wrong with rows of a batch that came on a GPU.
        """
        self._tell(self._name("state_dict"))
        table = self._state
        arrays, n, labels = (table.to_dict(), table.n, table.labels) if table else ({}, 0, 0)
        marks = {"settings": json.dumps(self._settings), "fingerprint": self._fingerprint}
        return as_flat_arrays(arrays, format=FORMAT, n=n, labels=labels, **marks)

    def reset(self) -> None:
        """Forget all rows, and what was wrong with others."""
        self._forget()
        super().reset()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace all rows by those of a dict made by `state_dict`, as every accumulator does."""
        loaded = self._loaded(self._name("load_state_dict"), state)
        self._forget()
        self._table = loaded

    def all_reduce(self, group: Any = None) -> Self:
        """Replace the rows of each process by those of all, as every accumulator does.

        What is wrong with rows that came on a GPU to one process is an error of all.
        """
        function = self._name("all_reduce")
        # refuses processes outside of the group
        agree_on_layout(function, 0, "", group)
        failure: ValueError | None = None
        try:
            self._tell(function)
        except ValueError as error:
            failure = error
        raise_on_all_ranks(function, failure, group)
        return super().all_reduce(group)

    def _forget(self) -> None:
        self._pending, self._faults, self._updates = None, (), 0

    def _loaded(self, function: str, state: Mapping[str, Any]) -> RowTable | None:
        n = saved_state.header(function, state, FORMAT)
        labels = saved_state.whole(function, state, "labels")
        text = saved_state.text(function, state, "settings")
        try:
            settings = dict(json.loads(text))
        except (TypeError, ValueError):
            raise ValueError(f"{function}: expected 'settings' to be options as JSON, got {text[:80]!r}") from None
        self._same_models(function, settings, saved_state.text(function, state, "fingerprint"))
        if n and not labels:
            raise ValueError(f"{function}: expected 'labels' of at least 1, got {labels}")
        table = RowTable.from_dict(function, state, n, labels, **self._options) if n else None
        known = {"format", "n", "labels", "settings", "fingerprint", *(table.to_dict() if table else ())}
        saved_state.no_other_keys(function, state, known)
        return table

    def _refuse_other(self, function: str, other: Any) -> None:
        super()._refuse_other(function, other)
        self._same_models(function, other._settings, other._fingerprint)
        other._tell(function)

    def _joined(self, function: str, mine: RowTable, theirs: RowTable) -> RowTable:
        if theirs.labels != mine.labels:
            raise ValueError(f"{function}: expected {mine.labels} labels, as before, got {theirs.labels}")
        return mine.merge(theirs)

    def _layout(self, state: RowTable) -> str:
        return json.dumps([self._settings, self._fingerprint, state.labels])

    @property
    def _options(self) -> dict[str, bool]:
        """What a table of rows holds."""
        return {"divergences": self._settings["divergences"], "keep": self._settings["keep_rows"]}

    def _same_models(self, function: str, settings: Mapping[str, Any], fingerprint: str) -> None:
        mine = self._settings
        different = [name for name in mine if settings.get(name) != mine[name] or name not in settings]
        if different or settings.keys() != mine.keys():
            named = ", ".join(f"{name}={settings.get(name)!r}, not {mine[name]!r}" for name in different)
            raise ValueError(f"{function}: rows of other options: {named or ', '.join(map(str, settings))}")
        if fingerprint != self._fingerprint:
            raise ValueError(f"{function}: these rows belong to other unembeddings, biases or labels")


def _flag(function: str, name: str, value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{function}: expected {name} to be a bool, got {type(value).__name__}")
    return bool(value)

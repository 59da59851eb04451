"""What two models predict, compared over a stream of batches of hidden states."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _checks, _logit_checks, ops
from ._arrays import readable
from ._checks import Array
from ._comparison import LogitComparison
from ._dispatch import check_backend
from ._logits import LogitPairState
from ._row_values import RowTable, check_state
from ._states import saved
from .accumulators import Accumulator
from .logit_comparison import without_ignored

if TYPE_CHECKING:
    from typing import Self

FORMAT = "gramless.logit_pairs/1"
# rows of each unembedding that its fingerprint is taken of
_SAMPLED_ROWS = 64


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
    temperature, softcap1, softcap2, divergences, ignore_index, workspace, nonfinite, backend
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
    the values of 64 rows of each, evenly spaced. `all_reduce` gathers 240 KB from each process, and rows where they are
    kept.

    Where each process has a slice of the vocabulary, as with tensor-parallel heads, states of the slices are merged,
    and added by `add`, which shows how.

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
        backend: str = "auto",
    ) -> None:
        function = "LogitPairs"
        check_backend(function, backend, "logit_pairs")
        _checks.choice(function, "nonfinite", nonfinite, ("raise", "propagate"))
        if workspace is not None:
            _checks.positive(function, "workspace", workspace)
        without_ignored(function, None, np.zeros(0, np.int64), ignore_index, 0)
        self._weights = _checked(function, (w1, b1, softcap1), (w2, b2, softcap2), labels)
        self._ignore_index = ignore_index
        # what the values of a row depend on, beside the weights
        self._settings: dict[str, Any] = {
            "temperature": _checks.above_zero(function, "temperature", temperature),
            **{
                name: None if cap is None else _checks.above_zero(function, name, cap)
                for name, cap in (("softcap1", softcap1), ("softcap2", softcap2))
            },
            "divergences": _flag(function, "divergences", divergences),
            "keep_rows": _flag(function, "keep_rows", keep_rows),
        }
        self._fingerprint = _fingerprint(self._weights)
        self._run: dict[str, Any] = {"workspace": workspace, "nonfinite": nonfinite, "backend": backend}

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
            The label of each row; -1 is none.

        Raises
        ------
        TypeError, ValueError, RuntimeError
            As `gramless.logit_pairs`, and ValueError if the number of labels has changed, or ignore_index was given and
            there are no targets. The rows so far are kept.
        """
        function = self._name("update")
        w1, w2, b1, b2, labels = self._weights
        arrays = {name: _checks.rows(function, name, h, allow_empty=True) for name, h in (("h1", h1), ("h2", h2))}
        n = _checks.same_rows(function, arrays)
        mask = without_ignored(function, mask, targets, self._ignore_index, n)
        settings = {name: self._settings[name] for name in ("temperature", "softcap1", "softcap2", "divergences")}
        chosen = {"b1": b1, "b2": b2, "labels": labels, "mask": mask, "targets": targets}
        try:
            state = ops.logit_pairs(arrays["h1"], w1, arrays["h2"], w2, **chosen, **settings, **self._run)
        except (TypeError, ValueError) as error:
            raise type(error)(str(error).replace("logit_pairs", function, 1)) from None
        self._take(function, RowTable.of(function, state, **self._options))
        return self

    def add(self, state: LogitPairState) -> Self:
        """Add the rows of a state, of one pass or of merged slices of the vocabulary.

        It is taken on trust that the state is of the same models and options; js and tv it must have, unless
        divergences=False.

        Parameters
        ----------
        state : LogitPairState

        Raises
        ------
        TypeError, ValueError
            If it is no state, is of another number of labels, or has no js and tv. The rows so far are kept.

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
        if state.n:
            self._take(function, RowTable.of(function, state, **self._options))
        return self

    def finalize(self) -> LogitComparison:
        """Return the comparison over all rows so far; more rows may follow.

        Raises
        ------
        ValueError
            If there are no rows yet.
        """
        return LogitComparison._of(self._filled(self._name("finalize")))

    def state_dict(self) -> dict[str, Array]:
        """Return a flat dict of arrays, which saves without pickle; the weights are not in it."""
        table = self._state
        arrays, n, labels = (table.to_dict(), table.n, table.labels) if table else ({}, 0, 0)
        marks = {"settings": json.dumps(self._settings), "fingerprint": self._fingerprint}
        return saved(arrays, format=FORMAT, n=n, labels=labels, **marks)

    def _loaded(self, function: str, state: Mapping[str, Any]) -> RowTable | None:
        n = _checks.state_header(function, state, FORMAT)
        labels = _checks.state_whole(function, state, "labels")
        text = _checks.state_text(function, state, "settings")
        try:
            settings = dict(json.loads(text))
        except (TypeError, ValueError):
            raise ValueError(f"{function}: expected 'settings' to be options as JSON, got {text[:80]!r}") from None
        self._same_models(function, settings, _checks.state_text(function, state, "fingerprint"))
        if n and not labels:
            raise ValueError(f"{function}: expected 'labels' of at least 1, got {labels}")
        table = RowTable.from_dict(function, state, n, labels, **self._options) if n else None
        known = {"format", "n", "labels", "settings", "fingerprint", *(table.to_dict() if table else ())}
        _checks.no_other_keys(function, state, known)
        return table

    def _refuse_other(self, function: str, other: Any) -> None:
        super()._refuse_other(function, other)
        self._same_models(function, other._settings, other._fingerprint)

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


def _checked(function: str, *models: Any) -> tuple[Any, ...]:
    """Return w1, w2, b1, b2 and labels, checked as far as they can be without rows."""
    *sides, labels = models
    heads = {
        number: _logit_checks.weights(function, w, b, softcap, number)
        for number, (w, b, softcap) in zip("12", sides, strict=True)
        if w is not None
    }
    if len(heads) == len(sides):
        _logit_checks.pair(function, *heads.values())
    if heads:
        labels, _ = _logit_checks.labels_of(function, list(heads.values()), labels)
    ws = [heads[number].w if number in heads else None for number in "12"]
    bs = [heads[number].b if number in heads else b for number, (_, b, _) in zip("12", sides, strict=True)]
    return (*ws, *bs, labels)


def _fingerprint(weights: tuple[Any, ...]) -> str:
    """Return a hash of shapes, dtypes, biases, labels, and the values of some rows of each unembedding."""
    w1, w2, b1, b2, labels = weights
    digest = hashlib.sha256()
    for w in (w1, w2):
        if w is None:
            digest.update(b"logits;")
            continue
        count, width = map(int, w.shape)
        digest.update(f"{count} {width} {str(w.dtype).removeprefix('torch.')};".encode())
        rows = np.unique(np.linspace(0, count - 1, _SAMPLED_ROWS).astype(np.int64))
        digest.update(_checks.to_numpy(w[rows.tolist()]).astype(np.float64).tobytes())
    for vector in (b1, b2, labels):
        found = None if vector is None else readable(vector)
        digest.update(b"none;" if found is None else f"{found.shape};".encode() + found.tobytes())
    return digest.hexdigest()

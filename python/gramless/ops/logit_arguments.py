"""Checks of what logits are made of: models as hidden states and unembeddings, and the rows and labels that count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._base import arguments
from .._base.arrays import Array, try_as_numpy

# of a target: the row has none among these labels
NO_TARGET = -1


@dataclass(frozen=True)
class OutputHead:
    """One model, checked."""

    h: Array  # (N, d), or the logits (N, V); None where weights alone are known
    w: Array | None  # (V, d)
    b: NDArray[np.float64] | None  # (V,)
    softcap: float | None
    number: str  # of the model in the names of its arguments

    @property
    def labels(self) -> int:
        """Number of labels V."""
        return int(self.h.shape[1] if self.w is None else self.w.shape[0])

    @property
    def possible(self) -> NDArray[np.bool_]:
        """Labels (V,) that are not masked."""
        return np.ones(self.labels, dtype=bool) if self.b is None else self.b > -np.inf

    def arrays(self, backend: str) -> tuple[Array, Array | None]:
        """Return h and w as a backend takes them."""
        if backend != "reference":
            return self.h, self.w
        return arguments.to_numpy(self.h), None if self.w is None else arguments.to_numpy(self.w)


@dataclass(frozen=True)
class Choice:
    """Rows and labels that count, as the kernels take them."""

    labels: NDArray[np.int64] | None  # (V',), in order
    mask: NDArray[np.bool_] | None  # (N,)
    targets: NDArray[np.int64] | None  # (N,), a label that counts for each row that does
    without_target: NDArray[np.bool_] | None  # (N',), of the rows that count
    n: int  # N'


def head(function: str, h: Any, w: Any, b: Any, softcap: Any, number: str = "") -> OutputHead:
    """Return one model; number is that of its arguments, empty if there is one model."""
    h = arguments.rows(function, f"h{number}", h, allow_empty=True, on_gpu=True)
    if w is not None:
        w = arguments.rows(function, f"w{number}", w, on_gpu=True)
        if w.shape[1] != h.shape[1]:
            swapped = f"; w{number} has one row for each label, use w{number}.T" if w.shape[0] == h.shape[1] else ""
            raise ValueError(
                f"{function}: expected h{number} (N, d) and w{number} (V, d) with the same number of features, got "
                f"h{number} {tuple(h.shape)} and w{number} {tuple(w.shape)}{swapped}"
            )
    return _head(function, h, w, b, softcap, number)


def weights(function: str, w: Any, b: Any, softcap: Any, number: str) -> OutputHead:
    """Return one model without its hidden states."""
    return _head(function, None, arguments.rows(function, f"w{number}", w, on_gpu=True), b, softcap, number)


def _head(function: str, h: Array, w: Array | None, b: Any, softcap: Any, number: str) -> OutputHead:
    cap = None if softcap is None else arguments.above_zero(function, f"softcap{number}", softcap)
    made = OutputHead(h, w, None, cap, number)
    return made if b is None else replace(made, b=_bias(function, made, b))


def _bias(function: str, of: OutputHead, b: Any) -> NDArray[np.float64]:
    """Return a bias as contiguous float64 of shape (V,); -inf masks a label."""
    name, found = f"b{of.number}", try_as_numpy(b)
    if found is None or (found.dtype.kind not in "fiu" and found.dtype.name != "bfloat16"):
        kind = type(b).__name__ if found is None else f"dtype {found.dtype}"
        raise TypeError(f"{function}: expected {name} to be an array of real numbers, got {kind}")
    if found.shape != (of.labels,):
        raise ValueError(f"{function}: expected {name} of shape {(of.labels,)}, one for each label, got {found.shape}")
    made = np.array(found, dtype=np.float64, order="C")
    if np.isnan(made).any() or (made == np.inf).any():
        label = int(np.argmax(np.isnan(made) | (made == np.inf)))
        raise ValueError(f"{function}: expected {name} finite, or -inf to mask a label, got {made[label]} of {label}")
    return made


def pair(function: str, first: OutputHead, second: OutputHead) -> None:
    """Refuse two models that are not of the same labels, and of the same rows where hidden states are known."""
    if first.h is not None and second.h is not None:
        arguments.same_rows(function, {f"h{first.number}": first.h, f"h{second.number}": second.h})
    if first.labels != second.labels:
        larger, least = max((first, second), key=lambda of: of.labels), min(first.labels, second.labels)
        name = f"h{larger.number}[:, :{least}]" if larger.w is None else f"w{larger.number}[:{least}]"
        bias = "" if larger.b is None else f" and b{larger.number}[:{least}]"
        lone = [of.number for of in (first, second) if of.w is None]
        taken = "".join(f"; without w{number}, h{number} is taken for logits" for number in lone)
        raise ValueError(
            f"{function}: expected the same labels in both models, got {first.labels} of model {first.number} and "
            f"{second.labels} of model {second.number}; pass {name}{bias} if the first {least} labels are the same, "
            f"and labels= for those of them that both models share{taken}"
        )


def arrays_by_name(*heads: OutputHead) -> dict[str, Array]:
    """Return the arrays of models by their names, without unembeddings that are None."""
    given = [(f"{name}{of.number}", array) for of in heads for name, array in (("h", of.h), ("w", of.w))]
    return {name: array for name, array in given if array is not None}


def labels_of(
    function: str, heads: Sequence[OutputHead], labels: Any
) -> tuple[NDArray[np.int64] | None, NDArray[np.bool_]]:
    """Return the labels that count, in order, None for all; and which of all labels (V,) they are."""
    chosen = None if labels is None else _labels(function, labels, heads[0].labels)
    kept = np.ones(heads[0].labels, dtype=bool)
    if chosen is not None:
        kept[:] = False
        kept[chosen] = True
    for of in heads:
        if not (kept & of.possible).any():
            raise ValueError(f"{function}: b{of.number} masks every label, expected one that is above -inf")
    return chosen, kept


def choice(function: str, heads: Sequence[OutputHead], labels: Any, mask: Any, targets: Any = None) -> Choice:
    """Return the rows and labels that count of one or two models over the same labels."""
    chosen, kept = labels_of(function, heads, labels)
    n = int(heads[0].h.shape[0])
    rows = None if mask is None else row_mask(function, mask, n)
    if targets is None:
        return Choice(chosen, rows, None, None, n if rows is None else int(rows.sum()))
    kept &= np.logical_or.reduce([of.possible for of in heads])
    counted = np.arange(n) if rows is None else np.flatnonzero(rows)
    made = _targets(function, targets, n, counted, kept)
    without = made[counted] == NO_TARGET
    # kernels want a label that counts: what it gives is dropped
    made[counted[without]] = np.argmax(kept)
    return Choice(chosen, rows, made, without, len(counted))


def _whole(function: str, name: str, found: NDArray[Any] | None, value: Any, shape: str) -> NDArray[Any]:
    if found is None or found.dtype.kind not in "iu":
        kind = type(value).__name__ if found is None else f"dtype {found.dtype}"
        use = "; use np.flatnonzero(labels)" if kind == "dtype bool" and name == "labels" else ""
        raise TypeError(f"{function}: expected {name} to be whole numbers of shape {shape}, got {kind}{use}")
    return found


def _labels(function: str, labels: Any, count: int) -> NDArray[np.int64]:
    """Return labels in order, since the lowest of equals is the top."""
    found = try_as_numpy(labels)
    # of none, whatever their dtype: that of an empty list is float64
    if found is not None and (found.ndim != 1 or not found.size):
        raise ValueError(f"{function}: expected labels of shape (V',), at least one, got shape {found.shape}")
    found = _whole(function, "labels", found, labels, "(V',)")
    wrong = (found < 0) | (found >= count)
    if wrong.any():
        raise ValueError(f"{function}: expected labels from 0 to {count - 1}, got {found[np.argmax(wrong)]}")
    made = np.sort(found.astype(np.int64))
    twice = made[1:] == made[:-1]
    if twice.any():
        raise ValueError(f"{function}: expected each label once, got {made[int(np.argmax(twice))]} twice")
    return made


def row_mask(function: str, mask: Any, n: int) -> NDArray[np.bool_]:
    """Return which of n rows count."""
    found = try_as_numpy(mask)
    if found is None or found.dtype != np.bool_:
        kind = type(mask).__name__ if found is None else f"dtype {found.dtype}"
        raise TypeError(f"{function}: expected mask to be an array of bool, True for rows that count, got {kind}")
    if found.shape != (n,):
        raise ValueError(f"{function}: expected mask of shape {(n,)}, one for each row, got {found.shape}")
    return np.ascontiguousarray(found)


def _targets(
    function: str, targets: Any, n: int, counted: NDArray[np.int64], kept: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Return a copy of the targets; only those of rows that count are looked at."""
    found = _whole(function, "targets", try_as_numpy(targets), targets, "(N,)")
    if found.shape != (n,):
        raise ValueError(f"{function}: expected targets of shape {(n,)}, one for each row, got {found.shape}")
    seen = found[counted]
    wrong = (seen < NO_TARGET) | (seen >= len(kept))
    if wrong.any():
        k = int(np.argmax(wrong))
        ignored = f", as does ignore_index={seen[k]} of compare_logits and LogitPairs" if seen[k] < 0 else ""
        raise ValueError(
            f"{function}: expected targets from 0 to {len(kept) - 1}, or {NO_TARGET} for none, got {seen[k]} in row "
            f"{counted[k]}; mask= leaves rows out{ignored}"
        )
    left_out = (seen != NO_TARGET) & ~kept[seen]
    if left_out.any():
        k = int(np.argmax(left_out))
        raise ValueError(f"{function}: target {seen[k]} of row {counted[k]} is not among the labels, or masked")
    made = np.zeros(n, dtype=np.int64)
    made[counted] = seen
    return made


def log_normalisers(function: str, name: str, value: Any, n: int, nonfinite: str) -> NDArray[np.float64]:
    """Return lse_p or lse_q as contiguous float64 of shape (N',)."""
    found = try_as_numpy(value)
    if found is None or found.dtype != np.float64:
        kind = type(value).__name__ if found is None else f"dtype {found.dtype}"
        raise TypeError(f"{function}: expected {name} to be a float64 array, as logit_pairs returns it, got {kind}")
    if found.shape != (n,):
        raise ValueError(
            f"{function}: expected {name} of shape {(n,)}, one for each row that counts, got {found.shape}"
        )
    if nonfinite == "raise" and not np.isfinite(found).all():
        raise ValueError(f"{function}: {name} has non-finite values")
    return np.ascontiguousarray(found)

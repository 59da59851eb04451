"""A pass over labels that lie in several processes: what all agree on, what they gather, and errors that all share."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from .._base import arguments
from .._base.arrays import Array, try_as_numpy
from .._base.gpu_arrays import is_asked_for
from .._base.process_group import agree_on_layout, gather, raise_on_all_ranks
from ..ops import logit_arguments
from ..ops.backends import PRECISIONS
from ..ops.logit_arguments import NO_TARGET, OutputHead
from ..predictions.batching import row_bytes_of, rows_at_a_time, rows_on_gpu, width_of
from ..predictions.compare import without_ignored
from ..states.logits import LogitPairState, LogitState
from .vocabulary_slice import NOTHING, PairPart, Slice

MadeT = TypeVar("MadeT")
StateT = TypeVar("StateT", LogitState, LogitPairState)

# rows whose hidden states processes compare, and what the same rows may differ by, as a share of their size
_SAMPLED_ROWS = 64
_SAME_ROWS = 0.01
# what processes exchange digests of
_DIGESTED = ("labels", "mask", "targets")


@dataclass(frozen=True)
class Session:
    """A call of all processes of a group: the slice of this one, and what all have agreed on."""

    function: str
    group: Any
    part: Slice
    divergences: bool
    workspace: int | None
    batch_rows: int

    @classmethod
    def opened(
        cls,
        function: str,
        group: Any,
        models: Sequence[tuple[Any, ...]],
        given: Mapping[str, Any],
        options: Mapping[str, Any],
        *,
        divergences: bool = False,
        workspace: int | None = None,
        batch_rows: int | None = None,
    ) -> Session:
        """Check what this process gives, exchange what has to be the same, and find its labels among all."""
        # refuses processes outside of the group
        agree_on_layout(function, 0, "", group)
        heads = _together(function, group, lambda: _checked(function, models, options, workspace, batch_rows))
        n = int(heads[0].h.shape[0])
        common = {
            "rows": n,
            "divergences": bool(divergences),
            "batch_rows": batch_rows,
            "on a GPU": is_asked_for({"h": heads[0].h}, options["backend"]),
            "ignore_index": given.get("ignore_index"),
            **{name: options[name] for name in ("temperature", "nonfinite", "precision")},
            **{name: _digest(given[name]) for name in _DIGESTED},
            **{name: value for of in heads for name, value in _described(of).items()},
        }
        mine = {f"possible{i}": of.possible for i, of in enumerate(heads)}
        found = gather(mine | {"common": np.array(json.dumps(common, default=str))}, group)
        _refuse_others(function, [json.loads(str(one["common"])) for one in found])
        # from here on, what is wrong is so in all processes alike
        sizes = [len(one["possible0"]) for one in found]
        biases = [np.concatenate([one[f"possible{i}"] for one in found]) for i in range(len(heads))]
        whole = [
            OutputHead(
                np.broadcast_to(np.float32(0), (n, sum(sizes))), None, np.where(possible, 0.0, -np.inf), None, of.number
            )
            for of, possible in zip(heads, biases, strict=True)
        ]
        mask = without_ignored(function, given["mask"], given["targets"], given.get("ignore_index"), n)
        chosen = logit_arguments.choice(function, whole, given["labels"], mask, given["targets"])
        part = Slice(tuple(heads), sum(sizes[: _rank(group)]), None, chosen.mask, chosen.targets, dict(options))
        if chosen.targets is not None:
            chosen.targets[part.counted[chosen.without_target]] = NO_TARGET
        if chosen.labels is not None:
            inside = (chosen.labels >= part.first) & (chosen.labels < part.first + len(mine["possible0"]))
            part = replace(part, labels=chosen.labels[inside] - part.first)
        _refuse_other_rows(function, gather({f"h{of.number}": _sampled(of, part.counted) for of in heads}, group))
        size = batch_rows or _rows_at_a_time(heads, max(sizes), options["backend"])
        return cls(function, group, part, bool(divergences), workspace, size)

    def together(self, make: Callable[[], MadeT]) -> MadeT:
        """Return what this process makes, if no process fails."""
        return _together(self.function, self.group, make)

    def pairs(self, part: Slice) -> LogitPairState:
        """Return the state of all labels of some rows."""
        mine = self.together(lambda: PairPart.of(part, self.workspace))
        whole = self.merged(mine.state, part)
        if not self.divergences:
            return whole
        found = gather(self.together(lambda: mine.shares(part, whole)), self.group)
        # of a row without a label in a model, its slices know nothing
        lost = np.isnan(whole.lse_p + whole.lse_q)
        sums: dict[str, Any] = {}
        for name in ("js", "tv"):
            sums[name] = np.where(lost, np.nan, functools.reduce(np.add, [one[name] for one in found]))
        return replace(whole, **sums)

    def merged(self, mine: StateT, part: Slice) -> StateT:
        """Return the state of all labels, given that of those of this process."""
        arrays: dict[str, Any] = {field.name: getattr(mine, field.name) for field in fields(mine)}
        arrays = {name: array for name, array in arrays.items() if isinstance(array, np.ndarray)}
        found = gather(arrays | {"count": np.array(mine.labels)}, self.group)
        states = [replace(mine, **_fields(one, arrays)) for one in found]
        whole: StateT = functools.reduce(lambda all_before, state: all_before.merge(state), states)
        for of in part.heads:
            whole = self._possible(whole, of.number, part)
        return _spread_nan(whole) if isinstance(whole, LogitPairState) else whole

    def _possible(self, whole: StateT, number: str, part: Slice) -> StateT:
        """Return a state without rows in which a model has no label at all: an error, or NaN."""
        side, other = {"": ("", " "), "1": ("_p", "_q"), "2": ("_q", "_p")}[number]
        lost = getattr(whole, f"lse{side}") < NOTHING / 2
        if not lost.any():
            return whole
        if part.options["nonfinite"] == "raise":
            row = f"row {part.counted[np.argmax(lost)]} of h{number}"
            raise ValueError(f"{self.function}: {row} has no label that can be: all its logits are -inf")
        names = [
            field.name for field in fields(whole) if field.name.startswith(("lse", "mean", "top_l", "target", "delta"))
        ]
        kept = [name for name in names if name.endswith(other) and not name.startswith("delta")]
        blank: dict[str, Any] = {
            name: np.where(lost, np.nan, getattr(whole, name)) for name in names if name not in kept
        }
        return replace(whole, **blank, counted=np.where(lost, whole.labels, whole.counted))


def _spread_nan(whole: LogitPairState) -> LogitPairState:
    """Return a state that compares nothing where a model is NaN, which slices without labels of it do not know."""
    lost = np.isnan(whole.lse_p + whole.lse_q)
    names = [field.name for field in fields(whole) if field.name.startswith("delta")]
    blank: dict[str, Any] = {name: np.where(lost, np.nan, getattr(whole, name)) for name in names}
    return replace(whole, **blank) if lost.any() else whole


def _fields(found: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: found[name] for name in names} | {"labels": int(found["count"])}


def _together(function: str, group: Any, make: Callable[[], MadeT]) -> MadeT:
    """Return what this process makes; what fails in one process is an error of all."""
    failure: Exception | None = None
    made: list[MadeT] = []
    try:
        made.append(make())
    except (TypeError, ValueError) as error:
        # kernels speak in their own names
        failure = type(error)(re.sub(r"^\w+: ", f"{function}: ", str(error)))
    except Exception as error:
        failure = error
    raise_on_all_ranks(function, failure, group)
    return made[0]


def _checked(
    function: str,
    models: Sequence[tuple[Any, ...]],
    options: Mapping[str, Any],
    workspace: int | None,
    batch_rows: int | None,
) -> list[OutputHead]:
    """Return the models of this process, once what it gives is known to be right as far as that shows here."""
    arguments.above_zero(function, "temperature", options["temperature"])
    arguments.choice(function, "nonfinite", options["nonfinite"], ("raise", "propagate"))
    arguments.choice(function, "precision", options["precision"], PRECISIONS)
    for name, value in (("workspace", workspace), ("batch_rows", batch_rows)):
        if value is not None:
            arguments.positive(function, name, value)
    numbers = "12" if len(models) == 2 else [""]
    heads = [
        logit_arguments.head(function, h, w, b, softcap, number)
        for (h, w, b, softcap), number in zip(models, numbers, strict=True)
    ]
    if len(heads) == 2:
        logit_arguments.pair(function, *heads)
    return heads


def _described(of: OutputHead) -> dict[str, Any]:
    """Return what processes have in common of a model."""
    kind = "logits" if of.w is None else f"hidden states of {of.h.shape[1]}"
    return {
        f"h{of.number}": f"{kind} in {_kind(of.h)}",
        f"w{of.number}": None if of.w is None else _kind(of.w),
        f"softcap{of.number}": of.softcap,
    }


def _kind(array: Array) -> str:
    return str(array.dtype).removeprefix("torch.")


def _digest(value: Any) -> str | None:
    """Return what stands for an array, whatever is wrong with it."""
    if value is None:
        return None
    found = try_as_numpy(value)
    if found is None:
        return type(value).__name__
    return hashlib.sha256(f"{found.dtype}{found.shape}".encode() + found.tobytes()).hexdigest()


def _refuse_others(function: str, common: Sequence[Mapping[str, Any]]) -> None:
    """Refuse processes that give something else than the first."""
    first, *others = common
    for rank, one in enumerate(others, start=1):
        named = [
            f"other {name}" if name in _DIGESTED else f"{name}={one[name]!r}, not {value!r}"
            for name, value in first.items()
            if one.get(name) != value
        ]
        if named or one.keys() != first.keys():
            raise ValueError(
                f"{function}: processes must agree, and process {rank} has {' and '.join(named)}, unlike process 0"
            )


def _sampled(of: OutputHead, counted: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return a sum over the features of some rows that count, and of their sizes (2, rows); of logits given nothing."""
    if of.w is None or not len(counted):
        return np.zeros((2, 0))
    places = np.unique(np.linspace(0, len(counted) - 1, _SAMPLED_ROWS).astype(np.int64))
    h = of.h[counted[places].tolist()]
    values = arguments.to_numpy(h.cpu() if arguments.is_torch(h) else h).astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        sums, sizes = values @ np.cos(np.arange(values.shape[1])), np.abs(values).sum(axis=1)
    # what is not finite is told by the pass, with its place
    return np.where(np.isfinite(sizes), [sums, sizes], [[0.0], [np.inf]])


def _refuse_other_rows(function: str, samples: Sequence[Mapping[str, Any]]) -> None:
    """Refuse processes whose hidden states differ from those of the first by more than nondeterminism explains."""
    first, *others = samples
    for rank, one in enumerate(others, start=1):
        for name, (sums, sizes) in first.items():
            theirs, their_sizes = one[name]
            if (np.abs(theirs - sums) > _SAME_ROWS * np.maximum(sizes, their_sizes)).any():
                other = f"process {rank} has other hidden states {name} than process 0"
                raise ValueError(f"{function}: processes must agree, and {other}")


def _rows_at_a_time(heads: Sequence[OutputHead], labels: int, backend: str) -> int:
    """Return how many rows make a batch, given the labels of the largest slice."""
    # logits given are as many as labels
    widths = [labels if of.w is None else int(of.h.shape[1]) for of in heads]
    row_bytes = sum(row_bytes_of(of) // int(of.h.shape[1]) * width for of, width in zip(heads, widths, strict=True))
    if is_asked_for({"h": heads[0].h}, backend):
        return rows_on_gpu(row_bytes)
    return rows_at_a_time(labels, sum(map(width_of, heads)), row_bytes)


def _rank(group: Any) -> int:
    import torch.distributed as dist

    return int(dist.get_rank(group))

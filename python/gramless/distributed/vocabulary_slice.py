"""What one slice of the vocabulary adds to a comparison, also where a model has no label in it that can be."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import ops
from .._base import gpu_arrays
from .._base.arrays import Float64
from ..ops.logit_arguments import NO_TARGET, OutputHead
from ..states.logits import LogitPairState, LogitState

if TYPE_CHECKING:
    from typing import Self

Bool = NDArray[np.bool_]

# log normaliser of no label at all: beside any other it is that of nothing, and two of them give no NaN
NOTHING = -1e300
# logits that are looked at together
_VALUES = 1 << 24
_SIDES = ("p", "q")


@dataclass(frozen=True)
class Slice:
    """One or two models over the labels of one slice, with rows and labels that count."""

    heads: tuple[OutputHead, ...]
    first: int  # number of its first label among all
    labels: NDArray[np.int64] | None  # of the slice, from 0
    mask: Bool | None  # (N,)
    targets: NDArray[np.int64] | None  # (N,), of all labels, -1 for none
    options: Mapping[str, Any]  # of every pass

    @property
    def given(self) -> int:
        """Number of rows N."""
        return int(self.heads[0].h.shape[0])

    @property
    def counted(self) -> NDArray[np.int64]:
        """Rows (N',) that count."""
        return np.arange(self.given) if self.mask is None else np.flatnonzero(self.mask)

    def batch(self, rows: slice) -> Self:
        """Return the same of some rows."""
        heads = tuple(replace(of, h=of.h[rows]) for of in self.heads)
        mask = None if self.mask is None else self.mask[rows]
        return replace(self, heads=heads, mask=mask, targets=None if self.targets is None else self.targets[rows])

    def kept(self, of: OutputHead) -> Bool:
        """Return which labels (V,) of the slice count, and can be in a model."""
        kept = of.possible.copy()
        if self.labels is not None:
            chosen = np.zeros(len(kept), dtype=bool)
            chosen[self.labels] = True
            kept &= chosen
        return kept

    def able(self, of: OutputHead) -> Bool:
        """Return in which rows (N',) a model has a label that can be: all or none, but for logits that are given."""
        rows, kept = self.counted, self.kept(of)
        if of.w is not None or not kept.any():
            return np.full(len(rows), kept.any())
        h, columns = gpu_arrays.tensor(of.h), None if kept.all() else np.flatnonzero(kept).tolist()
        size = max(1, _VALUES // len(kept))
        found = np.empty(self.given, dtype=bool)
        for start in range(0, self.given, size):
            z = h[start : start + size] if columns is None else h[start : start + size, columns]
            # NaN is no -inf
            found[start : start + size] = ~z.amax(dim=1).isneginf().cpu().numpy()
        return found[rows]

    @property
    def aimed(self) -> Bool:
        """Rows (N',) whose target is a label of the slice."""
        if self.targets is None:
            return np.zeros(len(self.counted), dtype=bool)
        aims = self.targets[self.counted] - self.first
        return (aims >= 0) & (aims < self.heads[0].labels)

    def aims(self, kept: Bool) -> NDArray[np.int64] | None:
        """Return targets (N,) as labels of the slice, -1 if not among these."""
        if self.targets is None:
            return None
        inside = (self.targets >= self.first) & (self.targets < self.first + len(kept))
        mine = np.where(inside, self.targets - self.first, 0)
        return np.where(inside & kept[mine], mine, NO_TARGET)

    def among(self, group: Bool) -> dict[str, Any]:
        """Return what a pass over some of the rows that count is told."""
        every = self.mask is None and group.all()
        mask = np.zeros(self.given, dtype=bool)
        mask[self.counted[group]] = True
        return {"labels": self.labels, "mask": None if every else mask, **self.options}

    def predicted(self, of: OutputHead, group: Bool) -> LogitState:
        """Return the state of one model of some of the rows that count, in each of which it has a label."""
        aims = self.aims(self.kept(of))
        try:
            state = ops.logsumexp(of.h, of.w, b=of.b, targets=aims, softcap=of.softcap, **self.among(group))
        except (TypeError, ValueError) as error:
            # the names that arguments have in a comparison
            raise type(error)(re.sub(r"\b([hw]) (?=has\b)", rf"\g<1>{of.number} ", str(error))) from None
        # a target that only the other model can predict
        missed = self.aimed[group] & np.isnan(state.target) & ~np.isnan(state.lse)
        return replace(state, target=np.where(missed, -np.inf, state.target))


def log_sums(part: Slice) -> LogitState:
    """Return what a slice adds to the state of one model, all labels numbered as they are among all."""
    (of,) = part.heads
    able = part.able(of)
    values = _of_nothing(LogitState, part)
    if able.any():
        _fill(values, able, vars(part.predicted(of, able)))
    made = LogitState(**values, labels=int(part.kept(of).sum()), temperature=part.options["temperature"])
    return replace(made, softcap=of.softcap).numbered_from(part.first)


@dataclass(frozen=True)
class PairPart:
    """What a slice adds to a comparison."""

    state: LogitPairState
    both: Bool  # rows (N',) in which both models have a label that can be
    alone: tuple[Bool, Bool]  # and those in which one of them does

    @classmethod
    def of(cls, part: Slice, workspace: int | None) -> Self:
        """Return the part of a slice, all labels numbered as they are among all."""
        first, second = part.heads
        able = [part.able(of) for of in part.heads]
        both, alone = able[0] & able[1], (able[0] & ~able[1], able[1] & ~able[0])
        values = _of_nothing(LogitPairState, part)
        kept = part.kept(first) | part.kept(second)
        if both.any():
            told = {"targets": part.aims(kept), "workspace": workspace, **part.among(both), **_shaped(first, second)}
            _fill(values, both, vars(ops.logit_pairs(first.h, first.w, second.h, second.w, **told)))
        for of, group, side, other in zip(part.heads, alone, _SIDES, _SIDES[::-1], strict=True):
            if group.any():
                _fill(values, group, _of_one(part.predicted(of, group), side, other))
        made = LogitPairState(**values, labels=int(kept.sum()), temperature=part.options["temperature"])
        made = replace(made, softcap1=first.softcap, softcap2=second.softcap).numbered_from(part.first)
        return cls(made, both, alone)

    def shares(self, part: Slice, whole: LogitPairState) -> dict[str, Float64]:
        """Return what the slice adds to js and tv, given the state of all labels."""
        first, second = part.heads
        sums = {name: np.zeros(len(self.both)) for name in ("js", "tv")}
        if self.both.any():
            normalisers = whole.lse_p[self.both], whole.lse_q[self.both]
            told = {**part.among(self.both), **_shaped(first, second)}
            _fill(sums, self.both, ops.logit_divergences(first.h, first.w, second.h, second.w, *normalisers, **told))
        for group, side in zip(self.alone, _SIDES, strict=True):
            lse = f"lse_{side}"
            mass = np.exp(getattr(self.state, lse) - getattr(whole, lse))[group]
            _fill(sums, group, {"js": mass * (np.log(2) / 2), "tv": mass / 2})
        return sums


def _shaped(first: OutputHead, second: OutputHead) -> dict[str, Any]:
    return {"b1": first.b, "b2": second.b, "softcap1": first.softcap, "softcap2": second.softcap}


def _of_nothing(kind: type, part: Slice) -> dict[str, Any]:
    """Return the arrays of a state of rows without a label that can be; a target may be one that cannot."""
    n, values = len(part.counted), dict[str, Any]()
    for field in fields(kind):
        name = field.name
        if name.startswith("top_logit"):
            values[name] = np.full(n, -np.inf)
        elif name.startswith("top"):
            values[name] = np.zeros(n, dtype=np.int64)
        elif name.startswith("lse"):
            values[name] = np.full(n, NOTHING)
        elif name.startswith("target"):
            values[name] = np.where(part.aimed, -np.inf, np.nan)
        elif name in ("js", "tv"):
            values[name] = np.full(n, np.nan)
        elif name.startswith(("mean", "delta", "counted")):
            values[name] = np.zeros(n)
    return values


def _of_one(state: LogitState, side: str, other: str) -> dict[str, Any]:
    """Return what one model alone gives: all of its logits are endlessly far from those of the other."""
    endless = np.where(np.isnan(state.lse), np.nan, np.inf)
    found = {f"{name}_{side}": getattr(state, name) for name in ("lse", "mean", "top", "top_logit", "target")}
    found[f"target_{other}"] = np.where(np.isnan(state.target), np.nan, -np.inf)
    found[f"delta_{side}"] = endless if side == "p" else -endless
    return (
        found
        | dict.fromkeys(("delta_mean", "delta_square", "delta_abs", "delta_max"), endless)
        | {"counted": state.counted}
    )


def _fill(values: dict[str, Any], group: Bool, found: Mapping[str, Any]) -> None:
    for name, array in values.items():
        if name in found:
            array[group] = found[name]

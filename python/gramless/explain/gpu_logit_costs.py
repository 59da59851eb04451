"""Flops, bytes read and peak bytes of predictions on a GPU, whose memory alone counts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..ops import backends
from ..predictions import stacked_weights
from . import costs
from .costs import Columns, Cost, readable
from .logit_costs import Panels, Pass

# results of a row that come to the host together: those of a state of two models, and whether both are finite
_SENT = 21
# for each two columns of a factor, while it is found by reflections
_REFLECTION_BYTES = 56
# what stands for a value of hidden states and unembeddings
_PLANES = {
    (1, 1): "one bfloat16 each",
    (1, 2): "one and two bfloat16, in two products",
    (2, 1): "two and one bfloat16, in two products",
    (2, 2): "two bfloat16 each, in three products",
}


@dataclass(frozen=True)
class GpuPass(Pass):
    """A pass over the logits of one or two models on a GPU."""

    precision: str = "high"
    device: str = ""  # "" in the interpreter
    biased: tuple[bool, ...] = ()
    indexed: bool = False  # whether the labels that count are brought to it

    def plan(self, n: int, brought: int = 0) -> Any:
        """Return how the kernel goes over n rows, for which so many whole numbers are brought to the GPU."""
        models = [
            (one.h.dtype, one.w.dtype if one.w else None, biased)
            for one, biased in zip(self.models, self.biased, strict=True)
        ]
        return backends.gpu_plans("logits").plan(
            n,
            self.labels,
            models,
            precision=self.precision,
            divergences=self.divergences,
            workspace=self.workspace,
            brought=brought + self.labels * self.indexed,
            device=self.device,
        )

    def cost(self, n: int, brought: int = 0) -> Cost:
        """Return the cost of n rows, for which so many whole numbers are brought to the GPU."""
        plan, flops, read = self.plan(n, brought), 0, 0
        times = 2 if self.divergences and plan.labels < self.labels else 1
        # unembeddings are read for each chunk of rows, hidden states for each chunk of labels
        of_rows, of_labels = (-(-whole // max(part, 1)) for whole, part in ((n, plan.rows), (self.labels, plan.labels)))
        for one, (of_h, of_w) in zip(self.models, plan.planes, strict=True):
            # all products of planes but that of the lower ones
            flops += times * (of_h + of_w - 1) * 2 * n * self.labels * one.width
            if one.w is None:
                read += (2 if self.divergences else 1) * n * one.h._replace(width=self.labels).row_bytes
            else:
                read += times * (of_labels * n * one.h.row_bytes + of_rows * self.labels * one.label_bytes)
        return Cost(flops, read, plan.results, plan.scratch)

    def told(self, names: Sequence[str]) -> str:
        """Tell what is multiplied of each model, given what follows "h" and "w" in the names of its arrays."""
        plan, told = self.plan(1), {}
        for number, one, way, planes in zip(names, self.models, plan.ways, plan.planes, strict=True):
            if one.w is not None:
                as_planes = f"as {_PLANES[planes]}"
                how = {"given": f"as given, in {one.h.dtype}", "exact": "in float64"}.get(way, as_planes)
                told[f"h{number} and w{number}"] = f"multiplied {how}"
        if len(told) == 2 and len(set(told.values())) == 1:
            told = {"both models": told.popitem()[1]}
        return "".join(f"; {what} are {how}" for what, how in told.items())

    def second_pass(self, n: int) -> str:
        """Tell where divergences take their logits from."""
        if not (n and self.divergences):
            return ""
        plan = self.plan(n)
        if not any(plan.ways):
            return "; logits are read twice, for js and tv"
        if plan.labels >= self.labels:
            return f"; logits of {min(plan.rows, n)} rows at a time are kept for js and tv"
        holds = f"{readable(plan.workspace)} holds those of {plan.fit} rows, fewer than {plan.least}"
        return f"; logits are computed twice, for js and tv: a workspace of {holds}"


def comparison(counts: Mapping[int, int], of: GpuPass, *, gathered: bool, targets: bool) -> Cost:
    """Return the cost of a comparison: so many batches of so many rows; gathered: rows that count are copied."""
    most = max(counts)
    # places of labels that targets are among
    passes = {size: of.cost(size, size if targets and of.indexed else 0) for size in counts}
    largest = passes[most]
    beside = 8 * most if targets else 0
    if gathered:
        beside += most * (8 + sum(one.h.row_bytes for one in of.models))
    # results side by side, and whether rows are finite, also as whole numbers
    sent = largest.held + most * (8 * _SENT + 2 * (8 + 1))
    peak = beside + max(sent, *(one.peak for one in passes.values()))
    flops = sum(count * passes[size].flops for size, count in counts.items())
    read = sum(count * passes[size].bytes_read for size, count in counts.items())
    return Cost(flops, read, 0, peak)


def factor(labels: int, columns: Sequence[Columns], *, biased: bool, indexed: bool) -> Cost:
    """Return the cost of the factor of two unembeddings, whose rows are read for their fingerprint, too."""
    first, second = columns
    right = Columns(second.width + biased, "float64")
    width, label_bytes = first.width + right.width, first.row_bytes + second.row_bytes
    read = (2 * labels + min(labels, stacked_weights._PIVOT_ROWS)) * label_bytes
    flops = 0
    if labels > width:
        flops = costs.moments(labels, [first, right], "cuda", precision="exact").flops + width**3 // 3
    sizes = (labels, first.width, second.width, label_bytes)
    return Cost(flops, read, 0, backends.gpu_plans("factor").weights_bytes(*sizes, biased=biased, indexed=indexed))


def by_reflections(width: int) -> str:
    """Tell what a factor of so many columns takes if second moments would lose too many digits."""
    most = readable(_REFLECTION_BYTES * width * width)
    return f"nearly four times its flops and up to {most} if second moments would lose too many digits"


@dataclass(frozen=True)
class FactorRows:
    """Rows by a factor on a GPU."""

    columns: Sequence[Columns]
    factor: Panels
    biased: bool
    masked: bool
    precision: str
    device: str  # "" in the interpreter

    def plan(self, n: int) -> Any:
        """Return how n rows go."""
        (d1, of_h1), (d2, of_h2) = self.columns
        return backends.gpu_plans("factor").plan(
            n,
            sum(count for count, _, _ in self.factor),
            d1,
            d2,
            (of_h1, of_h2),
            biased=self.biased,
            masked=self.masked,
            precision=self.precision,
            device=self.device,
        )

    def cost(self, n: int, there: Collection[str] = ()) -> Cost:
        """Return the cost of n rows, with the factor on the GPU in these precisions."""
        plan, split = self.plan(n), self.columns[0].width
        left = sum(count * max(0, min(stop, split) - start) for count, start, stop in self.factor)
        right = sum(count * max(0, stop - max(start, split)) for count, start, stop in self.factor)
        flops = 2 * n * (plan.products[0] * left + plan.products[1] * right)
        units = 0 if "exact" in there else plan.units
        planes = 0 if plan.precision in there else plan.planes
        making = max(plan.making_units if units else 0, planes and planes + plan.making_planes)
        peak = units + max(making, planes + plan.rows)
        return Cost(flops, n * sum(one.row_bytes for one in self.columns), 0, peak)

    def told(self) -> str:
        """Tell what is multiplied."""
        plan = self.plan(1)
        if plan.precision == "exact":
            return "rows and factor are multiplied in float64"
        how = {(1, 1): (1, 1), (2, 2): (1, 2), (3, 2): (2, 2), (3, 3): (2, 2)}[plan.products]
        but = ", h2 as one, in two" if plan.products == (3, 2) else ""
        again = "rows in which too much cancels are done again in float64"
        return f"rows and factor are multiplied as {_PLANES[how]}{but}; {again}"

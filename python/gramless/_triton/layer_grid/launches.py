"""The launches that add a batch of layers to a table of moments, listed for one shape of batch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import triton.language as tl

from ..tiles.launch import cdiv
from .bandwidths import BLOCK, RULES, _width_kernel, places
from .hsic_table import BLOCK_N, BLOCK_Q, BLOCK_S, COUNTERS, OF_PAIRS, RECORD, _merge_kernel
from .kernel_values import LINEAR, RBF, SQUARES, _centre_kernel, _grams_kernel, _values_kernel
from .plan import PIECE, Band, Group, Plan
from .products import _products_kernel, _rows_kernel

Buffers = Mapping[str, torch.Tensor]

TYPES = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}
# as `GridSums` has it: roundings that a self term may be, and the least square that has a square itself
_ROUNDINGS = 8.0
_LEAST_SQUARE = math.sqrt(np.finfo(np.float64).tiny)


class Step(NamedTuple):
    """A launch; one that has a table of the batch takes it as its first argument."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    has_table: bool


@dataclass(frozen=True)
class Fixed:
    """Tensors that hold something from batch to batch, all float64."""

    state: torch.Tensor
    before: torch.Tensor
    bandwidths: torch.Tensor
    scale: torch.Tensor
    offsets: torch.Tensor
    lacking: torch.Tensor


def steps(plan: Plan, fixed: Fixed, buffers: Buffers) -> list[Step]:
    """Return the launches in their order."""
    return list(_all_steps(plan, fixed, buffers))


def _all_steps(plan: Plan, fixed: Fixed, buffers: Buffers) -> Iterator[Step]:
    firsts = np.cumsum([0, *(len(group.layers) for group in plan.groups)]).tolist()
    groups = list(zip(plan.groups, firsts, strict=False))
    yield from (_centres(plan, group, first, buffers) for group, first in groups)
    linear, one = plan.layers.kernel == "linear", len(plan.bands) == 1
    if plan.sample is not None:
        for group, first in groups:
            for place, layer in enumerate(group.layers, first):
                yield from _sampled(plan, plan.sample, group, place, layer, fixed, buffers)
    if not linear and not one:
        # distances take the norms of all rows
        yield from (_grams(plan, group, first, None, buffers) for group, first in groups)
    for index, band in enumerate(plan.bands):
        yield from (_grams(plan, group, first, band, buffers) for group, first in groups)
        if plan.layers.rule is not None and one:
            yield _values(plan, SQUARES, band, fixed, buffers)
            yield _widths(plan, 0, fixed, buffers)
            yield _values(plan, RBF, band, fixed, buffers, again=True)
        else:
            yield _values(plan, LINEAR if linear else RBF, band, fixed, buffers)
        yield _rows(plan, band, fixed, buffers, first=index == 0)
        yield _products(plan, band, buffers, first=index == 0)
    yield _merge(plan, fixed, buffers)


def _sampled(
    plan: Plan, sample: Plan, group: Group, place: int, layer: int, fixed: Fixed, buffers: Buffers
) -> Iterator[Step]:
    """Yield what makes the bandwidth of one layer by itself, from rows that are evenly spaced."""
    (band,) = sample.bands
    one = group._replace(layers=(layer,))
    # its rows have other numbers than the batch has, and are judged with it
    own = {**buffers, "bads": buffers["rows"].view(torch.int64)}
    yield _grams(sample, one, place, band, own, base=layer, spacing=plan.spacing)
    yield _values(sample, SQUARES, band, fixed, own)
    yield _widths(sample, layer, fixed, own)


def _centres(plan: Plan, group: Group, first: int, buffers: Buffers) -> Step:
    return Step(
        _centre_kernel,
        (plan.pieces, len(group.layers)),
        (buffers["centre"], buffers["deviations"], plan.n, plan.width, plan.pieces, first),
        {"X": TYPES[group.dtype], "EVEN": group.even, "BLOCK_P": PIECE, "num_warps": 4},
        has_table=True,
    )


def _grams(
    plan: Plan,
    group: Group,
    first: int,
    band: Band | None,
    buffers: Buffers,
    *,
    base: int = 0,
    spacing: int = 1,
) -> Step:
    """Return the products of the rows of a band, or with none the norms of all rows."""
    tile, tiles = (0, plan.blocks) if band is None else band[:2]
    config = plan.config(group)
    numbers = (plan.n, plan.width, plan.blocks, tile, tiles, plan.splits, plan.layers.count, first, base, spacing)
    return Step(
        _grams_kernel,
        (tiles * plan.splits * len(group.layers),),
        (buffers["centre"], buffers["grams"], buffers["norms"], *numbers),
        {
            "X": TYPES[group.dtype],
            "PLANE": _plane(plan, group),
            "TERMS": plan.terms(group),
            "EVEN": group.even,
            "DIAGONAL": band is None,
            "BLOCK": plan.block,
            "BLOCK_K": config.block_k,
            **config.options,
        },
        has_table=True,
    )


def _plane(plan: Plan, group: Group) -> Any:
    if plan.wide:
        return tl.float64
    return tl.float16 if group.dtype == torch.float16 else tl.bfloat16


def _values(
    plan: Plan, function: tl.constexpr, band: Band, fixed: Fixed, buffers: Buffers, *, again: bool = False
) -> Step:
    names = ("deviations", "parts", "sums", "bads")
    deviations, parts, sums, bads = (buffers[name] for name in names)
    numbers = (plan.n, plan.blocks, band.tile, band.tiles, plan.splits, plan.layers.count, plan.pieces, band.origin)
    return Step(
        _values_kernel,
        (band.tiles * plan.strips, plan.layers.count),
        (
            buffers["grams"],
            buffers["norms"],
            buffers["values"],
            fixed.bandwidths,
            deviations,
            fixed.offsets,
            parts,
            sums,
            bads,
            *numbers,
            plan.stride,
        ),
        {
            "FUNCTION": function,
            "AGAIN": again,
            "BLOCK": plan.block,
            "STRIP": plan.block // plan.strips,
            "num_warps": 4,
        },
        has_table=False,
    )


def _widths(plan: Plan, layer: int, fixed: Fixed, buffers: Buffers) -> Step:
    rule = str(plan.layers.rule)
    (band,) = plan.bands
    made = (fixed.bandwidths[layer:], fixed.lacking[layer:], fixed.scale)
    return Step(
        _width_kernel,
        (plan.layers.count,),
        (buffers["values"], *made, plan.stride, band.pairs, *places(plan.n, rule)),
        {"OF_SQUARES": RULES[rule], "BLOCK": BLOCK, "num_warps": 8},
        has_table=False,
    )


def _rows(plan: Plan, band: Band, fixed: Fixed, buffers: Buffers, *, first: bool) -> Step:
    names = ("parts", "sums", "rows", "shifts", "bads")
    centres = COUNTERS + OF_PAIRS * plan.layers.pairs + plan.layers.count
    return Step(
        _rows_kernel,
        (plan.blocks, plan.layers.count),
        (
            *(buffers[name] for name in names),
            fixed.state,
            fixed.before,
            plan.n,
            plan.blocks,
            band.tile,
            band.tiles,
            band.pairs,
            centres,
        ),
        {
            "LIMIT": 1 / _LEAST_SQUARE,
            "FIRST": first,
            "BLOCK": plan.block,
            "STRIPS": plan.strips,
            "BLOCK_T": 8,
            "num_warps": 4,
        },
        has_table=False,
    )


def _products(plan: Plan, band: Band, buffers: Buffers, *, first: bool) -> Step:
    parts, side, step, tiles = plan.parts
    names = ("values", "shifts", "products", "selfs")
    counts = (plan.layers.count, plan.layers.count_x, plan.layers.count_y)
    rounds = cdiv(cdiv(band.pairs, step), parts)
    return Step(
        _products_kernel,
        (tiles + cdiv(plan.layers.count, side), parts),
        (
            *(buffers[name] for name in names),
            plan.stride,
            band.pairs,
            *counts,
            tiles,
            cdiv(plan.layers.count_y, side),
            rounds,
        ),
        {
            "FIRST": first,
            "SYMMETRIC": plan.layers.symmetric,
            "BLOCK_L": side,
            "BLOCK_M": step,
            "num_warps": 4,
        },
        has_table=False,
    )


def _merge(plan: Plan, fixed: Fixed, buffers: Buffers) -> Step:
    names = ("products", "selfs", "rows", "shifts")
    layers, programs = plan.layers, cdiv(plan.layers.pairs, BLOCK_Q)
    limits = np.finfo(np.float64 if plan.wide else np.float32)
    numbers = (plan.n, layers.count, layers.count_x, layers.count_y, plan.parts[0], plan.blocks, programs)
    return Step(
        _merge_kernel,
        (programs + cdiv(layers.count, BLOCK_Q),),
        (
            fixed.state,
            fixed.before,
            *(buffers[name] for name in names),
            fixed.offsets,
            fixed.lacking,
            buffers["bads"],
            *numbers,
            fixed.state.numel() - RECORD,
            plan.blocks * plan.block,
        ),
        {
            "NOISE": _ROUNDINGS * float(limits.eps),
            "LEAST": max(float(limits.tiny) ** 2, _LEAST_SQUARE),
            "SYMMETRIC": layers.symmetric,
            "BLOCK_Q": BLOCK_Q,
            "BLOCK_N": BLOCK_N,
            "BLOCK_S": BLOCK_S,
            "num_warps": 4,
        },
        has_table=True,
    )

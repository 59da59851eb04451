"""What two models predict for the same rows over the same labels, on a GPU.

Contract: for each row that counts both log normalisers, E_p z1, E_q z2, E_p delta, E_q delta, mean, centred square, L1
and maximum of delta = z1 - z2, both tops, target logits, and with divergences JS and TV. Defined by
`reference.logit_pairs`.
Formula: sums about running maxima of tiles of labels, joined in the order of labels. JS and TV are sums over labels of
the logits less their log normalisers, once these are known.
Cost: 2 N V (d1 + d2) flops in chunks of logits of both models (`_logit_pass`), each of which is written once and read
once, with divergences twice: for d = 4096 on an H200 about 8 ms more for each, beside 45 ms of products. Where the
workspace does not hold all labels of 256 rows, divergences take the products again. Extra memory: the workspace, by
default 512 MiB, and 152 bytes for each row.
Numerics: products as `_logit_products` rounds them, sums over a row of a tile in float32, of float64 in float64, beyond
in float64, in the order of labels. Rows that something not finite reaches are NaN; nobody waits for the device.
Rejected: both products and the sums in one program. Two tiles of logits fill its registers, so that they are 128 x 128
at the most, for which the cache delivers half of what the matrix units take: 90 ms instead of 45, to save 8; and JS
would need all products twice.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from ._logit_divergences import add_divergences
from ._logit_pass import Head, Pass
from ._logit_sums import (
    LARGEST,
    above,
    any_of,
    join_squares,
    join_targets,
    join_tops,
    place_of,
    squares_of,
    store_fields,
    target_of,
    wide,
)
from ._logit_values import label_at, read_logits, row_places

# of a state: for each model the largest logit, its place, sums of powers of e, of these times logits and times delta,
# whether something is not finite, whether it alone can predict a label, and the logit of the target; labels that can be
# in either, mean, square, sum and maximum of delta
_FIELDS = 21
_RESULTS = (
    "lse_p",
    "lse_q",
    "mean_p",
    "mean_q",
    "delta_p",
    "delta_q",
    "delta_mean",
    "delta_square",
    "delta_abs",
    "delta_max",
    "top_p",
    "top_q",
    "top_logit_p",
    "top_logit_q",
    "target_p",
    "target_q",
    "counted",
    "js",
    "tv",
)
_LSE = (_RESULTS.index("lse_p"), _RESULTS.index("lse_q"))
_DIVERGENCES = _RESULTS.index("js")


def logit_pairs(
    h1: torch.Tensor,  # (N, d1), or (N, V)
    w1: torch.Tensor | None,  # (V, d1)
    h2: torch.Tensor,  # (N, d2), or (N, V)
    w2: torch.Tensor | None,  # (V, d2)
    *,
    b1: Any = None,  # (V,)
    b2: Any = None,  # (V,)
    labels: Any = None,  # (V',)
    mask: Any = None,  # (N,)
    targets: Any = None,  # (N,)
    temperature: float = 1.0,
    softcap1: float | None = None,
    softcap2: float | None = None,
    divergences: bool = False,
    workspace: int | None = None,
    nonfinite: str = "raise",
    precision: str = "high",
) -> dict[str, Any]:
    """Return what `reference.logit_pairs` does, as tensors, without a wait; rows of what is not finite are NaN."""
    heads = [Head(h1, w1, b1, softcap1), Head(h2, w2, b2, softcap2)]
    run = Pass.over(heads, labels, mask, targets, temperature, precision, workspace, whole=divergences)
    found = run.results(len(_RESULTS))
    for first, rows in run.blocks():
        partials = run.partials(_FIELDS, rows)
        for chunk in run.chunks(first, rows):
            parts = run.sum_up(_logit_pairs_sum_kernel, chunk, partials, run.targets)
            run.reduce(_logit_pairs_reduce_kernel, chunk, partials, parts, found)
            if divergences and run.holds_all:
                add_divergences(run, chunk, found[_LSE[0]], found[_LSE[1]], found[_DIVERGENCES:])
        if divergences and not run.holds_all:
            for chunk in run.chunks(first, rows):
                add_divergences(run, chunk, found[_LSE[0]], found[_LSE[1]], found[_DIVERGENCES:])
    if not divergences:
        found[_DIVERGENCES:] = float("nan")
    flat: dict[str, Any] = dict(zip(_RESULTS, found.unbind(), strict=True))
    tops = {key: flat[key].to(torch.int64) for key in ("top_p", "top_q")}
    return flat | tops | {"labels": run.labels}


def logit_divergences(
    h1: torch.Tensor,  # (N, d1), or (N, V)
    w1: torch.Tensor | None,  # (V, d1)
    h2: torch.Tensor,  # (N, d2), or (N, V)
    w2: torch.Tensor | None,  # (V, d2)
    lse_p: torch.Tensor,  # (N',)
    lse_q: torch.Tensor,  # (N',)
    *,
    b1: Any = None,  # (V,)
    b2: Any = None,  # (V,)
    labels: Any = None,  # (V',)
    mask: Any = None,  # (N,)
    temperature: float = 1.0,
    softcap1: float | None = None,
    softcap2: float | None = None,
    nonfinite: str = "raise",
    precision: str = "high",
) -> dict[str, Any]:
    """Return the shares of these labels in JS and TV, given the log normalisers of all labels, without a wait."""
    heads = [Head(h1, w1, b1, softcap1), Head(h2, w2, b2, softcap2)]
    run = Pass.over(heads, labels, mask, None, temperature, precision, None, whole=False)
    found = run.results(2)
    for first, rows in run.blocks():
        for chunk in run.chunks(first, rows):
            add_divergences(run, chunk, lse_p, lse_q, found)
    return {"js": found[0], "tv": found[1]}


_COUNTS = ["cap1_bits", "cap2_bits", "first_row", "rows", "stride_field"]


@triton.jit(do_not_specialize=[*_COUNTS, "scale_bits"])
def _logit_pairs_sum_kernel(
    z1_ptr,
    stride_z1n,
    stride_z1v,
    b1_ptr,
    cap1_bits,
    z2_ptr,
    stride_z2n,
    stride_z2v,
    b2_ptr,
    cap2_bits,
    rows_ptr,
    labels_ptr,
    targets_ptr,
    partials_ptr,  # (21, 1 + parts, rows)
    first_row,
    rows,
    first_label,
    labels,
    length,
    stride_field,
    scale_bits,
    CAPPED1: tl.constexpr,
    GIVEN1: tl.constexpr,
    CAPPED2: tl.constexpr,
    GIVEN2: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    local, source, mask_n = row_places(rows_ptr, first_row, rows, BLOCK_N)
    begin = first_label + tl.program_id(1) * length
    end = tl.minimum(begin + length, first_label + labels)
    kind: tl.constexpr = tl.float64 if WIDE else tl.float32
    none = tl.zeros((BLOCK_N,), dtype=tl.float64)
    m1, top1, total1, weighted1, gain1, odd1, alone1 = none - LARGEST, none, none, none, none, none, none
    m2, top2, total2, weighted2, gain2, odd2, alone2 = none - LARGEST, none, none, none, none, none, none
    count, mean, square, size, most = none, none, none, none, none
    target1, target2 = none + float("nan"), none + float("nan")
    for start in range(begin, end, BLOCK_V):
        place = start + tl.arange(0, BLOCK_V)
        inside = place < end
        z1, odd = read_logits(
            z1_ptr,
            stride_z1n,
            stride_z1v,
            b1_ptr,
            labels_ptr,
            source,
            local,
            place,
            first_label,
            inside,
            cap1_bits,
            scale_bits,
            kind,
            CAPPED1,
            GIVEN1,
        )  # [BLOCK_N, BLOCK_V]
        odd1 = tl.maximum(odd1, any_of(odd))
        z2, odd = read_logits(
            z2_ptr,
            stride_z2n,
            stride_z2v,
            b2_ptr,
            labels_ptr,
            source,
            local,
            place,
            first_label,
            inside,
            cap2_bits,
            scale_bits,
            kind,
            CAPPED2,
            GIVEN2,
        )
        odd2 = tl.maximum(odd2, any_of(odd))
        if targets_ptr is not None:
            goal = tl.load(targets_ptr + source, mask=mask_n, other=-1)
            target1 = join_targets(target1, target_of(z1, goal, place, inside))
            target2 = join_targets(target2, target_of(z2, goal, place, inside))
        can1, can2 = z1 > float("-inf"), z2 > float("-inf")
        either, both = can1 | can2, can1 & can2
        alone1 = tl.maximum(alone1, any_of(can1 & ~can2))
        alone2 = tl.maximum(alone2, any_of(can2 & ~can1))
        m1_tile, a1, e1, gone1 = above(z1)
        m2_tile, a2, e2, gone2 = above(z2)
        # of a label that one of them cannot predict, which makes E_p delta infinite or adds nothing to it, 0
        gain = tl.where(gone1 | gone2, 0.0, a1 - a2)
        # rounded, it would not cancel with the difference of the log normalisers
        about = m1_tile.to(tl.float64) - m2_tile.to(tl.float64)
        total_tile = tl.sum(e1, axis=1)
        weighted_tile = wide(tl.sum(e1 * a1, axis=1), m1_tile, total_tile)
        gain_tile = wide(tl.sum(e1 * gain, axis=1), about, total_tile)
        m1, top1, old, new = join_tops(m1, top1, m1_tile.to(tl.float64), place_of(z1, m1_tile, place))
        total1 = total1 * old + total_tile.to(tl.float64) * new
        weighted1 = weighted1 * old + weighted_tile * new
        gain1 = gain1 * old + gain_tile * new
        total_tile = tl.sum(e2, axis=1)
        weighted_tile = wide(tl.sum(e2 * a2, axis=1), m2_tile, total_tile)
        gain_tile = wide(tl.sum(e2 * gain, axis=1), about, total_tile)
        m2, top2, old, new = join_tops(m2, top2, m2_tile.to(tl.float64), place_of(z2, m2_tile, place))
        total2 = total2 * old + total_tile.to(tl.float64) * new
        weighted2 = weighted2 * old + weighted_tile * new
        gain2 = gain2 * old + gain_tile * new
        delta = tl.where(both, z1 - z2, 0.0)
        beyond = any_of(~(tl.abs(delta) < float("inf")))
        odd1, odd2 = tl.maximum(odd1, beyond), tl.maximum(odd2, beyond)
        most_tile = tl.max(tl.abs(delta), axis=1)
        count_tile = tl.sum(either.to(kind), axis=1).to(tl.float64)
        mean_tile, square_tile = squares_of(delta, either, most_tile, count_tile)
        count, mean, square = join_squares(count, mean, square, count_tile, mean_tile, square_tile)
        size += tl.sum(tl.abs(delta), axis=1).to(tl.float64)
        most = tl.maximum(most, most_tile.to(tl.float64))
    slot = partials_ptr + (1 + tl.program_id(1)).to(tl.int64) * rows + local
    first = (m1, top1, total1, weighted1, gain1, odd1, alone1, target1)
    second = (m2, top2, total2, weighted2, gain2, odd2, alone2, target2)
    store_fields(slot, stride_field, first + second + (count, mean, square, size, most), mask_n, 21)


@triton.jit(do_not_specialize=["first_part", "last_part", "first_row", "rows", "n", "labels"])
def _logit_pairs_reduce_kernel(
    labels_ptr,
    partials_ptr,  # (21, parts, rows)
    out_ptr,  # (19, n), of which the last two are divergences
    first_part,
    last_part,
    first_row,
    rows,
    n,
    labels,
    stride_field,
    LAST: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    offs_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < rows
    none = tl.zeros((BLOCK_N,), dtype=tl.float64)
    m1, top1, total1, weighted1, gain1, odd1, alone1 = none - LARGEST, none, none, none, none, none, none
    m2, top2, total2, weighted2, gain2, odd2, alone2 = none - LARGEST, none, none, none, none, none, none
    count, mean, square, size, most = none, none, none, none, none
    target1, target2 = none + float("nan"), none + float("nan")
    for part in range(first_part, last_part):
        slot = partials_ptr + tl.cast(part, tl.int64) * rows + offs_n
        m1, top1, old, new = join_tops(m1, top1, tl.load(slot, mask=mask_n), tl.load(slot + stride_field, mask=mask_n))
        total1 = total1 * old + tl.load(slot + 2 * stride_field, mask=mask_n) * new
        weighted1 = weighted1 * old + tl.load(slot + 3 * stride_field, mask=mask_n) * new
        gain1 = gain1 * old + tl.load(slot + 4 * stride_field, mask=mask_n) * new
        odd1 = tl.maximum(odd1, tl.load(slot + 5 * stride_field, mask=mask_n))
        alone1 = tl.maximum(alone1, tl.load(slot + 6 * stride_field, mask=mask_n))
        target1 = join_targets(target1, tl.load(slot + 7 * stride_field, mask=mask_n))
        slot += 8 * stride_field
        m2, top2, old, new = join_tops(m2, top2, tl.load(slot, mask=mask_n), tl.load(slot + stride_field, mask=mask_n))
        total2 = total2 * old + tl.load(slot + 2 * stride_field, mask=mask_n) * new
        weighted2 = weighted2 * old + tl.load(slot + 3 * stride_field, mask=mask_n) * new
        gain2 = gain2 * old + tl.load(slot + 4 * stride_field, mask=mask_n) * new
        odd2 = tl.maximum(odd2, tl.load(slot + 5 * stride_field, mask=mask_n))
        alone2 = tl.maximum(alone2, tl.load(slot + 6 * stride_field, mask=mask_n))
        target2 = join_targets(target2, tl.load(slot + 7 * stride_field, mask=mask_n))
        slot += 8 * stride_field
        count_part, mean_part = tl.load(slot, mask=mask_n), tl.load(slot + stride_field, mask=mask_n)
        square_part = tl.load(slot + 2 * stride_field, mask=mask_n)
        count, mean, square = join_squares(count, mean, square, count_part, mean_part, square_part)
        size += tl.load(slot + 3 * stride_field, mask=mask_n)
        most = tl.maximum(most, tl.load(slot + 4 * stride_field, mask=mask_n))
    if LAST:
        infinity, nan = none + float("inf"), none + float("nan")
        # no label can be, or something is not finite
        lost1, lost2 = (odd1 > 0) | (total1 == 0), (odd2 > 0) | (total2 == 0)
        lost, endless = lost1 | lost2, (alone1 > 0) | (alone2 > 0)
        out = out_ptr + tl.cast(first_row, tl.int64) + offs_n
        results = (
            tl.where(lost1, nan, m1 + tl.log(total1)),
            tl.where(lost2, nan, m2 + tl.log(total2)),
            tl.where(lost1, nan, weighted1 / total1),
            tl.where(lost2, nan, weighted2 / total2),
            tl.where(lost, nan, tl.where(alone1 > 0, infinity, gain1 / total1)),
            tl.where(lost, nan, tl.where(alone2 > 0, -infinity, gain2 / total2)),
            tl.where(lost, nan, tl.where(endless, infinity, mean)),
            tl.where(lost, nan, tl.where(endless, infinity, square)),
            tl.where(lost, nan, tl.where(endless, infinity, size)),
            tl.where(lost, nan, tl.where(endless, infinity, most)),
            label_at(labels_ptr, top1, mask_n),
            label_at(labels_ptr, top2, mask_n),
            tl.where(lost1, nan, m1),
            tl.where(lost2, nan, m2),
            tl.where(lost1, nan, target1),
            tl.where(lost2, nan, target2),
            tl.where(lost, none + labels, count),
        )
        store_fields(out, tl.cast(n, tl.int64), results, mask_n, 17)
    else:
        slot = partials_ptr + offs_n
        first = (m1, top1, total1, weighted1, gain1, odd1, alone1, target1)
        second = (m2, top2, total2, weighted2, gain2, odd2, alone2, target2)
        store_fields(slot, stride_field, first + second + (count, mean, square, size, most), mask_n, 21)

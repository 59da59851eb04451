"""What two models predict for the same rows over the same labels, on a GPU.

Contract: for each row that counts both log normalisers, E_p z1, E_q z2, E_p delta, E_q delta, mean, centred square, L1
and maximum of delta = z1 - z2, both tops, target logits, and with divergences JS and TV. Defined by
`reference.logit_pairs`.
Formula: sums about running maxima of tiles of labels, joined in the order of labels. JS and TV are sums over labels of
the logits less their log normalisers, once these are known.
Cost: 2 N V (d1 + d2) flops in chunks of logits of both models (`_logit_pass`), each of which is written once and read
once, with divergences twice. By arithmetic, not measured: at N = 16384, V = 131072, d = 4096 on an H200 each takes
4 ms, beside 45 ms of products. Where the workspace does not hold all labels of 256 rows, divergences take the products
again. Extra memory: the workspace, by default 512 MiB, and 168 bytes for each row.
Numerics: products as `_logit_products` rounds them, sums over a row of a tile in float32, of float64 in float64, beyond
in float64, in the order of labels. Rows that something not finite reaches are NaN; nobody waits for the device.
Rejected: both products and the sums in one program. Two tiles of logits fill its registers, so that they are 128 x 128
at the most, for which the cache delivers half of what the matrix units take: by arithmetic 90 ms instead of 45, to save
8; and JS would need all products twice.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from .logits.chunks import Head, Pass
from .logits.divergences import add_divergences
from .logits.row_sums import (
    LARGEST,
    above,
    any_of,
    join_squares,
    join_targets,
    join_tops,
    load_fields,
    place_of,
    squares_of,
    store_fields,
    target_of,
    wide,
)
from .logits.tile_values import label_at, read_logits, row_places

# of a state: for each model the largest logit, its place, whether something is not finite, the logit of the target,
# sums of powers of e, of these times logits and times delta, and whether it alone can predict a label; labels that can
# be in either, mean, square, sum and maximum of delta
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
    head1 = (z1_ptr, stride_z1n, stride_z1v, b1_ptr, cap1_bits)
    head2 = (z2_ptr, stride_z2n, stride_z2v, b2_ptr, cap2_bits)
    chunk = (labels_ptr, local, source, first_label, scale_bits)
    begin = first_label + tl.program_id(1) * length
    end = tl.minimum(begin + length, first_label + labels)
    kind: tl.constexpr = tl.float64 if WIDE else tl.float32
    first, second, between = _no_labels(BLOCK_N), _no_labels(BLOCK_N), _no_difference(BLOCK_N)
    for start in range(begin, end, BLOCK_V):
        place = start + tl.arange(0, BLOCK_V)
        inside = place < end
        z1, odd1 = read_logits(head1, chunk, place, inside, kind, CAPPED1, GIVEN1)  # [BLOCK_N, BLOCK_V]
        z2, odd2 = read_logits(head2, chunk, place, inside, kind, CAPPED2, GIVEN2)
        can1, can2 = z1 > float("-inf"), z2 > float("-inf")
        delta = tl.where(can1 & can2, z1 - z2, 0.0)
        beyond = ~(tl.abs(delta) < float("inf"))
        m1, a1, e1, gone1 = above(z1)
        m2, a2, e2, gone2 = above(z2)
        # of a label that one of them cannot predict, which makes E_p delta infinite or adds nothing to it, 0
        gain = tl.where(gone1 | gone2, 0.0, a1 - a2)
        # rounded, it would not cancel with the difference of the log normalisers
        about = m1.to(tl.float64) - m2.to(tl.float64)
        target1 = about * 0.0 + float("nan")
        target2 = target1
        if targets_ptr is not None:
            goal = tl.load(targets_ptr + source, mask=mask_n, other=-1)
            target1, target2 = target_of(z1, goal, place, inside), target_of(z2, goal, place, inside)
        tile1 = _sums(m1, a1, e1, gain, about, place_of(z1, m1, place), target1, odd1 | beyond, can1 & ~can2)
        tile2 = _sums(m2, a2, e2, gain, about, place_of(z2, m2, place), target2, odd2 | beyond, can2 & ~can1)
        first, second = _join(first, tile1), _join(second, tile2)
        most = tl.max(tl.abs(delta), axis=1)
        count = tl.sum((can1 | can2).to(kind), axis=1).to(tl.float64)
        mean, square = squares_of(delta, can1 | can2, most, count)
        size = tl.sum(tl.abs(delta), axis=1).to(tl.float64)
        between = _join_differences(between, (count, mean, square, size, most.to(tl.float64)))
    slot = partials_ptr + (1 + tl.program_id(1)).to(tl.int64) * rows + local
    store_fields(slot, stride_field, first + second + between, mask_n, 21)


@triton.jit
def _no_labels(BLOCK_N: tl.constexpr):
    none = tl.zeros((BLOCK_N,), dtype=tl.float64)
    return none - LARGEST, none, none, none + float("nan"), none, none, none, none


@triton.jit
def _no_difference(BLOCK_N: tl.constexpr):
    none = tl.zeros((BLOCK_N,), dtype=tl.float64)
    return none, none, none, none, none


@triton.jit
def _sums(m, a, e, gain, about, place, target, odd, alone):
    """Return the sums of one model over the labels of a tile."""
    total = tl.sum(e, axis=1)
    weighted, gained = wide(tl.sum(e * a, axis=1), m, total), wide(tl.sum(e * gain, axis=1), about, total)
    return m.to(tl.float64), place, any_of(odd), target, total.to(tl.float64), weighted, gained, any_of(alone)


@triton.jit
def _join(sums, others):
    """Return the sums of one model over both labels, those of the others coming later."""
    m, top, old, new = join_tops(sums[0], sums[1], others[0], others[1])
    return (
        m,
        top,
        tl.maximum(sums[2], others[2]),
        join_targets(sums[3], others[3]),
        sums[4] * old + others[4] * new,
        sums[5] * old + others[5] * new,
        sums[6] * old + others[6] * new,
        tl.maximum(sums[7], others[7]),
    )


@triton.jit
def _join_differences(sums, others):
    count, mean, square = join_squares(sums[0], sums[1], sums[2], others[0], others[1], others[2])
    return count, mean, square, sums[3] + others[3], tl.maximum(sums[4], others[4])


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
    first, second, between = _no_labels(BLOCK_N), _no_labels(BLOCK_N), _no_difference(BLOCK_N)
    for part in range(first_part, last_part):
        slot = partials_ptr + tl.cast(part, tl.int64) * rows + offs_n
        first = _join(first, load_fields(slot, stride_field, mask_n, 8))
        second = _join(second, load_fields(slot + 8 * stride_field, stride_field, mask_n, 8))
        between = _join_differences(between, load_fields(slot + 16 * stride_field, stride_field, mask_n, 5))
    if LAST:
        m1, top1, odd1, target1, total1, weighted1, gained1, alone1 = first
        m2, top2, odd2, target2, total2, weighted2, gained2, alone2 = second
        count, mean, square, size, most = between
        infinity, nan = count * 0.0 + float("inf"), count * 0.0 + float("nan")
        # no label can be, or something is not finite
        lost1, lost2 = (odd1 > 0) | (total1 == 0), (odd2 > 0) | (total2 == 0)
        lost, endless = lost1 | lost2, (alone1 > 0) | (alone2 > 0)
        results = (
            tl.where(lost1, nan, m1 + tl.log(total1)),
            tl.where(lost2, nan, m2 + tl.log(total2)),
            tl.where(lost1, nan, weighted1 / total1),
            tl.where(lost2, nan, weighted2 / total2),
            tl.where(lost, nan, tl.where(alone1 > 0, infinity, gained1 / total1)),
            tl.where(lost, nan, tl.where(alone2 > 0, -infinity, gained2 / total2)),
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
            tl.where(lost, labels, count),
        )
        store_fields(out_ptr + tl.cast(first_row, tl.int64) + offs_n, tl.cast(n, tl.int64), results, mask_n, 17)
    else:
        store_fields(partials_ptr + offs_n, stride_field, first + second + between, mask_n, 21)

"""Log-sum-exp of the logits of one model, on a GPU.

Contract: for each row that counts ln sum e^z, E_p z, ln sum e^(2 z), the largest logit and its lowest label, the logit
of a target, and how many labels can be. Defined by `reference.logsumexp`.
Formula: sums about running maxima of tiles of labels, joined in the order of labels.
Cost: 2 N V d flops in chunks of logits (`_logit_pass`): each is written and read once, 8 bytes beside 2 d flops, which
costs less than a product whose epilogue keeps the sums of its rows. Extra memory: the workspace, by default 512 MiB.
Numerics: products as `_logit_products` rounds them, sums over a row of a tile in float32, of float64 in float64, beyond
in float64. Rows that something not finite reaches are NaN; nobody waits for the device.
Rejected: sums in the epilogue of the product; its registers are full of logits.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from ._logit_pass import Head, Pass
from ._logit_sums import LARGEST, above, any_of, join_targets, join_tops, place_of, store_fields, target_of, wide
from ._logit_values import label_at, read_logits, row_places

# of a state: largest logit, its place, sums of powers of e, of these times logits, of their squares, labels that can
# be, whether something is not finite, and the logit of the target; results leave out the last but one
_FIELDS, _RESULTS = 8, 7


def logsumexp(
    h: torch.Tensor,  # (N, d), or (N, V)
    w: torch.Tensor | None,  # (V, d)
    *,
    b: Any = None,  # (V,)
    labels: Any = None,  # (V',)
    mask: Any = None,  # (N,)
    targets: Any = None,  # (N,)
    temperature: float = 1.0,
    softcap: float | None = None,
    nonfinite: str = "raise",
    precision: str = "high",
) -> dict[str, Any]:
    """Return what `reference.logsumexp` does, as tensors, without a wait; rows of what is not finite are NaN."""
    heads = [Head(h, w, b, softcap)]
    run = Pass.over(heads, labels, mask, targets, temperature, precision, None, whole=False)
    found = run.results(_RESULTS)
    for first, rows in run.blocks():
        partials = run.partials(_FIELDS, rows)
        for chunk in run.chunks(first, rows):
            parts = run.sum_up(_logsumexp_sum_kernel, chunk, partials, run.targets)
            run.reduce(_logsumexp_reduce_kernel, chunk, partials, parts, found)
    lse, mean, lse2, top, top_logit, target, counted = found.unbind()
    return {
        "lse": lse,
        "mean": mean,
        "lse2": lse2,
        "top": top.to(torch.int64),
        "top_logit": top_logit,
        "target": target,
        "counted": counted,
        "labels": run.labels,
    }


@triton.jit(do_not_specialize=["cap_bits", "first_row", "rows", "stride_field", "scale_bits"])
def _logsumexp_sum_kernel(
    z_ptr,
    stride_zn,
    stride_zv,
    b_ptr,
    cap_bits,
    rows_ptr,
    labels_ptr,
    targets_ptr,
    partials_ptr,
    first_row,
    rows,
    first_label,
    labels,
    length,
    stride_field,
    scale_bits,
    CAPPED1: tl.constexpr,
    GIVEN1: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    local, source, mask_n = row_places(rows_ptr, first_row, rows, BLOCK_N)
    begin = first_label + tl.program_id(1) * length
    end = tl.minimum(begin + length, first_label + labels)
    kind: tl.constexpr = tl.float64 if WIDE else tl.float32
    none = tl.zeros((BLOCK_N,), dtype=tl.float64)
    m, top, total, weighted, squares, counted, odd_rows = none - LARGEST, none, none, none, none, none, none
    target = none + float("nan")
    for start in range(begin, end, BLOCK_V):
        place = start + tl.arange(0, BLOCK_V)
        inside = place < end
        z, odd = read_logits(
            z_ptr,
            stride_zn,
            stride_zv,
            b_ptr,
            labels_ptr,
            source,
            local,
            place,
            first_label,
            inside,
            cap_bits,
            scale_bits,
            kind,
            CAPPED1,
            GIVEN1,
        )  # [BLOCK_N, BLOCK_V]
        m_tile, a, e, _ = above(z)
        top_tile = place_of(z, m_tile, place)
        total_tile = tl.sum(e, axis=1)
        weighted_tile = wide(tl.sum(e * a, axis=1), m_tile, total_tile)
        squares_tile = tl.sum(e * e, axis=1).to(tl.float64)
        m, top, old, new = join_tops(m, top, m_tile.to(tl.float64), top_tile)
        total = total * old + total_tile.to(tl.float64) * new
        weighted = weighted * old + weighted_tile * new
        squares = squares * (old * old) + squares_tile * (new * new)
        counted += tl.sum((z > float("-inf")).to(tl.float64), axis=1)
        odd_rows = tl.maximum(odd_rows, any_of(odd))
        if targets_ptr is not None:
            goal = tl.load(targets_ptr + source, mask=mask_n, other=-1)
            target = join_targets(target, target_of(z, goal, place, inside))
    slot = partials_ptr + (1 + tl.program_id(1)).to(tl.int64) * rows + local
    store_fields(slot, stride_field, (m, top, total, weighted, squares, counted, odd_rows, target), mask_n, 8)


@triton.jit(do_not_specialize=["first_part", "last_part", "first_row", "rows", "n", "labels"])
def _logsumexp_reduce_kernel(
    labels_ptr,
    partials_ptr,  # (8, parts, rows)
    out_ptr,  # (7, n)
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
    m, top, total, weighted, squares, counted, odd = none - LARGEST, none, none, none, none, none, none
    target = none + float("nan")
    for part in range(first_part, last_part):
        slot = partials_ptr + tl.cast(part, tl.int64) * rows + offs_n
        m_part, top_part = tl.load(slot, mask=mask_n), tl.load(slot + stride_field, mask=mask_n)
        m, top, old, new = join_tops(m, top, m_part, top_part)
        total = total * old + tl.load(slot + 2 * stride_field, mask=mask_n) * new
        weighted = weighted * old + tl.load(slot + 3 * stride_field, mask=mask_n) * new
        squares = squares * (old * old) + tl.load(slot + 4 * stride_field, mask=mask_n) * (new * new)
        counted += tl.load(slot + 5 * stride_field, mask=mask_n)
        odd = tl.maximum(odd, tl.load(slot + 6 * stride_field, mask=mask_n))
        target = join_targets(target, tl.load(slot + 7 * stride_field, mask=mask_n))
    if LAST:
        # no label can be, or something is not finite
        lost = (odd > 0) | (counted == 0)
        nan = float("nan")
        out = out_ptr + tl.cast(first_row, tl.int64) + offs_n
        results = (
            tl.where(lost, nan, m + tl.log(total)),
            tl.where(lost, nan, weighted / total),
            tl.where(lost, nan, 2 * m + tl.log(squares)),
            label_at(labels_ptr, top, mask_n),
            tl.where(lost, nan, m),
            tl.where(lost, nan, target),
            tl.where(lost, none + labels, counted),
        )
        store_fields(out, tl.cast(n, tl.int64), results, mask_n, 7)
    else:
        slot = partials_ptr + offs_n
        store_fields(slot, stride_field, (m, top, total, weighted, squares, counted, odd, target), mask_n, 8)

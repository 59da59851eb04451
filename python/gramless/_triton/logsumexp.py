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

from .logits.chunks import Head, Pass
from .logits.row_sums import (
    LARGEST,
    above,
    any_of,
    join_targets,
    join_tops,
    load_fields,
    place_of,
    store_fields,
    target_of,
    wide,
)
from .logits.tile_values import label_at, read_logits, row_places

# of a state: largest logit, its place, whether something is not finite, the logit of the target, sums of powers of e,
# of these times logits, of their squares, and labels that can be; and of the results
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
    head = (z_ptr, stride_zn, stride_zv, b_ptr, cap_bits)
    chunk = (labels_ptr, local, source, first_label, scale_bits)
    begin = first_label + tl.program_id(1) * length
    end = tl.minimum(begin + length, first_label + labels)
    kind: tl.constexpr = tl.float64 if WIDE else tl.float32
    sums = _no_labels(BLOCK_N)
    for start in range(begin, end, BLOCK_V):
        place = start + tl.arange(0, BLOCK_V)
        inside = place < end
        z, odd = read_logits(head, chunk, place, inside, kind, CAPPED1, GIVEN1)  # [BLOCK_N, BLOCK_V]
        m, a, e, _ = above(z)
        total = tl.sum(e, axis=1)
        target = tl.zeros((BLOCK_N,), dtype=tl.float64) + float("nan")
        if targets_ptr is not None:
            target = target_of(z, tl.load(targets_ptr + source, mask=mask_n, other=-1), place, inside)
        tile = (
            m.to(tl.float64),
            place_of(z, m, place),
            any_of(odd),
            target,
            total.to(tl.float64),
            wide(tl.sum(e * a, axis=1), m, total),
            tl.sum(e * e, axis=1).to(tl.float64),
            tl.sum((z > float("-inf")).to(tl.float64), axis=1),
        )
        sums = _join(sums, tile)
    slot = partials_ptr + (1 + tl.program_id(1)).to(tl.int64) * rows + local
    store_fields(slot, stride_field, sums, mask_n, 8)


@triton.jit
def _no_labels(BLOCK_N: tl.constexpr):
    none = tl.zeros((BLOCK_N,), dtype=tl.float64)
    return none - LARGEST, none, none, none + float("nan"), none, none, none, none


@triton.jit
def _join(sums, others):
    """Return sums over both labels, those of the others coming later."""
    m, top, old, new = join_tops(sums[0], sums[1], others[0], others[1])
    return (
        m,
        top,
        tl.maximum(sums[2], others[2]),
        join_targets(sums[3], others[3]),
        sums[4] * old + others[4] * new,
        sums[5] * old + others[5] * new,
        sums[6] * (old * old) + others[6] * (new * new),
        sums[7] + others[7],
    )


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
    sums = _no_labels(BLOCK_N)
    for part in range(first_part, last_part):
        slot = partials_ptr + tl.cast(part, tl.int64) * rows + offs_n
        sums = _join(sums, load_fields(slot, stride_field, mask_n, 8))
    if LAST:
        m, top, odd, target, total, weighted, squares, counted = sums
        # no label can be, or something is not finite
        lost = (odd > 0) | (counted == 0)
        nan = m * 0.0 + float("nan")
        results = (
            tl.where(lost, nan, m + tl.log(total)),
            tl.where(lost, nan, weighted / total),
            tl.where(lost, nan, 2 * m + tl.log(squares)),
            label_at(labels_ptr, top, mask_n),
            tl.where(lost, nan, m),
            tl.where(lost, nan, target),
            tl.where(lost, labels, counted),
        )
        store_fields(out_ptr + tl.cast(first_row, tl.int64) + offs_n, tl.cast(n, tl.int64), results, mask_n, 7)
    else:
        store_fields(partials_ptr + offs_n, stride_field, sums, mask_n, 8)

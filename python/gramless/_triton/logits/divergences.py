"""Shares of labels in the Jensen-Shannon divergence and the total variation, of logits and their log normalisers.

With x = (p - q) / (p + q), JS is the sum of (p + q) / 4 [(1 - x) ln(1 - x) + (1 + x) ln(1 + x)] and TV that of
|p - q| / 2: terms of near-equal models are squares, a series where the logarithms would cancel. Sums over a row of a
tile are in the number of the logits, beyond in float64, in the order of labels.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .chunks import Chunk, Pass
from .row_sums import any_of
from .tile_values import divergence_terms, read_logits, row_places


def add_divergences(run: Pass, chunk: Chunk, lse_p: torch.Tensor, lse_q: torch.Tensor, found: torch.Tensor) -> None:
    """Add the shares of a chunk to those of the chunks before it."""
    partials = run.partials(2, chunk.rows)
    parts = run.sum_up(_logit_divergences_kernel, chunk, partials, lse_p, lse_q)
    rows = slice(chunk.first_row, chunk.first_row + chunk.rows)
    shares = partials[:, 1 : 1 + parts].sum(dim=1)
    found[:, rows] = shares if chunk.first_label == 0 else found[:, rows] + shares


@triton.jit(do_not_specialize=["cap1_bits", "cap2_bits", "first_row", "rows", "stride_field", "scale_bits"])
def _logit_divergences_kernel(
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
    lse_p_ptr,  # (n,)
    lse_q_ptr,  # (n,)
    partials_ptr,  # (2, 1 + parts, rows)
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
    lse_p = tl.load(lse_p_ptr + first_row + local)
    lse_q = tl.load(lse_q_ptr + first_row + local)
    head1 = (z1_ptr, stride_z1n, stride_z1v, b1_ptr, cap1_bits)
    head2 = (z2_ptr, stride_z2n, stride_z2v, b2_ptr, cap2_bits)
    chunk = (labels_ptr, local, source, first_label, scale_bits)
    begin = first_label + tl.program_id(1) * length
    end = tl.minimum(begin + length, first_label + labels)
    kind: tl.constexpr = tl.float64 if WIDE else tl.float32
    js, tv = tl.zeros((BLOCK_N,), dtype=tl.float64), tl.zeros((BLOCK_N,), dtype=tl.float64)
    odd_rows = tl.zeros((BLOCK_N,), dtype=tl.float64)
    for start in range(begin, end, BLOCK_V):
        place = start + tl.arange(0, BLOCK_V)
        inside = place < end
        z1, odd = read_logits(head1, chunk, place, inside, kind, CAPPED1, GIVEN1)  # [BLOCK_N, BLOCK_V]
        odd_rows = tl.maximum(odd_rows, any_of(odd))
        z2, odd = read_logits(head2, chunk, place, inside, kind, CAPPED2, GIVEN2)
        odd_rows = tl.maximum(odd_rows, any_of(odd))
        of_js, of_tv = divergence_terms(z1, z2, lse_p, lse_q)
        js += tl.sum(of_js, axis=1).to(tl.float64) / 4
        tv += tl.sum(of_tv, axis=1).to(tl.float64) / 2
    slot = partials_ptr + (1 + tl.program_id(1)).to(tl.int64) * rows + local
    tl.store(slot, tl.where(odd_rows > 0, float("nan"), js), mask=mask_n)
    tl.store(slot + stride_field, tl.where(odd_rows > 0, float("nan"), tv), mask=mask_n)

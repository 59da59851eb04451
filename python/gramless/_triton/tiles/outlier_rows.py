"""Rows far longer than the others of their chunk, taken out of the planes and kept in float64.

Such a row, as attention sinks have them, leaves errors of its own size in every sum of float32, and the unbiased
estimator takes its square out again. Where more rows are long, they are what the sums are about.
Cost: reads lengths of rows four times, and 16 rows of a chunk; nothing waits for the device. Holds 16 rows of a chunk.
Numerics: a row is a giant if its squared length in either array is over 256 times the mean of what remains without the
16 longest ones; these are float64 throughout.
Rejected: the fourth product of two planes each, which leaves the sums of float32 as they are.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from . import launch, packed_rows
from .launch import cdiv

# rows of a chunk that are giants, at most
MOST = 16
_SQUARED = 256.0
_BLOCK_P = 1024


class Giants:
    """The giants of all chunks of a call, in float64 and zero where a chunk has fewer."""

    def __init__(self, chunks: int, width: int, slack: int, device: torch.device) -> None:
        self.rows = chunks * MOST
        padded = cdiv(self.rows, packed_rows.ROWS) * packed_rows.ROWS
        held = torch.zeros(padded * width + slack, dtype=torch.float64, device=device)
        self.values = held[: padded * width].view(1, padded, width)
        self.found = torch.zeros(self.rows, dtype=torch.bool, device=device)

    def take(
        self,
        chunk: int,
        arrays: list[tuple[torch.Tensor, torch.Tensor, int]],
        planes: torch.Tensor,
        squares: torch.Tensor,
    ) -> None:
        """Take the giants out of the planes and squares of a chunk; arrays are rows, pivot and column in the planes."""
        count = arrays[0][0].shape[0]
        share = squares / squares.sum(dim=1, keepdim=True).clamp_min(torch.finfo(squares.dtype).tiny)
        longest = share.amax(dim=0).topk(MOST).indices
        rest = squares.index_fill(1, longest, 0.0).sum(dim=1, keepdim=True) / max(count - MOST, 1)
        top = squares[:, longest]
        found = (top > _SQUARED * rest).any(dim=0)
        squares.index_copy_(1, longest, torch.where(found, 0.0, top))
        own = slice(chunk * MOST, (chunk + 1) * MOST)
        self.found[own] = found
        for array, pivot, column in arrays:
            p = array.shape[1]
            launch.launch(
                _giants_kernel,
                (MOST, cdiv(p, _BLOCK_P)),
                array,
                pivot,
                longest,
                found,
                planes[:, :, column:],
                self.values[0, own, column:],
                p,
                *array.stride(),
                planes.stride(0),
                planes.stride(1),
                TERMS=planes.shape[0],
                BLOCK_P=_BLOCK_P,
                num_warps=4,
            )


@triton.jit
def _giants_kernel(
    x_ptr,
    pivot_ptr,
    longest_ptr,
    found_ptr,
    planes_ptr,
    giants_ptr,
    p,
    stride_xn,
    stride_xp,
    stride_term,
    stride_row,
    TERMS: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    place = tl.program_id(0)
    offs_p = tl.program_id(1).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    row = tl.load(longest_ptr + place)
    mask = (offs_p < p) & (tl.load(found_ptr + place) != 0)
    value = tl.load(x_ptr + row * stride_xn + offs_p * stride_xp, mask=mask, other=0.0).to(tl.float64)
    pivot = tl.load(pivot_ptr + offs_p, mask=mask, other=0.0)
    # planes and giants have rows of the same width
    tl.store(giants_ptr + place * stride_row + offs_p, value - pivot, mask=mask)
    for term in tl.static_range(TERMS):
        zero = tl.zeros((BLOCK_P,), dtype=tl.float32).to(planes_ptr.dtype.element_ty)
        tl.store(planes_ptr + term * stride_term + row * stride_row + offs_p, zero, mask=mask)

"""Marks of the rows of an unembedding on a GPU, the same as of its bytes on the host.

Four sums over the words of 64 bits of a row, modulo 2^64: of keys times words, and of others times their upper halves.
A word is a sum of the values in it, shifted to their places, so that each value is multiplied where it is.
Cost: one read of the rows, whatever their strides; 32 bytes of each.
Numerics: whole numbers that wrap around.
Rejected: operations of torch on int64, which write what they multiply, some ten times what is read.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..tiles import launch
from ..tiles.launch import cdiv

_WHOLE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def write_marks(w: torch.Tensor, keys: torch.Tensor, out: torch.Tensor) -> None:
    """Write the marks (rows, 4) of rows (rows, d), with keys (4, words); all whole numbers are int64."""
    rows, d = w.shape
    item = w.element_size()
    interpreting = launch.interpreting()
    block_p = min(512, triton.next_power_of_2(d)) if interpreting else 256
    block_n = min(1024, triton.next_power_of_2(rows)) if interpreting else 4
    # a thread has 8 values, where warps have 32 threads, and where they have 64
    warps = 2 if launch.architecture(w.device).startswith("gfx") else 4
    launch.launch(
        _factor_marks_kernel,
        (cdiv(rows, block_n),),
        w.view(_WHOLE[item]),
        keys,
        out,
        rows,
        d,
        *w.stride(),
        keys.stride(0),
        out.stride(0),
        BITS=8 * item,
        BLOCK_N=block_n,
        BLOCK_P=block_p,
        num_warps=warps,
    )


@triton.jit(do_not_specialize=["rows"])
def _factor_marks_kernel(
    w_ptr,
    keys_ptr,
    out_ptr,
    rows,
    d,
    stride_n,
    stride_p,
    stride_key,
    stride_out,
    BITS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    offs_n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < rows
    row_ptrs = w_ptr + offs_n[:, None] * stride_n
    first = tl.zeros((BLOCK_N, BLOCK_P), dtype=tl.int64)
    second = tl.zeros((BLOCK_N, BLOCK_P), dtype=tl.int64)
    third = tl.zeros((BLOCK_N, BLOCK_P), dtype=tl.int64)
    fourth = tl.zeros((BLOCK_N, BLOCK_P), dtype=tl.int64)
    for start in range(0, d, BLOCK_P):
        offs = start + tl.arange(0, BLOCK_P).to(tl.int64)
        mask_p = offs < d
        value = tl.load(row_ptrs + offs[None, :] * stride_p, mask=mask_n[:, None] & mask_p[None, :], other=0)
        value = value.to(tl.int64)
        if BITS == 64:
            # a shift to the right copies the sign
            word = value
            upper = (value >> 32) & 0xFFFFFFFF
        else:
            value = value & ((1 << BITS) - 1)
            shift = (offs % (64 // BITS) * BITS)[None, :]
            word = value << shift
            upper = tl.where(shift >= 32, value << tl.maximum(shift - 32, 0), 0)
        key_ptrs = keys_ptr + offs // (64 // BITS)
        first += word * tl.load(key_ptrs, mask=mask_p, other=0)[None, :]
        second += word * tl.load(key_ptrs + stride_key, mask=mask_p, other=0)[None, :]
        third += upper * tl.load(key_ptrs + 2 * stride_key, mask=mask_p, other=0)[None, :]
        fourth += upper * tl.load(key_ptrs + 3 * stride_key, mask=mask_p, other=0)[None, :]
    out_ptrs = out_ptr + offs_n * stride_out
    tl.store(out_ptrs, tl.sum(first, axis=1), mask=mask_n)
    tl.store(out_ptrs + 1, tl.sum(second, axis=1), mask=mask_n)
    tl.store(out_ptrs + 2, tl.sum(third, axis=1), mask=mask_n)
    tl.store(out_ptrs + 3, tl.sum(fourth, axis=1), mask=mask_n)

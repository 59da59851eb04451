"""Products of hidden states and unembeddings: chunks of logits before bias, softcap and temperature.

Formula: z[i, j] = sum_k h[i, k] w[j, k], for any rows and labels, which an index may choose.
Cost: 2 d flops for each logit, three times that for float32 in "high"; h is read once for each tile of labels and w for
each tile of rows, mostly from the cache, since tiles that run together share them.
Numerics: bfloat16 with bfloat16, and float16 with float16, are multiplied as given, exactly, and summed in float32.
Others are rounded to one bfloat16 ("fast"), or to a sum of two, of which all products but that of the lower ones are
taken ("high"): 16 bits of each value. "exact" and float64 data: products and sums in float64.
Rejected: planes made in advance, as for moments: an unembedding in float32 would take as much memory again.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..tiles import launch
from ..tiles.launch import Config, Configs, cdiv
from ..tiles.order import grouped, multiply, to_bfloat16

# row tiles that share their labels in the cache
_GROUP = tl.constexpr(8)

# by what is multiplied: values as given, one plane or two made of them, float64
CONFIGS: dict[str, Configs] = {
    "given": {
        "interpret": (Config(256, 512, 256, 4, 1),),
        "sm_80": (Config(128, 128, 64, 8, 3), Config(128, 256, 32, 8, 3)),
        "sm_90": (Config(128, 256, 64, 8, 4), Config(128, 256, 64, 8, 3), Config(128, 128, 64, 8, 4)),
        "sm_100": (Config(128, 256, 64, 8, 4),),
        "gfx942": (Config(128, 256, 64, 8, 2),),
    },
    "fast": {
        "interpret": (Config(256, 512, 256, 4, 1),),
        "sm_80": (Config(128, 128, 32, 8, 3),),
        "sm_90": (Config(128, 128, 64, 8, 3), Config(128, 128, 32, 8, 4)),
        "sm_100": (Config(128, 128, 64, 8, 2),),
        "gfx942": (Config(128, 128, 32, 8, 2),),
    },
    "high": {
        "interpret": (Config(256, 512, 256, 4, 1),),
        "sm_80": (Config(64, 128, 32, 4, 3),),
        "sm_90": (Config(128, 128, 32, 8, 3), Config(128, 128, 64, 8, 2)),
        "sm_100": (Config(128, 128, 32, 8, 3),),
        "gfx942": (Config(128, 128, 32, 8, 2),),
    },
    "exact": {
        "interpret": (Config(256, 512, 256, 4, 1),),
        "sm_80": (Config(64, 64, 16, 4, 3),),
        "sm_90": (Config(128, 128, 16, 8, 3), Config(64, 64, 16, 4, 3)),
        "sm_100": (Config(64, 64, 16, 4, 3),),
        "gfx942": (Config(64, 64, 16, 4, 2),),
    },
}


def way(h: torch.Tensor, w: torch.Tensor, precision: str, *, wide: bool) -> str:
    """Return what is multiplied of such arrays."""
    if wide:
        return "exact"
    if h.dtype == w.dtype and h.dtype in (torch.bfloat16, torch.float16):
        return "given"
    return precision


def tile(way: str, device: torch.device) -> Config:
    """Return the tile of these products that is taken without a run."""
    return launch.candidates(CONFIGS[way], launch.architecture(device))[0]


def products(
    h: torch.Tensor,  # (N, d)
    w: torch.Tensor,  # (V, d)
    way: str,
    rows: torch.Tensor | None,
    labels: torch.Tensor | None,
    first_row: int,
    first_label: int,
    out: torch.Tensor,  # (rows, labels), float32, float64 for "exact"
    shape: tuple[int, int],
) -> None:
    """Write the products of rows and labels, which start at these places of their indices, as many as the shape has.

    What there is beyond, to the whole tiles that `out` must hold, is undefined.
    """
    d = h.shape[1]
    count, width = shape

    def run(config: Config) -> None:
        launch.launch(
            _logit_product_kernel,
            (cdiv(count, config.block_i) * cdiv(width, config.block_j),),
            h,
            w,
            rows,
            labels,
            out,
            first_row,
            count,
            first_label,
            width,
            d,
            *h.stride(),
            *w.stride(),
            out.stride(0),
            TERMS={"given": 0, "fast": 1, "high": 2, "exact": 0}[way],
            EVEN=d % config.block_k == 0,
            **config.constants,
            **config.options,
        )

    # tiles of a candidate may not reach beyond the chunk
    fitting = {
        name: tuple(one for one in found if out.shape[0] % one.block_i == 0 == out.shape[1] % one.block_j)
        for name, found in CONFIGS[way].items()
    }
    run(launch.config(fitting, h.device))


@triton.jit(do_not_specialize=["first_row", "rows", "first_label", "labels"])
def _logit_product_kernel(
    h_ptr,
    w_ptr,
    rows_ptr,
    labels_ptr,
    z_ptr,
    first_row,
    rows,
    first_label,
    labels,
    d,
    stride_hn,
    stride_hd,
    stride_wv,
    stride_wd,
    stride_zn,
    TERMS: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    tiles_i, tiles_j = tl.cdiv(rows, BLOCK_I), tl.cdiv(labels, BLOCK_J)
    i, j = grouped(tl.program_id(0), tiles_i, tiles_j, _GROUP)
    offs_i = i * BLOCK_I + tl.arange(0, BLOCK_I)
    offs_j = j * BLOCK_J + tl.arange(0, BLOCK_J)
    # the last row and label again, where a tile reaches beyond them
    row = (first_row + tl.minimum(offs_i, rows - 1)).to(tl.int64)
    label = (first_label + tl.minimum(offs_j, labels - 1)).to(tl.int64)
    if rows_ptr is not None:
        row = tl.load(rows_ptr + row)
    if labels_ptr is not None:
        label = tl.load(labels_ptr + label)
    offs_k = tl.arange(0, BLOCK_K)
    # features may lie as far apart as the rows of a transposed array
    h_ptrs = h_ptr + row[:, None] * stride_hn + offs_k.to(tl.int64)[None, :] * stride_hd
    w_ptrs = w_ptr + label[None, :] * stride_wv + offs_k.to(tl.int64)[:, None] * stride_wd
    acc = tl.zeros((BLOCK_I, BLOCK_J), dtype=z_ptr.dtype.element_ty)
    for k in range(0, d, BLOCK_K):
        if EVEN:
            h_tile = tl.load(h_ptrs)  # [BLOCK_I, BLOCK_K]
            w_tile = tl.load(w_ptrs)  # [BLOCK_K, BLOCK_J]
        else:
            h_tile = tl.load(h_ptrs, mask=(offs_k < d - k)[None, :], other=0.0)
            w_tile = tl.load(w_ptrs, mask=(offs_k < d - k)[:, None], other=0.0)
        if TERMS == 0:
            acc = _multiply_as_given(h_tile, w_tile, acc)
        else:
            acc = _multiply_planes(h_tile, w_tile, acc, TERMS)
        h_ptrs += tl.cast(stride_hd, tl.int64) * BLOCK_K
        w_ptrs += tl.cast(stride_wd, tl.int64) * BLOCK_K
    z_ptrs = z_ptr + offs_i.to(tl.int64)[:, None] * stride_zn + offs_j[None, :]
    tl.store(z_ptrs, acc)


@triton.jit
def _multiply_as_given(h_tile, w_tile, acc):
    """Add products without rounding either."""
    if acc.dtype == tl.float64:
        return multiply(h_tile.to(tl.float64), w_tile.to(tl.float64), acc)
    return multiply(h_tile, w_tile, acc)


@triton.jit
def _multiply_planes(h_tile, w_tile, acc, TERMS: tl.constexpr):
    """Add products of bfloat16 planes; data that are bfloat16 have one."""
    h_upper, w_upper = to_bfloat16(h_tile.to(tl.float32)), to_bfloat16(w_tile.to(tl.float32))
    if TERMS == 2 and h_tile.dtype != tl.bfloat16:
        h_lower = to_bfloat16(h_tile.to(tl.float32) - h_upper.to(tl.float32))
        acc = multiply(h_lower, w_upper, acc)
    if TERMS == 2 and w_tile.dtype != tl.bfloat16:
        w_lower = to_bfloat16(w_tile.to(tl.float32) - w_upper.to(tl.float32))
        acc = multiply(h_upper, w_lower, acc)
    return multiply(h_upper, w_upper, acc)

"""How far kernel values are from those in float64: of a sample of pairs of rows, after the fact.

|k - k'| / |k'| of the values of 256 x 256 pairs of rows, drawn one from each stretch of the array: k by the packing and
the tiles of the pass itself, k' in float64, centred over rows and columns in the denominator.
Cost: 2^17 p flops and the reading of 512 rows, whatever n is. Nothing waits for the device.
Numerics: float64 beside what is judged; of several bandwidths the largest error is told.
Rejected: bounds from the rounding of the planes: ten times what is seen, as errors of features have random signs.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from ..tiles import launch
from ..tiles.launch import Config, cdiv
from .kernel_functions import CHUNK, FUNCTIONS, PARAMETERS, FittedKernel, measures, products, values

# rows of each side of the sample
SAMPLED = 256
# multiplies the number of a stretch, for the place in it: 2^32 / golden ratio
_HASH = 2654435769
_LN2 = math.log(2)
CONFIG = Config(64, 64, 32, 4, 2)
_INTERPRET = Config(256, 256, 64, 4, 1)


def sampled_error(x: torch.Tensor, fitted: FittedKernel) -> torch.Tensor:
    """Return the error of the kernel values of x (n, p), root mean square, relative to centred ones: ().

    0 for "exact". The same rows are drawn every time.
    """
    n = int(x.shape[0])
    if fitted.precision == "exact" or n < 2 * SAMPLED:
        return torch.zeros((), dtype=torch.float64, device=x.device)
    stretch = n // (2 * SAMPLED)
    index = torch.arange(2 * SAMPLED, dtype=torch.int64, device=x.device)
    rows = x[index * stretch + index * _HASH % 2**32 // 2**8 % stretch]
    # one of two stretches is of the left side
    left, right = rows[::2], rows[1::2]
    found, truth = _values(left, right, fitted), _exact_values(left, right, fitted)
    error = ((found.to(torch.float64) - truth) ** 2).mean(dim=(1, 2))
    centred = truth - truth.mean(dim=1, keepdim=True)
    size = ((centred - centred.mean(dim=2, keepdim=True)) ** 2).mean(dim=(1, 2))
    return torch.where(error > 0, error / size, error).sqrt().amax()


def _values(left: torch.Tensor, right: torch.Tensor, fitted: FittedKernel) -> torch.Tensor:
    """Return the kernel values (s, 256, 256) of two sets of rows as the pass takes them."""
    blocks = [fitted.pack(rows) for rows in (left, right)]
    norms = [fitted.norms(block).to(torch.float32) for block in blocks]
    shape = (len(fitted.offsets), SAMPLED, SAMPLED)
    found = torch.empty(shape, dtype=torch.float32, device=left.device)
    config = _INTERPRET if launch.interpreting() else CONFIG
    planes = [block.planes for block in blocks]
    launch.launch(
        _gram_error_kernel,
        (cdiv(SAMPLED, config.block_i), cdiv(SAMPLED, config.block_j)),
        *planes,
        *norms,
        fitted.parameters.to(torch.float32),
        found,
        SAMPLED,
        planes[0].shape[2],
        planes[0].stride(0),
        planes[1].stride(0),
        shape[0],
        fitted.degree,
        FUNCTION=fitted.function,
        TERMS=planes[0].shape[0],
        LONG=planes[0].shape[2] > CHUNK.value,
        **config.constants,
        **config.options,
    )
    return found * fitted.scale


@triton.jit
def _gram_error_kernel(
    x_i_ptr,
    x_j_ptr,
    norms_i_ptr,
    norms_j_ptr,
    parameters_ptr,
    values_ptr,
    n,
    width,
    stride_i,
    stride_j,
    bandwidths,
    degree,
    FUNCTION: tl.constexpr,
    TERMS: tl.constexpr,
    LONG: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    pid_i, pid_j = tl.program_id(0), tl.program_id(1)
    offs_i = pid_i * BLOCK_I + tl.arange(0, BLOCK_I)
    offs_j = pid_j * BLOCK_J + tl.arange(0, BLOCK_J)
    first_i, first_j = pid_i * BLOCK_I, pid_j * BLOCK_J
    tile = products(
        x_i_ptr, x_j_ptr, stride_i, stride_j, first_i, first_j, width, TERMS, LONG, BLOCK_I, BLOCK_J, BLOCK_K
    )
    norms_i, norms_j = tl.load(norms_i_ptr + offs_i), tl.load(norms_j_ptr + offs_j)
    tile = measures(tile, norms_i, norms_j, FUNCTION)
    for s in range(bandwidths):
        k = values(tile, norms_i, norms_j[None, :], parameters_ptr + s * PARAMETERS, degree, FUNCTION)
        tl.store(values_ptr + (s * n + offs_i[:, None]) * n + offs_j[None, :], k)


def _exact_values(left: torch.Tensor, right: torch.Tensor, fitted: FittedKernel) -> torch.Tensor:
    """Return the kernel values (s, 256, 256) of two sets of rows in float64."""
    sides = []
    for rows in (left, right):
        u = rows.to(torch.float64)
        if fitted.normalise:
            u = u / (u * u).sum(dim=1, keepdim=True).sqrt()
        u = u - fitted.centre
        sides.append(u if fitted.unit is None else u * fitted.unit)
    u, v = sides
    dots = u @ v.T
    if fitted.function == FUNCTIONS["linear"]:
        return (dots * fitted.scale)[None]
    squares = ((u * u).sum(dim=1)[:, None] + (v * v).sum(dim=1)[None, :] - 2 * dots).clamp(min=0)
    if fitted.function != FUNCTIONS["rbf"]:
        squares = squares.sqrt()
    if fitted.function == FUNCTIONS["distance"]:
        return (squares * fitted.scale)[None]
    exponents = squares * fitted.parameters[:, 0, None, None] * -_LN2
    return torch.where(fitted.offsets[:, None, None] > 0, torch.expm1(exponents), torch.exp(exponents))

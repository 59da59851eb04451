"""`gram_sums` of two RBF kernels on a GPU, against torch by blocks, compiled and not, KeOps, and whole matrices."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

import gramless as gl

from .base import installed, relative_error
from .gpu_data import DTYPE, SAMPLED_ROWS, KernelSums, activations, true_kernel_sums
from .gpu_device import BACKEND, Device
from .gpu_peers import PairSums, keops_kernel_sums, kernel_peers, naive_kernel_sums
from .gpu_rows import OURS, PRODUCTS, Case, Contestant, Errors, GpuRow, Target, found, measure, reached
from .gpu_tables import GPU
from .rbf import bandwidth, gram_flops, unbiased_cka

COLUMNS = GPU
TITLE = "gram_sums of two RBF kernels, all pairs of rows"
PEERS = {"keops": ("pykeops",)}
# of the sums of products, which are estimated where all pairs in float64 take too long
STANDARD_ERRORS = 6.0


class Shape(NamedTuple):
    n: int
    width: int
    precisions: tuple[str, ...]
    complete: bool = True  # whether all pairs are computed in float64
    naive: bool = False  # whether whole kernel matrices fit
    keops: bool = False
    blocks: bool = True


SHAPES = (
    Shape(16_384, 512, ("fast",), naive=True, keops=True),
    Shape(100_000, 512, ("fast", "high"), keops=True),
    Shape(100_000, 4096, ("fast", "high")),
    # torch by blocks takes half a minute
    Shape(1_000_000, 512, ("fast",), complete=False, blocks=False),
)
QUICK_SHAPES = SHAPES[:2]
# more rows than are summed in float64 at any precision
TINY_SHAPES = (Shape(1100, 8, ("fast", "high"), naive=True), Shape(90, 16, ("high",), complete=False, blocks=False))
TINY_SAMPLE = 40
LARGE_SECONDS, LARGE_BYTES = 2.2, 600e6


def state_sums(state: Any, device: Device) -> PairSums:
    """A state without its offsets, which the kernels that judge it do not have."""
    import torch

    n, product = state.n, float(state.product[0])
    (a, k), (b, m) = ((float(side.offset[0]), side) for side in (state.x, state.y))
    totals = [float(side.rows[0].sum()) for side in (k, m)]
    pairs = n * (n - 1)
    squares = [
        float(side.square[0]) + 2 * offset * total + offset**2 * pairs
        for side, offset, total in zip((k, m), (a, b), totals, strict=True)
    ]
    product += a * totals[1] + b * totals[0] + a * b * pairs
    rows = np.stack([side.rows[0] + offset * (n - 1) for side, offset in ((k, a), (m, b))])
    products = torch.tensor([squares[0], product, squares[1]], dtype=torch.float64, device=device.name)
    return PairSums(torch.from_numpy(rows).to(device.name), products)


def errors_of(sums: PairSums, truth: KernelSums) -> Errors:
    """Of row sums and, if all pairs are known, of the sums of products and of unbiased CKA."""
    rows_error = float(((sums.rows[:, truth.rows] - truth.sums).abs() / truth.sums).max())
    if not truth.complete:
        error = truth.n * truth.products.std(1) / math.sqrt(len(truth.rows))
        off = (sums.products - truth.n * truth.products.mean(1)).abs() / error
        # an estimate says whether these sums can be right, not by how much they are off
        return Errors(None, rows_error if bool((off <= STANDARD_ERRORS).all()) else math.inf)
    products = truth.products.sum(1)
    cka, true_cka = (
        unbiased_cka(truth.n, found.tolist(), *of_rows.cpu().numpy())
        for found, of_rows in ((sums.products, sums.rows), (products, truth.sums))
    )
    products_error = float(((sums.products - products).abs() / products).max())
    # a maximum may drop NaN
    worst = math.nan if math.isnan(products_error) else max(rows_error, products_error)
    return Errors(relative_error(cka, true_cka), worst)


def ours(x: Any, y: Any, precision: str) -> Any:
    widths = {f"bandwidth_{name}": bandwidth(a.shape[1]) for name, a in (("x", x), ("y", y))}
    return gl.gram_sums(x, y, kernel="rbf", **widths, precision=precision, backend=BACKEND)


def contestants(
    shape: Shape, precision: str, x: Any, y: Any, truth: KernelSums, device: Device
) -> Iterator[Contestant]:
    yield Contestant(OURS, partial(ours, x, y, precision), lambda state: errors_of(state_sums(state, device), truth))
    peers = kernel_peers(x, y, precision, device) if shape.blocks else {}
    if shape.naive:
        peers["torch-naive"] = partial(naive_kernel_sums, x, y)
    if shape.keops and installed("pykeops"):
        peers["keops"] = partial(keops_kernel_sums, x, y)
    for name, call in peers.items():
        yield Contestant(name, call, partial(errors_of, truth=truth))


def rows(device: Device, *, quick: bool, rounds: int) -> Iterator[GpuRow]:
    for shape in device.sized(SHAPES, QUICK_SHAPES, TINY_SHAPES, is_quick=quick):
        n, width = shape.n, shape.width
        x, y = activations(n, width, device)
        sample = TINY_SAMPLE if device.interpreting else SAMPLED_ROWS
        truth = true_kernel_sums(x, y, most_rows=None if shape.complete else sample)
        sums = "all row sums, the sums of products and unbiased CKA"
        checked = (
            sums
            if shape.complete
            else f"the row sums of {len(truth.rows)} rows; the sums of products as they estimate them"
        )
        for precision in shape.precisions:
            amounts = gram_flops(n, width, width), PRODUCTS[precision], 4 * n * width
            case = Case(DTYPE, precision, n, width, *amounts, checked)
            yield from measure(case, list(contestants(shape, precision, x, y, truth, device)), device, rounds)
        # the next pair is drawn before these names are bound again
        del x, y, truth


def targets(measured: Sequence[GpuRow], device: Device, *, quick: bool) -> Iterator[Target]:
    shape = SHAPES[-1]
    row = found(measured, OURS, n=shape.n, width=shape.width)
    what = f"gram_sums, {shape.n} x {shape.width}, fast"
    yield reached(f"{what}: less than {LARGE_SECONDS} s (H200)", row, row and row.seconds, most=LARGE_SECONDS)
    most = f"{what}: less than {LARGE_BYTES / 1e6:.0f} MB beyond the data"
    yield reached(most, row, row and row.peak_extra_bytes, most=LARGE_BYTES)

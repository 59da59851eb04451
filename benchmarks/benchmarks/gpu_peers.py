"""What users would otherwise run on a GPU: torch by hand, compiled and not, KeOps, and pytorch-cka.

* torch-bfloat16, torch-float32, torch-tf32: three products of centred rows, 65,536 rows at a time, summed in float32;
  float32 with and without the tensor cores.
* torch-naive: whole kernel matrices of float32.
* torch-blocks: kernel matrices by square blocks of the upper triangle, everything in place, sums in float64.
* torch-compiled: as torch-blocks, with all that is done with a block in one function for `torch.compile`.
* keops: symbolic matrices of `pykeops`, all five sums in one reduction; float32, without tensor cores.
* torch-bmm: all Gram matrices of a grid by one `torch.bmm`, all pairs by one product; also as a CUDA graph.
* pytorch-cka: `cka.cka_from_features` of the layers as they are, and of float32 copies that were made before.

Products of bfloat16 have float32 results where this version of torch can do that.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from .gpu_data import parts
from .gpu_device import Device
from .rbf import bandwidth

if TYPE_CHECKING:
    import torch

MOMENT_ROWS = 65_536
BLOCK_ROWS = 8192
# of blocks of the interpreter's sizes
TINY_ROWS = 500
# products of float32 on tensor cores, in the words of torch
FLOAT32 = {"torch-float32": "highest", "torch-tf32": "high"}


@contextlib.contextmanager
def float32_products(precision: str) -> Iterator[None]:
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class Multiply(NamedTuple):
    """Products of two matrices, or of two stacks of them, in float32."""

    dtype: torch.dtype
    mixed: bool  # whether torch gives float32 results of bfloat16

    @classmethod
    def of(cls, dtype: torch.dtype, device: Device) -> Multiply:
        import torch

        if dtype != torch.bfloat16:
            return cls(dtype, False)
        one = torch.ones(16, 16, dtype=dtype, device=device.name)
        try:
            torch.mm(one, one, out_dtype=torch.float32)
        # versions without it, and devices without it
        except (NotImplementedError, RuntimeError, TypeError):
            return cls(dtype, False)
        return cls(dtype, True)

    def __call__(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        import torch

        product = torch.bmm if a.ndim == 3 else torch.mm
        if self.mixed:
            return product(a, b, out_dtype=torch.float32)
        return product(a, b).float()


class SecondMoments(NamedTuple):
    """The three second moments about the means."""

    xx: torch.Tensor
    xy: torch.Tensor
    yy: torch.Tensor

    def biased_cka(self) -> float:
        xx, xy, yy = (float((one / len(one)).double().square().sum()) for one in self)
        return xy / (xx * yy) ** 0.5


def torch_moments(x: torch.Tensor, y: torch.Tensor, multiply: Multiply, repeats: int = 1) -> SecondMoments:
    import torch

    means = [a.mean(0, dtype=torch.float32) for a in (x, y)]
    sums: list[Any] = [0, 0, 0]
    for _ in range(repeats):
        for rows in parts(len(x), MOMENT_ROWS):
            d, e = ((a[rows] - mean).to(multiply.dtype) for a, mean in zip((x, y), means, strict=True))
            products = [multiply(u.T, v) for u, v in ((d, d), (d, e), (e, e))]
            sums = [one + product for one, product in zip(sums, products, strict=True)]
    return SecondMoments(*sums)


def moment_peers(
    x: torch.Tensor, y: torch.Tensor, precision: str, device: Device, repeats: int
) -> dict[str, Callable[[], SecondMoments]]:
    """As near to the precision that is asked of gramless as torch comes."""
    import torch

    if precision == "fast":
        multiply = Multiply.of(torch.bfloat16, device)
        return {"torch-bfloat16": lambda: torch_moments(x, y, multiply, repeats)}

    def call(kind: str) -> SecondMoments:
        with float32_products(kind):
            return torch_moments(x, y, Multiply(torch.float32, False), repeats)

    return {name: lambda kind=kind: call(kind) for name, kind in FLOAT32.items()}


class PairSums(NamedTuple):
    """Sums of k, l and their products over i != j."""

    rows: torch.Tensor  # (2, n)
    products: torch.Tensor  # (3,)  of k k, k l, l l


class RbfTiles:
    """exp(u . v - |u|^2 / 2 - |v|^2 / 2) of centred and scaled rows."""

    def __init__(self, x: torch.Tensor, multiply: Multiply) -> None:
        import torch

        self.multiply = multiply
        self.x = ((x - x.mean(0, dtype=torch.float32)) / bandwidth(x.shape[1])).to(multiply.dtype)
        # in float32 without a copy of all rows in float32
        self.halves = torch.cat([self.x[rows].float().square().sum(1).mul_(-0.5) for rows in parts(len(x))])

    def tile(self, left: slice, right: slice) -> torch.Tensor:
        product = self.multiply(self.x[left], self.x[right].T)
        return product.add_(self.halves[left, None]).add_(self.halves[right]).exp_()


def tile_sums(k: torch.Tensor, m: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Sums over the columns and the rows of both, and over the columns of their three products."""
    import torch

    rowwise = [torch.linalg.vecdot(a, b) for a, b in ((k, k), (k, m), (m, m))]
    return torch.stack([k.sum(1), m.sum(1)]), torch.stack([k.sum(0), m.sum(0)]), torch.stack(rowwise)


def compiled_tile(device: Device) -> Callable[..., tuple[torch.Tensor, ...]]:
    """One function of two blocks of rows, from products to sums, for the compiler of torch."""
    import torch

    def sums(
        products: Sequence[torch.Tensor], lefts: Sequence[torch.Tensor], rights: Sequence[torch.Tensor], diagonal: bool
    ) -> Any:
        k, m = (
            (product + left[:, None] + right).exp()
            for product, left, right in zip(products, lefts, rights, strict=True)
        )
        if diagonal:
            off = 1 - torch.eye(len(k), dtype=k.dtype, device=k.device)
            k, m = k * off, m * off
        rowwise = torch.stack([(k * k).sum(1), (k * m).sum(1), (m * m).sum(1)])
        return torch.stack([k.sum(1), m.sum(1)]), torch.stack([k.sum(0), m.sum(0)]), rowwise

    # compiling for the host takes long, and nothing is timed there
    return sums if device.interpreting else torch.compile(sums, dynamic=False)


def torch_kernel_sums(x: torch.Tensor, y: torch.Tensor, multiply: Multiply, rows: int, fused: Any = None) -> PairSums:
    """By square blocks on and above the diagonal."""
    import torch

    n = len(x)
    kernels = [RbfTiles(a, multiply) for a in (x, y)]
    sums = torch.zeros(2, n, dtype=torch.float64, device=x.device)
    products = torch.zeros(3, dtype=torch.float64, device=x.device)
    for left in parts(n, rows):
        for right in parts(n, rows):
            if right.start < left.start:
                continue
            diagonal = left == right
            if fused is not None:
                dots = [kernel.multiply(kernel.x[left], kernel.x[right].T) for kernel in kernels]
                of_rows, of_columns, rowwise = fused(
                    dots,
                    [kernel.halves[left] for kernel in kernels],
                    [kernel.halves[right] for kernel in kernels],
                    diagonal,
                )
            else:
                tiles = [kernel.tile(left, right) for kernel in kernels]
                if diagonal:
                    for tile in tiles:
                        tile.diagonal().zero_()
                of_rows, of_columns, rowwise = tile_sums(*tiles)
            sums[:, left] += of_rows
            if not diagonal:
                sums[:, right] += of_columns
            products += (1 if diagonal else 2) * rowwise.double().sum(1)
    return PairSums(sums, products)


def keops_kernel_sums(x: torch.Tensor, y: torch.Tensor) -> PairSums:
    """All five sums in one reduction; a row with itself is taken off at the end."""
    import torch
    from pykeops.torch import LazyTensor

    def kernel(a: torch.Tensor) -> Any:
        scaled = (a - a.mean(0, dtype=torch.float32)) / bandwidth(a.shape[1])
        u, v = LazyTensor(scaled[:, None, :].contiguous()), LazyTensor(scaled[None, :, :].contiguous())
        return (-0.5 * ((u - v) ** 2).sum(-1)).exp()

    k, m = kernel(x), kernel(y)
    sums = LazyTensor.cat((k, m, k * k, k * m, m * m), dim=-1).sum(dim=1).double() - 1
    return PairSums(sums[:, :2].T, sums[:, 2:].sum(0))


def kernel_peers(x: torch.Tensor, y: torch.Tensor, precision: str, device: Device) -> dict[str, Callable[[], PairSums]]:
    """By blocks, in the products that come nearest to the precision that is asked of gramless."""
    import torch

    multiply = Multiply.of(torch.bfloat16 if precision == "fast" else torch.float32, device)
    rows = TINY_ROWS if device.interpreting else BLOCK_ROWS
    fused = compiled_tile(device)

    def call(fused: Any = None) -> PairSums:
        with float32_products("high"):
            return torch_kernel_sums(x, y, multiply, rows, fused)

    return {"torch-blocks": call, "torch-compiled": lambda: call(fused)}


def naive_kernel_sums(x: torch.Tensor, y: torch.Tensor) -> PairSums:
    """What one writes first, for rows so few that whole matrices fit."""
    import torch

    k, m = (torch.exp(torch.cdist(a.float(), a.float()).square() / (-2 * bandwidth(a.shape[1]) ** 2)) for a in (x, y))
    k.fill_diagonal_(0)
    m.fill_diagonal_(0)
    rowwise = torch.stack([(k * k).sum(1), (k * m).sum(1), (m * m).sum(1)])
    return PairSums(torch.stack([k.sum(1), m.sum(1)]).double(), rowwise.double().sum(1))


def torch_grid(xs: Sequence[torch.Tensor], ys: Sequence[torch.Tensor], multiply: Multiply) -> torch.Tensor:
    """Unbiased CKA of all pairs: one product for all Gram matrices, one for all pairs."""
    import torch

    n, count = len(xs[0]), len(xs)
    stacked = torch.stack([*xs, *ys])
    centred = (stacked - stacked.mean(1, keepdim=True, dtype=torch.float32)).to(multiply.dtype)
    grams = multiply(centred, centred.mT)
    grams.diagonal(dim1=1, dim2=2).zero_()
    flat, sums = grams.flatten(1), grams.sum(1)
    total = sums.sum(1)
    hsic = flat @ flat.T + torch.outer(total, total) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (sums @ sums.T)
    own = hsic.diagonal().sqrt()
    return hsic[:count, count:] / torch.outer(own[:count], own[count:])


def grid_peers(
    xs: list[torch.Tensor], ys: list[torch.Tensor], precision: str, device: Device
) -> dict[str, Callable[[], torch.Tensor]]:
    """All that torch alone can do."""
    import torch

    multiply = Multiply.of(torch.bfloat16 if precision == "fast" else torch.float32, device)

    def call() -> torch.Tensor:
        with float32_products("high"):
            return torch_grid(xs, ys, multiply)

    return {"torch-bmm": call}


def pytorch_cka(xs: list[torch.Tensor], ys: list[torch.Tensor]) -> Callable[[], torch.Tensor]:
    import cka
    import torch

    def call() -> torch.Tensor:
        with torch.inference_mode():
            return cka.cka_from_features(xs, ys)

    return call

"""Unbiased CKA of two RBF kernels as one writes it in torch, with some rows of the kernel matrices at a time.

* torch-cdist: chunks of rows, `torch.cdist`, its square, `torch.exp`, each into new memory.
* torch-chunks: the same chunks, tuned: features scaled once, one `torch.addmm`, everything else in place.
* torch-blocks: as torch-chunks, on square blocks of the upper triangle.

Tiles have the size that is quickest on two cores of an Intel Xeon (Emerald Rapids): of 256, 512, 1024 and 2048 rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from .base import ROUNDS, activations
from .comparison import DTYPE, OURS, Comparison, Task, take_turns
from .rbf import bandwidth, gram_flops, sums, true_rbf_cka, unbiased_cka
from .worker import Job

PEERS = {OURS: ("gramless",), "torch-cdist": ("torch",), "torch-chunks": ("torch",), "torch-blocks": ("torch",)}
TILE_ROWS = 512


def prepare(name: str, n: int, width: int, offset: float, *, threads: int) -> Job:
    """Build the inputs of a peer."""
    x, y = activations(n, width, width, DTYPE, offset=offset)
    if name == OURS:
        import gramless as gl

        gl.set_num_threads(threads)
        return Job(lambda: gl.cka(sums(x, y)))
    import torch

    torch.set_num_threads(threads)
    tx, ty = torch.from_numpy(x), torch.from_numpy(y)
    kernels = {"torch-cdist": CdistTiles}.get(name, ProductTiles)
    tiles = upper_blocks if name == "torch-blocks" else row_chunks
    return Job(lambda: torch_rbf_cka([kernels(tx), kernels(ty)], list(tiles(n))))


def row_chunks(n: int) -> Iterator[tuple[slice, slice]]:
    """Some rows against all: nothing of the symmetry is used."""
    for start in range(0, n, TILE_ROWS):
        yield slice(start, min(start + TILE_ROWS, n)), slice(0, n)


def upper_blocks(n: int) -> Iterator[tuple[slice, slice]]:
    """Square blocks on and above the diagonal."""
    for start in range(0, n, TILE_ROWS):
        for other in range(start, n, TILE_ROWS):
            yield slice(start, min(start + TILE_ROWS, n)), slice(other, min(other + TILE_ROWS, n))


class CdistTiles:
    """What one writes first."""

    def __init__(self, x: Any) -> None:
        self.x, self.n = x, len(x)
        self.scale = -0.5 / bandwidth(x.shape[1]) ** 2

    def tile(self, left: slice, right: slice) -> Any:
        import torch

        return torch.exp(torch.cdist(self.x[left], self.x[right]).square() * self.scale)


class ProductTiles:
    """exp(u . v - |u|^2 / 2 - |v|^2 / 2) of scaled rows, in the memory of the product."""

    def __init__(self, x: Any) -> None:
        self.x, self.n = x / bandwidth(x.shape[1]), len(x)
        self.halves = self.x.square().sum(1).mul_(-0.5)

    def tile(self, left: slice, right: slice) -> Any:
        import torch

        product = torch.addmm(self.halves[right], self.x[left], self.x[right].T)
        return product.add_(self.halves[left, None]).exp_()


def torch_rbf_cka(kernels: Sequence[CdistTiles | ProductTiles], tiles: Sequence[tuple[slice, slice]]) -> float:
    """Tiles whose columns start right of their rows stand for their mirror image, too."""
    import torch

    n = kernels[0].n
    rows = torch.zeros(2, n, dtype=torch.float64)
    products = torch.zeros(3, dtype=torch.float64)
    with torch.inference_mode():
        for left, right in tiles:
            mirrored = right.start > left.start
            pair = [kernel.tile(left, right) for kernel in kernels]
            for sums_of, k in zip(rows, pair, strict=True):
                if mirrored:
                    sums_of[right] += k.sum(0)
                else:
                    k.diagonal(left.start - right.start).zero_()
                sums_of[left] += k.sum(1)
            k, m = pair
            # one float32 dot product of a whole tile loses so many digits that CKA is off by 1e-3
            rowwise = torch.stack([torch.linalg.vecdot(k, k), torch.linalg.vecdot(k, m), torch.linalg.vecdot(m, m)])
            products += (1 + mirrored) * rowwise.double().sum(1)
    kk, kl, ll = products.tolist()
    return unbiased_cka(n, (kk, kl, ll), *rows.numpy())


def compare(n: int, width: int, threads: int, *, offset: float = 0.0, rounds: int = ROUNDS) -> list[Comparison]:
    """Measure every installed peer."""
    truth = true_rbf_cka(*activations(n, width, width, DTYPE, offset=offset))
    task = Task("peers_rbf", (n, width, offset), truth, gram_flops(n, width, width), n, width)
    return take_turns(task, PEERS, threads, rounds)

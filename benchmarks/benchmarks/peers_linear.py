"""What people use today for the unbiased linear CKA of two matrices.

Every peer gets all rows at once, in float32, so that each is asked for the same number. Over several batches
`pytorch-cka` and `torch-cka` compute another one: they average HSIC over the batches, all of which count the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from .base import ROUNDS, activations, flops, true_cka
from .comparison import DTYPE, OURS, Comparison, Task, take_turns
from .worker import Job

PEERS = {
    OURS: ("gramless",),
    "numpy-gram": ("numpy",),
    "torch-moments": ("torch",),
    "pytorch-cka": ("torch", "cka"),
    "torch-cka": ("torch", "torch_cka"),
}


def prepare(name: str, n: int, width: int, offset: float, *, threads: int) -> Job:
    """Build the inputs of a peer."""
    x, y = activations(n, width, width, DTYPE, offset=offset)
    if name == OURS:
        import gramless as gl

        gl.set_num_threads(threads)
        return Job(lambda: gl.cka(x, y))
    if name == "numpy-gram":
        return Job(lambda: numpy_gram(x, y))
    import torch

    torch.set_num_threads(threads)
    tx, ty = torch.from_numpy(x), torch.from_numpy(y)
    if name == "torch-moments":
        return Job(lambda: torch_moments(tx, ty))
    if name == "pytorch-cka":
        import cka

        return Job(lambda: cka.cka_from_features(tx, ty))
    return Job(torch_cka_call(tx, ty))


def numpy_gram(x: Any, y: Any) -> float:
    """The textbook: both Gram matrices in float64, diagonals removed (Song et al. 2012, equation 5)."""
    import numpy as np

    n = len(x)
    x, y = x.astype(np.float64), y.astype(np.float64)
    k, m = x @ x.T, y @ y.T
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)

    def hsic(a: Any, b: Any) -> float:
        rows_a, rows_b = a.sum(0), b.sum(0)
        total = rows_a.sum() * rows_b.sum() / ((n - 1) * (n - 2))
        return float(np.vdot(a, b) + total - 2 / (n - 2) * (rows_a @ rows_b)) / (n * (n - 3))

    return hsic(k, m) / (hsic(k, k) ** 0.5 * hsic(m, m) ** 0.5)


def torch_moments(x: Any, y: Any) -> float:
    """The same number from three matrix products over the features, in float32 and about the origin."""
    n = len(x)

    def hsic(d: Any, e: Any) -> Any:
        product, a, b = d.T @ e, d.square().sum(1), e.square().sum(1)
        sum_x, sum_y = d.sum(0), e.sum(0)
        trace = product.square().sum() - a @ b
        total = (sum_x @ sum_x - a.sum()) * (sum_y @ sum_y - b.sum()) / ((n - 1) * (n - 2))
        rows = sum_x @ product @ sum_y - sum_x @ (b @ d) - sum_y @ (a @ e) + a @ b
        return (trace + total - 2 / (n - 2) * rows) / (n * (n - 3))

    return float(hsic(x, y) / (hsic(x, x).sqrt() * hsic(y, y).sqrt()))


def torch_cka_call(x: Any, y: Any) -> Callable[[], float]:
    """torch-cka hooks two models; identities hand it the matrices as they are, as one batch."""
    import torch
    from torch.utils.data import DataLoader, TensorDataset
    from torch_cka import CKA

    # an item of the dataset is a whole batch, so that collation copies nothing
    loaders = [DataLoader(TensorDataset(rows[None]), batch_size=None) for rows in (x, y)]
    peer = CKA(torch.nn.Identity(), torch.nn.Identity(), model1_name="x", model2_name="y", device="cpu")

    def call() -> float:
        try:
            with torch.inference_mode():
                peer.compare(*loaders)
        except AssertionError:
            # its own check for NaN, which offsets trigger; a wrong answer like any other, and no reason to stop
            return math.nan
        return float(peer.export()["CKA"][0, 0])

    return call


def compare(n: int, width: int, threads: int, *, offset: float = 0.0, rounds: int = ROUNDS) -> list[Comparison]:
    """Measure every installed peer."""
    truth = true_cka(*activations(n, width, width, DTYPE, offset=offset))
    task = Task("peers_linear", (n, width, offset), truth, flops(n, width, width), n, width)
    return take_turns(task, PEERS, threads, rounds)

"""What people use today for the unbiased linear CKA of two matrices, and a comparison in which all take turns.

Every peer gets all rows at once, in float32, so that each is asked for the same number,
and runs in a process of its own.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from .base import ROUNDS, activations, agrees, flops, interleaved, median_ratio, relative_error, true_cka
from .worker import Worker, gemm_gflops

OURS = "gramless"
# peer: the module that it needs
PEERS = {
    OURS: "gramless",
    "numpy-gram": "numpy",
    "torch-moments": "torch",
    "pytorch-cka": "cka",
    "torch-cka": "torch_cka",
}
DTYPE = "float32"


def missing(name: str) -> str | None:
    """The module that a peer lacks here, if any."""
    needed = [PEERS[name]] if name in (OURS, "numpy-gram") else ["torch", PEERS[name]]
    return next((module for module in needed if importlib.util.find_spec(module) is None), None)


def prepare(name: str, n: int, width: int, offset: float, threads: int) -> Callable[[], float]:
    """Build the inputs of a peer and give back the call to be measured."""
    x, y = activations(n, width, width, DTYPE, offset=offset)
    if name == OURS:
        import gramless as gl

        gl.set_num_threads(threads)
        return lambda: gl.cka(x, y)
    if name == "numpy-gram":
        return lambda: numpy_gram(x, y)
    import torch

    torch.set_num_threads(threads)
    tx, ty = torch.from_numpy(x), torch.from_numpy(y)
    if name == "torch-moments":
        return lambda: torch_moments(tx, ty)
    if name == "pytorch-cka":
        import cka

        return lambda: float(cka.cka_from_features(tx, ty))
    return torch_cka_call(tx, ty)


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


class Comparison(NamedTuple):
    """One peer at one shape, measured in turns with gramless and with the machine's GEMM."""

    peer: str
    n: int
    width: int
    threads: int
    seconds: float  # median
    error: float  # relative to float64
    agrees: bool
    ratio: float | None  # peer's time over ours, median over rounds; None unless both answers are right
    gemm_fraction: float | None  # the rate of the moments, whatever the peer really computes, over the machine's GEMM
    peak_bytes: int


def compare(
    n: int, width: int, threads: int, *, offset: float = 0.0, names: Sequence[str] = (), rounds: int = ROUNDS
) -> list[Comparison]:
    """Measure every installed peer, one call each per round."""
    chosen = [OURS, *(name for name in (names or PEERS) if name != OURS and missing(name) is None)]
    truth = true_cka(*activations(n, width, width, DTYPE, offset=offset))
    with contextlib.ExitStack() as stack:
        workers = {
            name: stack.enter_context(Worker("peer", name, n, width, offset, threads=threads)) for name in chosen
        }
        gemm = stack.enter_context(Worker("gemm", DTYPE, threads=threads))
        calls = {name: worker.seconds for name, worker in workers.items()}
        taken = interleaved({**calls, "gemm": lambda: gemm_gflops(gemm)}, rounds)
        errors = {name: relative_error(worker.value(), truth) for name, worker in workers.items()}
        peaks = {name: worker.peak_extra_bytes() for name, worker in workers.items()}
    right = {name: agrees(errors[name], DTYPE) for name in chosen}
    rates = {name: [flops(n, width, width) / 1e9 / t for t in taken[name]] for name in chosen}
    return [
        Comparison(
            peer=name,
            n=n,
            width=width,
            threads=threads,
            seconds=statistics.median(taken[name]),
            error=errors[name],
            agrees=right[name],
            ratio=median_ratio(taken[name], taken[OURS]) if right[name] and right[OURS] else None,
            gemm_fraction=median_ratio(rates[name], taken["gemm"]) if right[name] else None,
            peak_bytes=peaks[name],
        )
        for name in chosen
    ]

"""The unbiased linear CKA of all pairs of layers over one batch, by gramless and by the two packages that users have.

What is timed, from activations in memory to the matrix of CKA, without the forward pass of any model:

* gramless: a new `LayerGrid(mode="minibatch")`, one `update`, `finalize`.
* gramless-update: one `update` of a grid that has seen batches, as in the middle of a run.
* pytorch-cka: `cka.cka_from_features` of two lists of matrices, which does what its `compute_cka` does with each batch:
  a product per layer, `torch.stack`, and `cka.hsic` of all pairs.
* torch-cka: `CKA.compare` over one batch of two models whose layers hand out the given matrices, so that its hooks and
  its loops run as they are; a forward pass copies nothing, progress bars are off.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from .base import ROUNDS
from .comparison import OURS, Comparison, Task, take_turns
from .grids import grid_flops, grid_layers, true_grid
from .worker import Job

UPDATE = "gramless-update"
PEERS = {
    OURS: ("gramless",),
    UPDATE: ("gramless",),
    "pytorch-cka": ("torch", "cka"),
    "torch-cka": ("torch", "torch_cka"),
}


def prepare(name: str, layers: int, n: int, width: int, offset: float, *, threads: int) -> Job:
    """Build the inputs of a peer."""
    xs, ys = grid_layers(layers, n, width, offset=offset)
    if name in (OURS, UPDATE):
        import gramless as gl

        gl.set_num_threads(threads)
        if name == OURS:
            return Job(lambda: gl.LayerGrid(mode="minibatch").update(xs, ys).finalize(), lambda found: found.values)
        grid = gl.LayerGrid(mode="minibatch")
        return Job(lambda: grid.update(xs, ys), lambda seen: seen.finalize().values)
    import torch

    torch.set_num_threads(threads)
    txs, tys = [torch.from_numpy(x) for x in xs], [torch.from_numpy(y) for y in ys]
    if name == "torch-cka":
        return Job(torch_cka_call(txs, tys), torch.Tensor.numpy)
    import cka

    def call() -> Any:
        with torch.inference_mode():
            return cka.cka_from_features(txs, tys)

    return Job(call, torch.Tensor.numpy)


def torch_cka_call(xs: Sequence[Any], ys: Sequence[Any]) -> Callable[[], Any]:
    import torch
    from torch.utils.data import DataLoader, TensorDataset
    from torch_cka import CKA

    class Given(torch.nn.Module):
        def __init__(self, rows: Any) -> None:
            super().__init__()
            self.rows = rows

        def forward(self, unused: Any) -> Any:
            return self.rows

    names = [str(index) for index in range(len(xs))]
    models = [torch.nn.Sequential(*map(Given, layers)) for layers in (xs, ys)]
    peer = CKA(*models, model1_name="x", model2_name="y", model1_layers=names, model2_layers=names, device="cpu")
    # an item of the dataset is a whole batch
    loader = DataLoader(TensorDataset(torch.zeros(1, 1)), batch_size=None)

    def call() -> Any:
        try:
            with torch.inference_mode():
                peer.compare(loader, loader)
        except AssertionError:
            # its own check for NaN, which offsets trigger; a wrong answer like any other, and no reason to stop
            return torch.full((len(xs), len(ys)), math.nan)
        return peer.export()["CKA"]

    return call


def compare(
    layers: int, width: int, threads: int, *, n: int, offset: float = 0.0, rounds: int = ROUNDS
) -> list[Comparison]:
    """Measure every installed peer on one batch of n rows."""
    truth = true_grid(*grid_layers(layers, n, width, offset=offset))
    task = Task("peers_grid", (layers, n, width, offset), truth, grid_flops(layers, n, width), n, width, layers)
    return take_turns(task, PEERS, threads, rounds)

"""The logit distance of each row: by a factor of both unembeddings that is at hand, and by passes over the vocabulary.

* gramless: `UnembeddingPair.squared_distances`, in float64.
* gramless-factor: making the factor, which is done once; its answers are those of the rows above.
* gramless-pass: `gl.logit_pairs`, in float32, which gives KL as well.
* torch-chunks: differences of logits for chunks of rows, centred and squared, in memory that is there already.

float32 resolves models that differ by 1e-4 to few digits only: another answer there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .base import ROUNDS, TOLERANCE
from .comparison import DTYPE, OURS, Comparison, Task, Work, take_turns
from .logits import DIFFERENCES, factor_flops, factor_row_flops, pair_flops, sampled, true_pairs, two_models
from .peers_logits import CHUNK_ROWS
from .worker import Job

FACTOR = "gramless-factor"
PASS = "gramless-pass"
PEERS = {OURS: ("gramless",), FACTOR: ("gramless",), PASS: ("gramless",), "torch-chunks": ("torch",)}
# what the factor is for
NEARER_TOLERANCE = 1e-6


def prepare(name: str, n: int, labels: int, width: int, data: str, *, threads: int) -> Job:
    """Build the inputs of a peer; the rows keep the factor only."""
    h1, w1, h2, w2 = two_models(n, labels, width, DTYPE, difference=DIFFERENCES[data])
    few = sampled(n)
    if name == "torch-chunks":
        import torch

        torch.set_num_threads(threads)
        tensors = [torch.from_numpy(array) for array in (h1, w1, h2, w2)]
        return Job(torch_chunks(*tensors), lambda distances: distances.numpy()[few])
    import gramless as gl
    from gramless.measures.logits import logit_distance

    gl.set_num_threads(threads)
    if name == PASS:
        return Job(lambda: gl.logit_pairs(h1, w1, h2, w2, backend="cpu"), lambda state: logit_distance(state)[few])

    def factor() -> gl.UnembeddingPair:
        return gl.UnembeddingPair(w1, w2, backend="cpu")

    if name == FACTOR:
        return Job(factor, lambda made: np.sqrt(made.squared_distances(h1[few], h2[few])))
    pair = factor()
    return Job(lambda: pair.squared_distances(h1, h2), lambda squares: np.sqrt(squares[few]))


def torch_chunks(h1: Any, w1: Any, h2: Any, w2: Any) -> Callable[[], Any]:
    import torch

    n, shape = len(h1), (min(len(h1), CHUNK_ROWS), len(w1))

    def call() -> Any:
        z = torch.empty(shape)
        distances = torch.empty(n)
        with torch.inference_mode():
            for start in range(0, n, CHUNK_ROWS):
                rows = slice(start, min(start + CHUNK_ROWS, n))
                delta = torch.mm(h1[rows], w1.T, out=z[: rows.stop - start])
                delta.addmm_(h2[rows], w2.T, alpha=-1)
                delta -= delta.mean(dim=1, keepdim=True)
                distances[rows] = torch.linalg.vector_norm(delta, dim=1)
        return distances

    return call


def compare(n: int, labels: int, width: int, data: str, threads: int, *, rounds: int = ROUNDS) -> list[Comparison]:
    """Measure every installed peer on models that are so far apart."""
    truth = true_pairs(two_models(n, labels, width, DTYPE, difference=DIFFERENCES[data]))
    work = {
        OURS: Work(factor_row_flops(n, width), "float64"),
        FACTOR: Work(factor_flops(labels, width), "float64"),
    }
    task = Task(
        "peers_distance",
        (n, labels, width, data),
        truth["logit_distance"],
        pair_flops(n, labels, width),
        n,
        width,
        labels=labels,
        data=data,
        tolerance=TOLERANCE[DTYPE] if data == "apart" else NEARER_TOLERANCE,
        work=work,
    )
    return take_turns(task, PEERS, threads, rounds)

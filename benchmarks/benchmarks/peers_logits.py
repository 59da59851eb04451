"""KL divergence both ways of two models, row by row, from hidden states and unembeddings, as one writes it in torch.

* torch-whole: all logits, two `log_softmax`, two `kl_div`, as one writes it first.
* torch-chunks: the same for chunks of rows, tuned: every step in memory that is there already, and the second KL from
  what the first has left.

gramless gives logit distance, entropies and agreement in the same pass; torch is not asked for these.
Chunks have the rows that are quickest on two cores of an Intel Xeon (Emerald Rapids): of 32, 64, 128 and 256.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .base import ROUNDS
from .comparison import DTYPE, OURS, Comparison, Task, take_turns
from .logits import DIFFERENCES, pair_flops, sampled, tolerance, true_pairs, two_models
from .worker import Job

PEERS = {OURS: ("gramless",), "torch-whole": ("torch",), "torch-chunks": ("torch",)}
CHUNK_ROWS = 128


def prepare(name: str, n: int, labels: int, width: int, data: str, *, threads: int) -> Job:
    """Build the inputs of a peer."""
    models = two_models(n, labels, width, DTYPE, difference=DIFFERENCES[data])
    few = sampled(n)
    if name == OURS:
        import gramless as gl
        from gramless.measures import logits

        gl.set_num_threads(threads)

        def divergences() -> tuple[Any, Any]:
            state = gl.logit_pairs(*models, backend="cpu")
            return logits.kl_pq(state), logits.kl_qp(state)

        return Job(divergences, lambda pair: [values[few] for values in pair])
    import torch

    torch.set_num_threads(threads)
    tensors = [torch.from_numpy(array) for array in models]
    make = {"torch-whole": torch_whole, "torch-chunks": torch_chunks}[name]
    return Job(make(*tensors), lambda pair: [values.numpy()[few] for values in pair])


def torch_whole(h1: Any, w1: Any, h2: Any, w2: Any) -> Callable[[], tuple[Any, Any]]:
    import torch
    from torch.nn.functional import kl_div, log_softmax

    def call() -> tuple[Any, Any]:
        with torch.inference_mode():
            log_p, log_q = log_softmax(h1 @ w1.T, dim=1), log_softmax(h2 @ w2.T, dim=1)
            pq, qp = (
                kl_div(of, to, reduction="none", log_target=True).sum(dim=1)
                for of, to in ((log_q, log_p), (log_p, log_q))
            )
        return pq, qp

    return call


def torch_chunks(h1: Any, w1: Any, h2: Any, w2: Any) -> Callable[[], tuple[Any, Any]]:
    import torch

    n, shape = len(h1), (min(len(h1), CHUNK_ROWS), len(w1))

    def call() -> tuple[Any, Any]:
        z, log_p, log_q = (torch.empty(shape) for _ in range(3))
        results = torch.empty(2, n)
        with torch.inference_mode():
            for start in range(0, n, CHUNK_ROWS):
                rows = slice(start, min(start + CHUNK_ROWS, n))
                logits, lp, lq = (buffer[: rows.stop - start] for buffer in (z, log_p, log_q))
                torch.mm(h1[rows], w1.T, out=logits)
                torch.log_softmax(logits, dim=1, out=lp)
                torch.mm(h2[rows], w2.T, out=logits)
                torch.log_softmax(logits, dim=1, out=lq)
                difference = torch.sub(lp, lq, out=logits)
                results[0, rows] = torch.linalg.vecdot(lp.exp_(), difference)
                results[1, rows] = -torch.linalg.vecdot(lq.exp_(), difference)
        return results[0], results[1]

    return call


def compare(n: int, labels: int, width: int, data: str, threads: int, *, rounds: int = ROUNDS) -> list[Comparison]:
    """Measure every installed peer on models that are so far apart."""
    truth = true_pairs(two_models(n, labels, width, DTYPE, difference=DIFFERENCES[data]))
    task = Task(
        "peers_logits",
        (n, labels, width, data),
        np.stack([truth["kl_pq"], truth["kl_qp"]]),
        pair_flops(n, labels, width),
        n,
        width,
        labels=labels,
        data=data,
        tolerance=tolerance(data),
    )
    return take_turns(task, PEERS, threads, rounds)

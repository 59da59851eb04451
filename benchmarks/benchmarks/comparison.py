"""Peers that answer one question in turns with gramless, each in a process of its own, and what comes of it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

from .base import ROUNDS, TOLERANCE, agrees, installed, interleaved, median_ratio, relative_error
from .worker import Worker, gemm_gflops

OURS = "gramless"
DTYPE = "float32"

Peers = Mapping[str, Sequence[str]]  # peer: the modules that it needs


class Work(NamedTuple):
    """What a peer computes that answers in another way, and is judged by its own operations."""

    flops: int
    dtype: str  # of its products, and so of the GEMM to compare with


class Task(NamedTuple):
    """One question, asked of all peers."""

    module: str  # of the peers; the worker calls its `prepare` with a name and the arguments
    arguments: tuple[Any, ...]
    truth: Any  # in float64
    flops: int  # least number of operations, symmetric products at half
    n: int
    width: int
    layers: int = 1  # of each of the two models
    labels: int | None = None  # of the vocabulary
    data: str = ""  # which data, where there are several
    tolerance: float = TOLERANCE[DTYPE]  # an error above it is another answer
    work: Mapping[str, Work] = MappingProxyType({})  # of peers whose operations are not those of the task


class Comparison(NamedTuple):
    """One peer at one shape, measured in turns with gramless and with the machine's GEMM."""

    peer: str
    n: int
    width: int
    layers: int
    threads: int
    seconds: float  # median
    pair_seconds: float  # of that, for each of the layers^2 pairs of layers
    error: float  # the largest relative to float64
    agrees: bool
    ratio: float | None  # the peer's seconds over ours; None unless both answers are right
    gemm_fraction: float | None  # the rate of the task's flops, whatever the peer really computes unless it is said
    peak_bytes: int
    labels: int | None = None
    data: str = ""


def missing(peers: Peers) -> dict[str, str]:
    """The peers that cannot run, and the first module that each of them lacks."""
    lacking = {peer: [module for module in modules if not installed(module)] for peer, modules in peers.items()}
    return {peer: modules[0] for peer, modules in lacking.items() if modules}


def take_turns(task: Task, peers: Peers, threads: int, rounds: int = ROUNDS) -> list[Comparison]:
    """Measure all peers that are installed, gramless among them, one turn each per round."""
    names = [peer for peer in peers if peer not in missing(peers)]
    work = {name: task.work.get(name, Work(task.flops, DTYPE)) for name in names}
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(Worker(task.module, name, *task.arguments, threads=threads)) for name in names
        }
        gemms = {
            dtype: stack.enter_context(Worker("gemm", dtype, threads=threads))
            for dtype in sorted({of.dtype for of in work.values()})
        }
        calls = {name: worker.seconds for name, worker in workers.items()}
        gemm_calls = {f"GEMM {dtype}": partial(gemm_gflops, gemm) for dtype, gemm in gemms.items()}
        taken = interleaved({**calls, **gemm_calls}, rounds)
        errors = {name: relative_error(worker.value(), task.truth) for name, worker in workers.items()}
        peaks = {name: worker.peak_extra_bytes() for name, worker in workers.items()}
    right = {name: agrees(errors[name], DTYPE, task.tolerance) for name in names}
    rates = {name: [work[name].flops / 1e9 / t for t in taken[name]] for name in names}
    return [
        Comparison(
            peer=name,
            n=task.n,
            width=task.width,
            layers=task.layers,
            threads=threads,
            seconds=statistics.median(taken[name]),
            pair_seconds=statistics.median(taken[name]) / task.layers**2,
            error=errors[name],
            agrees=right[name],
            ratio=median_ratio(taken[name], taken[OURS]) if right[name] and right[OURS] else None,
            gemm_fraction=median_ratio(rates[name], taken[f"GEMM {work[name].dtype}"]) if right[name] else None,
            peak_bytes=peaks[name],
            labels=task.labels,
            data=task.data,
        )
        for name in names
    ]

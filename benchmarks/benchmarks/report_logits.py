"""The tables of the suite "logits": what two models predict over a vocabulary."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from functools import partial

import gramless as gl
from gramless import _core

from . import peers_distance, peers_logits
from .base import sized
from .comparison import Comparison
from .logits import (
    CHECKED_DIVERGENCES,
    CHECKED_ONE,
    CHECKED_PAIRS,
    DIFFERENCES,
    Models,
    by_bf16_unit,
    divergences_error,
    one_error,
    pair_flops,
    pairs_error,
    true_one,
    true_pairs,
    two_models,
)
from .rows import Asked, Row, measure_in_turns
from .tables import LOGIT_MEMORY, LOGIT_PEERS, LOGITS, Table

Shape = tuple[int, int, int]  # rows, labels, hidden size

SHAPES = sized(((1024, 50257, 768), (1024, 50257, 2048)), ((40, 120, 16),))
MEMORY_SHAPE = sized((4096, 131072, 512), (60, 300, 16))
MEMORY_LIMIT = 64_000_000
DISTANCE_SHAPE = sized((2048, 131072, 1024), (40, 120, 16))
LARGE_DISTANCE_SHAPE = sized((16384, 131072, 1024), (50, 120, 16))
# another dtype at the first shape only: it takes long and tells little
FIRST_SHAPE_ONLY = "float64"


def dtypes_of(options: argparse.Namespace, shape: Shape) -> list[str]:
    return [dtype for dtype in options.dtypes if dtype != FIRST_SHAPE_ONLY or shape == tuple(options.logit_shapes[0])]


def models_of(dtypes: Sequence[str], shape: Shape) -> dict[str, Models]:
    return {dtype: two_models(*shape, dtype, difference=DIFFERENCES["apart"]) for dtype in dtypes}


def pairs_asked(name: str, dtype: str, models: Models) -> Asked:
    n, labels, width = len(models.h1), *models.w1.shape
    return Asked(
        name,
        lambda: gl.logit_pairs(*models, backend="cpu"),
        partial(pairs_error, truth=true_pairs(models)),
        dtype,
        pair_flops(n, labels, width),
        CHECKED_PAIRS,
        on_fma=not by_bf16_unit(dtype),
    )


def one_asked(name: str, dtype: str, models: Models) -> Asked:
    h, w = models.h1, models.w1
    return Asked(
        name,
        lambda: gl.logsumexp(h, w, backend="cpu"),
        partial(one_error, truth=true_one(h, w)),
        dtype,
        pair_flops(len(h), *w.shape) // 2,
        CHECKED_ONE,
        on_fma=not by_bf16_unit(dtype),
    )


def in_turns(asked: Sequence[Asked], shape: Shape, threads: int, options: argparse.Namespace) -> list[Row]:
    n, labels, width = shape
    return measure_in_turns(asked, n=n, width=width, labels=labels, threads=threads, rounds=options.rounds)


def kernel_rows(options: argparse.Namespace) -> Iterator[Row]:
    """The dtypes of a kernel take turns, so that each can be compared with the first of them."""
    for shape in options.logit_shapes:
        given = models_of(dtypes_of(options, shape), shape)
        for name, make in (("logit_pairs", pairs_asked), ("logsumexp", one_asked)):
            asked = [make(f"{name} {dtype}", dtype, models) for dtype, models in given.items()]
            for threads in options.threads:
                # the dtype has a column of its own
                yield from (row._replace(name=name) for row in in_turns(asked, shape, threads, options))
        # the next models are built before this name is bound again: without this both would be held
        del given, asked


def divergence_rows(options: argparse.Namespace) -> Iterator[Row]:
    shape = options.logit_shapes[0]
    dtype = options.dtypes[0]
    models = models_of([dtype], shape)[dtype]
    plain = pairs_asked("one pass", dtype, models)
    error = partial(divergences_error, truth=true_pairs(models))
    asked = [plain]
    for name, workspace in (("kept logits", None), ("second pass", 1)):
        call = partial(gl.logit_pairs, *models, divergences=True, workspace=workspace, backend="cpu")
        asked.append(plain._replace(name=name, call=call, error=error, checked=CHECKED_DIVERGENCES))
    for threads in options.threads:
        yield from in_turns(asked, shape, threads, options)


def memory_rows(options: argparse.Namespace) -> Iterator[Row]:
    for dtype in dtypes_of(options, MEMORY_SHAPE):
        asked = [pairs_asked("logit_pairs", dtype, models_of([dtype], MEMORY_SHAPE)[dtype])]
        yield from in_turns(asked, MEMORY_SHAPE, max(options.threads), options)


def logit_peer_rows(options: argparse.Namespace) -> Iterator[Comparison]:
    """Near-equal models at the first shape only: they take as long as others."""
    for shape in options.logit_shapes:
        for data in ("apart", "near") if shape == options.logit_shapes[0] else ("apart",):
            for threads in options.threads:
                yield from peers_logits.compare(*shape, data, threads, rounds=options.rounds)


def distance_rows(options: argparse.Namespace, shape: Shape, *distances: str) -> Iterator[Comparison]:
    for data in distances:
        yield from peers_distance.compare(*shape, data, max(options.threads), rounds=options.rounds)


def logit_tables(options: argparse.Namespace) -> Iterator[Table]:
    medians = f"medians of {options.rounds} rounds"
    unit = f"bf16 unit: {_core.bf16_unit()}"
    yield Table("logits", f"logit_pairs and logsumexp, backend cpu, {unit}, {medians}", LOGITS, kernel_rows(options))
    yield Table("divergences", f"logit_pairs with JS and TV, backend cpu, {medians}", LOGITS, divergence_rows(options))
    limit = f"at most {MEMORY_LIMIT / 1e6:.0f} MB beside the inputs"
    yield Table("logit_memory", f"memory of logit_pairs, {limit}, {unit}", LOGIT_MEMORY, memory_rows(options))
    title = f"KL both ways of each row, float32, {medians}"
    yield Table("peers_logits", title, LOGIT_PEERS, logit_peer_rows(options), peers_logits.PEERS)
    title = f"logit distance of each row, float32 inputs, {medians}; GEMM of the factor and its rows in float64"
    rows = distance_rows(options, DISTANCE_SHAPE, "apart", "nearer")
    yield Table("peers_distance", title, LOGIT_PEERS, rows, peers_distance.PEERS)
    if options.large:
        rows = distance_rows(options, LARGE_DISTANCE_SHAPE, "apart")
        yield Table("peers_distance_large", title, LOGIT_PEERS, rows, peers_distance.PEERS)

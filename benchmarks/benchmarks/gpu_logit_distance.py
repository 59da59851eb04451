"""The logit distance of each row on a GPU, by a factor that is at hand, and making that factor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

import gramless as gl
from gramless.measures.logits import logit_distance

from .gpu_device import BACKEND, Device
from .gpu_logit_data import SAMPLED_ROWS, Truth, as_numpy, given_bytes, true_pairs, two_models
from .gpu_logit_peers import distance_terms, torch_factor, torch_peers
from .gpu_logits import LARGE, TINY, Shape, torch_errors
from .gpu_rows import OURS, Case, Contestant, Errors, GpuRow, Target, Work, found, measure, reached
from .gpu_tables import LOGITS
from .logits import Models, factor_flops, factor_row_flops, pair_flops

if TYPE_CHECKING:
    import torch

COLUMNS = LOGITS
TITLE = "logit distance: the factor of two unembeddings, and rows by a factor that is at hand"
PEERS: dict[str, tuple[str, ...]] = {}
PASS = f"{OURS}-pass"
FACTOR, ROWS = "factor", "rows"
# the first are compared with a pass over the vocabulary, whose products lose what the others differ by
SHAPES = (LARGE, LARGE._replace(data="nearer"))
QUICK_SHAPES = tuple(shape._replace(n=2048) for shape in SHAPES)
TINY_SHAPES = (TINY, TINY._replace(data="nearer"))
# of bfloat16 for each product with the factor: in "high" three of h1 - h2, a quarter of them, and two of h2
ROW_PRODUCTS = {"fast": 1.0, "high": 2.25}
FACTOR_FLOORS = 2.0
ROW_SECONDS = 5e-3


def pair_errors(pair: gl.UnembeddingPair, models: Models, truth: Truth) -> Errors:
    """Of distances that the factor gives in float64."""
    few = [h[truth.rows] for h in (models.h1, models.h2)]
    return factor_errors(pair.squared_distances(*few, precision="exact", backend=BACKEND), truth)


def factor_errors(squares: Any, truth: Truth) -> Errors:
    """Of squared distances of the rows that are checked."""
    here = truth._replace(rows=np.arange(len(truth.rows)))
    return Errors(here.worst({"logit_distance": np.sqrt(squares)}))


def torch_factor_errors(factor: torch.Tensor, models: Models, truth: Truth) -> Errors:
    import torch

    h1, h2 = (h[truth.rows].double() for h in (models.h1, models.h2))
    products = torch.cat([h1 - h2, h2], dim=1) @ factor.T
    return factor_errors(as_numpy(products.square().sum(1)), truth)


def row_errors(squares: Any, truth: Truth) -> Errors:
    return Errors(truth.worst({"logit_distance": np.sqrt(squares)}))


def pass_errors(state: Any, truth: Truth) -> Errors:
    return Errors(truth.worst({"logit_distance": logit_distance(state)}))


def factor_case(shape: Shape, models: Models, truth: Truth) -> tuple[Case, list[Contestant]]:
    amounts = factor_flops(shape.labels, shape.width), 1, given_bytes((models.w1, models.w2))
    checked = f"logit distance by the factor of {len(truth.rows)} rows"
    case = Case(shape.dtype, "exact", shape.n, shape.width, *amounts, checked)
    make = partial(gl.UnembeddingPair, models.w1, models.w2, backend=BACKEND)
    return case._replace(asked=FACTOR, gemm="float64"), [
        Contestant(OURS, make, partial(pair_errors, models=models, truth=truth)),
        Contestant(
            "torch-moments",
            partial(torch_factor, models.w1, models.w2),
            partial(torch_factor_errors, models=models, truth=truth),
        ),
    ]


def row_case(
    shape: Shape, precision: str, pair: gl.UnembeddingPair, models: Models, truth: Truth, device: Device
) -> tuple[Case, list[Contestant]]:
    flops, h1, h2 = factor_row_flops(shape.n, shape.width), models.h1, models.h2
    amounts = flops, ROW_PRODUCTS[precision], given_bytes((h1, h2))
    case = Case(shape.dtype, precision, shape.n, shape.width, *amounts, f"logit distance of {len(truth.rows)} rows")
    call = partial(pair.squared_distances, h1, h2, precision=precision, backend=BACKEND)
    calls = [Contestant(OURS, call, partial(row_errors, truth=truth))]
    if precision == "high" and shape.data == "apart":
        whole = Work(pair_flops(shape.n, shape.labels, shape.width), 1)
        over = partial(gl.logit_pairs, *models, backend=BACKEND)
        calls.append(Contestant(PASS, over, partial(pass_errors, truth=truth), whole))
        for name, peer in torch_peers(models, distance_terms, device).items():
            calls.append(Contestant(name, peer, partial(torch_errors, truth=truth), whole))
    return case._replace(asked=ROWS), calls


def cases(shape: Shape, models: Models, truth: Truth, device: Device) -> Iterator[tuple[Case, list[Contestant]]]:
    yield factor_case(shape, models, truth)
    pair = gl.UnembeddingPair(models.w1, models.w2, backend=BACKEND)
    for precision in ROW_PRODUCTS:
        yield row_case(shape, precision, pair, models, truth, device)


def rows(device: Device, *, quick: bool, rounds: int) -> Iterator[GpuRow]:
    for shape in device.sized(SHAPES, QUICK_SHAPES, TINY_SHAPES, is_quick=quick):
        models = two_models(shape.n, shape.labels, shape.width, shape.dtype, shape.data, device)
        truth = true_pairs(models, SAMPLED_ROWS)
        for case, calls in cases(shape, models, truth, device):
            yield from measure(case._replace(labels=shape.labels, data=shape.data), calls, device, rounds)
        # the next models are drawn before these names are bound again
        del models, truth, calls


def targets(measured: Sequence[GpuRow], device: Device, *, quick: bool) -> Iterator[Target]:
    large = device.sized(SHAPES, QUICK_SHAPES, TINY_SHAPES, is_quick=quick)[0]
    row = found(measured, OURS, n=large.n, data=large.data, asked=FACTOR)
    what = f"factor of two unembeddings, {large.labels} x {large.width}: at most {FACTOR_FLOORS:.0f} times"
    floors = row and row.times_floor
    yield reached(f"{what} the time of its products in float64", row, floors, most=FACTOR_FLOORS)
    row = found(measured, OURS, n=large.n, data=large.data, asked=ROWS, precision="high")
    seconds = row and row.seconds if large == LARGE else None
    what = f"logit distance of {LARGE.n} rows, {LARGE.labels} x {LARGE.width}, high: at most {1e3 * ROW_SECONDS:.0f} ms"
    yield reached(f"{what} (H200)", row, seconds, most=ROW_SECONDS)
    h1, w1, h2, w2 = two_models(TINY.n, TINY.labels, TINY.width, TINY.dtype, TINY.data, device)
    stream = gl.LogitDistance(gl.UnembeddingPair(w1, w2, backend=BACKEND), backend=BACKEND)
    waits_not = device.never_waits(lambda: stream.update(h1, h2))
    yield Target("an update of LogitDistance never waits for the device", None, waits_not)

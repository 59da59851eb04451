"""`moments` on a GPU, against three products in torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import gramless as gl

from .base import flops, relative_error
from .gpu_data import DTYPE, Sums, activations, largest, true_moments
from .gpu_device import BACKEND, Device
from .gpu_peers import SecondMoments, moment_peers
from .gpu_rows import OURS, PRODUCTS, Case, Contestant, Errors, GpuRow, Target, found, measure, reached
from .gpu_tables import GPU

COLUMNS = GPU
TITLE = "moments of two arrays"
PEERS: dict[str, tuple[str, ...]] = {}
# rows, columns of each
SHAPES = ((1_000_000, 4096), (100_000, 512))
QUICK_SHAPES = ((100_000, 4096), (100_000, 512))
TINY_SHAPES = ((200, 24),)
LEAST_FRACTION = 0.75
CHECKED = "unbiased CKA (of peers, biased), and all sums about the means"


def repeats_for(n: int, width: int, device: Device) -> int:
    """How often as few rows as fit stand for n of them; those that are held at a time are the same."""
    free = device.free_bytes()
    if free is None:
        return 1
    # results and answers in float64, and blocks of rows in float64
    room = free // 2 - 8 * 20 * width * width
    return max(1, math.ceil(4 * n * width / max(room, 1)))


def state_errors(state: Any, truth: Sums) -> Errors:
    centred = state.centred()
    x, y, cross = centred.x, centred.y, centred.cross
    sums = {
        "second_xy": cross.second,
        "norms_xy": cross.norms,
        "weighted_xy": cross.weighted_x,
        "weighted_yx": cross.weighted_y,
    }
    for name, side in (("x", x), ("y", y)):
        sums |= {
            f"sum_{name}": side.sum,
            f"cubes_{name}": side.cubes,
            f"fourths_{name}": side.fourths,
            f"second_{name}{name}": side.second,
            f"norms_{name}{name}": side.norms,
            f"weighted_{name}{name}": side.weighted,
        }
    return Errors(relative_error(gl.cka(state), truth.unbiased_cka()), largest(sums, truth.values, truth.scales))


def peer_errors(sums: SecondMoments, truth: Sums) -> Errors:
    found = {f"second_{name}": value for name, value in sums._asdict().items()}
    known = {name: truth.values[name] for name in found}
    return Errors(relative_error(sums.biased_cka(), truth.biased_cka()), largest(found, known, truth.scales))


def ours(x: Any, y: Any, precision: str, repeats: int) -> Any:
    if repeats == 1:
        return gl.moments(x, y, precision=precision, backend=BACKEND)
    stream = gl.Moments(precision=precision, backend=BACKEND)
    for _ in range(repeats):
        stream.update(x, y)
    return stream.finalize()


def rows(device: Device, *, quick: bool, rounds: int) -> Iterator[GpuRow]:
    for n, width in device.sized(SHAPES, QUICK_SHAPES, TINY_SHAPES, is_quick=quick):
        repeats = repeats_for(n, width, device)
        x, y = activations(n // repeats, width, device)
        truth = true_moments(x, y, repeats)
        for precision in PRODUCTS:
            amounts = flops(truth.n, width, width), PRODUCTS[precision], 4 * truth.n * width
            case = Case(DTYPE, precision, truth.n, width, *amounts, CHECKED)
            contestants = [
                Contestant(OURS, partial(ours, x, y, precision, repeats), partial(state_errors, truth=truth))
            ]
            for name, call in moment_peers(x, y, precision, device, repeats).items():
                contestants.append(Contestant(name, call, partial(peer_errors, truth=truth)))
            yield from measure(case, contestants, device, rounds)
        # the next pair is drawn before these names are bound again
        del x, y, truth, contestants, call


def targets(measured: Sequence[GpuRow], device: Device, *, quick: bool) -> Iterator[Target]:
    for n, width in device.sized(SHAPES, QUICK_SHAPES, TINY_SHAPES, is_quick=quick):
        for precision in PRODUCTS:
            row = found(measured, OURS, width=width, precision=precision)
            what = f"moments, {n} x {width}, {precision}: at least {LEAST_FRACTION:.0%} of the rate of GEMM"
            yield reached(what, row, row and row.gemm_fraction, least=LEAST_FRACTION)
    x, y = activations(*TINY_SHAPES[0], device)
    what = 'moments with nonfinite="propagate" never waits for the device'
    call = partial(gl.moments, x, y, nonfinite="propagate", precision="fast", backend=BACKEND)
    yield Target(what, None, device.never_waits(call))

"""`logit_pairs` on a GPU, with and without JS and TV, against torch by chunks, compiled and not, and Liger."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import gramless as gl
from gramless.measures import logits
from gramless.ops.logit_arguments import head
from gramless.ops.logit_pairs import unread_logit_pairs

from .base import installed, relative_error
from .gpu_device import BACKEND, Device
from .gpu_logit_data import SAMPLED_ROWS, Truth, as_numpy, given_bytes, true_pairs, two_models
from .gpu_logit_peers import Call, js_terms, kl_terms, liger_peers, torch_peers
from .gpu_rows import OURS, PRODUCTS, TOLERANCE, Case, Contestant, Errors, GpuRow, Target, found, measure, reached
from .gpu_tables import LOGITS
from .logits import Models, pair_flops

COLUMNS = LOGITS
TITLE = "logit_pairs: what two models predict, from hidden states and unembeddings"
LIGER = "liger"
PEERS = {LIGER: ("liger_kernel",)}
KL, JS = "KL", "KL+JS"
TERMS = {KL: kl_terms, JS: js_terms}
# of logits that are held at a time, beside the default
SMALL, UNREAD = f"{OURS}-64MiB", f"{OURS}-unread"
SMALL_BYTES = 64 << 20
# of chunks of the interpreter's sizes
TINY_BYTES = 1 << 14
VALUES = {KL: ("kl_pq", "kl_qp", "jeffreys", "entropy_p", "entropy_q", "logit_distance")}
VALUES[JS] = (*VALUES[KL], "js", "tv")
# of models as near as KL = 1e-4, whose differences have fewer digits; over few labels some rows are much nearer
NEAR_TOLERANCE, TINY_NEAR_TOLERANCE = 1e-3, 1e-2
# of a mean over rows: some versions round logits to bfloat16
LIGER_TOLERANCE = TOLERANCE["fast"]
MOST_FLOORS = {KL: 1.4, JS: 1.5}
# two products at 790 TFLOP/s
FLOOR_SECONDS = 44.5e-3
PEAK_BYTES = 700e6
LIGER_RATIO = 4.0


class Shape(NamedTuple):
    n: int
    labels: int
    width: int
    dtype: str = "bfloat16"
    data: str = "apart"
    asked: tuple[str, ...] = (KL, JS)
    liger: bool = False  # means over all rows are asked for, which all are checked by


LARGE = Shape(16_384, 131_072, 4096)
NEAR = Shape(2048, 131_072, 4096, data="near", asked=(KL,))
OF_LIGER = Shape(8192, 128_256, 4096, liger=True)
SHAPES = (LARGE, LARGE._replace(dtype="float32", asked=(KL,)), NEAR, OF_LIGER)
QUICK_SHAPES = tuple(shape._replace(n=2048) for shape in SHAPES)
TINY = Shape(24, 600, 24)
TINY_SHAPES = (
    TINY,
    TINY._replace(dtype="float32", asked=(KL,)),
    TINY._replace(data="near", asked=(KL,)),
    TINY._replace(n=20, asked=(JS,), liger=True),
)


def state_errors(state: Any, truth: Truth, asked: str) -> Errors:
    return Errors(truth.worst({name: getattr(logits, name)(state) for name in VALUES[asked]}))


def unread_errors(flat: dict[str, Any], truth: Truth, asked: str) -> Errors:
    """Of tensors that nobody has waited for."""
    state = {name: value if name == "labels" else value.cpu().numpy() for name, value in flat.items()}
    return state_errors(gl.LogitPairState(**state), truth, asked)


def torch_errors(values: dict[str, Any], truth: Truth) -> Errors:
    return Errors(truth.worst({name: as_numpy(found) for name, found in values.items()}))


def mean_errors(mean: Any, truth: Truth, name: str) -> Errors:
    return Errors(relative_error(float(mean), truth.values[name].mean()))


def ours(models: Models, asked: str, workspace: int | None = None) -> Any:
    return gl.logit_pairs(*models, divergences=asked == JS, workspace=workspace, backend=BACKEND)


def unread(models: Models, asked: str) -> Call:
    heads = [
        head("logit_pairs", h, w, None, None, number)
        for h, w, number in ((models.h1, models.w1, "1"), (models.h2, models.w2, "2"))
    ]
    return lambda: unread_logit_pairs(*heads, divergences=asked == JS, backend=BACKEND)


def contestants(shape: Shape, asked: str, models: Models, truth: Truth, device: Device) -> Iterator[Contestant]:
    of_state = partial(state_errors, truth=truth, asked=asked)
    yield Contestant(OURS, partial(ours, models, asked), of_state)
    small = TINY_BYTES if device.interpreting else SMALL_BYTES
    yield Contestant(SMALL, partial(ours, models, asked, small), of_state)
    yield Contestant(UNREAD, unread(models, asked), partial(unread_errors, truth=truth, asked=asked))
    for name, call in torch_peers(models, TERMS[asked], device).items():
        yield Contestant(name, call, partial(torch_errors, truth=truth))
    if shape.liger and installed(*PEERS[LIGER]):
        value = "js" if asked == JS else "kl_pq"
        for name, call in liger_peers(models, device)[value].items():
            yield Contestant(name, call, partial(mean_errors, truth=truth, name=value), tolerance=LIGER_TOLERANCE)


def checked(asked: str, truth: Truth) -> str:
    kl, of = truth.values["kl_pq"].mean(), "KL both ways, Jeffreys, entropies and logit distance"
    return f"{of}{', JS and TV' if asked == JS else ''} of {len(truth.rows)} rows, mean KL {kl:.2g}; of torch KL"


def tolerance(shape: Shape, device: Device) -> float | None:
    if shape.data == "apart":
        return None
    return TINY_NEAR_TOLERANCE if device.interpreting else NEAR_TOLERANCE


def named(shape: Shape, asked: str) -> str:
    return f"logit_pairs, {asked}, {shape.n} x {shape.labels} x {shape.width}, {shape.dtype}"


def rows(device: Device, *, quick: bool, rounds: int) -> Iterator[GpuRow]:
    for shape in device.sized(SHAPES, QUICK_SHAPES, TINY_SHAPES, is_quick=quick):
        n, labels, width = shape.n, shape.labels, shape.width
        models = two_models(n, labels, width, shape.dtype, shape.data, device)
        truth = true_pairs(models, None if shape.liger else SAMPLED_ROWS)
        # what is of 16 bits is multiplied as it is
        products = PRODUCTS["high"] if shape.dtype == "float32" else 1
        for asked in shape.asked:
            amounts = pair_flops(n, labels, width), products, given_bytes(models)
            case = Case(shape.dtype, "high", n, width, *amounts, checked(asked, truth))
            case = case._replace(labels=labels, asked=asked, data=shape.data, tolerance=tolerance(shape, device))
            yield from measure(case, list(contestants(shape, asked, models, truth, device)), device, rounds)
        # the next models are drawn before these names are bound again
        del models, truth


def targets(measured: Sequence[GpuRow], device: Device, *, quick: bool) -> Iterator[Target]:
    large, _, near, of_liger = device.sized(SHAPES, QUICK_SHAPES, TINY_SHAPES, is_quick=quick)

    def row(name: str, shape: Shape, asked: str) -> GpuRow | None:
        known = {"n": shape.n, "labels": shape.labels, "dtype": shape.dtype, "data": shape.data, "asked": asked}
        return found(measured, name, **known)

    for asked, most in MOST_FLOORS.items():
        what = named(large, asked)
        one = row(OURS, large, asked)
        floors = one and one.times_floor
        yield reached(f"{what}: at most {most} times the time of its products", one, floors, most=most)
        seconds = one and one.seconds if large == LARGE else None
        longest = most * FLOOR_SECONDS
        yield reached(f"{named(LARGE, asked)}: at most {1e3 * longest:.3g} ms (H200)", one, seconds, most=longest)
        peak = one and one.peak_extra_bytes
        yield reached(f"{what}: less than {PEAK_BYTES / 1e6:.0f} MB beyond the data", one, peak, most=PEAK_BYTES)
        small = row(SMALL, large, asked)
        ran = small and small.seconds and small.peak_extra_bytes
        yield reached(f"{what}: runs with 64 MiB, bytes beyond the data", small, ran)
    one = row(OURS, near, KL)
    error = one.error if one and not device.interpreting else None
    what = f"logit_pairs, models near each other, {near.dtype}: KL is right to {NEAR_TOLERANCE}"
    yield reached(what, one, error, most=NEAR_TOLERANCE)
    one, peer = row(OURS, of_liger, JS), row("liger-jsd", of_liger, JS)
    ratio = peer and peer.ratio
    what = named(of_liger, JS)
    yield reached(f"{what}: {LIGER_RATIO:.0f} times as fast as Liger's fused JSD", one, ratio, least=LIGER_RATIO)
    few = two_models(TINY.n, TINY.labels, TINY.width, TINY.dtype, TINY.data, device)
    for asked in TERMS:
        waits_not = device.never_waits(unread(few, asked))
        yield Target(f"logit_pairs, {asked}, of tensors never waits for the device", None, waits_not)

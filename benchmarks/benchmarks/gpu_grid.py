"""One update of `LayerGrid(mode="minibatch")` on a GPU, also as a CUDA graph, against pytorch-cka and one torch.bmm."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import gramless as gl

from .base import installed, relative_error
from .gpu_data import DTYPE, GridTerms, layers, true_grid_terms
from .gpu_device import BACKEND, Device
from .gpu_peers import grid_peers, pytorch_cka
from .gpu_rows import OURS, PRODUCTS, Case, Contestant, Errors, GpuRow, Target, found, measure, reached
from .gpu_tables import GPU
from .grids import grid_flops

COLUMNS = GPU
TITLE = 'one update of LayerGrid(mode="minibatch"), unbiased linear CKA of all pairs of layers'
PEER = "pytorch-cka"
PEERS = {PEER: ("cka",)}
GRAPH = f"{OURS}-graph"
# layers of each model, rows, width
SHAPES = ((32, 256, 4096), (32, 1024, 4096))
QUICK_SHAPES = SHAPES[:1]
TINY_SHAPES = ((2, 40, 16),)
CHECKED = "unbiased CKA, the worst pair of layers"
GRAPH_SECONDS, EAGER_SECONDS, PEER_RATIO = 93e-6, 0.4e-3, 20.0
WARM_UPS, REPLAYS = 3, 1


def grid_errors(grid: Any, truth: GridTerms) -> Errors:
    return Errors(relative_error(grid.finalize().values, truth.cka()))


class Replayed:
    """A call that is captured as a CUDA graph when it is first made, and replayed from then on."""

    def __init__(self, call: Callable[[], Any], device: Device) -> None:
        self._call = call
        self._device = device
        self._replay: Callable[[], object] | None = None
        self._result: Any = None
        self.calls = 0  # that were made on the device

    def _kept(self) -> None:
        self._result = self._call()

    def __call__(self) -> Any:
        if self._replay is None:
            self.calls = 1 if self._device.interpreting else WARM_UPS
            self._replay = self._device.captured(self._kept, self.calls)
        self._replay()
        self.calls += 1
        return self._result


def replayed_errors(
    grid: Any, replayed: Replayed, batch: Sequence[Any], first: GridTerms, other: Sequence[Any], second: GridTerms
) -> Errors:
    """Of the values once another batch has been seen, too: replays have to read and to add what is there now."""
    seen = replayed.calls
    held = [a.clone() for a in batch]
    for kept in (other, held):
        for a, b in zip(batch, kept, strict=True):
            a.copy_(b)
        for _ in range(REPLAYS):
            replayed()
    return grid_errors(grid, first.averaged(second, REPLAYS / (seen + 2 * REPLAYS)))


class Batches(NamedTuple):
    """Two batches of layers of two models, and what is true of them."""

    xs: list[Any]
    ys: list[Any]
    terms: GridTerms
    others: list[Any]  # the layers of both models, in another batch
    other_terms: GridTerms

    @classmethod
    def drawn(cls, count: int, n: int, width: int, device: Device) -> Batches:
        xs, ys = layers(count, n, width, device)
        other_xs, other_ys = layers(count, n, width, device, seed=1)
        return cls(xs, ys, true_grid_terms(xs, ys), [*other_xs, *other_ys], true_grid_terms(other_xs, other_ys))


def contestants(batches: Batches, precision: str, device: Device) -> Iterator[Contestant]:
    xs, ys, terms = batches.xs, batches.ys, batches.terms
    grid, graphed = (gl.LayerGrid("minibatch", precision=precision, backend=BACKEND) for _ in range(2))
    yield Contestant(OURS, lambda: grid.update(xs, ys), partial(grid_errors, truth=terms))
    replayed = Replayed(lambda: graphed.update(xs, ys), device)
    two = {"batch": [*xs, *ys], "first": terms, "other": batches.others, "second": batches.other_terms}
    yield Contestant(GRAPH, replayed, partial(replayed_errors, replayed=replayed, **two))
    calls = grid_peers(xs, ys, precision, device)
    calls |= {f"{name}-graph": Replayed(call, device) for name, call in calls.items()}
    if installed("cka"):
        calls[PEER] = pytorch_cka(xs, ys)
        # copies as a user of the package would make them before, which takes no part in the time
        calls[f"{PEER}-float32"] = pytorch_cka([x.float() for x in xs], [y.float() for y in ys])
    truth = terms.cka()
    for name, call in calls.items():
        yield Contestant(name, call, lambda values: Errors(relative_error(values.double().cpu().numpy(), truth)))


def rows(device: Device, *, quick: bool, rounds: int) -> Iterator[GpuRow]:
    for count, n, width in device.sized(SHAPES, QUICK_SHAPES, TINY_SHAPES, is_quick=quick):
        batches = Batches.drawn(count, n, width, device)
        # layers of 16 bits are multiplied as they are, at any precision
        amounts = grid_flops(count, n, width), 1, 4 * count * n * width
        for precision in PRODUCTS:
            case = Case(DTYPE, precision, n, width, *amounts, CHECKED, count)
            yield from measure(case, list(contestants(batches, precision, device)), device, rounds)


def targets(measured: Sequence[GpuRow], device: Device, *, quick: bool) -> Iterator[Target]:
    count, n, width = SHAPES[0]
    shape = f"one update, {count} x {count} layers, {n} x {width}, fast"
    peers = [r for r in measured if r.name.startswith(PEER) and (r.n, r.precision) == (n, "fast") and r.seconds]
    quickest = min((r.seconds for r in peers), default=None)
    for name, how, most in ((GRAPH, "with a CUDA graph", GRAPH_SECONDS), (OURS, "without a graph", EAGER_SECONDS)):
        row = found(measured, name, n=n, precision="fast")
        seconds = row and row.seconds
        yield reached(f"{shape}, {how}: less than {1e6 * most:.0f} us (H200)", row, seconds, most=most)
        ratio = quickest / seconds if quickest and seconds else None
        yield reached(f"{shape}, {how}: {PEER_RATIO:.0f} times as fast as {PEER}", row, ratio, least=PEER_RATIO)
    xs, ys = layers(*TINY_SHAPES[0], device)
    grid = gl.LayerGrid("minibatch", precision="fast", backend=BACKEND)
    yield Target("one update never waits for the device", None, device.never_waits(lambda: grid.update(xs, ys)))

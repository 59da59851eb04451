"""Grids of layers on a GPU as the tests feed them, what rounding allows them, and what must not happen in an update."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

import gramless as gl
from gramless._triton.layer_grid import grid as layer_grid_grid
from gramless._triton.tiles import launch
from gramless.layers.batch_moments import BatchTable
from gramless.layers.gpu_batches import DeviceBatches
from gramless.layers.names import matrix_of
from gramless.layers.tiles import GridKernel, grid_sums
from support import bounds, device, grids, oracle

Part = tuple[grids.Layers, grids.Layers | None]

# what would wait for the device: its values asked for, or shapes that depend on them
_WAITING = (
    "item",
    "tolist",
    "cpu",
    "numpy",
    "nonzero",
    "is_nonzero",
    "unique",
    "masked_select",
    "__bool__",
    "__int__",
    "__float__",
    "__index__",
    "__len__",
    "__iter__",
    "__array__",
)


def named(part: Part) -> dict[str, np.ndarray]:
    """Layers of both sides by the names that a grid gives them."""
    xs, ys = part
    return {f"x/{name}": rows for name, rows in xs.items()} | {f"y/{name}": rows for name, rows in (ys or {}).items()}


def tensors(part: Part) -> dict[str, Any]:
    return {name: device.tensor(rows) for name, rows in named(part).items()}


def kernel_of(kernel: str, bandwidth: float | str | None, scale: float = 1.0) -> GridKernel:
    return GridKernel.checked("test", kernel, bandwidth, scale)


def empty(
    part: Part,
    kernel: str = "linear",
    bandwidth: float | str | None = None,
    *,
    scale: float = 1.0,
    weights: str = "rows",
    precision: str = "exact",
    max_bytes: int | None = None,
) -> DeviceBatches:
    """Batches of no rows yet."""
    layers = tensors(part)
    return DeviceBatches(
        layer_grid_grid,
        "test",
        {name: rows.shape[1] for name, rows in layers.items()},
        kernel_of(kernel, bandwidth, scale),
        by_rows=weights == "rows",
        precision=precision,
        like=next(iter(layers.values())),
        max_bytes=max_bytes,
    )


def fed(
    parts: list[Part], kernel: str = "linear", bandwidth: float | str | None = None, **options: Any
) -> DeviceBatches:
    made = empty(parts[0], kernel, bandwidth, **options)
    for part in parts:
        made.update("test", tensors(part))
    return made


def result(made: DeviceBatches, kernel: str = "linear", bandwidth: float | str | None = None) -> gl.SimilarityMatrix:
    """The matrix of batches, as `LayerGrid.finalize` makes it."""
    table = made.table("test")
    assert table is not None, "no batches"
    return matrix(table, kernel, bandwidth)


def matrix(table: BatchTable, kernel: str, bandwidth: float | str | None) -> gl.SimilarityMatrix:
    values, errors = table.cka()
    chosen = kernel_of(kernel, bandwidth)
    problems = table.problems(chosen, "unbiased")
    return matrix_of(
        "test", table.names, values, errors, problems, n=table.n, measure=chosen.measure, estimator="unbiased"
    )


def reference(
    parts: list[Part], kernel: str, bandwidth: float | str | None, *, scale: float = 1.0, weights: str = "rows"
) -> BatchTable:
    """The table that the definition makes of the same values in float64."""
    chosen, table = kernel_of(kernel, bandwidth, scale), None
    for part in parts:
        layers = {name: rows.astype(np.float64) for name, rows in named(part).items()}
        n = len(next(iter(layers.values())))
        sums = grid_sums(list(layers.values()), chosen, names=list(layers), block=n, backend="reference")
        batch = BatchTable.of(list(layers), sums, weight=float(n) if weights == "rows" else 1.0)
        table = batch if table is None else table.merge(batch)
    assert table is not None, "no batches"
    return table


def assert_tables(got: BatchTable | None, want: BatchTable, what: str = "table") -> None:
    """All moments but what the centre of a linear kernel shifts, up to float64 rounding of well conditioned data."""
    assert got is not None, f"{what}: no batches"
    assert (got.names, got.n, got.batches, got.weight, got.square) == (
        want.names,
        want.n,
        want.batches,
        want.weight,
        want.square,
    )
    for key, value in want.arrays.items():
        if key not in ("rounding", "means", "below_one"):
            scale = np.full_like(value, bounds.CKA_TERMS * max(float(np.abs(value).max()), np.finfo(float).tiny))
            bounds.assert_within_algebra(got.arrays[key], value, scale, f"{what}: {key}")


# what rounding allows


def _median_rows(x: np.ndarray) -> np.ndarray:
    rows = x[:: max(1, len(x) // 7)][:7]
    return np.sort(rows, axis=0)[(len(rows) - 1) // 2]


def _bf16(x: np.ndarray) -> np.ndarray:
    return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32)).to(torch.bfloat16).double().numpy()


def rounded_products(x: np.ndarray, precision: str) -> np.ndarray:
    """Dot products of centred rows of float32 as planes of bfloat16 give them, summed in float64."""
    apart = (x - _median_rows(x)).astype(np.float32).astype(np.float64)
    high = _bf16(apart)
    low = _bf16(apart - high) if precision == "high" else np.zeros_like(high)
    return high @ high.T + high @ low.T + low @ high.T


def lost(parts: list[Part], kernel: str, precision: str) -> float:
    """The largest error of CKA that the planes of float32 rows alone make, for this kernel, batch by batch."""

    def made(x: np.ndarray) -> np.ndarray:
        products = rounded_products(x, precision)
        if kernel == "linear":
            return products
        norms = np.diagonal(products)
        squares = np.maximum(norms[:, None] + norms[None, :] - 2 * products, 0)
        return np.exp(-squares / (2 * grids.median_width(squares) ** 2))

    errors = []
    for xs, ys in parts:
        layers = [*xs.values(), *(ys or {}).values()]
        found, truth = ([of(x) for x in layers] for of in (made, lambda x: grids.dense(x, kernel, None)))
        errors.append(np.abs(_cka(found) - _cka(truth)).max())
    return float(max(errors))


def _cka(matrices: list[np.ndarray]) -> np.ndarray:
    hsics = np.array([[oracle.gram_hsic(k, m) for m in matrices] for k in matrices], dtype=np.float64)
    roots = np.sqrt(np.diagonal(hsics))
    return hsics / np.outer(roots, roots)


def assert_within_rounding(
    got: gl.SimilarityMatrix, want: tuple[np.ndarray, np.ndarray], emulated: float, what: str
) -> None:
    """As near as twice what the planes of the rows lose, beside the rounding of sums in float32."""
    allowed = bounds.VALUE_FACTOR * emulated + bounds.FIRST_FP32
    for name, found, truth in (("values", got.values, want[0]), ("standard errors", got.stderr, want[1])):
        error = float(np.abs(found - truth).max())
        assert error <= allowed, f"{what}: {name} off by {error:.3g}, allowed {allowed:.3g}"


# what must not happen


class NoWaiting(TorchFunctionMode):
    """Refuse what would make the host wait for the device."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        if name in _WAITING:
            raise AssertionError(f"the host waits for the device in {name}")
        return function(*args, **(kwargs or {}))


@contextmanager
def recorded() -> Iterator[list[tuple[Any, tuple[Any, ...]]]]:
    """Kernels and arguments of all launches, none of which runs."""
    found: list[tuple[Any, tuple[Any, ...]]] = []
    before = launch.launch
    launch.launch = lambda kernel, grid, *arguments, **keywords: found.append((kernel, arguments))
    try:
        yield found
    finally:
        launch.launch = before


def _without_reads(update: Callable[[], None]) -> None:
    with recorded(), NoWaiting():
        update()


def _without_synchronising(update: Callable[[], None]) -> None:
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        update()
    finally:
        torch.cuda.set_sync_debug_mode(before)


# ways to see that a warm update does not wait
GUARDS: dict[str, Callable[[Callable[[], None]], None]] = {"no reads": _without_reads}
if torch.cuda.is_available():
    GUARDS["no synchronisation"] = _without_synchronising


def _twice(update: Callable[[], None]) -> None:
    update()
    update()


def _replayed(update: Callable[[], None]) -> None:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        update()
    graph.replay()
    graph.replay()


# ways to add what lies at the same addresses two times more
REPEATS: dict[str, Callable[[Callable[[], None]], None]] = {"calls": _twice}
if torch.cuda.is_available():
    REPEATS["graph"] = _replayed

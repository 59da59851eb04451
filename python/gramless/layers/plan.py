"""How a grid of whole arrays is computed: by moments or by tiles of kernel matrices, of all rows or of batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .._base import arguments
from .._base.arrays import Array
from . import plan
from .tiles import BlockPlan, GridKernel, plan_blocks


@dataclass(frozen=True)
class GridPlan:
    """The way chosen, "moments" or "gram", why, and what each would cost."""

    path: str
    why: str
    moment_flops: int
    moment_bytes: int
    gram_flops: int
    blocks: BlockPlan


def plan_grid(
    arrays: Mapping[str, Array], *, estimator: str, kernel: GridKernel, backend: str, limit: int | None
) -> GridPlan:
    """Choose the way for checked layers by the names of both sides.

    Moments, unless the kernel has none, they do not fit into so many bytes, or tiles take less than half the flops.
    """
    n = int(next(iter(arrays.values())).shape[0])
    of_x = [int(a.shape[1]) for name, a in arrays.items() if name.startswith("x/")]
    of_y = [int(a.shape[1]) for name, a in arrays.items() if name.startswith("y/")]
    widths = of_x + of_y
    moment_flops = n * (sum(p * (p + 1) for p in widths) + 2 * plan.layer_products(of_x, of_y or None))
    moment_bytes = plan.grid_bytes(of_x, of_y or None)
    blocks = plan_blocks(n, list(arrays.values()), kernel, backend, limit)
    gram_flops = tile_flops(n, widths)
    held = limit is None or moment_bytes <= limit
    tiled = limit is None or blocks.needed <= limit
    if kernel.name != "linear":
        path, why = "gram", f"the {kernel.name} kernel has no moments"
    elif estimator == "feature_corrected":
        path, why = "moments", f"the {estimator} estimator needs them"
    elif held != tiled:
        path, why = ("moments", "tiles do not fit") if held else ("gram", "moments do not fit")
    elif 2 * gram_flops < moment_flops:
        path, why = "gram", "less than half the flops of moments"
    else:
        path, why = "moments", "tiles do not take less than half their flops"
    return GridPlan(path, why, moment_flops, moment_bytes, gram_flops, blocks)


def tile_flops(n: int, widths: Sequence[int]) -> int:
    """Return the flops of half of all kernel matrices of layers, and of the products of all pairs of halves."""
    return n * n * sum(widths) + n * (n - 1) // 2 * len(widths) * (len(widths) + 1)


def batch_bounds(function: str, n: int, size: int) -> list[tuple[int, int]]:
    """Return the bounds of batches of n rows, the last of which takes a remainder that is too small for one."""
    arguments.positive(function, "batch_size", size)
    if size < arguments.LEAST_ROWS:
        raise ValueError(f"{function}: expected batch_size of at least {arguments.LEAST_ROWS}, got {size}")
    starts = [start for start in range(0, n, size) if n - start >= arguments.LEAST_ROWS]
    return list(zip(starts, [*starts[1:], n], strict=True))


def check_estimator(function: str, estimator: str, kernel: GridKernel, *, of_batches: bool) -> None:
    """Refuse an estimator that the kernel, or an average over batches, does not have."""
    arguments.choice(function, "estimator", estimator, arguments.ESTIMATORS)
    if of_batches and estimator != "unbiased":
        raise ValueError(
            f"{function}: batches have estimator='unbiased' alone, got {estimator!r}: others depend on their size"
        )
    if estimator == "feature_corrected" and kernel.name != "linear":
        raise ValueError(f"{function}: estimator={estimator!r} needs kernel='linear', got kernel={kernel.name!r}")


def grid_bytes(widths_x: list[int], widths_y: list[int] | None) -> int:
    """Return the most bytes that an exact grid holds: its sums, and the next ones while an update is under way."""
    widths, partners = widths_x + (widths_y or []), widths_y or widths_x
    sums = layer_products(widths_x, widths_y) + len(partners) * (sum(widths_x) + len(widths_x))
    sums += len(widths_x) * sum(widths_y or []) + sum(p * p + 5 * p + 1 for p in widths)
    return 16 * sums


def layer_products(widths_x: list[int], widths_y: list[int] | None) -> int:
    """Return the number of pairs of one feature each of two layers that a grid compares."""
    if widths_y is not None:
        return sum(widths_x) * sum(widths_y)
    return (sum(widths_x) ** 2 - sum(p * p for p in widths_x)) // 2

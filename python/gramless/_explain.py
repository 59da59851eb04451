"""What a call will run and what that costs, without running it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from . import _checks, _dispatch
from ._checks import Array
from ._memory import available_bytes
from .bandwidths import EXACT_ROWS, RULES
from .grids.plan import batch_bounds, check_estimator, plan_grid, tile_flops
from .grids.sides import named_layers, sides
from .grids.tiles import BlockPlan, GridKernel, plan_blocks
from .kernel_pass import KernelPass

MEASURES = ("hsic", "cka", "cka_distance", "cka_matrix")

_ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


@dataclass(frozen=True)
class Explanation:
    """What a call will run and what that costs; str() is for reading."""

    path: str
    backend: str
    why: str
    flops: int
    bytes_read: int
    peak_extra_bytes: int

    def __str__(self) -> str:
        return (
            f"{self.path}\n"
            f"  backend    {self.backend}: {self.why}\n"
            f"  flops      {self.flops:.3g}\n"
            f"  read       {_readable(self.bytes_read)}\n"
            f"  peak extra {_readable(self.peak_extra_bytes)}"
        )


@dataclass(frozen=True)
class _Cost:
    flops: int
    bytes_read: int
    result: int  # bytes that the caller keeps
    scratch: int  # bytes that are gone when the kernel returns


def explain(
    measure: str,
    x: Any,
    y: Any = None,
    *,
    backend: str = "auto",
    estimator: str = "unbiased",
    kernel: str = "linear",
    bandwidth: Any = None,
    batch_size: int | None = None,
    max_bytes: int | None = None,
) -> Explanation:
    """Say which code a call would run and what it costs, without running it.

    Parameters
    ----------
    measure : {"hsic", "cka", "cka_distance", "cka_matrix", "moments", "gram_sums"}
        Name of the public function.
    x, y : array of shape (n, p) and (n, q), or dicts or lists of layers for "cka_matrix"
        The arguments of that function; y may be absent for "cka_matrix", "moments" and "gram_sums".
    backend, estimator, kernel, bandwidth : str
        As in that function. A bandwidth that is a number saves the pass that a rule takes.
    batch_size, max_bytes : int, optional
        As in `gramless.cka_matrix`; what is free on the machine, too, decides how it goes.

    Returns
    -------
    Explanation
        With fields path, backend, why, flops, bytes_read and peak_extra_bytes (the result of the pass included).

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As the function itself would.

    Notes
    -----
    For the linear kernel, Gram tiles are chosen where they take less than half the flops of moments: 2 n <= p + q.

    Examples
    --------
    >>> import numpy as np
    >>> import gramless as gl
    >>> x = np.zeros((1000, 64), np.float32)
    >>> gl.explain("cka", x, x, backend="reference").flops
    16512000
    >>> print(gl.explain("cka", x, x, backend="reference"))
    cka <- moments (1000, 64) float32, (1000, 64) float32
      backend    reference: asked for
      flops      1.65e+07
      read       500.0 KiB
      peak extra 3.0 MiB
    >>> gl.explain("cka", x, x, kernel="rbf", bandwidth=1.0, backend="reference").path
    'cka <- gram_sums rbf (1000, 64) float32, (1000, 64) float32'
    """
    _checks.choice("explain", "measure", measure, (*MEASURES, *_dispatch.BACKENDS))
    _dispatch.check_backend(measure, backend)
    if measure == "cka_matrix":
        return _explain_grid(x, y, backend, estimator, kernel, bandwidth, batch_size, max_bytes)
    if measure in _dispatch.BACKENDS:
        _checks.gram_kernel(measure, kernel, estimator, None, 1, 1.0)
        stem = measure
        arrays = [_checks.rows(measure, name, a) for name, a in (("x", x), ("y", y)) if a is not None]
        n = _checks.same_rows(measure, dict(zip("xy", arrays, strict=False)))
    else:
        if y is None:
            raise TypeError(f"{measure}: expected y")
        arrays = list(KernelPass(measure, kernel, estimator, bandwidth, 1.0, 1, 1.0, backend).arrays(x, y))
        n, p, q = (int(length) for length in (*arrays[0].shape, arrays[1].shape[1]))
        stem = "gram_sums" if kernel != "linear" else _dispatch.linear_stem(n, p, q)
        stem = "moments" if estimator == "feature_corrected" else stem
    chosen = _dispatch.resolve(stem, backend)
    shapes = ", ".join(f"{tuple(a.shape)} {_dtype(a)}" for a in arrays)
    if stem == "moments":
        path, cost = f"{measure} <- moments {shapes}", _cost(n, arrays, chosen.backend)
    else:
        path = f"{measure} <- gram_sums {kernel} {shapes}"
        cost = _tiles_cost(n, arrays, chosen.backend, kernel, one_pass=measure == "gram_sums")
        if measure != "gram_sums" and kernel in _checks.WITH_BANDWIDTH and (bandwidth is None or bandwidth in RULES):
            cost = _with_rule(n, arrays, cost)
    return Explanation(path, chosen.backend, chosen.why, cost.flops, cost.bytes_read, cost.result + cost.scratch)


def _tiles_cost(n: int, arrays: list[Array], backend: str, kernel: str, *, one_pass: bool) -> _Cost:
    """Return the cost of all tiles of one or two arrays; only those on and above the diagonal are computed.

    The measures merge strip after strip of block pairs: the sums so far, those of a strip, and the next ones.
    """
    p, q = (*(int(a.shape[1]) for a in arrays), 0)[:2]
    block = _dispatch.gram_block_rows(backend, p, q)
    rows_read = sum(range(n, 0, -block))
    read = rows_read * sum(int(a.shape[1]) * _ITEM_BYTES[_dtype(a)] for a in arrays)
    held = 16 * n * len(arrays)
    if backend == "reference":
        scratch = 64 * n * n + 8 * n * (p + q)
    else:
        float64 = _dispatch.gram_in_float64(backend, n, [_dtype(a) for a in arrays], kernel)
        scratch = _dispatch.core_or_raise("explain").gram_scratch_bytes(n, p, q, float64=float64, bandwidths=1)
    return _Cost(n * n * (p + q), read, held, scratch + (0 if one_pass else 2 * held))


def _with_rule(n: int, arrays: list[Array], cost: _Cost) -> _Cost:
    """Add the distances that a bandwidth rule takes of one array after the other, before the pass."""
    m = min(n, EXACT_ROWS)
    flops = sum(m * m * int(a.shape[1]) for a in arrays)
    read = sum(m * int(a.shape[1]) * _ITEM_BYTES[_dtype(a)] for a in arrays)
    # a sample is copied, and the kernel packs all of its rows at once
    scratch = max(_ITEM_BYTES[_dtype(a)] * m * int(a.shape[1]) for a in arrays) if n > m else 0
    wide = max(max(4, _ITEM_BYTES[_dtype(a)]) * (m * (m - 1) // 2 + m * int(a.shape[1])) for a in arrays)
    return _Cost(
        cost.flops + flops, cost.bytes_read + read, cost.result, max(cost.scratch, scratch + wide - cost.result)
    )


def _explain_grid(
    xs: Any,
    ys: Any,
    backend: str,
    estimator: str,
    kernel_name: str,
    bandwidth: Any,
    batch_size: int | None,
    max_bytes: int | None,
) -> Explanation:
    """Explain cka_matrix, with the cost of both ways where there are two."""
    measure = "cka_matrix"
    kernel = GridKernel.checked(measure, kernel_name, bandwidth, 1.0)
    check_estimator(measure, estimator, kernel, of_batches=batch_size is not None)
    if max_bytes is not None:
        _checks.positive(measure, "max_bytes", max_bytes)
    limit = available_bytes() if max_bytes is None else max_bytes
    arrays = named_layers(measure, xs, ys)
    n, layers = _checks.same_rows(measure, arrays), list(arrays.values())
    _checks.enough_rows(measure, estimator, n)
    if batch_size is not None:
        sizes = [stop - start for start, stop in batch_bounds(measure, n, batch_size)]
        blocks = plan_blocks(max(sizes), layers, kernel, backend, limit)
        costs = [_grid_tiles_cost(rows, layers, blocks, kernel) for rows in sizes]
        cost = _Cost(sum(c.flops for c in costs), sum(c.bytes_read for c in costs), 0, max(c.scratch for c in costs))
        chosen = _dispatch.resolve_gram_values(backend)
        path = (
            f"{measure} <- gram_values {kernel.name} of {len(arrays)} layers, {len(sizes)} batches of {sizes[0]} rows"
        )
        return Explanation(path, chosen.backend, chosen.why, cost.flops, cost.bytes_read, cost.scratch)
    plan = plan_grid(arrays, estimator=estimator, kernel=kernel, backend=backend, limit=limit)
    tiles = _grid_tiles_cost(n, layers, plan.blocks, kernel)
    told = f"tiles {tiles.flops:.3g} flops, {_readable(tiles.scratch)} with blocks of {plan.blocks.block} rows"
    if kernel.name == "linear":
        told = f"moments {plan.moment_flops:.3g} flops, {_readable(plan.moment_bytes)}; {told}"
    if plan.path == "gram":
        chosen, cost = _dispatch.resolve_gram_values(backend), tiles
        path = f"{measure} <- gram_values {kernel.name} of {len(arrays)} layers, {n} rows"
    else:
        chosen = _dispatch.resolve("moments", backend)
        cost, pairs = _grid_cost(n, arrays, chosen.backend)
        path = f"{measure} <- moments of {len(arrays)} layers and {pairs} pairs, {n} rows"
    why = f"{chosen.why}; {plan.path}: {plan.why} ({told})"
    return Explanation(path, chosen.backend, why, cost.flops, cost.bytes_read, cost.result + cost.scratch)


def _grid_tiles_cost(n: int, layers: list[Array], blocks: BlockPlan, kernel: GridKernel) -> _Cost:
    """Return the cost of all pairs of blocks of n rows, each of which is read anew, and of the rule before them."""
    widths, parts = [int(a.shape[1]) for a in layers], -(-n // blocks.block)
    sampled = min(n, EXACT_ROWS) if kernel.by_rule else 0
    flops = tile_flops(n, widths) + sampled * sampled * sum(widths)
    row_bytes = sum(p * _ITEM_BYTES[_dtype(a)] for p, a in zip(widths, layers, strict=True))
    return _Cost(flops, (n * parts + sampled) * row_bytes, 0, blocks.needed)


def _grid_cost(n: int, named: dict[str, Array], backend: str) -> tuple[_Cost, int]:
    arrays, (x, y) = list(named.values()), sides(list(named))
    pairs = _dispatch.layer_pairs(len(x), None if x == y else len(y))
    costs = [_cost(n, [a], backend) for a in arrays]
    costs += [_cost(n, [arrays[a], arrays[b]], backend, self_terms=False) for a, b in pairs]
    widths_x, widths_y = ([int(arrays[i].shape[1]) for i in side] for side in (x, y))
    held = _dispatch.grid_bytes(widths_x, None if x == y else widths_y)
    total = _Cost(
        sum(c.flops for c in costs), sum(c.bytes_read for c in costs), held, max(c.scratch + c.result for c in costs)
    )
    return total, len(pairs)


def _cost(n: int, arrays: list[Array], backend: str, *, self_terms: bool = True) -> _Cost:
    """Return the cost of one pass over one or two arrays; symmetric products count half."""
    widths = [int(a.shape[1]) for a in arrays]
    flops, result = 0, 0
    if self_terms:
        flops += sum(n * p * (p + 1) for p in widths)
        result += sum(8 * (p * p + 5 * p + 1) for p in widths)
    if len(widths) == 2:
        p, q = widths
        flops += 2 * n * p * q
        result += 8 * (p * q + p + q + 1)
    read = sum(n * p * _ITEM_BYTES[_dtype(a)] for p, a in zip(widths, arrays, strict=True))
    if backend == "reference":
        scratch = 24 * n * sum(widths)
    else:
        float64 = any(_dtype(a) == "float64" for a in arrays)
        p, q = (*widths, 0)[:2]
        scratch = _dispatch.core_or_raise("explain").moments_scratch_bytes(
            n, p, q, float64=float64, self_terms=self_terms
        )
    return _Cost(flops, read, result, scratch)


def _dtype(x: Array) -> str:
    return str(x.dtype).removeprefix("torch.")


def _readable(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"

"""HSIC between all pairs of layers over the same rows, from tiles of their kernel matrices.

With K~ of a layer without its diagonal, R its row sums and t their total, for every pair of layers at once:
HSIC_1 = (sum K~ L~ - 2 R_x . R_y / (n - 2) + t_x t_y / ((n - 1) (n - 2))) / (n (n - 3)), Song et al. (2012), JMLR 13,
eq. 5. The first term is one product of the values above the diagonal, a row for each layer; it does not change, but for
its rounding, when a constant is taken off all values of a layer, so their mean is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._base import arguments
from .._base.arrays import Array, Float64
from .._base.progress import progress_bar
from ..ops import backends, threads
from ..similarity import bandwidth_rules
from .kernel_values import gram_values, overflow
from .names import split

KERNELS = ("linear", "rbf")
# values that one block, or pair of blocks, of rows of all layers may take
VALUES_BYTES = 64 << 20
LEAST_BLOCK = 16
# rows that a pivot is the median of, and rows that are read at a time for what the kernel does not give
_SAMPLED_ROWS, _CHUNK_ROWS = 7, 64
# what rounding of kernel values may leave of a self term, in roundings of its terms
_NOISE = 8.0
# the mean squares of values have squares themselves, in the standard errors
_LEAST_SQUARE = math.sqrt(np.finfo(np.float64).tiny)
# features of a chunk of packed rows
_CHUNK = 256


@dataclass(frozen=True)
class GridKernel:
    """Kernel of all layers: its bandwidth is a number, or a rule that gives each layer its own."""

    name: str
    bandwidth: float | str | None
    scale: float

    @classmethod
    def checked(cls, function: str, name: str, bandwidth: Any, scale: Any) -> GridKernel:
        """Return the kernel of public arguments."""
        arguments.choice(function, "kernel", name, KERNELS)
        if name == "linear":
            if bandwidth is not None:
                raise ValueError(f"{function}: kernel='linear' has no bandwidth, got bandwidth={bandwidth!r}")
            if scale != 1:
                raise ValueError(f"{function}: kernel='linear' has no bandwidth_scale, got bandwidth_scale={scale!r}")
            return cls(name, None, 1.0)
        rule = "median" if bandwidth is None else bandwidth
        bandwidth_rules.check(function, "bandwidth", rule, scale, "bandwidth_scale")
        return cls(name, rule if isinstance(rule, str) else float(rule), float(scale))

    @property
    def by_rule(self) -> bool:
        """Whether the bandwidth comes from the data."""
        return isinstance(self.bandwidth, str)

    @property
    def measure(self) -> str:
        """What CKA of this kernel is called."""
        return "cka" if self.name == "linear" else f"{self.name} cka"


@dataclass(frozen=True, eq=False)
class Products:
    """Sums of products of l layers, l1 of x before l2 of y; l1 = l2 = l if there are none of y."""

    pairs: Float64  # (l1, l2)
    selfs: Float64  # (l,)

    @classmethod
    def of(cls, values: NDArray[Any], split: int, backend: str, pivots: Float64 | None = None) -> Products:
        """Return those of values (l, m) about pivots: the same bits whatever the number of threads."""
        kernel = backends.resolve("gram_sums", backend, "gram_products").kernel
        found = kernel(values, np.zeros(len(values)) if pivots is None else pivots, split)
        return cls(found["products"], found["squares"])

    def __add__(self, other: Products) -> Products:
        return Products(self.pairs + other.pairs, self.selfs + other.selfs)

    def times(self, factor: float) -> Products:
        """Return the products times a number."""
        return Products(factor * self.pairs, factor * self.selfs)

    def in_units(self, units: Float64) -> Products:
        """Return the products of values that were counted in these units (l,)."""
        x, y = len(self.pairs), self.pairs.shape[1]
        return Products(self.pairs * np.outer(units[:x], units[-y:]), self.selfs * units**2)


@dataclass(frozen=True, eq=False)
class GridSums:
    """Sums over the kernel values of layers, with a constant taken off those of each layer."""

    n: int
    kind: np.dtype[Any]  # of the kernel values
    products: Products  # sum over i != j
    rows: Float64  # (l, n)  sum over j != i
    diagonals: Float64 | None  # (l, n)
    means: Float64  # (l,)  of the kernel values off the diagonal
    below_one: Float64  # (l,)  their distance from 1, with its digits
    lacking: NDArray[np.bool_]  # (l,)  no bandwidth
    split: int
    backend: str

    def hsic(self, *, biased: bool) -> tuple[Float64, Float64, Float64]:
        """Return HSIC of all pairs (l1, l2), of each layer with itself (l,), and what of the latter may be rounding.

        Unbiased as above, or tr(K H L H) / (n - 1)^2, which is the same sums with the diagonals and other divisors.
        """
        n, rows, products = self.n, self.rows, self.products
        of_rows, of_totals, of_all = n - 2, (n - 1) * (n - 2), n * (n - 3)
        if biased:
            if self.diagonals is None:
                raise ValueError("GridSums.hsic: biased needs sums with their diagonals")
            rows, products = rows + self.diagonals, products + Products.of(self.diagonals, self.split, self.backend)
            of_rows, of_totals, of_all = n, n * n, (n - 1) ** 2
        by_rows = Products.of(rows, self.split, self.backend).times(-2 / of_rows)
        total = rows.sum(axis=1, keepdims=True)
        by_totals = Products.of(total, self.split, self.backend).times(1 / of_totals)
        hsic = (products + by_rows + by_totals).times(1 / of_all)
        terms = (products.selfs - by_rows.selfs + by_totals.selfs) / of_all
        least = max(float(np.finfo(self.kind).tiny) ** 2, _LEAST_SQUARE)
        return hsic.pairs, hsic.selfs, np.maximum(_NOISE * np.finfo(self.kind).eps * terms, least)


@dataclass(frozen=True)
class BlockPlan:
    """How many rows a block has, and all extra bytes that a pass with such blocks takes."""

    block: int
    needed: int

    def refuse_beyond(self, function: str, limit: int | None, source: str) -> None:
        """Refuse blocks that do not fit into memory."""
        if limit is not None and self.needed > limit:
            raise MemoryError(
                f"{function}: this grid needs {self.needed:,} bytes with blocks of {self.block} rows, {source} is "
                f"{limit:,} bytes; compare fewer layers"
            )


def plan_blocks(n: int, layers: Sequence[Array], kernel: GridKernel, backend: str, limit: int | None) -> BlockPlan:
    """Return the blocks of n rows of layers: 64 MiB of values, less if memory is short.

    The bytes needed may still be above the limit, where even blocks of 16 rows do not fit.
    """
    count, itemsize = len(layers), 8 if any(map(_is_float64, layers)) else 4
    # the kernel packs whole chunks of features
    widths = [int(layer.shape[1]) for layer in layers]
    packed_row = itemsize * (-(-max(widths) // _CHUNK) * _CHUNK + _CHUNK // 4)
    of_matrix = 0
    if backends.resolve_gram_values(backend).backend == "reference":
        # the definition holds the kernel matrix of a layer several times, and the values of all in float64
        itemsize, of_matrix = 24, 64
    sampled = min(n, bandwidth_rules.EXACT_ROWS)
    # rows of a sample are copied before they are packed
    of_rows = packed_row * (1 if n == sampled else 2)
    distances = sampled * ((itemsize + of_matrix) * (sampled - 1) // 2 + of_rows) if kernel.by_rule else 0

    def needed(block: int, packers: int) -> int:
        whole = block == n
        values = count * itemsize * (n * (n - 1) // 2 if whole else block * block)
        values += packers * (1 if whole else 2) * block * packed_row + of_matrix * block * block
        fixed = 8 * count * (4 * n + 6 * count) + 8 * sum(widths) + 16 * _CHUNK_ROWS * max(widths)
        return fixed + (values if whole else max(values, distances))

    allowed = VALUES_BYTES
    while True:
        whole = count * itemsize * n * (n - 1) // 2 <= allowed
        most = math.isqrt(allowed // (count * itemsize)) // LEAST_BLOCK * LEAST_BLOCK
        block = n if whole else min(n, max(LEAST_BLOCK, most))
        # a block for any number of threads: the last bits of the result depend on it
        if limit is None or block <= LEAST_BLOCK or needed(block, count) <= limit:
            return BlockPlan(block, needed(block, min(count, threads.threads_or_one())))
        allowed //= 2


def grid_sums(
    layers: Sequence[Array],
    kernel: GridKernel,
    *,
    names: Sequence[str],
    block: int,
    backend: str,
    diagonals: bool = False,
    progress: bool = False,
) -> GridSums:
    """Return the sums over all pairs of rows of checked layers, each (n, p), by pairs of blocks of rows.

    The biased estimator needs the diagonals, too.

    Cost: n^2 sum p + n^2 l^2 / 2 flops for l layers.
    """
    n, count, cut = int(layers[0].shape[0]), len(layers), split(names)
    spans = list(pairwise(np.linspace(0, n, -(-n // block) + 1).astype(int).tolist()))
    # one block is centred by the kernel itself
    pivots = _centres(layers) if diagonals or len(spans) > 1 else None
    widths, lacking = _widths(layers, kernel, names, backend, whole=len(spans) == 1 and n <= bandwidth_rules.EXACT_ROWS)
    products, rows = Products.of(np.zeros((count, 1)), cut, backend), np.zeros((count, n))
    shift: _Shift | None = None
    # the blocks on the diagonal come first: they refuse values that are not finite
    pairs = [*((span, span) for span in spans), *combinations(spans, 2)]
    for (a, b), (c, d) in progress_bar(pairs, "pairs of blocks", shown=progress):
        found = gram_values(
            [layer[a:b] for layer in layers],
            None if a == c else [layer[c:d] for layer in layers],
            names=names,
            first_row=a,
            kernel=kernel.name,
            bandwidths=widths,
            pivots=pivots,
            nonfinite="raise" if a == c else "propagate",
            backend=backend,
        )
        if shift is None:
            shift = _Shift.of(found, b - a)
        products += shift.products(found, cut, backend)
        rows[:, a:b] += shift.sums(found, "rows", d - c - (a == c))
        if a != c:
            rows[:, c:d] += shift.sums(found, "columns", b - a)
        # these values go before the next ones come
        del found
    if shift is None:
        raise ValueError("grid_sums: expected at least one row")
    for name, square in zip(names, products.selfs / n**2, strict=True):
        if not square <= 1 / _LEAST_SQUARE:
            raise overflow(name)
    on_diagonal = None
    if diagonals and pivots is not None:
        of_rows = _diagonals(layers, kernel, pivots) - shift.offset[:, None]
        on_diagonal = of_rows - shift.mean[:, None]
    means = rows.sum(axis=1) / (n * (n - 1)) + shift.mean
    return GridSums(
        n=n,
        kind=shift.kind,
        products=products,
        rows=rows,
        diagonals=on_diagonal,
        means=means + shift.offset,
        below_one=(1 - shift.offset) - means,
        lacking=lacking,
        split=cut,
        backend=backend,
    )


@dataclass(frozen=True)
class _Shift:
    """What is taken off the values of each layer: nearly their mean."""

    mean: Float64  # (l,)  off the offset
    offset: Float64  # (l,)
    kind: np.dtype[Any]

    @classmethod
    def of(cls, found: dict[str, Any], n: int) -> _Shift:
        """Choose for values from those above the diagonal of n rows."""
        kind = found["values"].dtype
        return cls(_rounded(found["rows"].sum(axis=1) / max(1, n * (n - 1)), kind), found["offsets"], kind)

    def products(self, found: dict[str, Any], cut: int, backend: str) -> Products:
        """Return the sums of products over both orders of the pairs of rows; the values may be scaled in place."""
        values, pivots = found["values"], self._of_block(found)
        units = _units(found["squares"] / values[0].size, values.dtype)
        for index in np.flatnonzero(units != 1):
            values[index] /= units[index]
        return Products.of(values, cut, backend, pivots / units).in_units(units).times(2)

    def sums(self, found: dict[str, Any], key: str, terms: int) -> Float64:
        """Return sums of so many kernel values with the shift taken off each."""
        return np.asarray(found[key] - terms * self._of_block(found)[:, None])

    def _of_block(self, found: dict[str, Any]) -> Float64:
        # blocks choose offsets for themselves
        return _rounded(self.mean + (self.offset - found["offsets"]), self.kind)


def _rounded(values: Float64, kind: np.dtype[Any]) -> Float64:
    """Return numbers that the kernel of the products does not round again."""
    return values.astype(kind).astype(np.float64)


def _units(mean_squares: Float64, kind: np.dtype[Any]) -> Float64:
    """Return powers of two in which to count values whose squares are far from 1 for their type, 1 for the others."""
    far = np.finfo(kind).maxexp * 0.75
    with np.errstate(divide="ignore", invalid="ignore"):
        exponents = np.log2(mean_squares)
        odd = np.isfinite(exponents) & (np.abs(exponents) > far)
        return np.where(odd, np.exp2(np.round(exponents / 2)), 1.0)


def _widths(
    layers: Sequence[Array], kernel: GridKernel, names: Sequence[str], backend: str, *, whole: bool
) -> tuple[list[float] | None, NDArray[np.bool_]]:
    """Return a bandwidth for each layer, if the kernel has one, and where its rule gives none."""
    lacking = np.zeros(len(layers), dtype=bool)
    if kernel.bandwidth is None:
        return None, lacking
    if not isinstance(kernel.bandwidth, str):
        return [kernel.bandwidth * kernel.scale] * len(layers), lacking
    if not whole:
        found = [_width_of_all(layer, kernel, name, backend) for layer, name in zip(layers, names, strict=True)]
        return [width for width, _ in found], np.array([lacks for _, lacks in found])
    n = int(layers[0].shape[0])
    distances = gram_values(layers, names=names, kernel="distance", backend=backend)["values"]
    typical = np.array([bandwidth_rules.rule_of_distances(row, n, kernel.bandwidth) for row in distances])
    # all rows equal: a constant kernel, whatever the width
    lacking = (typical == 0) & distances.any(axis=1)
    return np.where(typical == 0, 1.0, kernel.scale * typical).tolist(), lacking


def _width_of_all(layer: Array, kernel: GridKernel, name: str, backend: str) -> tuple[float, bool]:
    """Return the width that a rule gives a layer of more rows than a block, and whether it gives none."""
    try:
        rule = str(kernel.bandwidth)
        return bandwidth_rules.chosen(
            "bandwidth", f"layer {name}", layer, rule, kernel.scale, backend=backend
        ).value, False
    except ValueError as error:
        if "pairs of its rows are equal" not in str(error):
            raise ValueError(str(error).removeprefix("bandwidth: ")) from None
        rows = arguments.to_numpy(layer)
        # a constant layer has a constant kernel, whatever the width
        return 1.0, not bool((rows == rows[:1]).all())


def _centres(layers: Sequence[Array]) -> list[Float64]:
    """Return medians of sampled rows, rounded as the kernel rounds them."""
    kind = np.float64 if any(_is_float64(layer) for layer in layers) else np.float32
    found = []
    for layer in layers:
        n = int(layer.shape[0])
        count = min(n, _SAMPLED_ROWS)
        rows = arguments.to_numpy(layer[np.arange(count) * n // count])
        # values that are not finite are refused later, with their place
        with np.errstate(invalid="ignore"):
            found.append(np.median(rows.astype(np.float64), axis=0).astype(kind).astype(np.float64))
    return found


def _is_float64(layer: Array) -> bool:
    # of the dtypes that layers have, of NumPy as of torch, it is the only one of 8 bytes
    return bool(layer.dtype.itemsize == 8)


def _diagonals(layers: Sequence[Array], kernel: GridKernel, pivots: Sequence[Float64]) -> Float64:
    """Return k(x_i, x_i) for all layers, (l, n)."""
    n = int(layers[0].shape[0])
    if kernel.name == "rbf":
        return np.ones((len(layers), n))
    found = np.empty((len(layers), n))
    for values, layer, pivot in zip(found, layers, pivots, strict=True):
        for start in range(0, n, _CHUNK_ROWS):
            rows = arguments.to_numpy(layer[start : start + _CHUNK_ROWS]).astype(np.float64) - pivot
            values[start : start + _CHUNK_ROWS] = np.einsum("ij,ij->i", rows, rows)
    return found

"""Flops, bytes read and peak bytes of what the measures are made of: passes, rules, batches, features, permutations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from .._base.arrays import Array
from ..layers import plan
from ..ops import backends
from ..similarity.bandwidth_rules import EXACT_ROWS
from ..similarity.random_features import CHUNK_ROWS

_ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
# features of a chunk of packed rows
_CHUNK = 256
# products that a GPU takes for one, by precision
_PRODUCTS = {"fast": 1, "high": 3, "exact": 1}


@dataclass(frozen=True)
class Cost:
    """What a piece of work takes; of its bytes some are held when it is done, the others are gone."""

    flops: int
    bytes_read: int
    held: int
    scratch: int

    @property
    def peak(self) -> int:
        """Most bytes at a time."""
        return self.held + self.scratch

    def then(self, after: Cost) -> Cost:
        """Return the cost of both, one after the other, while what the first holds is kept."""
        held = self.held + after.held
        peak = max(self.peak, self.held + after.peak)
        return Cost(self.flops + after.flops, self.bytes_read + after.bytes_read, held, peak - held)

    def released(self) -> Cost:
        """Return the cost of it where nothing is held in the end."""
        return replace(self, held=0, scratch=self.peak)

    def times(self, count: int) -> Cost:
        """Return the cost of doing it so often, each time in place of the time before."""
        return replace(self, flops=count * self.flops, bytes_read=count * self.bytes_read)


class Columns(NamedTuple):
    """The columns of an array, whatever its rows."""

    width: int
    dtype: str

    @classmethod
    def of(cls, x: Array) -> Columns:
        """Return those of a checked array."""
        return cls(int(x.shape[1]), str(x.dtype).removeprefix("torch."))

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.width * _ITEM_BYTES[self.dtype]

    @property
    def kind_bytes(self) -> int:
        """Bytes of a value that is computed from them."""
        return max(4, _ITEM_BYTES[self.dtype])


def moments(
    n: int, columns: Sequence[Columns], backend: str, *, self_terms: bool = True, precision: str = "high"
) -> Cost:
    """Return the cost of one pass over one or two arrays; symmetric products count half."""
    widths = [one.width for one in columns]
    flops, held = 0, 0
    if self_terms:
        flops += sum(n * p * (p + 1) for p in widths)
        held += sum(8 * (p * p + 5 * p + 1) for p in widths)
    if len(widths) == 2:
        p, q = widths
        flops += 2 * n * p * q
        held += 8 * (p * q + p + q + 1)
    read = n * sum(one.row_bytes for one in columns)
    if backend == "cuda":
        p, q = (*widths, 0)[:2]
        used = _precision(columns, precision)
        return Cost(_PRODUCTS[used] * flops, read, held, backends.gpu_scratch_bytes("moments", n, p, q, used))
    if backend == "reference":
        scratch = 24 * n * sum(widths)
    else:
        float64 = any(one.dtype == "float64" for one in columns)
        p, q = (*widths, 0)[:2]
        core = backends.core_or_raise("explain")
        scratch = core.moments_scratch_bytes(n, p, q, float64=float64, self_terms=self_terms)
    return Cost(flops, read, held, scratch)


def layer_moments(n: int, columns: Sequence[Columns], split: int, backend: str) -> Cost:
    """Return the cost of one pass over many layers, those of x before those of y, and of the sums that a grid keeps."""
    widths = [one.width for one in columns]
    of_x, of_y = widths[:split], widths[split:]
    flops = n * (sum(p * (p + 1) for p in widths) + 2 * plan.layer_products(of_x, of_y or None))
    float64 = [one.dtype == "float64" for one in columns]
    # beside layers in float64, which are multiplied in it, the others are packed twice
    narrow = [one.row_bytes for one, is_wide in zip(columns, float64, strict=True) if not is_wide]
    read = n * (sum(one.row_bytes for one in columns) + (sum(narrow) if any(float64) and backend == "cpu" else 0))
    held = plan.grid_bytes(of_x, of_y or None)
    if backend == "reference":
        return Cost(flops, read, held, 24 * n * sum(widths))
    scratch = backends.core_or_raise("explain").layer_moments_scratch_bytes(n, of_x, of_y, float64=float64)
    return Cost(flops, read, held, scratch)


def centred(columns: Sequence[Columns]) -> Cost:
    """Return the cost of the moments of two arrays about their means, which a measure takes of those of a pass."""
    p, q = (one.width for one in columns)
    return Cost(0, 0, 8 * (p * p + q * q + p * q), 16 * max(p, q) ** 2)


def tiles(
    n: int, columns: Sequence[Columns], backend: str, kernel: str, *, bandwidths: int = 1, precision: str = "high"
) -> Cost:
    """Return the cost of all tiles of one or two arrays; only those on and above the diagonal are computed."""
    p, q = (*(one.width for one in columns), 0)[:2]
    dtypes = [one.dtype for one in columns]
    rows_read = sum(range(n, 0, -backends.gram_block_rows(backend, p, q, precision)))
    flops, read = n * n * (p + q), rows_read * sum(one.row_bytes for one in columns)
    held = 16 * n * bandwidths * len(columns)
    if backend == "cuda":
        used = "exact" if backends.gram_in_float64(backend, n, dtypes, kernel, precision) else precision
        scratch = backends.gpu_scratch_bytes("gram_sums", n, p, q, used, bandwidths)
        return Cost(_PRODUCTS[used] * flops, read, held, scratch)
    if backend == "reference":
        scratch = 64 * n * n + 8 * n * (p + q)
    else:
        float64 = backends.gram_in_float64(backend, n, dtypes, kernel)
        core = backends.core_or_raise("explain")
        scratch = core.gram_scratch_bytes(n, p, q, float64=float64, bandwidths=bandwidths)
    return Cost(flops, read, held, scratch)


def strips(n: int, columns: Sequence[Columns], backend: str, kernel: str, precision: str = "high") -> Cost:
    """Return the cost of the same strip by strip: the sums so far, those of a strip, and the next ones."""
    cost = tiles(n, columns, backend, kernel, precision=precision)
    return replace(cost, scratch=cost.scratch + 2 * cost.held)


def rule(n: int, columns: Sequence[Columns], backend: str) -> Cost:
    """Return the cost of the distances that a bandwidth rule takes of one array after the other, before the pass."""
    m = min(n, EXACT_ROWS)
    if backend == "cuda":
        # distances in float64, and what they are made of
        widest = max(one.width for one in columns)
        flops = m * m * 2 * sum(one.width for one in columns)
        return Cost(flops, m * sum(one.row_bytes for one in columns), 0, 32 * m * m + 16 * m * widest)
    # a sample is copied
    copies = max(m * one.row_bytes for one in columns) if n > m else 0
    scratch = copies + max(_values(m, one, one.kind_bytes, backend) for one in columns)
    flops = m * m * sum(one.width for one in columns)
    return Cost(flops, m * sum(one.row_bytes for one in columns), 0, scratch)


def batches(
    sizes: Sequence[int], orders: int, columns: Sequence[Columns], backend: str, kernel: str, precision: str = "high"
) -> Cost:
    """Return the cost of tiles of batches of these sizes, in so many orders of all rows; each batch is a copy."""
    n, row_bytes = sum(sizes), sum(one.row_bytes for one in columns)
    largest = tiles(max(sizes), columns, backend, kernel, precision=precision)
    flops = sum(size * size for size in sizes) * (largest.flops // max(sizes) ** 2)
    # the order of the rows, and the batch of it
    scratch = largest.peak + max(sizes) * row_bytes + 16 * n
    return Cost(orders * flops, orders * n * row_bytes, 0, scratch)


def features(n: int, columns: Sequence[Columns], frequencies: int, backend: str) -> Cost:
    """Return the cost of the moments of random features, chunk by chunk, and of the measure that follows."""
    chunk = min(n, CHUNK_ROWS)
    made = [Columns(2 * frequencies, "float64" if one.dtype == "float64" else "float32") for one in columns]
    one_pass = moments(chunk, made, backend)
    weights = 8 * frequencies * sum(one.width for one in columns)
    # rows in float64 and less their pivot, then the angles beside rows and frequencies of the kind of the features
    making = max(
        max(16 * chunk * one.width, one.kind_bytes * (chunk * (one.width + frequencies) + one.width * frequencies))
        for one in columns
    )
    # the moments so far and the next ones, if there are several chunks
    sums = one_pass.held * (2 if n > chunk else 0)
    during = weights + chunk * sum(one.row_bytes for one in made) + max(making, one_pass.scratch + sums)
    about_means = centred(made)
    # products of frequencies: blocks of four moments, and six numbers for each pair
    products = about_means.held + 8 * (4 + 6) * frequencies**2
    flops = n * (2 * frequencies * sum(one.width for one in columns) + one_pass.flops // chunk)
    read = n * sum(one.row_bytes for one in columns)
    return Cost(flops, read, 0, one_pass.held + max(during, about_means.peak, products))


def permutations(way: str, count: int, n: int, columns: Sequence[Columns], backend: str, kernel: str) -> Cost:
    """Return the cost of HSIC for so many permutations of the rows of y, and for the rows as they are."""
    x, y = columns
    permuted = n * y.row_bytes
    if way == "matrices":
        return _matrices(n, columns, backend, kernel).then(Cost((count + 1) * n * n, 0, 0, 0))
    if way == "tiles":
        once = tiles(n, columns, backend, kernel)
        return Cost(once.flops, once.bytes_read, 0, once.peak + permuted).times(count + 1)
    once = moments(n, columns, backend, self_terms=False)
    # the sums about the means, and their square
    algebra = 8 * 3 * x.width * y.width
    once = Cost(once.flops, once.bytes_read, 0, once.held + max(once.scratch + permuted, algebra))
    return centred(columns).then(once.times(count + 1))


def _matrices(n: int, columns: Sequence[Columns], backend: str, kernel: str) -> Cost:
    """Return the cost of the kernel matrix of x, the half of it above the diagonal held, and then that of y."""
    x, y = columns
    matrix = 8 * n * n
    # the values above the diagonal go when the matrix is filled
    of_x, of_y = (
        _values(n, one, 8 if kernel == "polynomial" else one.kind_bytes, backend, beside=matrix) for one in columns
    )
    held = matrix // 2 + matrix
    flops, read = n * n * (x.width + y.width), n * (x.row_bytes + y.row_bytes)
    return Cost(flops, read, held, max(of_x, matrix // 2 + of_y, held) - held)


def _values(n: int, one: Columns, wide: int, backend: str, *, beside: int = 0) -> int:
    """Return the peak bytes of the kernel values above the diagonal, and of what is then put beside them."""
    # the kernel packs all rows at once, in whole chunks of features
    packed = wide * n * (-(-one.width // _CHUNK) * _CHUNK + _CHUNK // 4)
    return wide * n * (n - 1) // 2 + max(64 * n * n if backend == "reference" else packed, beside)


def _precision(columns: Sequence[Columns], precision: str) -> str:
    """Return the precision of products of arrays on a GPU."""
    return "exact" if any(one.dtype == "float64" for one in columns) else precision


def readable(count: int) -> str:
    """Return a number of bytes as text."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"

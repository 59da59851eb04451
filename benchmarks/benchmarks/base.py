"""What every benchmark shares: sizes, data, clocks, the peak of memory and an independent answer in float64."""

from __future__ import annotations

import ctypes
import importlib.util
import math
import os
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

TINY = os.environ.get("GRAMLESS_BENCH_TINY") == "1"
BACKENDS = ("reference", "cpu")
DTYPES = ("float32", "bfloat16", "float64")
# rows per block wherever a benchmark generates data or sums in float64: 64 MB at 2048 float32 columns
BLOCK_ROWS = 8192
GEMM_SIZE = 64 if TINY else 4096
ROUNDS = 1 if TINY else 5
SHORTEST = 0.0 if TINY else 0.2
# BLAS and OpenMP threads spin for tens of milliseconds after their work, on cores that the next call needs
SETTLE = 0.0 if TINY else 0.1
# an answer farther from float64 than this is another answer, and its speed means nothing
TOLERANCE = {"float32": 1e-4, "bfloat16": 1e-4, "float64": 1e-10}


def sized(full: Any, tiny: Any) -> Any:
    """The full size, or the one for a run that only shows that the benchmark works."""
    return tiny if TINY else full


def installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def require_module(name: str) -> None:
    """asv counts NotImplementedError in setup as skipped, not as failed."""
    if not installed(name):
        raise NotImplementedError(f"{name} is not installed")


def require_backend(backend: str) -> None:
    if backend == "cpu":
        require_module("gramless._core")


def numpy_dtype(name: str) -> np.dtype[Any]:
    if name == "bfloat16":
        require_module("ml_dtypes")
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def product_dtype(name: str) -> str:
    """The dtype of the tile products, and so of the GEMM to compare with."""
    return "float64" if name == "float64" else "float32"


def activations(n: int, p: int, q: int, dtype: str, *, offset: float = 3.0, seed: int = 0) -> tuple[Any, Any]:
    """x (n, p) and y (n, q), unbiased CKA near 0.36 if p = q, with column means about `offset` deviations from zero."""
    target, drawn = numpy_dtype(dtype), product_dtype(dtype)
    rng = np.random.default_rng(seed)
    mean_x = (offset * rng.standard_normal(p)).astype(drawn)
    mean_y = (offset * rng.standard_normal(q)).astype(drawn)
    shared = np.arange(q) % p
    x, y = np.empty((n, p), target), np.empty((n, q), target)
    for start in range(0, n, BLOCK_ROWS):
        rows = slice(start, min(start + BLOCK_ROWS, n))
        size = rows.stop - rows.start
        d = rng.standard_normal((size, p), dtype=drawn)
        e = rng.standard_normal((size, q), dtype=drawn)
        e *= 0.8
        e += 0.6 * d[:, shared]
        x[rows] = d + mean_x
        y[rows] = e + mean_y
    return x, y


def flops(n: int, p: int, q: int) -> int:
    """Operations of the three second moments; the two symmetric ones count half."""
    return n * (p * (p + 1) + q * (q + 1) + 2 * p * q)


class Sums(NamedTuple):
    """Float64 sums over the rows of d and e: all that the unbiased HSIC of two linear kernels needs."""

    n: int
    product: np.ndarray  # (p, q) d^T e
    sum_x: np.ndarray  # (p,)
    sum_y: np.ndarray  # (q,)
    weighted_x: np.ndarray  # (p,) |e|^2 d
    weighted_y: np.ndarray  # (q,) |d|^2 e
    squares_x: float  # sum |d|^2
    squares_y: float
    squares_xy: float  # sum |d|^2 |e|^2

    def hsic(self) -> float:
        n = self.n
        trace = float(np.vdot(self.product, self.product)) - self.squares_xy
        total = (float(self.sum_x @ self.sum_x) - self.squares_x) * (float(self.sum_y @ self.sum_y) - self.squares_y)
        rows = float(self.sum_x @ self.product @ self.sum_y) + self.squares_xy
        rows -= float(self.sum_x @ self.weighted_x) + float(self.sum_y @ self.weighted_y)
        return (trace + total / ((n - 1) * (n - 2)) - 2 * rows / (n - 2)) / (n * (n - 3))


def block_sums(d: np.ndarray, e: np.ndarray) -> Sums:
    a, b = np.einsum("ij,ij->i", d, d), np.einsum("ij,ij->i", e, e)
    return Sums(len(d), d.T @ e, d.sum(0), e.sum(0), b @ d, a @ e, float(a.sum()), float(b.sum()), float(a @ b))


def true_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased linear CKA in float64, by blocks of rows; written apart from the package that it judges."""
    pivot_x, pivot_y = x[:64].astype(np.float64).mean(0), y[:64].astype(np.float64).mean(0)
    sums: list[Sums] = []
    for start in range(0, len(x), BLOCK_ROWS):
        d = x[start : start + BLOCK_ROWS].astype(np.float64) - pivot_x
        e = y[start : start + BLOCK_ROWS].astype(np.float64) - pivot_y
        block = [block_sums(d, e), block_sums(d, d), block_sums(e, e)]
        sums = [Sums(*map(sum, zip(*pair, strict=True))) for pair in zip(sums, block, strict=True)] if sums else block
    cross, self_x, self_y = (s.hsic() for s in sums)
    return cross / math.sqrt(self_x) / math.sqrt(self_y)


def relative_error(value: Any, truth: Any) -> float:
    """The largest over all entries, and NaN if one of them is."""
    return float(np.max(np.abs(np.asarray(value) - truth) / np.abs(truth)))


def agrees(error: float, dtype: str, tolerance: float | None = None) -> bool:
    # written so that NaN does not agree
    return error <= (TOLERANCE[dtype] if tolerance is None else tolerance)


def seconds(call: Callable[[], object]) -> float:
    """The quickest of as many calls as fit into a fifth of a second, or the one that does not fit."""
    best, spent = math.inf, 0.0
    while best == math.inf or spent < SHORTEST:
        start = time.perf_counter()
        kept = call()
        elapsed = time.perf_counter() - start
        del kept
        best, spent = min(best, elapsed), spent + elapsed
    return best


def interleaved(calls: dict[str, Callable[[], float]], rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Each call once per round, so that what slows the machine for a while slows all of them."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            time.sleep(SETTLE)
            taken[name].append(call())
    return taken


def median_ratio(numerator: list[float], denominator: list[float]) -> float:
    return statistics.median(numerator) / statistics.median(denominator)


def resident(field: str) -> int:
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def peak_extra_bytes(call: Callable[[], object]) -> int:
    """Growth of the resident set at its highest during a call; what the call returns is part of it.

    Linux only, and good to about 0.2 MB.
    """
    if not os.access("/proc/self/clear_refs", os.W_OK):
        raise NotImplementedError("the high-water mark of memory can be reset on Linux only")
    # memory that malloc keeps after earlier calls would hide what this one takes
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    with open("/proc/self/clear_refs", "w") as marks:
        marks.write("5")
    before = resident("VmRSS")
    kept = call()
    peak = resident("VmHWM")
    del kept
    return max(0, peak - before)

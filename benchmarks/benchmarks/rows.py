"""One call of gramless at one shape: how fast it runs, what it takes, and whether its answer is right."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gramless as gl

from .base import ROUNDS, agrees, interleaved, median_ratio, peak_extra_bytes, product_dtype, seconds
from .fma import FmaPeak
from .worker import Worker, gemm_gflops


class Row(NamedTuple):
    """Medians over rounds. Rates count symmetric products half; they are None if the answer is wrong."""

    dtype: str
    n: int
    width: int
    threads: int
    seconds: float
    gflops: float | None
    gemm_gflops: float  # NumPy, same dtype of products, same number of threads, in turns with gramless
    gemm_fraction: float | None
    fma_gflops: float | None  # None without a C compiler
    fma_fraction: float | None
    times_floor: float | None  # seconds over those of the least operations at the rate of FMA
    peak_extra_bytes: int | None  # the result included; None outside Linux
    result_bytes: int
    error: float  # relative to float64, of what `checked` says
    checked: str
    agrees: bool


@contextlib.contextmanager
def threads_set(count: int) -> Iterator[None]:
    before = gl.get_num_threads()
    gl.set_num_threads(count)
    try:
        yield
    finally:
        gl.set_num_threads(before)


def first_call(call: Callable[[], Any]) -> tuple[Any, int | None]:
    """The result, and the peak of memory where it can be measured."""
    results: list[Any] = []
    try:
        peak = peak_extra_bytes(lambda: results.append(call()))
    except NotImplementedError:
        return call(), None
    return results[0], peak


def measure(
    call: Callable[[], Any],
    error: Callable[[Any], float],
    *,
    dtype: str,
    n: int,
    width: int,
    flops: int,
    threads: int,
    rounds: int = ROUNDS,
    checked: str = "unbiased CKA",
) -> Row:
    """Measure a call that gives a state, once for its memory and its answer, then in turns with GEMM and FMA."""
    products = product_dtype(dtype)
    with threads_set(threads), Worker("gemm", products, threads=threads) as gemm:
        state, peak = first_call(call)
        found, size = error(state), state.nbytes
        del state
        fma = FmaPeak(products, threads)
        calls = {"ours": lambda: seconds(call), "gemm": lambda: gemm_gflops(gemm), "fma": fma.gflops}
        taken = interleaved(calls, rounds)
    right = agrees(found, dtype)
    rates = [flops / 1e9 / elapsed for elapsed in taken["ours"]]
    known = right and fma.available
    return Row(
        dtype=dtype,
        n=n,
        width=width,
        threads=threads,
        seconds=statistics.median(taken["ours"]),
        gflops=statistics.median(rates) if right else None,
        gemm_gflops=statistics.median(taken["gemm"]),
        gemm_fraction=median_ratio(rates, taken["gemm"]) if right else None,
        fma_gflops=statistics.median(taken["fma"]) if fma.available else None,
        fma_fraction=median_ratio(rates, taken["fma"]) if known else None,
        times_floor=median_ratio(taken["fma"], rates) if known else None,
        peak_extra_bytes=peak,
        result_bytes=size,
        error=found,
        checked=checked,
        agrees=right,
    )


def gemm_fraction(call: Callable[[], Any], flops: int, dtype: str = "float32") -> float:
    """The rate of a call over that of GEMM on as many threads, in turns."""
    with Worker("gemm", product_dtype(dtype), threads=gl.get_num_threads()) as gemm:
        calls = {"ours": lambda: flops / 1e9 / seconds(call), "gemm": lambda: gemm_gflops(gemm)}
        taken = interleaved(calls)
    return median_ratio(taken["ours"], taken["gemm"])

"""Calls of gramless at one shape: how fast they run, what they take, and whether their answers are right."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial
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
    fma_gflops: float | None  # None without a C compiler, and for products by another unit
    fma_fraction: float | None
    times_floor: float | None  # seconds over those of the least operations at the rate of FMA
    peak_extra_bytes: int | None  # the result included; None outside Linux
    result_bytes: int
    error: float  # relative to float64, of what `checked` says
    checked: str
    agrees: bool
    name: str = ""
    labels: int | None = None  # of a vocabulary
    times_first: float | None = None  # seconds over those of the first call of its turns; None unless both are right


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


class Asked(NamedTuple):
    """A call that gives a state or an array, and what judges it."""

    name: str
    call: Callable[[], Any]
    error: Callable[[Any], float]
    dtype: str
    flops: int
    checked: str = "unbiased CKA"
    tolerance: float | None = None  # that of the dtype
    on_fma: bool = True  # whether its products are multiply-adds of that dtype


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
    asked = Asked("ours", call, error, dtype, flops, checked)
    (row,) = measure_in_turns([asked], n=n, width=width, threads=threads, rounds=rounds)
    return row


def measure_in_turns(
    asked: Sequence[Asked], *, n: int, width: int, threads: int, labels: int | None = None, rounds: int = ROUNDS
) -> list[Row]:
    """Measure calls of one shape as `measure` does one of them, in turns with one another."""
    products = sorted({product_dtype(one.dtype) for one in asked})
    with threads_set(threads), contextlib.ExitStack() as stack:
        gemms = {dtype: stack.enter_context(Worker("gemm", dtype, threads=threads)) for dtype in products}
        fmas = {dtype: FmaPeak(dtype, threads) for dtype in products}
        peaks, sizes, errors = [], [], []
        for one in asked:
            state, peak = first_call(one.call)
            peaks.append(peak)
            sizes.append(state.nbytes)
            errors.append(one.error(state))
            del state
        calls: dict[str, Callable[[], float]] = {one.name: partial(seconds, one.call) for one in asked}
        for dtype in products:
            calls[f"GEMM {dtype}"] = partial(gemm_gflops, gemms[dtype])
            calls[f"FMA {dtype}"] = fmas[dtype].gflops
        taken = interleaved(calls, rounds)
    right = [agrees(error, one.dtype, one.tolerance) for one, error in zip(asked, errors, strict=True)]
    rows = []
    for i, one in enumerate(asked):
        dtype = product_dtype(one.dtype)
        gemm, fma = taken[f"GEMM {dtype}"], taken[f"FMA {dtype}"]
        rates = [one.flops / 1e9 / elapsed for elapsed in taken[one.name]]
        available = fmas[dtype].available and one.on_fma
        known = right[i] and available
        row = Row(
            dtype=one.dtype,
            n=n,
            width=width,
            threads=threads,
            seconds=statistics.median(taken[one.name]),
            gflops=statistics.median(rates) if right[i] else None,
            gemm_gflops=statistics.median(gemm),
            gemm_fraction=median_ratio(rates, gemm) if right[i] else None,
            fma_gflops=statistics.median(fma) if available else None,
            fma_fraction=median_ratio(rates, fma) if known else None,
            times_floor=median_ratio(fma, rates) if known else None,
            peak_extra_bytes=peaks[i],
            result_bytes=sizes[i],
            error=errors[i],
            checked=one.checked,
            agrees=right[i],
            name=one.name,
            labels=labels,
            times_first=median_ratio(taken[one.name], taken[asked[0].name]) if right[i] and right[0] else None,
        )
        rows.append(row)
    return rows


def gemm_fraction(call: Callable[[], Any], flops: int, dtype: str = "float32") -> float:
    """The rate of a call over that of GEMM on as many threads, in turns."""
    with Worker("gemm", product_dtype(dtype), threads=gl.get_num_threads()) as gemm:
        calls = {"ours": lambda: flops / 1e9 / seconds(call), "gemm": lambda: gemm_gflops(gemm)}
        taken = interleaved(calls)
    return median_ratio(taken["ours"], taken["gemm"])

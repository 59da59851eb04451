"""One short table for this machine: how fast `moments` runs, what it takes, and whether its answer is right.

Run `python -m benchmarks.report` in the folder that holds asv.conf.json. A row whose answer is wrong shows no speed,
and the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import gramless as gl

from . import peers
from .base import (
    DTYPES,
    ROUNDS,
    activations,
    agrees,
    flops,
    interleaved,
    median_ratio,
    peak_extra_bytes,
    product_dtype,
    relative_error,
    seconds,
    sized,
    true_cka,
)
from .fma import FmaPeak
from .worker import Worker, gemm_gflops


@dataclass(frozen=True)
class Row:
    """`moments` at one shape. Rates count the two symmetric products half; they are None if the answer is wrong."""

    dtype: str
    n: int
    width: int
    threads: int
    seconds_best: float
    seconds_median: float
    gflops: float | None  # best
    gemm_gflops: float  # median; NumPy, same dtype of products, same number of threads, in turns with gramless
    gemm_fraction: float | None  # median of the fractions within a round
    fma_gflops: float | None  # best; None without a C compiler
    fma_fraction: float | None  # best rate over best rate
    peak_extra_bytes: int | None  # the result included; None outside Linux
    result_bytes: int
    error: float  # of unbiased CKA, relative to float64
    agrees: bool


def measure(x: Any, y: Any, truth: float, dtype: str, threads: int, rounds: int) -> Row:
    """Measure one shape, one call each of gramless, GEMM and FMA per round."""
    n, p, q = len(x), x.shape[1], y.shape[1]
    gl.set_num_threads(threads)

    def call() -> Any:
        return gl.moments(x, y, backend="cpu")

    gl.moments(x[:256], y[:256], backend="cpu")
    with Worker("gemm", product_dtype(dtype), threads=threads) as gemm:
        peak = FmaPeak(product_dtype(dtype), threads)
        calls = {"ours": lambda: seconds(call), "gemm": lambda: gemm_gflops(gemm), "fma": peak.gflops}
        taken = interleaved(calls, rounds)
    try:
        extra = peak_extra_bytes(call)
    except NotImplementedError:
        extra = None
    state = call()
    error = relative_error(gl.cka(state), truth)
    right = agrees(error, dtype)
    rates = [flops(n, p, q) / 1e9 / elapsed for elapsed in taken["ours"]]
    fastest = max(taken["fma"]) if peak.available else None
    return Row(
        dtype=dtype,
        n=n,
        width=p,
        threads=threads,
        seconds_best=min(taken["ours"]),
        seconds_median=statistics.median(taken["ours"]),
        gflops=max(rates) if right else None,
        gemm_gflops=statistics.median(taken["gemm"]),
        gemm_fraction=median_ratio(rates, taken["gemm"]) if right else None,
        fma_gflops=fastest,
        fma_fraction=max(rates) / fastest if right and fastest else None,
        peak_extra_bytes=extra,
        result_bytes=state.nbytes,
        error=error,
        agrees=right,
    )


def shown(value: float | None, form: str) -> str:
    return "-" if value is None or math.isnan(value) else format(value, form)


def moments_table(rows: list[Row]) -> list[list[str]]:
    table = [["dtype", "p=q", "threads", "seconds", "GF/s", "of GEMM", "of FMA", "GEMM GF/s", "peak MB", "error", ""]]
    for row in rows:
        megabytes = None if row.peak_extra_bytes is None else row.peak_extra_bytes / 1e6
        table.append([
            row.dtype,
            str(row.width),
            str(row.threads),
            shown(row.seconds_best, ".4g"),
            shown(row.gflops, ".0f"),
            shown(row.gemm_fraction, ".0%"),
            shown(row.fma_fraction, ".0%"),
            shown(row.gemm_gflops, ".0f"),
            shown(megabytes, ".1f"),
            shown(row.error, ".1e"),
            "" if row.agrees else "WRONG",
        ])  # fmt: skip
    return table


def peers_table(rows: list[peers.Comparison]) -> list[list[str]]:
    heads = ["peer", "n", "p=q", "threads", "seconds", "x ours", "peak MB", "error", ""]
    return [heads] + [
        [
            row.peer,
            str(row.n),
            str(row.width),
            str(row.threads),
            shown(row.seconds, ".4g"),
            shown(row.ratio, ".2f"),
            shown(row.peak_bytes / 1e6, ".1f"),
            shown(row.error, ".1e"),
            "" if row.agrees else "another answer",
        ]
        for row in rows
    ]


def printed(table: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in table)
    return "\n".join(line.rstrip() for line in lines)


def finite(value: Any) -> Any:
    """The same with null for NaN and infinity, which JSON lacks."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def machine() -> dict[str, Any]:
    """What the numbers belong to."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "gramless": gl.__version__,
    }


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=sized(100_000, 300))
    parser.add_argument("--widths", type=int, nargs="+", default=sized([64, 512, 2048], [8, 24]))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--peers", action="store_true", help="also compare with the installed peers")
    parser.add_argument("--peer-rows", type=int, default=sized(4096, 200))
    parser.add_argument("--offset", type=float, default=0.0, help="column means of the peers' data, in deviations")
    parser.add_argument("--json", type=Path, metavar="F", help="write everything to this file as well")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    options = arguments(argv)
    about = machine()
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    rows: list[Row] = []
    for dtype in options.dtypes:
        for width in options.widths:
            x, y = activations(options.rows, width, width, dtype)
            truth = true_cka(x, y)
            for threads in options.threads:
                rows.append(measure(x, y, truth, dtype, threads, options.rounds))
                print(f"{dtype} {width} x {width}, {threads} threads: done", file=sys.stderr)
            # the next pair is built before these names are bound again: without this both pairs would be held
            del x, y
    print(f"\nmoments, n = {options.rows}, backend cpu, quickest of {options.rounds} rounds")
    print(printed(moments_table(rows)))
    compared: list[peers.Comparison] = []
    if options.peers:
        for width in options.widths:
            for threads in options.threads:
                turns = {"offset": options.offset, "rounds": options.rounds}
                compared += peers.compare(options.peer_rows, width, threads, **turns)
        print(f"\nunbiased linear CKA, float32, all rows at once, medians of {options.rounds} rounds")
        print(printed(peers_table(compared)))
    if options.json:
        report = {"machine": about, "moments": [asdict(row) for row in rows], "peers": [r._asdict() for r in compared]}
        options.json.write_text(json.dumps(finite(report), indent=1, allow_nan=False) + "\n")
    ours = [row.agrees for row in rows] + [row.agrees for row in compared if row.peer == peers.OURS]
    return 0 if all(ours) else 1


if __name__ == "__main__":
    sys.exit(main())

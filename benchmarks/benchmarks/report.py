"""Short tables for this machine: how fast gramless runs, what it takes, and whether its answers are right.

Run `python -m benchmarks.report` in the folder that holds asv.conf.json. Each row is printed as soon as it is measured.
A row whose answer is wrong shows no speed, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gramless as gl

from . import peers_distance, peers_grid, peers_linear, peers_rbf, report_logits
from .base import DTYPES, activations, flops, installed, relative_error, sized, true_cka
from .comparison import OURS, Comparison, missing
from .machine import machine
from .rbf import SAMPLED_ROWS, gram_flops, rows_error, sums, true_rbf_cka
from .rows import Row, measure
from .tables import GRID, KERNEL, PEERS, Table, head, line

SUITES = ("moments", "gram_sums", "grid", "logits", "peers")
ROUNDS = sized(3, 1)
GRAM_SHAPES = sized(((8192, 64), (8192, 512), (8192, 4096)), ((90, 16),))
# the other dtypes are measured at one shape only
OTHER_DTYPES_SHAPE = sized((8192, 512), (90, 16))
LARGE_SHAPE = sized((100_000, 512), (300, 16))
CHECKED_ROWS = f"the kernel sums of {SAMPLED_ROWS} rows"
GRID_ROWS = sized(256, 40)
GRID_SHAPES = sized(((12, 768), (32, 1024)), ((3, 16),))
PEER_ROWS = sized(4096, 200)
RBF_SHAPES = sized(((8192, 512),), ((90, 16),))
# gramless among the peers
OWN = (OURS, peers_grid.UPDATE, peers_distance.FACTOR)


def cka_error(state: Any, truth: float) -> float:
    return relative_error(gl.cka(state), truth)


def moments_row(x: Any, y: Any, truth: float, **known: Any) -> Row:
    n, p, q = len(x), x.shape[1], y.shape[1]
    return measure(
        lambda: gl.moments(x, y, backend="cpu"),
        partial(cka_error, truth=truth),
        n=n,
        width=p,
        flops=flops(n, p, q),
        **known,
    )


def moments_rows(options: argparse.Namespace) -> Iterator[Row]:
    for dtype in options.dtypes:
        for width in options.widths:
            x, y = activations(options.rows, width, width, dtype)
            truth = true_cka(x, y)
            for threads in options.threads:
                yield moments_row(x, y, truth, dtype=dtype, threads=threads, rounds=options.rounds)
            # the next pair is built before these names are bound again: without this both pairs would be held
            del x, y


def gram_row(x: Any, y: Any, error: Callable[[Any], float], **known: Any) -> Row:
    n, p, q = len(x), x.shape[1], y.shape[1]
    return measure(lambda: sums(x, y), error, n=n, width=p, flops=gram_flops(n, p, q), **known)


def gram_rows(options: argparse.Namespace) -> Iterator[Row]:
    for dtype in options.dtypes:
        for n, width in options.gram_shapes:
            if dtype == "float32" or (n, width) == OTHER_DTYPES_SHAPE:
                x, y = activations(n, width, width, dtype)
                error = partial(cka_error, truth=true_rbf_cka(x, y))
                for threads in options.threads:
                    yield gram_row(x, y, error, dtype=dtype, threads=threads, rounds=options.rounds)


def large_rows(options: argparse.Namespace) -> Iterator[Row]:
    """Some row sums of both kernels are checked: float64 would take many minutes for all n^2 pairs."""
    n, width = LARGE_SHAPE
    x, y = activations(n, width, width, "float32")
    known = {"dtype": "float32", "threads": max(options.threads), "rounds": options.rounds, "checked": CHECKED_ROWS}
    yield gram_row(x, y, partial(rows_error, x=x, y=y), **known)


def grid_rows(options: argparse.Namespace) -> Iterator[Comparison]:
    for layers, width in options.grid_shapes:
        for threads in options.threads:
            turns = {"offset": options.offset, "rounds": options.rounds}
            yield from peers_grid.compare(layers, width, threads, n=GRID_ROWS, **turns)


def linear_peer_rows(options: argparse.Namespace) -> Iterator[Comparison]:
    for width in options.widths:
        for threads in options.threads:
            turns = {"offset": options.offset, "rounds": options.rounds}
            yield from peers_linear.compare(options.peer_rows, width, threads, **turns)


def rbf_peer_rows(options: argparse.Namespace) -> Iterator[Comparison]:
    for n, width in options.rbf_shapes:
        for threads in options.threads:
            turns = {"offset": options.offset, "rounds": options.rounds}
            yield from peers_rbf.compare(n, width, threads, **turns)


def chosen_tables(options: argparse.Namespace) -> Iterator[Table]:
    """All that was asked for; nothing is measured yet."""
    medians = f"medians of {options.rounds} rounds"
    if "moments" in options.suite:
        yield Table("moments", f"moments, backend cpu, {medians}", KERNEL, moments_rows(options))
    if "gram_sums" in options.suite:
        title = f"gram_sums of two RBF kernels, backend cpu, {medians}"
        yield Table("gram_sums", title, KERNEL, gram_rows(options))
        if options.large:
            yield Table("gram_sums_large", f"{title}; error of {CHECKED_ROWS}", KERNEL, large_rows(options))
    if "grid" in options.suite:
        title = f"unbiased linear CKA of all pairs of layers over one batch of {GRID_ROWS} rows, float32, {medians}"
        yield Table("grid", title, GRID, grid_rows(options), peers_grid.PEERS)
    if "logits" in options.suite:
        yield from report_logits.logit_tables(options)
    if "peers" in options.suite:
        title = f"unbiased linear CKA, float32, all rows at once, {medians}"
        yield Table("peers_linear", title, PEERS, linear_peer_rows(options), peers_linear.PEERS)
        title = f"unbiased CKA of two RBF kernels, float32, {medians}"
        yield Table("peers_rbf", title, PEERS, rbf_peer_rows(options), peers_rbf.PEERS)


def printed(table: Table) -> Iterator[Row | Comparison]:
    """The rows, each after it has been printed."""
    print(f"\n{table.title}")
    for peer, module in missing(table.peers).items():
        print(f"{peer} is left out: {module} is not installed; pip install '.[bench]' has all peers")
    print(head(table.columns), flush=True)
    for row in table.rows:
        print(line(table.columns, row), flush=True)
        yield row


def plain(value: Any) -> Any:
    """What JSON can hold: it lacks NaN and infinity."""
    if isinstance(value, Row | Comparison):
        return plain(value._asdict())
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def shape(text: str, numbers: int = 2) -> tuple[int, ...]:
    parts = tuple(map(int, text.split("x")))
    if len(parts) != numbers:
        raise ValueError
    return parts


def logit_shape(text: str) -> tuple[int, ...]:
    return shape(text, 3)


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__.splitlines()[0])
    parser.add_argument("--suite", nargs="+", choices=SUITES, default=SUITES, help="default: all")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES, help="of moments, gram_sums and logits")
    parser.add_argument("--rows", type=int, default=sized(100_000, 300), help="of moments")
    widths = sized((64, 512, 2048), (8, 24))
    parser.add_argument("--widths", type=int, nargs="+", default=widths, help="of moments and of its peers")
    parser.add_argument("--gram-shapes", type=shape, nargs="+", default=GRAM_SHAPES, metavar="NxP", help="of gram_sums")
    n, width = LARGE_SHAPE
    large = f"gram_sums at {n:,} x {width}, and logit distances of 16,384 rows: takes minutes"
    parser.add_argument("--large", action="store_true", help=large)
    parser.add_argument(
        "--grid-shapes", type=shape, nargs="+", default=GRID_SHAPES, metavar="LxP", help="layers x width"
    )
    shapes = report_logits.SHAPES
    parser.add_argument(
        "--logit-shapes",
        type=logit_shape,
        nargs="+",
        default=shapes,
        metavar="NxVxD",
        help="rows x labels x hidden size",
    )
    parser.add_argument("--peer-rows", type=int, default=PEER_ROWS, help="of moments against peers")
    parser.add_argument("--rbf-shapes", type=shape, nargs="+", default=RBF_SHAPES, metavar="NxP", help="against peers")
    parser.add_argument("--offset", type=float, default=0.0, help="column means of the peers' data, in deviations")
    parser.add_argument("--json", type=Path, metavar="F", help="write everything to this file as well")
    options = parser.parse_args(argv)
    kernels = {"moments", "gram_sums", "logits"}.intersection(options.suite)
    if kernels and "bfloat16" in options.dtypes and not installed("ml_dtypes"):
        parser.error("bfloat16 needs ml_dtypes: pip install '.[bench]', or choose --dtypes float32 float64")
    return options


def main(argv: list[str] | None = None) -> int:
    options = arguments(argv)
    about = machine()
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    found: dict[str, list[Row | Comparison]] = {}
    try:
        for table in chosen_tables(options):
            found[table.key] = []
            for row in printed(table):
                found[table.key].append(row)
    finally:
        # the rows of a run that was interrupted are kept, too
        if options.json:
            options.json.write_text(json.dumps(plain({"machine": about, **found}), indent=1, allow_nan=False) + "\n")
    ours = [row for rows in found.values() for row in rows if not isinstance(row, Comparison) or row.peer in OWN]
    return 0 if all(row.agrees for row in ours) else 1


if __name__ == "__main__":
    sys.exit(main())

"""Tables that are printed row by row, as the rows are measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


class Column(NamedTuple):
    """Head, width, and the text of a row."""

    head: str
    width: int
    text: Callable[[Any], str]


def shown(value: float | None, form: str) -> str:
    return "-" if value is None or math.isnan(value) else format(value, form)


def megabytes(size: int | None) -> str:
    return shown(None if size is None else size / 1e6, ".1f")


KERNEL = (
    Column("dtype", 8, lambda row: row.dtype),
    Column("n", 6, lambda row: str(row.n)),
    Column("p=q", 5, lambda row: str(row.width)),
    Column("threads", 7, lambda row: str(row.threads)),
    Column("seconds", 8, lambda row: shown(row.seconds, ".4g")),
    Column("GF/s", 5, lambda row: shown(row.gflops, ".0f")),
    Column("of GEMM", 7, lambda row: shown(row.gemm_fraction, ".0%")),
    Column("of FMA", 6, lambda row: shown(row.fma_fraction, ".0%")),
    Column("x floor", 7, lambda row: shown(row.times_floor, ".2f")),
    Column("GEMM GF/s", 9, lambda row: shown(row.gemm_gflops, ".0f")),
    Column("peak MB", 7, lambda row: megabytes(row.peak_extra_bytes)),
    Column("error", 7, lambda row: shown(row.error, ".1e")),
    Column("", 5, lambda row: "" if row.agrees else "WRONG"),
)

PEERS = (
    Column("peer", 15, lambda row: row.peer),
    Column("n", 5, lambda row: str(row.n)),
    Column("p=q", 5, lambda row: str(row.width)),
    Column("threads", 7, lambda row: str(row.threads)),
    Column("seconds", 9, lambda row: shown(row.seconds, ".4g")),
    Column("x ours", 6, lambda row: shown(row.ratio, ".2f")),
    Column("peak MB", 7, lambda row: megabytes(row.peak_bytes)),
    Column("error", 7, lambda row: shown(row.error, ".1e")),
    Column("", 14, lambda row: "" if row.agrees else "another answer"),
)

GRID = (
    *PEERS[:1],
    Column("layers", 7, lambda row: f"{row.layers}x{row.layers}"),
    *PEERS[1:5],
    Column("us/pair", 8, lambda row: shown(1e6 * row.pair_seconds, ".2f")),
    Column("of GEMM", 7, lambda row: shown(row.gemm_fraction, ".0%")),
    *PEERS[5:],
)


def aligned(columns: Sequence[Column], texts: Sequence[str]) -> str:
    first, *others = zip(columns, texts, strict=True)
    cells = [first[1].ljust(first[0].width), *(text.rjust(column.width) for column, text in others)]
    return "  ".join(cells).rstrip()


def head(columns: Sequence[Column]) -> str:
    return aligned(columns, [column.head for column in columns])


def line(columns: Sequence[Column], row: Any) -> str:
    return aligned(columns, [column.text(row) for column in columns])

"""Tables that are printed row by row, as the rows are measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
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

LOGIT_CALL = (
    KERNEL[0],
    Column("call", 11, lambda row: row.name),
    KERNEL[1],
    Column("V", 6, lambda row: str(row.labels)),
    Column("d", 4, lambda row: str(row.width)),
    *KERNEL[3:8],
)

LOGITS = (*LOGIT_CALL, Column("x first", 7, lambda row: shown(row.times_first, ".2f")), *KERNEL[10:])

LOGIT_MEMORY = (
    *LOGIT_CALL,
    KERNEL[10],
    Column("logits MB", 9, lambda row: megabytes(8 * row.n * row.labels)),
    *KERNEL[11:],
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

LOGIT_PEERS = (
    *PEERS[:2],
    Column("V", 6, lambda row: str(row.labels)),
    Column("d", 4, lambda row: str(row.width)),
    Column("models", 6, lambda row: row.data),
    *PEERS[3:6],
    Column("of GEMM", 7, lambda row: shown(row.gemm_fraction, ".0%")),
    *PEERS[6:],
)


class Table(NamedTuple):
    """What is printed under one title; the rows are measured as they are asked for."""

    key: str  # in the JSON file
    title: str
    columns: Sequence[Column]
    rows: Iterable[Any]
    peers: Mapping[str, Sequence[str]] = MappingProxyType({})


def aligned(columns: Sequence[Column], texts: Sequence[str]) -> str:
    first, *others = zip(columns, texts, strict=True)
    cells = [first[1].ljust(first[0].width), *(text.rjust(column.width) for column, text in others)]
    return "  ".join(cells).rstrip()


def head(columns: Sequence[Column]) -> str:
    return aligned(columns, [column.head for column in columns])


def line(columns: Sequence[Column], row: Any) -> str:
    return aligned(columns, [column.text(row) for column in columns])

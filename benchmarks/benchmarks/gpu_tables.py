"""How rows and targets of a report on a GPU are printed; a row without a right answer shows no speed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from .comparison import missing
from .gpu_device import Device
from .gpu_rows import GpuRow, Target
from .tables import Column, head, line, megabytes, shown


def verdict(row: GpuRow) -> str:
    if row.failed is not None:
        return row.failed
    return "" if row.agrees else "WRONG" if row.ours else "another answer"


def milliseconds(seconds: float | None) -> str:
    return shown(None if seconds is None else 1e3 * seconds, ".4g")


GPU = (
    Column("call", 19, lambda row: row.name),
    Column("precision", 9, lambda row: row.precision),
    Column("n", 7, lambda row: str(row.n)),
    Column("p=q", 5, lambda row: str(row.width)),
    Column("layers", 6, lambda row: f"{row.layers}x{row.layers}"),
    Column("ms", 9, lambda row: milliseconds(row.seconds)),
    Column("TF/s", 6, lambda row: shown(row.tflops, ".1f")),
    Column("of GEMM", 7, lambda row: shown(row.gemm_fraction, ".0%")),
    Column("x floor", 7, lambda row: shown(row.times_floor, ".2f")),
    Column("x ours", 6, lambda row: shown(row.ratio, ".2f")),
    Column("peak MB", 8, lambda row: megabytes(row.peak_extra_bytes)),
    Column("error", 7, lambda row: shown(row.error, ".1e")),
    Column("of sums", 7, lambda row: shown(row.sums_error, ".1e")),
    Column("", 5, verdict),
)

LOGITS = (
    *GPU[:1],
    Column("dtype", 8, lambda row: row.dtype),
    *GPU[1:2],
    Column("asked", 6, lambda row: row.asked),
    Column("models", 6, lambda row: row.data),
    *GPU[2:3],
    Column("V", 6, lambda row: str(row.labels)),
    Column("d", 4, lambda row: str(row.width)),
    *GPU[5:12],
    *GPU[13:],
)


def target_line(target: Target) -> str:
    state = "not measured" if target.met is None else "met" if target.met else "MISSED"
    value = "" if target.value is None else f" ({target.value:.4g})"
    return f"{state:12}  {target.what}{value}"


def as_dict(row: Any) -> dict[str, Any]:
    """The fields of a named tuple or a dataclass."""
    return dict(row._asdict()) if isinstance(row, tuple) else asdict(row)


def printed(suite: Any, device: Device, *, quick: bool, rounds: int) -> Iterator[Any]:
    """The rows of a suite, each after it has been printed."""
    print(f"\n{suite.TITLE}")
    for peer, module in missing(suite.PEERS).items():
        print(f"{peer} is left out: {module} is not installed")
    print(head(suite.COLUMNS), flush=True)
    for row in suite.rows(device, quick=quick, rounds=rounds):
        print(line(suite.COLUMNS, row), flush=True)
        yield row

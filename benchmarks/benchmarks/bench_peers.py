"""The unbiased linear CKA of two matrices by gramless and by what people use today, in turns."""

from __future__ import annotations

import math

from .base import sized
from .peers import PEERS, Comparison, compare, missing

ROWS = sized(4096, 200)
WIDTHS = sized((64, 512, 2048), (16,))
# one thread: with more, a busy neighbour costs some peers far more than others
THREADS = 1


class Peers:
    """Processes of their own cannot be timed by asv: seconds are tracked, and measured once for all peers together."""

    params = (tuple(PEERS), WIDTHS)
    param_names = ("peer", "width")
    timeout = 900

    def setup_cache(self) -> dict[tuple[str, int], Comparison]:
        measured = (row for width in WIDTHS for row in compare(ROWS, width, THREADS))
        return {(row.peer, row.width): row for row in measured}

    setup_cache.timeout = 900

    def setup(self, measured: dict[tuple[str, int], Comparison], peer: str, width: int) -> None:
        if (module := missing(peer)) is not None:
            raise NotImplementedError(f"{module} is not installed")

    def track_seconds(self, measured: dict[tuple[str, int], Comparison], peer: str, width: int) -> float:
        return measured[peer, width].seconds

    def track_peak_bytes(self, measured: dict[tuple[str, int], Comparison], peer: str, width: int) -> int:
        return measured[peer, width].peak_bytes

    def track_gemm_fraction(self, measured: dict[tuple[str, int], Comparison], peer: str, width: int) -> float:
        fraction = measured[peer, width].gemm_fraction
        return math.nan if fraction is None else fraction

    def track_error(self, measured: dict[tuple[str, int], Comparison], peer: str, width: int) -> float:
        return measured[peer, width].error

    def track_times_ours(self, measured: dict[tuple[str, int], Comparison], peer: str, width: int) -> float:
        """NaN where the answers differ: a wrong answer has no speed."""
        ratio = measured[peer, width].ratio
        return math.nan if ratio is None else ratio

    track_seconds.unit = "seconds"
    track_peak_bytes.unit = "bytes"
    track_gemm_fraction.unit = "fraction of the GEMM rate"
    track_error.unit = "relative error"
    track_times_ours.unit = "times the seconds of gramless"

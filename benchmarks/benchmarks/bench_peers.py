"""Gramless and what people use today, in turns: each class asks one question.

Processes of their own cannot be timed by asv, so seconds are tracked. `setup_cache` measures all peers together; asv
knows it by its line, so that each class needs one of its own.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

from . import peers_distance, peers_grid, peers_linear, peers_logits, peers_rbf
from .base import sized
from .comparison import Comparison

ROWS = sized(4096, 200)
WIDTHS = sized((64, 512, 2048), (16,))
RBF_SHAPES = sized(((8192, 512),), ((90, 16),))
GRID_ROWS = sized(256, 40)
# layers of each model, width
GRID_SHAPES = sized(((12, 768), (32, 1024)), ((3, 16),))
# rows, labels, hidden size, and how far the models differ
LOGIT_CASES = sized(
    ((1024, 50257, 768, "apart"), (1024, 50257, 768, "near"), (1024, 50257, 2048, "apart")),
    ((40, 120, 16, "apart"),),
)
DISTANCE_CASES = sized(((2048, 131072, 1024, "apart"),), ((40, 120, 16, "apart"),))
# one thread: with more, a busy neighbour costs some peers far more than others
THREADS = 1
TIMEOUT = 900

Measured = dict[tuple[str, Any], Comparison]  # by peer and size


class PeerTracks(ABC):
    """What is shown of each peer. asv leaves out what is abstract."""

    timeout = TIMEOUT

    @abstractmethod
    def setup_cache(self) -> Measured: ...

    def setup(self, measured: Measured, peer: str, size: Any) -> None:
        if (peer, size) not in measured:
            raise NotImplementedError(f"{peer} is not installed")

    def track_seconds(self, measured: Measured, peer: str, size: Any) -> float:
        return measured[peer, size].seconds

    def track_peak_bytes(self, measured: Measured, peer: str, size: Any) -> int:
        return measured[peer, size].peak_bytes

    def track_gemm_fraction(self, measured: Measured, peer: str, size: Any) -> float:
        fraction = measured[peer, size].gemm_fraction
        return math.nan if fraction is None else fraction

    def track_error(self, measured: Measured, peer: str, size: Any) -> float:
        return measured[peer, size].error

    def track_times_ours(self, measured: Measured, peer: str, size: Any) -> float:
        """NaN where the answers differ: a wrong answer has no speed."""
        ratio = measured[peer, size].ratio
        return math.nan if ratio is None else ratio

    track_seconds.unit = "seconds"
    track_peak_bytes.unit = "bytes"
    track_gemm_fraction.unit = "fraction of the GEMM rate"
    track_error.unit = "relative error"
    track_times_ours.unit = "times the seconds of gramless"


class LinearPeers(PeerTracks):
    """Unbiased linear CKA of two matrices, all rows at once."""

    params = (tuple(peers_linear.PEERS), WIDTHS)
    param_names = ("peer", "width")

    def setup_cache(self) -> Measured:
        return {(row.peer, width): row for width in WIDTHS for row in peers_linear.compare(ROWS, width, THREADS)}

    setup_cache.timeout = TIMEOUT


class RbfPeers(PeerTracks):
    """Unbiased CKA of two RBF kernels."""

    params = (tuple(peers_rbf.PEERS), RBF_SHAPES)
    param_names = ("peer", "shape")

    def setup_cache(self) -> Measured:
        return {(row.peer, shape): row for shape in RBF_SHAPES for row in peers_rbf.compare(*shape, THREADS)}

    setup_cache.timeout = TIMEOUT


class GridPeers(PeerTracks):
    """From the activations of one batch to the linear CKA of all pairs of layers; `peers_grid` says what is timed."""

    params = (tuple(peers_grid.PEERS), GRID_SHAPES)
    param_names = ("peer", "shape")

    def setup_cache(self) -> Measured:
        compared = {shape: peers_grid.compare(*shape, THREADS, n=GRID_ROWS) for shape in GRID_SHAPES}
        return {(row.peer, shape): row for shape, rows in compared.items() for row in rows}

    setup_cache.timeout = TIMEOUT

    def track_pair_microseconds(self, measured: Measured, peer: str, shape: tuple[int, int]) -> float:
        return 1e6 * measured[peer, shape].pair_seconds

    track_pair_microseconds.unit = "microseconds per pair of layers"


class LogitPeers(PeerTracks):
    """KL both ways of each row, from hidden states and unembeddings of two models."""

    params = (tuple(peers_logits.PEERS), LOGIT_CASES)
    param_names = ("peer", "case")

    def setup_cache(self) -> Measured:
        return {(row.peer, case): row for case in LOGIT_CASES for row in peers_logits.compare(*case, THREADS)}

    setup_cache.timeout = TIMEOUT


class DistancePeers(PeerTracks):
    """The logit distance of each row; that of gramless has the factor of both unembeddings at hand."""

    params = (tuple(peers_distance.PEERS), DISTANCE_CASES)
    param_names = ("peer", "case")

    def setup_cache(self) -> Measured:
        return {(row.peer, case): row for case in DISTANCE_CASES for row in peers_distance.compare(*case, THREADS)}

    setup_cache.timeout = TIMEOUT

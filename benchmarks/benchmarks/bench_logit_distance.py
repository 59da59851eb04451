"""The logit distance by a factor of both unembeddings: making the factor, and rows once it is there."""

from __future__ import annotations

from typing import Any

import numpy as np

import gramless as gl

from .base import (
    BACKENDS,
    interleaved,
    median_ratio,
    peak_extra_bytes,
    relative_error,
    require_backend,
    seconds,
    sized,
)
from .logits import DIFFERENCES, factor_flops, factor_row_flops, sampled, true_pairs, two_models
from .rows import gemm_fraction

# rows, labels, hidden size
SHAPE = sized((16384, 131072, 1024), (40, 120, 16))
DATA = ("apart", "nearer")
# one vocabulary pass takes most of a minute
ROUNDS = sized(3, 1)
# all of it is in float64, whatever the inputs
ARITHMETIC = "float64"


def error(pair: gl.UnembeddingPair, models: Any) -> float:
    few = sampled(len(models.h1))
    return relative_error(
        np.sqrt(pair.squared_distances(models.h1[few], models.h2[few])), true_pairs(models)["logit_distance"]
    )


class Factor:
    """From two unembeddings in float32 to their factor."""

    params = (BACKENDS, DATA)
    param_names = ("backend", "data")
    timeout = 900

    def setup(self, backend: str, data: str) -> None:
        require_backend(backend)
        self.models = two_models(*SHAPE, "float32", difference=DIFFERENCES[data])
        self.backend = backend
        gl.UnembeddingPair(self.models.w1[:64], self.models.w2[:64], backend=backend)

    def run(self) -> gl.UnembeddingPair:
        return gl.UnembeddingPair(self.models.w1, self.models.w2, backend=self.backend)

    def time_factor(self, backend: str, data: str) -> None:
        self.run()

    def track_peak_bytes(self, backend: str, data: str) -> int:
        return peak_extra_bytes(self.run)

    def track_gemm_fraction(self, backend: str, data: str) -> float:
        _, labels, width = SHAPE
        return gemm_fraction(self.run, factor_flops(labels, width), ARITHMETIC)

    def track_error(self, backend: str, data: str) -> float:
        return error(self.run(), self.models)

    track_peak_bytes.unit = "bytes"
    track_gemm_fraction.unit = "fraction of the float64 GEMM rate"
    track_error.unit = "largest relative error of the distance of a row"


class FactorRows:
    """The distance of every row, with the factor at hand."""

    params = (DATA,)
    param_names = ("data",)
    timeout = 900

    def setup(self, data: str) -> None:
        require_backend("cpu")
        self.models = two_models(*SHAPE, "float32", difference=DIFFERENCES[data])
        self.pair = gl.UnembeddingPair(self.models.w1, self.models.w2, backend="cpu")
        self.pair.squared_distances(self.models.h1[:64], self.models.h2[:64])

    def run(self) -> np.ndarray:
        return self.pair.squared_distances(self.models.h1, self.models.h2)

    def time_rows(self, data: str) -> None:
        self.run()

    def track_peak_bytes(self, data: str) -> int:
        return peak_extra_bytes(self.run)

    def track_gemm_fraction(self, data: str) -> float:
        n, _, width = SHAPE
        return gemm_fraction(self.run, factor_row_flops(n, width), ARITHMETIC)

    def track_error(self, data: str) -> float:
        return error(self.pair, self.models)

    def track_times_quicker(self, data: str) -> float:
        """The seconds of one pass over the vocabulary in float32, in turns with these rows, over those of these."""
        calls = {"vocabulary": lambda: gl.logit_pairs(*self.models, backend="cpu"), "rows": self.run}
        taken = interleaved({name: lambda call=call: seconds(call) for name, call in calls.items()}, ROUNDS)
        return median_ratio(taken["vocabulary"], taken["rows"])

    track_peak_bytes.unit = "bytes"
    track_gemm_fraction.unit = "fraction of the float64 GEMM rate"
    track_error.unit = "largest relative error of the distance of a row"
    track_times_quicker.unit = "times quicker than a pass over the vocabulary"

"""The kernel `logit_pairs`, two models over one vocabulary: time, memory, fraction of the GEMM rate, error."""

from __future__ import annotations

from typing import Any

import gramless as gl

from .base import BACKENDS, DTYPES, peak_extra_bytes, require_backend, sized
from .logits import DIFFERENCES, divergences_error, pair_flops, pairs_error, true_pairs, two_models
from .rows import gemm_fraction

# rows, labels, hidden size; the last one is where memory is promised
SHAPES = sized(
    ((64, 50257, 768), (1024, 50257, 768), (1024, 50257, 2048), (4096, 131072, 512)),
    ((40, 120, 16),),
)
# the definition holds arrays of rows x labels in float64
REFERENCE_ROWS = 64
FLOAT64_WIDTH = sized(768, 16)
DIVERGENCES_SHAPE = sized((1024, 50257, 768), (40, 120, 16))
# bytes for logits: the default holds those of some rows; with one, all are computed twice
WORKSPACES = {"kept logits": None, "second pass": 1}


class LogitPairs:
    """One pass over the labels for both models: KL both ways, logit distance and what else follows."""

    params = (BACKENDS, DTYPES, SHAPES)
    param_names = ("backend", "dtype", "shape")
    timeout = 600

    def setup(self, backend: str, dtype: str, shape: tuple[int, int, int]) -> None:
        require_backend(backend)
        n, _, width = shape
        if backend == "reference" and n > REFERENCE_ROWS:
            raise NotImplementedError("the definition is for few rows")
        if dtype == "float64" and width != FLOAT64_WIDTH:
            raise NotImplementedError(f"float64 is measured at {FLOAT64_WIDTH} columns only")
        self.models = two_models(*shape, dtype, difference=DIFFERENCES["apart"])
        self.backend = backend
        # the thread pool starts and lazy imports happen here
        h1, w1, h2, w2 = self.models
        gl.logit_pairs(h1[:8], w1[:64], h2[:8], w2[:64], backend=backend)

    def run(self) -> Any:
        return gl.logit_pairs(*self.models, backend=self.backend)

    def time_logit_pairs(self, backend: str, dtype: str, shape: tuple[int, int, int]) -> None:
        self.run()

    def track_peak_bytes(self, backend: str, dtype: str, shape: tuple[int, int, int]) -> int:
        return peak_extra_bytes(self.run)

    def track_gemm_fraction(self, backend: str, dtype: str, shape: tuple[int, int, int]) -> float:
        return gemm_fraction(self.run, pair_flops(*shape), dtype)

    def track_error(self, backend: str, dtype: str, shape: tuple[int, int, int]) -> float:
        return pairs_error(self.run(), true_pairs(self.models))

    track_peak_bytes.unit = "bytes"
    track_gemm_fraction.unit = "fraction of the GEMM rate"
    track_error.unit = "largest relative error of KL both ways and logit distance"


class Divergences:
    """The same with Jensen-Shannon divergence and total variation, which need both normalisers first."""

    params = (tuple(WORKSPACES), DTYPES)
    param_names = ("way", "dtype")
    timeout = 600

    def setup(self, way: str, dtype: str) -> None:
        require_backend("cpu")
        self.models = two_models(*DIVERGENCES_SHAPE, dtype, difference=DIFFERENCES["apart"])
        self.workspace = WORKSPACES[way]
        h1, w1, h2, w2 = self.models
        gl.logit_pairs(h1[:8], w1[:64], h2[:8], w2[:64], backend="cpu")

    def run(self) -> Any:
        return gl.logit_pairs(*self.models, divergences=True, workspace=self.workspace, backend="cpu")

    def time_divergences(self, way: str, dtype: str) -> None:
        self.run()

    def track_peak_bytes(self, way: str, dtype: str) -> int:
        return peak_extra_bytes(self.run)

    def track_gemm_fraction(self, way: str, dtype: str) -> float:
        """Of the operations of one pass."""
        return gemm_fraction(self.run, pair_flops(*DIVERGENCES_SHAPE), dtype)

    def track_error(self, way: str, dtype: str) -> float:
        return divergences_error(self.run(), true_pairs(self.models))

    track_peak_bytes.unit = "bytes"
    track_gemm_fraction.unit = "fraction of the GEMM rate"
    track_error.unit = "largest relative error of JS and TV"

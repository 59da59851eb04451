"""The kernel `logsumexp`, one model over its vocabulary: time, memory, fraction of the GEMM rate, error."""

from __future__ import annotations

from typing import Any

import gramless as gl

from .base import BACKENDS, DTYPES, peak_extra_bytes, require_backend, sized
from .logits import DIFFERENCES, one_error, pair_flops, true_one, two_models
from .rows import gemm_fraction

# rows, labels, hidden size
SHAPES = sized(((64, 50257, 768), (1024, 50257, 768), (1024, 50257, 2048)), ((40, 120, 16),))
# the definition holds arrays of rows x labels in float64
REFERENCE_ROWS = 64
FLOAT64_WIDTH = sized(768, 16)


class LogSumExp:
    """One pass over the labels for rows that lie in memory."""

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
        self.h, self.w, _, _ = two_models(*shape, dtype, difference=DIFFERENCES["apart"])
        self.backend = backend
        # the thread pool starts and lazy imports happen here
        gl.logsumexp(self.h[:8], self.w[:64], backend=backend)

    def run(self) -> Any:
        return gl.logsumexp(self.h, self.w, backend=self.backend)

    def time_logsumexp(self, backend: str, dtype: str, shape: tuple[int, int, int]) -> None:
        self.run()

    def track_peak_bytes(self, backend: str, dtype: str, shape: tuple[int, int, int]) -> int:
        return peak_extra_bytes(self.run)

    def track_gemm_fraction(self, backend: str, dtype: str, shape: tuple[int, int, int]) -> float:
        return gemm_fraction(self.run, pair_flops(*shape) // 2, dtype)

    def track_error(self, backend: str, dtype: str, shape: tuple[int, int, int]) -> float:
        return one_error(self.run(), true_one(self.h, self.w))

    track_peak_bytes.unit = "bytes"
    track_gemm_fraction.unit = "fraction of the GEMM rate"
    track_error.unit = "largest relative error of lse, entropy and Renyi entropy"

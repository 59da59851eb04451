"""The kernel `moments`: time, memory, the fraction of the machine's GEMM rate, and how right the answer is."""

from __future__ import annotations

from typing import Any

import gramless as gl

from .base import (
    BACKENDS,
    DTYPES,
    activations,
    flops,
    peak_extra_bytes,
    relative_error,
    require_backend,
    sized,
    true_cka,
)
from .rows import gemm_fraction

ROWS = sized(20_000, 300)
WIDTHS = sized((64, 512, 2048), (24,))
BATCHES = sized((32, 256, 4096), (50,))
BATCH_WIDTH = sized(512, 24)


class Moments:
    """One pass over two matrices that lie in memory."""

    params = (BACKENDS, DTYPES, WIDTHS)
    param_names = ("backend", "dtype", "width")
    timeout = 600

    def setup(self, backend: str, dtype: str, width: int) -> None:
        require_backend(backend)
        self.x, self.y = activations(ROWS, width, width, dtype)
        self.backend = backend
        # the thread pool starts and lazy imports happen here
        gl.moments(self.x[:256], self.y[:256], backend=backend)

    def run(self) -> Any:
        return gl.moments(self.x, self.y, backend=self.backend)

    def time_moments(self, backend: str, dtype: str, width: int) -> None:
        self.run()

    def track_peak_bytes(self, backend: str, dtype: str, width: int) -> int:
        return peak_extra_bytes(self.run)

    def track_gemm_fraction(self, backend: str, dtype: str, width: int) -> float:
        return gemm_fraction(self.run, flops(ROWS, width, width), dtype)

    def track_error(self, backend: str, dtype: str, width: int) -> float:
        return relative_error(gl.cka(self.run()), true_cka(self.x, self.y))

    track_peak_bytes.unit = "bytes"
    track_gemm_fraction.unit = "fraction of the GEMM rate"
    track_error.unit = "relative error of unbiased CKA"


class Streaming:
    """The same pass in batches through the accumulator, as a user with a data loader runs it."""

    params = (BACKENDS, BATCHES)
    param_names = ("backend", "batch")
    timeout = 600

    def setup(self, backend: str, batch: int) -> None:
        require_backend(backend)
        self.x, self.y = activations(ROWS, BATCH_WIDTH, BATCH_WIDTH, "float32")
        self.backend, self.batch = backend, batch
        gl.Moments(backend=backend).update(self.x[:batch], self.y[:batch])

    def run(self) -> Any:
        moments = gl.Moments(backend=self.backend)
        for start in range(0, ROWS, self.batch):
            rows = slice(start, start + self.batch)
            moments.update(self.x[rows], self.y[rows])
        return moments

    def time_updates(self, backend: str, batch: int) -> None:
        self.run()

    def track_peak_bytes(self, backend: str, batch: int) -> int:
        return peak_extra_bytes(self.run)

    def track_gemm_fraction(self, backend: str, batch: int) -> float:
        return gemm_fraction(self.run, flops(ROWS, BATCH_WIDTH, BATCH_WIDTH))

    def track_error(self, backend: str, batch: int) -> float:
        return relative_error(gl.cka(self.run().finalize()), true_cka(self.x, self.y))

    track_peak_bytes.unit = "bytes"
    track_gemm_fraction.unit = "fraction of the GEMM rate"
    track_error.unit = "relative error of unbiased CKA"

"""The kernel `gram_sums` for RBF CKA: time, memory, the fraction of the machine's GEMM rate, and how right it is."""

from __future__ import annotations

from typing import Any

import gramless as gl

from .base import (
    BACKENDS,
    DTYPES,
    activations,
    peak_extra_bytes,
    relative_error,
    require_backend,
    sized,
)
from .rbf import gram_flops, sums, true_rbf_cka
from .rows import gemm_fraction

SHAPES = sized(((1024, 512), (8192, 64), (8192, 512), (8192, 4096)), ((90, 16),))
# the definition holds whole Gram matrices, 64 n^2 bytes
REFERENCE_ROWS = 1024
# float32 everywhere, the other dtypes at few shapes
OTHER_DTYPES_WIDTH = sized(512, 16)


class GramSums:
    """One pass over all pairs of rows of two matrices that lie in memory."""

    params = (BACKENDS, DTYPES, SHAPES)
    param_names = ("backend", "dtype", "shape")
    timeout = 600

    def setup(self, backend: str, dtype: str, shape: tuple[int, int]) -> None:
        require_backend(backend)
        n, width = shape
        if backend == "reference" and n > REFERENCE_ROWS:
            raise NotImplementedError("the definition is for few rows")
        if dtype != "float32" and width != OTHER_DTYPES_WIDTH:
            raise NotImplementedError(f"{dtype} is measured at {OTHER_DTYPES_WIDTH} columns only")
        self.x, self.y = activations(n, width, width, dtype)
        self.backend = backend
        # the thread pool starts and lazy imports happen here
        sums(self.x[:64], self.y[:64], backend)

    def run(self) -> Any:
        return sums(self.x, self.y, self.backend)

    def time_gram_sums(self, backend: str, dtype: str, shape: tuple[int, int]) -> None:
        self.run()

    def track_peak_bytes(self, backend: str, dtype: str, shape: tuple[int, int]) -> int:
        return peak_extra_bytes(self.run)

    def track_gemm_fraction(self, backend: str, dtype: str, shape: tuple[int, int]) -> float:
        n, width = shape
        return gemm_fraction(self.run, gram_flops(n, width, width), dtype)

    def track_error(self, backend: str, dtype: str, shape: tuple[int, int]) -> float:
        return relative_error(gl.cka(self.run()), true_rbf_cka(self.x, self.y))

    track_peak_bytes.unit = "bytes"
    track_gemm_fraction.unit = "fraction of the GEMM rate"
    track_error.unit = "relative error of unbiased CKA"

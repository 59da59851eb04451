"""CKA of all pairs of layers of two models from batches: one update of `LayerGrid(mode="minibatch")`."""

from __future__ import annotations

from typing import Any

import gramless as gl

from .base import BACKENDS, peak_extra_bytes, relative_error, require_backend, seconds, sized
from .grids import grid_flops, grid_layers, true_grid
from .rbf import bandwidth
from .rows import gemm_fraction

ROWS = sized(256, 40)
# layers of each model, width
SHAPES = sized(((12, 768), (32, 1024)), ((3, 16),))
KERNELS = ("linear", "rbf")


class MinibatchGrid:
    """One batch more, in a grid that has seen one."""

    params = (BACKENDS, KERNELS, SHAPES)
    param_names = ("backend", "kernel", "shape")
    timeout = 600

    def setup(self, backend: str, kernel: str, shape: tuple[int, int]) -> None:
        require_backend(backend)
        layers, width = shape
        # column means of three deviations, as in the other suites
        self.layers = grid_layers(layers, ROWS, width, offset=3.0)
        chosen = bandwidth(width) if kernel == "rbf" else None
        self.grid = gl.LayerGrid("minibatch", kernel=kernel, bandwidth=chosen, backend=backend)
        self.run()

    def run(self) -> Any:
        return self.grid.update(*self.layers)

    def time_update(self, backend: str, kernel: str, shape: tuple[int, int]) -> None:
        self.run()

    def track_peak_bytes(self, backend: str, kernel: str, shape: tuple[int, int]) -> int:
        return peak_extra_bytes(self.run)

    def track_gemm_fraction(self, backend: str, kernel: str, shape: tuple[int, int]) -> float:
        layers, width = shape
        return gemm_fraction(self.run, grid_flops(layers, ROWS, width))

    def track_pair_microseconds(self, backend: str, kernel: str, shape: tuple[int, int]) -> float:
        return 1e6 * seconds(self.run) / shape[0] ** 2

    def track_error(self, backend: str, kernel: str, shape: tuple[int, int]) -> float:
        return relative_error(self.run().finalize().values, true_grid(*self.layers, kernel))

    track_peak_bytes.unit = "bytes"
    track_gemm_fraction.unit = "fraction of the GEMM rate"
    track_pair_microseconds.unit = "microseconds per pair of layers"
    track_error.unit = "largest relative error of unbiased CKA"

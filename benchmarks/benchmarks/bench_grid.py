"""CKA of all pairs of layers of two models: one update of `LayerGrid(mode="minibatch")`, and the exact grid."""

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
from .grids import grid_flops, grid_layers, true_grid
from .rbf import bandwidth
from .rows import gemm_fraction

ROWS = sized(256, 40)
# layers of each model, width
SHAPES = sized(((12, 768), (32, 1024)), ((3, 16),))
KERNELS = ("linear", "rbf")
# layers of each model, rows, width
EXACT_SHAPES = sized(((12, 1024, 64), (17, 1000, 6)), ((3, 40, 16),))


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


class ExactGrid:
    """All rows at once: each layer is read once."""

    params = (EXACT_SHAPES,)
    param_names = ("shape",)
    timeout = 600

    def setup(self, shape: tuple[int, int, int]) -> None:
        layers, n, width = shape
        self.layers = grid_layers(layers, n, width, offset=3.0)
        self.whole = [np.concatenate(side, axis=1) for side in self.layers]
        pivots = {"pivot_x": self.whole[0].mean(0), "pivot_y": self.whole[1].mean(0)}
        self.crossed = {**pivots, "self_terms": False}
        self.run()

    def run(self) -> Any:
        return gl.LayerGrid("exact").update(*self.layers)

    def time_update(self, shape: tuple[int, int, int]) -> None:
        self.run()

    def track_peak_bytes(self, shape: tuple[int, int, int]) -> int:
        return peak_extra_bytes(self.run)

    def track_gemm_fraction(self, shape: tuple[int, int, int]) -> float:
        layers, n, width = shape
        p = layers * width
        return gemm_fraction(self.run, 2 * n * p * p + 2 * layers * n * width * (width + 1))

    def track_ratio_to_a_cross_pass(self, shape: tuple[int, int, int]) -> float:
        """The time of the grid over that of one cross pass of `moments` over the layers side by side."""
        taken = interleaved(
            {
                "grid": lambda: seconds(self.run),
                "cross": lambda: seconds(lambda: gl.moments(*self.whole, **self.crossed)),
            }
        )
        return median_ratio(taken["grid"], taken["cross"])

    def track_error(self, shape: tuple[int, int, int]) -> float:
        return relative_error(self.run().finalize().values, true_grid(*self.layers, "linear"))

    track_peak_bytes.unit = "bytes"
    track_gemm_fraction.unit = "fraction of the GEMM rate"
    track_ratio_to_a_cross_pass.unit = "times one cross pass over the concatenated layers"
    track_error.unit = "largest relative error of unbiased CKA"

"""All pairs of layers of two models from files on disk, as `gramless compare` does it, out of the page cache."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from gramless.files.compare_layers import compare_files

from .base import (
    BACKENDS,
    activations,
    peak_extra_bytes,
    relative_error,
    require_backend,
    sized,
    true_cka,
)
from .rows import gemm_fraction

ROWS = sized(8192, 120)
WIDTH = sized(512, 16)
LAYERS = sized(3, 2)
FORMATS = ("npy", "npz", "safetensors")


def write(folder: Path, name: str, layers: dict[str, np.ndarray], form: str) -> Path:
    """One model: a folder with a folder per layer for .npy, one file for the other formats."""
    path = folder / (name if form == "npy" else f"{name}.{form}")
    if form == "npy":
        for layer, rows in layers.items():
            (path / layer).mkdir(parents=True)
            np.save(path / layer / "rows.npy", rows)
    elif form == "npz":
        np.savez(path, **layers)
    else:
        save_file(layers, path)
    return path


def grid_flops() -> int:
    """Symmetric products of each layer at half, and one product per pair."""
    return ROWS * (2 * LAYERS * WIDTH * (WIDTH + 1) + 2 * LAYERS**2 * WIDTH**2)


class CompareFiles:
    """Open, read in chunks, add up, and evaluate the whole matrix."""

    params = (BACKENDS, FORMATS)
    param_names = ("backend", "format")
    timeout = 600

    def setup(self, backend: str, form: str) -> None:
        require_backend(backend)
        self.backend = backend
        self.pairs = [activations(ROWS, WIDTH, WIDTH, "float32", seed=layer) for layer in range(LAYERS)]
        # kept by the instance: it is removed with it, also if a benchmark fails
        self.folder = tempfile.TemporaryDirectory()
        self.paths = [
            write(Path(self.folder.name), model, {f"layer{i}": pair[side] for i, pair in enumerate(self.pairs)}, form)
            for side, model in enumerate(("a", "b"))
        ]
        self.run()

    def teardown(self, backend: str, form: str) -> None:
        if hasattr(self, "folder"):
            self.folder.cleanup()

    def run(self) -> Any:
        return compare_files(*self.paths, backend=self.backend)

    def time_compare(self, backend: str, form: str) -> None:
        self.run()

    def track_peak_bytes(self, backend: str, form: str) -> int:
        return peak_extra_bytes(self.run)

    def track_gemm_fraction(self, backend: str, form: str) -> float:
        return gemm_fraction(self.run, grid_flops())

    def track_error(self, backend: str, form: str) -> float:
        """The largest over the matched layers; the true value of the others is near zero."""
        values = self.run().values
        return max(relative_error(float(values[i, i]), true_cka(*pair)) for i, pair in enumerate(self.pairs))

    track_peak_bytes.unit = "bytes"
    track_gemm_fraction.unit = "fraction of the GEMM rate"
    track_error.unit = "largest relative error of unbiased CKA"

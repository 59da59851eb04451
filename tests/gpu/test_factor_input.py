"""What comes to a factor on a GPU: layouts, masks, chunks, tiles, and rows that are refused."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import gramless as gl
from gramless._base import arguments, gpu_arrays
from gramless._triton.factor import products
from gramless._triton.tiles import launch
from support import backends, bounds, device
from support.backends import Backend
from support.factors import BACKEND, PRECISIONS, assert_is_truth, rows, with_a_column
from support.heads import models


class TestInput:
    @pytest.mark.parametrize("name", backends.LAYOUTS)
    @pytest.mark.parametrize("dtype", ["fp32", "bf16"])
    def test_layouts(self, gpu_backend: Backend, name: str, dtype: str) -> None:
        h1, w1, h2, w2 = models(300, 20, 20, 9, dtype)
        pair = gl.UnembeddingPair(w1, w2)
        want = rows(pair, h1, h2)
        laid = [backends.layouts(a)[name] for a in (h1, h2)]
        bounds.assert_same_bits(rows(pair, *laid), want)

    @pytest.mark.parametrize("n", [0, 1])
    @pytest.mark.parametrize("precision", PRECISIONS)
    def test_few_rows(self, gpu_backend: Backend, n: int, precision: str) -> None:
        h1, w1, h2, w2 = models(50, 7, 5, 3, "fp32")
        pair = gl.UnembeddingPair(w1, w2)
        got = rows(pair, h1[:n], h2[:n], precision)
        bounds.assert_same_bits(got, rows(pair, h1, h2, precision)[:n])

    @pytest.mark.parametrize("on_device", [True, False])
    @pytest.mark.parametrize("precision", PRECISIONS)
    def test_rows_that_do_not_count(self, gpu_backend: Backend, precision: str, on_device: bool) -> None:
        h1, w1, h2, w2 = models(50, 7, 7, 140, "fp32")
        pair, mask = gl.UnembeddingPair(w1, w2), np.arange(140) % 3 > 0
        want = rows(pair, h1, h2, precision)[mask]
        h1[~mask], h2[~mask] = np.nan, np.inf
        given = torch.from_numpy(mask).to("cuda" if device.label() == "cuda" else "cpu") if on_device else mask
        bounds.assert_same_bits(rows(pair, h1, h2, precision, mask=given), want)
        assert rows(pair, h1, h2, precision, mask=np.zeros(140, bool)).shape == (0,)

    def test_chunks_of_rows(self, gpu_backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whatever the workspace holds, also where the rows done again take several rounds."""
        (h1, w1, h2, w2), _ = with_a_column(300, 20, 400, 1e-4)
        h1[100:390] *= 2
        pair = gl.UnembeddingPair(w1, w2)
        want = rows(pair, h1, h2)
        for size in (0, 256 * 4 * 128, 384 * 4 * 128):
            monkeypatch.setattr(launch, "WORKSPACE_BYTES", size)
            bounds.assert_same_bits(rows(pair, h1, h2), want)

    @pytest.mark.parametrize("shape", list(itertools.product((64, 128), (64, 256), (16, 32))), ids=str)
    def test_tiles(self, gpu_backend: Backend, shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
        """Of every shape that an architecture has."""
        of = models(300, 70, 60, 40, "bf16")
        configs = {"high": {device.label(): (launch.Config(*shape, 4, 1),)}}
        monkeypatch.setattr(launch, "architecture", lambda _: device.label())
        monkeypatch.setattr(products, "CONFIGS", products.CONFIGS | configs)
        assert_is_truth(of, "high")

    def test_long_sums_are_cut(self, gpu_backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(products, "_STEPS", {"fast": 64, "high": 64, "exact": 64})
        for precision in PRECISIONS:
            assert_is_truth(models(300, 100, 90, 20, "fp32"), precision)

    @pytest.mark.parametrize("precision", PRECISIONS)
    def test_runs_agree_to_the_bit(self, gpu_backend: Backend, precision: str) -> None:
        h1, w1, h2, w2 = models(300, 20, 15, 140, "fp32")
        first, second = (rows(gl.UnembeddingPair(w1, w2), h1, h2, precision) for _ in "ab")
        bounds.assert_same_bits(first, second)


class TestFaults:
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize(("name", "row", "column"), [("h1", 0, 0), ("h1", 139, 6), ("h2", 130, 4)])
    def test_rows_that_are_not_finite(
        self, gpu_backend: Backend, name: str, row: int, column: int, value: float
    ) -> None:
        h1, w1, h2, w2 = models(50, 7, 5, 140, "fp32")
        {"h1": h1, "h2": h2}[name][row, column] = value
        pair = gl.UnembeddingPair(w1, w2)
        for precision in PRECISIONS:
            with pytest.raises(ValueError, match=rf"^UnembeddingPair.*{name} has non-finite values in row {row}$"):
                rows(pair, h1, h2, precision)

    def test_differences_of_infinities(self, gpu_backend: Backend) -> None:
        h1, w1, h2, w2 = models(50, 7, 7, 9, "fp16")
        h1[3, 2], h2[3, 2] = np.inf, np.inf
        with pytest.raises(ValueError, match=r"h1 has non-finite values in row 3 \(float16 holds at most 65504"):
            rows(gl.UnembeddingPair(w1, w2), h1, h2)

    def test_the_first_row_of_all_chunks(self, gpu_backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(launch, "WORKSPACE_BYTES", 0)
        h1, w1, h2, w2 = models(50, 7, 5, 300, "fp32")
        h1[260:] = np.nan
        with pytest.raises(ValueError, match=r"h1 has non-finite values in row 260$"):
            rows(gl.UnembeddingPair(w1, w2), h1, h2)

    def test_overflow(self, gpu_backend: Backend) -> None:
        h1, w1, h2, w2 = models(50, 7, 5, 9)
        with pytest.raises(ValueError, match="squared distances overflow"):
            rows(gl.UnembeddingPair(1e100 * w1, 1e100 * w2), 1e100 * h1, 1e100 * h2)

    def test_arguments(self, gpu_backend: Backend) -> None:
        h1, w1, h2, w2 = models(50, 7, 5, 9, "fp32")
        pair = gl.UnembeddingPair(w1, w2)
        for options, error, message in (
            ({"mask": np.ones(8, bool)}, ValueError, "mask of shape"),
            ({"mask": np.ones(9)}, TypeError, "array of bool"),
            ({"precision": "low"}, ValueError, "precision to be one of"),
        ):
            with pytest.raises(error, match=f"^UnembeddingPair.squared_distances: .*{message}"):
                rows(pair, h1, h2, **options)
        with pytest.raises(ValueError, match="expected h1 with the hidden size 7"):
            rows(pair, h2, h2)
        with pytest.raises(ValueError, match="same number of rows"):
            rows(pair, h1, h2[:3])

    def test_masks_on_a_gpu_are_judged_unread(self, monkeypatch: pytest.MonkeyPatch) -> None:
        h1, w1, h2, w2 = (device.tensor(a) for a in models(50, 7, 5, 9, "fp32"))
        pair = gl.UnembeddingPair(w1, w2, backend=BACKEND)
        monkeypatch.setattr(arguments, "gpu_of", lambda a: "cuda:0" if isinstance(a, torch.Tensor) else "")
        for mask, error, message in (
            (torch.ones(8, dtype=torch.bool), ValueError, "mask of shape"),
            (torch.ones(9), TypeError, "array of bool, .* got dtype torch.float32"),
        ):
            with pytest.raises(error, match=f"^UnembeddingPair.squared_distances: .*{message}"):
                pair.squared_distances(h1, h2, mask=mask, backend="cuda")

    @pytest.mark.parametrize("backend", ["cpu", "reference"])
    def test_backends_of_the_host(self, monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
        h1, w1, h2, w2 = models(50, 7, 5, 9, "fp32")
        pair = gl.UnembeddingPair(w1, w2)
        for module in (arguments, gpu_arrays):
            monkeypatch.setattr(module, "gpu_of", lambda _: "cuda:0")
        with pytest.raises(
            RuntimeError, match=f"^UnembeddingPair.squared_distances: backend='{backend}' reads host memory"
        ):
            pair.squared_distances(h1, h2, backend=backend)

    def test_arrays_of_the_host_need_a_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        h1, w1, h2, w2 = models(50, 7, 5, 9, "fp32")
        pair = gl.UnembeddingPair(w1, w2)
        monkeypatch.setattr(launch, "interpreting", lambda: False)
        with pytest.raises(
            RuntimeError, match=r"^UnembeddingPair\.squared_distances: backend='cuda' needs tensors on a GPU"
        ):
            pair.squared_distances(h1, h2, backend="cuda")

"""The bytes that `explain` says of predictions on a GPU are those that they take of its memory."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

import gramless as gl
from gramless._base import async_host_copies
from gramless._triton import moments
from gramless._triton.tiles import launch
from support import device, device_memory
from support.backends import Backend
from support.logit_calls import arguments, choices, tensors

KIB = 1 << 10


@pytest.fixture
def small_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "WORKSPACE_BYTES", 128 * KIB)


class TestBytes:
    @pytest.mark.parametrize(
        ("function", "shapes", "dtype", "names", "keywords"),
        [
            ("logsumexp", (300, 700, 8, 1), "float32", "", {}),
            ("logsumexp", (300, 700, 8, 1), "float64", "b labels mask targets", {}),
            ("logit_pairs", (300, 700, 8, 5), "float32", "", {}),
            ("logit_pairs", (300, 700, 8, 5), "bfloat16", "b1 labels", {"divergences": True}),
            ("logit_pairs", (300, 700, 8, 5), "float32", "b1 b2 mask targets", {"precision": "exact"}),
            # chunks of rows, and of labels, twice
            ("logit_pairs", (600, 600, 8, 5), "float32", "labels targets", {"workspace": 2100 * KIB}),
            ("logit_pairs", (600, 600, 8, 5), "float32", "", {"workspace": 2100 * KIB, "divergences": True}),
            ("logit_pairs", (300, 1100, 8, 5), "float16", "mask", {"workspace": KIB, "divergences": True}),
            ("compare_logits", (500, 700, 8, 5), "float32", "b1 labels", {}),
            ("compare_logits", (600, 400, 8, 1000), "float32", "mask targets", {"batch_rows": 256, "workspace": KIB}),
            ("logit_distance", (300, 700, 8, 5), "float32", "b1 b2 labels", {"method": "vocabulary"}),
            ("logit_distance", (300, 700, 8, 5), "bfloat16", "mask", {"method": "vocabulary"}),
        ],
        ids=str,
    )
    def test_of_predictions(
        self,
        function: str,
        shapes: tuple[int, ...],
        dtype: str,
        names: str,
        keywords: dict,
        gpu_backend: Backend,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        # of what is on its way to the host, the interpreter would keep all that a GPU has sent
        monkeypatch.setattr(async_host_copies, "PENDING_BATCHES", 0)
        options = choices(*shapes[:2], names) | keywords | {"backend": gpu_backend.name}
        arrays = arguments(function, *tensors(*shapes, dtype))
        said = gl.explain(function, *arrays, **options)
        # batches on their way to the host, and whether their rows are finite, are not all counted
        call = partial(getattr(gl, function), *arrays, **options)
        device_memory.assert_said(said.peak_extra_bytes, call, to_the_byte=function != "compare_logits")

    @pytest.mark.parametrize("divergences", [False, True])
    def test_of_logits_that_are_given(self, divergences: bool, gpu_backend: Backend) -> None:
        h1, w1, h2, w2 = tensors(400, 70, 8, 5, "float32")
        for second in ((h2, w2), (h2 @ w2.T, None)):
            call = partial(gl.logit_pairs, h1 @ w1.T, None, *second, divergences=divergences, backend=gpu_backend.name)
            said = gl.explain("logit_pairs", *call.args, **call.keywords)
            device_memory.assert_said(said.peak_extra_bytes, call, to_the_byte=True)

    def test_results_are_part_of_them(self, gpu_backend: Backend) -> None:
        few, many = (
            gl.explain("logit_pairs", *tensors(n, 3, 2, 2, "float32"), workspace=1, backend=gpu_backend.name)
            for n in (20_480, 40_960)
        )
        assert many.peak_extra_bytes - few.peak_extra_bytes == 20_480 * 8 * 21

    def test_are_those_of_the_workspace(self, gpu_backend: Backend) -> None:
        """Where there is much to do."""
        h, w = (device.tensor(np.zeros((1, 1), np.float32)).expand(count, 4096) for count in (100_000, 128_256))
        for options, most in (({}, 512 * KIB**2), ({"workspace": 64 * KIB**2}, 64 * KIB**2)):
            said = gl.explain("logit_pairs", h, w, h, w, **options, divergences=True, backend=gpu_backend.name)
            assert 0.9 * most < said.peak_extra_bytes - 100_000 * 8 * 21 < 1.1 * most


class TestFactorBytes:
    @pytest.fixture(autouse=True)
    def of_the_interpreter(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Moments in float64 tell the bytes of tiles on an H100, here too."""
        tile_bytes = moments.tile_bytes
        if device.label() != "cuda":
            monkeypatch.setattr(moments, "tile_bytes", lambda *shape: tile_bytes(*shape[:4], "interpret", 1))

    @pytest.mark.parametrize(
        ("shapes", "dtypes", "names", "keywords"),
        [
            ((300, 700, 40, 30), ("float32",), "", {}),
            ((300, 3000, 100, 100), ("bfloat16",), "mask labels b1 b2", {"precision": "fast"}),
            ((300, 200, 150, 100), ("float32",), "", {"precision": "exact"}),
            ((300, 500, 200, 130), ("bfloat16",), "", {}),
            ((2000, 300, 100, 70), ("float32", "float64"), "mask", {}),
        ],
        ids=str,
    )
    def test_of_a_distance(
        self,
        shapes: tuple[int, ...],
        dtypes: tuple[str, ...],
        names: str,
        keywords: dict,
        gpu_backend: Backend,
        small_workspace: None,
    ) -> None:
        options = choices(*shapes[:2], names) | keywords | {"method": "factor", "backend": gpu_backend.name}
        arrays = tensors(*shapes, *dtypes)
        said = gl.explain("logit_distance", *arrays, **options)
        device_memory.assert_said(said.peak_extra_bytes, lambda: gl.logit_distance(*arrays, **options))

    @pytest.mark.parametrize(
        ("dtypes", "precision"),
        [
            (("float32",), "high"),
            (("float32",), "fast"),
            (("bfloat16",), "high"),
            (("float32", "float32", "bfloat16", "float32"), "high"),
            (("float64",), "high"),
            (("bfloat16",), "exact"),
        ],
        ids=str,
    )
    def test_of_a_pair(
        self, dtypes: tuple[str, ...], precision: str, gpu_backend: Backend, small_workspace: None
    ) -> None:
        """The first time, and once the factor is there; also rows that are done in several chunks."""
        h1, w1, h2, w2 = tensors(400, 300, 100, 80, *dtypes)
        pair = gl.UnembeddingPair(*(w.cpu().double() for w in (w1, w2)))
        for mask in (None, np.arange(400) % 3 > 0):
            options = {"pair": pair, "precision": precision, "mask": mask, "backend": gpu_backend.name}
            call = partial(gl.logit_distance, h1, None, h2, None, **options)
            if device.label() == "cuda" and mask is None:
                # measured by a second call there
                call()
            said = gl.explain("logit_distance", *call.args, **call.keywords)
            device_memory.assert_said(said.peak_extra_bytes, call)

    def test_of_a_pair_in_other_precisions(self, gpu_backend: Backend, small_workspace: None) -> None:
        h1, w1, h2, w2 = tensors(100, 400, 200, 150, "float32")
        pair = gl.UnembeddingPair(w1.cpu(), w2.cpu())
        told = {}
        for precision in ("exact", "fast", "high", "fast", "exact"):
            call = partial(gl.logit_distance, h1, None, h2, None, pair=pair, precision=precision, backend="cuda")
            said = gl.explain("logit_distance", *call.args, **call.keywords).peak_extra_bytes
            assert precision not in told or said < told[precision]
            told[precision] = said
            call()

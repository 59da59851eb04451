"""Squared distances of rows by a factor on a GPU against the dense definition in extended precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import gramless as gl
from gramless._triton.factor import pack
from gramless._triton.factor import rows as factor_rows
from support import bounds, cases, device, factors, gpu_bounds
from support.backends import Backend
from support.factors import PRECISIONS, assert_is_truth, rows, with_a_column
from support.heads import models, near, truth

# (V, d1, d2, N), some wider than a step and than a tile
SHAPES = (
    (50, 7, 7, 9), (50, 7, 5, 9), (300, 64, 64, 3), (400, 65, 63, 130), (500, 90, 100, 40), (6, 5, 2, 3), (2, 1, 1, 1),
    (30, 20, 20, 5),
)  # fmt: skip


class TestValues:
    @pytest.mark.parametrize("precision", PRECISIONS)
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_are_the_definition(self, gpu_backend: Backend, shape: tuple[int, ...], precision: str) -> None:
        assert_is_truth(models(*shape, "fp32"), precision)

    @pytest.mark.parametrize("precision", PRECISIONS)
    @pytest.mark.parametrize("shape", [(300, 20, 20, 9), (300, 64, 60, 9)], ids=str)
    def test_with_biases(self, gpu_backend: Backend, shape: tuple[int, ...], precision: str) -> None:
        assert_is_truth(models(*shape, "fp32"), precision, biased=True)

    @pytest.mark.parametrize("precision", PRECISIONS)
    @pytest.mark.parametrize("sizes", [(20, 20), (20, 15)], ids=str)
    @pytest.mark.parametrize(("dtype", "other"), [*((d, d) for d in cases.DTYPES), ("bf16", "fp32"), ("fp32", "bf16")])
    def test_dtypes(self, gpu_backend: Backend, dtype: str, other: str, sizes: tuple[int, int], precision: str) -> None:
        """With float64 all is exact, whatever was asked for; bfloat16 is taken as it is."""
        in_float64 = "fp64" in (dtype, other)
        assert_is_truth(models(300, *sizes, 9, dtype, other), "exact" if in_float64 else precision)

    @pytest.mark.parametrize("precision", PRECISIONS)
    @pytest.mark.parametrize("dtype", ["fp32", "bf16"])
    @pytest.mark.parametrize("ratio", [1e-2, 1e-4])
    def test_near_equal_models_are_resolved(
        self, gpu_backend: Backend, ratio: float, dtype: str, precision: str
    ) -> None:
        assert_is_truth(near(400, 24, 30, ratio, dtype), precision)

    @pytest.mark.parametrize("precision", PRECISIONS)
    def test_equal_models_have_distance_zero(self, gpu_backend: Backend, precision: str) -> None:
        h, w, *_ = models(300, 8, 8, 20, "fp32")
        bounds.assert_same_bits(rows(gl.UnembeddingPair(w, w), h, h, precision), np.zeros(20))
        # there is no row of a factor for one label
        bounds.assert_same_bits(rows(gl.UnembeddingPair(w[:1], w[1:2]), h, h, precision), np.zeros(20))

    @pytest.mark.parametrize("precision", ["fast", "high"])
    @pytest.mark.parametrize(("of_h", "of_w"), [(1e25, 1e25), (1e-25, 1e-25), (1e30, 1e-30), (1e-30, 1e30)], ids=str)
    def test_scales(self, gpu_backend: Backend, of_h: float, of_w: float, precision: str) -> None:
        """Far beyond what products of float32 hold."""
        given, scales = models(200, 6, 5, 8), (of_h, of_w, of_h, of_w)
        assert_is_truth(tuple((a * s).astype(np.float32) for a, s in zip(given, scales, strict=True)), precision)

    @pytest.mark.parametrize("precision", ["fast", "high"])
    def test_each_row_and_column_has_its_own_scale(self, gpu_backend: Backend, precision: str) -> None:
        h1, w1, h2, w2 = models(200, 8, 8, 9)
        of_rows, of_columns = np.geomspace(1e-20, 1e20, 9)[:, None], np.geomspace(1e-10, 1e10, 8)
        h1, h2 = ((h * of_rows / of_columns).astype(np.float32) for h in (h1, h2))
        w1, w2 = ((w * of_columns).astype(np.float32) for w in (w1, w2))
        assert_is_truth((h1, w1, h2, w2), precision)

    def test_differences_do_not_overflow(self, gpu_backend: Backend) -> None:
        h1, w1, h2, w2 = models(200, 6, 6, 8, "fp32")
        h1, h2 = 3e38 * np.sign(h1), -3e38 * np.sign(h1)
        assert_is_truth((h1.astype(np.float32), w1, h2.astype(np.float32), w2), "high")

    @pytest.mark.parametrize("case", ["frozen head", "dead columns", "zero labels"])
    def test_columns_of_zeros(self, gpu_backend: Backend, case: str) -> None:
        h1, w1, h2, w2 = models(200, 70, 70, 8, "fp32")
        if case == "frozen head":
            w2 = w1
        elif case == "dead columns":
            w1[:, :66], w2[:, :66] = 0.0, 0.0
        else:
            w1[60:], w2[60:] = 0.0, 0.0
        assert_is_truth((h1, w1, h2, w2), "high")


def merely_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factor_rows, "MOST_CANCELLED", {})


class TestRowsThatCancel:
    """What planes do not resolve is done again in float64."""

    @pytest.mark.parametrize("precision", ["fast", "high"])
    @pytest.mark.parametrize("ratio", [1e-2, 1e-4, 1e-6])
    def test_are_resolved(self, gpu_backend: Backend, ratio: float, precision: str) -> None:
        (h1, w1, h2, w2), want = with_a_column(300, 20, 30, ratio)
        pair = gl.UnembeddingPair(w1, w2)
        assert gpu_bounds.cancelled(pair.factor, h1, h2, want).min() > factor_rows.MOST_CANCELLED[precision]
        got = rows(pair, h1, h2, precision)
        assert bounds.scaled_error(got, want, want) <= gpu_bounds.FACTOR_AGAIN

    def test_planes_do_not_resolve_them(self, gpu_backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
        """If these passed, the test above would prove nothing."""
        merely_rounded(monkeypatch)
        (h1, w1, h2, w2), want = with_a_column(300, 20, 30, 1e-4)
        got = rows(gl.UnembeddingPair(w1, w2), h1, h2, "high")
        assert bounds.scaled_error(got, want, want) > 1000 * gpu_bounds.FACTOR_AGAIN

    def test_and_no_others(self, gpu_backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
        (h1, w1, h2, w2), _ = with_a_column(300, 20, 140, 1e-4)
        h1[:130] *= 2
        pair = gl.UnembeddingPair(w1, w2)
        want = truth(h1[:, :20], w1, h2[:, :20], w2[:, :20])
        got = rows(pair, h1, h2, "high")
        assert bounds.scaled_error(got[130:], want[130:], want[130:]) <= gpu_bounds.FACTOR_AGAIN
        merely_rounded(monkeypatch)
        bounds.assert_same_bits(got[:130], rows(pair, h1, h2, "high")[:130])

    @pytest.mark.parametrize("precision", PRECISIONS)
    @pytest.mark.parametrize(("ratio", "digits"), [(0.0, "0"), (1e-10, "[3-5]")])
    def test_beyond_float64_are_told_of(self, gpu_backend: Backend, ratio: float, digits: str, precision: str) -> None:
        h, w, *_ = models(300, 12, 12, 30)
        turn = np.linalg.qr(np.random.default_rng(9).standard_normal((12, 12)))[0]
        moved = h + ratio * np.random.default_rng(10).standard_normal(h.shape)
        pair = gl.UnembeddingPair(w, w @ turn)
        mask = np.arange(30) != 4
        with pytest.warns(
            RuntimeWarning, match=f"^UnembeddingPair.squared_distances: .* 29 of 29 rows; {digits} digits"
        ) as told:
            rows(pair, h, moved @ turn, precision, mask=mask)
        assert told[0].filename == factors.__file__
        # and where they do not cancel nothing is said
        rows(pair, h + 1, moved @ turn, precision)


def test_nothing_is_lost_between_planes(gpu_backend: Backend) -> None:
    """What the planes of "high" hold of u is u to 16 bits, in units of its row and columns."""
    h1, w1, h2, w2 = models(50, 7, 5, 9, "fp32")
    factor = factor_rows.DeviceFactor(device.tensor(gl.UnembeddingPair(w1, w2).factor), 7, 5, False)
    states = pack.States(device.tensor(h1), device.tensor(h2), None)
    place = states.h1.device
    upper = torch.empty((128, 128), dtype=torch.bfloat16, device=place)
    lower, numbers = torch.empty_like(upper), torch.empty((2, 128), dtype=torch.float64, device=place)
    pack.pack(states, factor.basis, pack.Planes(upper, lower, *numbers))
    held = (upper.double() + lower.double()) / numbers[0][:, None] / factor.basis.units
    want = np.zeros((128, 128))
    want[:9, :7], want[:9, 64:69] = h1, h2
    scale = np.abs(want) + (want == 0)
    assert bounds.scaled_error(held.cpu().numpy(), want, scale) <= bounds.ROUNDING["high"]
    assert 1 <= float((upper.double().abs().amax(dim=1)[:9]).min()) < 2

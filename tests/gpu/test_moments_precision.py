"""The moments kernel of a GPU in each precision: what rounding data once costs, chunks, parts, tiles, bad rows."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

import gramless as gl
from gramless import ops
from gramless._triton import moments as kernel
from gramless._triton.tiles import launch, moment_products
from gramless._triton.tiles.launch import Config
from support import bounds, cases, device, judge, oracle
from support.backends import Backend
from support.selection import at_night

ROUNDED = ("fast", "high")
DTYPES = ("fp16", "bf16", "fp32")
# values that are multiplied in each term
ORDERS = {
    "n": 0,
    "pivot": 0,
    "sum": 1,
    "cubes": 3,
    "fourths": 4,
    "weighted": 3,
    "norms": 4,
    "sxx": 2,
    "sxy": 2,
    "syy": 2,
}
MANY = cases.Case("gpu_chunks", "chunks, parts of rows and tiles that do not fit", 700, 70, 45)


def order(key: str) -> int:
    return next(count for name, count in ORDERS.items() if key == name or key.startswith(f"{name}_"))


def planes(x: np.ndarray, pivot: np.ndarray, precision: str) -> list[np.ndarray]:
    """The bfloat16 parts of x - pivot, in float64."""
    rest, found = x.astype(np.float32) - pivot.astype(np.float32), []
    for _ in range({"fast": 1, "high": 2}[precision]):
        part = rest.astype(ml_dtypes.bfloat16).astype(np.float32)
        found.append(part.astype(np.float64))
        rest = rest - part
    return found


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 256 rows, added in twos, in parts of 128 rows, and tiles of 32 x 64 features."""
    monkeypatch.setattr(kernel, "_chunk_rows", lambda n, width, precision: 256)
    monkeypatch.setattr(launch, "processors", lambda where: 1000)
    monkeypatch.setattr(moment_products, "_CHUNKS", 2)
    monkeypatch.setattr(moment_products, "_LEAST_ROWS", 128)
    small = {"interpret": (Config(32, 64, 128, 4, 1),), "sm_80": (Config(32, 64, 32, 4, 2),)}
    for table in (moment_products.CONFIGS, moment_products.NARROW):
        for precision in table:
            monkeypatch.setitem(table, precision, small)


class TestRounding:
    @pytest.mark.parametrize("precision", ROUNDED)
    @pytest.mark.parametrize(("case", "dtype"), cases.with_dtypes(cases.EXTREMES, ("fp32",)), ids=str)
    def test_extremes(self, gpu_backend: Backend, case: cases.Case, dtype: str, precision: str) -> None:
        x, y = case.arrays(dtype)
        got = gpu_backend.moments(x, y, precision=precision)
        truth = oracle.moments(x, y, got["pivot_x"], got["pivot_y"])
        scale = oracle.moment_scales(x, y, got["pivot_x"], got["pivot_y"])
        for key in truth.keys() - {"n"}:
            bound = bounds.rounded_once(precision, order(key), len(x))
            bounds.assert_rounded_once(got[key], truth[key], scale[key], bound, key)

    @pytest.mark.parametrize("precision", ROUNDED)
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_products_are_those_of_the_rounded_values(self, gpu_backend: Backend, dtype: str, precision: str) -> None:
        """No more is lost than by products of the planes in float32, and that of the two lower planes."""
        x, y = cases.EXTREMES[0].arrays(dtype)
        got = gpu_backend.moments(x, y, precision=precision)
        d, e = planes(x, got["pivot_x"], precision), planes(y, got["pivot_y"], precision)
        for key, left, right in (("sxx", d, d), ("sxy", d, e), ("syy", e, e)):
            truth = sum(left).T @ sum(right) - (left[1].T @ right[1] if precision == "high" else 0)
            scale = np.abs(sum(left)).T @ np.abs(sum(right))
            bounds.assert_rounded_once(got[key], truth, scale, bounds.rounded_once("exact", 2, len(x)), key)

    @pytest.mark.parametrize("precision", ROUNDED)
    def test_integers_are_exact(self, gpu_backend: Backend, precision: str) -> None:
        x, y = cases.INTEGERS.arrays("fp32")
        zeros = np.zeros(x.shape[1]), np.zeros(y.shape[1])
        got = gpu_backend.moments(x, y, pivot_x=zeros[0], pivot_y=zeros[1], precision=precision)
        bounds.assert_same_dicts(got, gpu_backend.moments(x, y, pivot_x=zeros[0], pivot_y=zeros[1]), precision)

    @pytest.mark.parametrize("scale", [1e-30, 1e-10, 1e10, 1e30])
    @pytest.mark.parametrize("precision", ROUNDED)
    def test_no_scale_is_too_large(self, gpu_backend: Backend, precision: str, scale: float) -> None:
        """A power of two changes no digit: float32 has room for the powers of data of any size."""
        x, y = cases.TYPICAL.arrays("fp32")
        power = np.float32(2.0 ** np.round(np.log2(scale)))
        got, want = (gpu_backend.moments(a, b, precision=precision) for a, b in ((x * power, y * power), (x, y)))
        for key in want:
            if key != "n":
                factor = float(power) ** max(order(key), 1)
                bounds.assert_same_bits(got[key], want[key] * factor, key)

    @pytest.mark.parametrize("dtype", ["fp64"])
    @pytest.mark.parametrize("precision", ROUNDED)
    def test_float64_is_exact_whatever_is_asked_for(self, gpu_backend: Backend, precision: str, dtype: str) -> None:
        x, y = cases.TYPICAL.arrays(dtype, "fp32")
        bounds.assert_same_dicts(gpu_backend.moments(x, y, precision=precision), gpu_backend.moments(x, y), dtype)

    @pytest.mark.parametrize(("case", "dtype"), cases.with_dtypes(cases.EXTREMES, ("bf16", "fp32")), ids=str)
    def test_cka_in_the_default_precision(self, gpu_backend: Backend, case: cases.Case, dtype: str) -> None:
        x, y = case.arrays(dtype)
        state = ops.moments(device.tensor(x), device.tensor(y), backend=gpu_backend.name)
        truth = oracle.dense_cka(x.astype(np.float64), y.astype(np.float64))
        bounds.assert_absolute(gl.cka(state), truth, bounds.CKA_HIGH, case.name)


class TestChunks:
    @pytest.mark.parametrize("precision", ["high", *at_night("exact")])
    def test_integers_do_not_depend_on_chunks_parts_and_tiles(
        self, gpu_backend: Backend, precision: str, request: pytest.FixtureRequest
    ) -> None:
        """All sums are exact, so that a row or tile that is left out or taken twice shows."""
        x, y = (np.resize(a, (700, a.shape[1])) for a in cases.INTEGERS.arrays("fp32"))
        given = {"pivot_x": np.zeros(x.shape[1]), "pivot_y": np.zeros(y.shape[1]), "precision": precision}
        whole = [gpu_backend.moments(x, y, **given), gpu_backend.moments(x, **given)]
        request.getfixturevalue("cut")
        bounds.assert_same_dicts(gpu_backend.moments(x, y, **given), whole[0], "in chunks")
        bounds.assert_same_dicts(gpu_backend.moments(x, precision=precision, pivot_x=given["pivot_x"]), whole[1], "x")
        cross = gpu_backend.moments(x, y, self_terms=False, **given)
        bounds.assert_same_dicts(cross, {key: whole[0][key] for key in judge.CROSS_ONLY_KEYS}, "cross terms")

    def test_any_data_in_chunks(self, gpu_backend: Backend, cut: None) -> None:
        x, y = MANY.arrays("fp32")
        judge.assert_moments(gpu_backend.moments(x, y), x, y)

    @pytest.mark.parametrize("precision", ["high", *at_night("exact")])
    def test_the_same_again(self, gpu_backend: Backend, precision: str, cut: None) -> None:
        x, y = MANY.arrays("fp32")
        first, second = (gpu_backend.moments(x, y, precision=precision) for _ in range(2))
        bounds.assert_same_dicts(second, first, "a second time")
        bounds.assert_same_bits(first["sxx"].T.copy(), first["sxx"], "sxx transposed")

    @pytest.mark.parametrize("row", [255, 256, *at_night(0, 699)])
    def test_first_bad_row(self, gpu_backend: Backend, row: int, cut: None) -> None:
        x, y = (a.copy() for a in MANY.arrays("bf16"))
        x[row, 3] = np.inf
        x[-1, 0] = np.nan
        got = kernel.moments(device.tensor(x), device.tensor(y), nonfinite="propagate")
        assert (int(got["bad_x"]), int(got["bad_y"])) == (row, len(x))
        assert torch.isfinite(got["syy"]).all()
        assert not torch.isfinite(got["sxx"][3]).any()
        kept = torch.tensor([feature not in (0, 3) for feature in range(x.shape[1])])
        assert torch.isfinite(got["sxx"].cpu()[kept][:, kept]).all()

    def test_chunks_keep_to_the_workspace(self) -> None:
        """Planes and tiles of a call of any size, from the shapes alone."""
        for n, p, q, precision in ((10**6, 4096, 4096, "fast"), (10**6, 64, 64, "high"), (10**5, 4096, 0, "exact")):
            planned = kernel.scratch_bytes(n, p, q, precision)
            assert 0 < planned <= bounds.MEMORY_FACTOR * 2 * launch.WORKSPACE_BYTES + bounds.MEMORY_SLACK_BYTES


class TestGiants:
    """Rows far longer than the others, of which a chunk has up to 16 apart."""

    @pytest.mark.parametrize("count", [1, 3, 17])
    @pytest.mark.parametrize("precision", ROUNDED)
    def test_cka_of_long_rows(self, gpu_backend: Backend, precision: str, count: int, cut: None) -> None:
        """In several chunks; more than 16 are what CKA is about, and no rounding error is large beside them."""
        x, y = (a.copy() for a in cases.correlated(np.random.default_rng(count), 700, 40, 24))
        rows = np.random.default_rng(0).permutation(250)[:count]
        for long in (rows, [256, 699]):
            x[long] *= 1000.0
            y[long] *= 300.0
        x, y = x.astype(np.float32), y.astype(np.float32)
        state = ops.moments(device.tensor(x), device.tensor(y), precision=precision, backend=gpu_backend.name)
        bounds.assert_absolute(gl.cka(state), oracle.dense_cka(x, y), bounds.CKA_LONG_ROWS[precision], f"{count} rows")

    @pytest.mark.parametrize("n", [1, 2, 16])
    def test_a_few_rows_are_all_apart(self, gpu_backend: Backend, n: int) -> None:
        x, y = (a[:n] for a in cases.TYPICAL.arrays("fp32"))
        pivots = {"pivot_x": np.full(x.shape[1], 0.5), "pivot_y": np.zeros(y.shape[1])}
        got, want = (gpu_backend.moments(x, y, precision=one, **pivots) for one in ("fast", "exact"))
        scale = oracle.moment_scales(x, y, pivots["pivot_x"], pivots["pivot_y"])
        for key in want.keys() - {"n", *pivots}:
            bounds.assert_within_algebra(got[key], want[key], scale[key], key)

    def test_other_rows_are_not_apart(self, gpu_backend: Backend) -> None:
        x, y = cases.TYPICAL.arrays("fp32")
        assert not np.array_equal(*(gpu_backend.moments(x, y, precision=one)["sxx"] for one in ("high", "exact")))


class TestResults:
    def test_stay_on_the_device_in_float64(self, gpu_backend: Backend) -> None:
        x, y = (device.tensor(a) for a in cases.TYPICAL.arrays("bf16"))
        got = kernel.moments(x, y)
        assert {key for key in got if not key.startswith("bad_")} == judge.ALL_KEYS
        for key, value in got.items():
            if key != "n":
                assert value.device == x.device
                assert value.dtype == (torch.int64 if key.startswith("bad_") else torch.float64), key
                assert value.is_contiguous(), key

    def test_a_pivot_that_is_given_is_not_handed_back(self, gpu_backend: Backend) -> None:
        x = device.tensor(cases.TYPICAL.arrays("fp64")[0])
        pivot = torch.ones(x.shape[1], dtype=torch.float64, device=x.device)
        kernel.moments(x, pivot_x=pivot)["pivot_x"].zero_()
        assert bool((pivot == 1).all())

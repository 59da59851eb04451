"""gram_sums of a GPU in each precision: what rounding rows once costs, blocks, tiles, bad rows, the estimated error."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import gramless as gl
from gramless import ops
from gramless._triton import gram_sums as kernel
from gramless._triton.gram import kernel_functions, plan, sampled_error
from gramless._triton.tiles import launch
from gramless.ops import backends as ops_backends
from support import backends, bounds, cases, device, gpu_bounds, grams
from support.backends import Backend

ROUNDED = ("fast", "high")
KERNELS = ("linear", "rbf", "laplacian", "distance", "cosine")
EXTREMES = [
    (replace(case, n=min(case.n, 100)), "bf16" if "bf16" in case.dtypes and index % 2 else "fp32")
    for index, case in enumerate(cases.EXTREMES)
]
SMALL = grams.SMALL


def _near_duplicates(rng: np.random.Generator, n: int, p: int, q: int) -> tuple[np.ndarray, np.ndarray]:
    middle = rng.integers(0, 10, n)
    x, y = rng.standard_normal((10, p))[middle], rng.standard_normal((10, q))[middle]
    return x + 1e-4 * rng.standard_normal((n, p)), y + 1e-4 * rng.standard_normal((n, q))


NEAR_DUPLICATES = cases.Case("near_duplicates", "distances that are all rounding", 120, 40, 24, _near_duplicates)
# tails of tiles, of padded rows and features, and rows longer than a chunk of float32 sums
RAGGED = tuple(
    cases.Case(f"gpu_n{n}_p{p}", "tails of tiles and steps, more than one chunk", n, p, q)
    for n, p, q in ((1, 5, 3), (2, 1, 64), (127, 64, 65), (129, 63, 1), (20, 1100, 2049))
)


@pytest.fixture(autouse=True)
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few rows are computed in the precision that is asked for."""
    monkeypatch.setattr(kernel, "ROWS_IN_FLOAT64", 0)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 32 rows, whose columns are taken in two parts."""
    small = (plan.TileConfig(32, 32, 32, 4, 2, parts=2),)
    for precision in kernel.CONFIGS:
        monkeypatch.setitem(kernel.CONFIGS, precision, {"interpret": small, "sm_80": small})


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of 128 rows, two of which are held."""
    monkeypatch.setattr(launch, "WORKSPACE_BYTES", 1)


def call(x: object, y: object, **keywords: object) -> dict:
    return device.call(kernel.gram_sums, x, y, **keywords)


def raw(x: np.ndarray, y: np.ndarray | None, **keywords: object) -> dict[str, torch.Tensor]:
    """What the kernel returns, on the device, of data that the public functions would refuse."""
    return kernel.gram_sums(device.tensor(x), None if y is None else device.tensor(y), **keywords)


def integers(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows about a centre of integers: all sums of products are exact in each precision."""
    x, y = cases.INTEGERS.arrays("fp32")
    return np.resize(x, (n, x.shape[1])), np.resize(y, (n, y.shape[1]))


class TestRounding:
    @pytest.mark.parametrize("precision", ROUNDED)
    @pytest.mark.parametrize(("case", "dtype"), EXTREMES, ids=str)
    def test_extremes(self, gpu_backend: Backend, case: cases.Case, dtype: str, precision: str) -> None:
        x, y = case.arrays(dtype)
        share = gpu_bounds.rounding(precision, max(x.shape[1], y.shape[1]))
        for name in KERNELS:
            given = grams.arguments(x, y, name)
            want = grams.expected(x, y, name, given["bandwidth_x"], given["bandwidth_y"], rounding=share)
            gpu_bounds.assert_rounded_sums(call(x, y, **given, precision=precision), want, share)

    @pytest.mark.parametrize("precision", ROUNDED)
    @pytest.mark.parametrize("case", RAGGED, ids=str)
    def test_ragged(self, gpu_backend: Backend, case: cases.Case, precision: str) -> None:
        x, y = case.arrays("fp32")
        share = gpu_bounds.rounding(precision, max(x.shape[1], y.shape[1]))
        for name in ("linear", "rbf"):
            given = grams.arguments(x, y, name)
            want = grams.expected(x, y, name, given["bandwidth_x"], given["bandwidth_y"], rounding=share)
            gpu_bounds.assert_rounded_sums(call(x, y, **given, precision=precision), want, share)

    @pytest.mark.parametrize("precision", ROUNDED)
    @pytest.mark.parametrize("name", KERNELS)
    def test_values_are_those_of_the_rounded_rows(self, gpu_backend: Backend, name: str, precision: str) -> None:
        """No more is lost than by planes of bfloat16, of which all products are taken but that of the lower ones."""
        x, y = SMALL.arrays("fp32")
        given = grams.arguments(x, y, name)
        got = call(x, y, **given, precision=precision)
        for side, a, widths in (("x", x, given["bandwidth_x"]), ("y", y, given["bandwidth_y"])):
            for s, width in enumerate([1.0] if widths is None else widths):
                off = grams.offset(a, name, width)
                k = gpu_bounds.held_matrix(a, name, precision, width, off)
                np.fill_diagonal(k, 0)
                gpu_bounds.assert_sums_of_values(got[f"rows_{side}"][s], k, a, name, width)

    @pytest.mark.parametrize("precision", ROUNDED)
    def test_integers_are_exact(self, gpu_backend: Backend, precision: str) -> None:
        x, y = integers(257)
        got, want = (call(x, y, precision=one) for one in (precision, "exact"))
        bounds.assert_same_dicts(grams.without_errors(got), grams.without_errors(want), precision)

    @pytest.mark.parametrize("offset", [0.0, 1.0])
    @pytest.mark.parametrize("name", grams.WITH_WIDTH)
    def test_exponentials_over_their_whole_range(self, gpu_backend: Backend, name: str, offset: float) -> None:
        """Distances that bfloat16 holds, from nothing to beyond the range of numbers: float32 digits in each value."""
        steps = np.zeros((256, 1))
        steps[:, 0] = np.repeat(2.0 ** np.arange(-16.0, 16.0), 8) * (1 + np.tile(np.arange(8.0), 32) / 8)
        sample = np.array([[-2.0], [2.0], [0.0]]) if offset == 0 else np.zeros((3, 1))
        widths = np.array([1.0, 2.0]) * (0.5 if offset == 0 else 1.0)
        rows, zeros = (device.tensor(a.astype(np.float32)) for a in (steps, np.zeros((256, 1))))
        fitted = kernel_functions.fit(
            rows,
            name,
            widths,
            sample=device.tensor(sample.astype(np.float32)),
            degree=1,
            coef0=0.0,
            precision="fast",
        )
        assert fitted.offsets.tolist() == [offset, offset]
        got = device.to_host(sampled_error._values(zeros, rows, fitted))[:, 0]
        for s, width in enumerate(widths):
            t = steps[:, 0] ** 2 / (2 * width**2) if name == "rbf" else steps[:, 0] / width
            gpu_bounds.assert_relative_values(got[s], np.expm1(-t) if offset else np.exp(-t), t, f"width {width}")

    @pytest.mark.parametrize("power", [-60, 60])
    @pytest.mark.parametrize("precision", ROUNDED)
    @pytest.mark.parametrize("name", ["linear", "distance", "rbf"])
    def test_no_scale_is_too_large(self, gpu_backend: Backend, name: str, precision: str, power: int) -> None:
        """A power of two changes no digit: float32 has room for the powers of data of any size."""
        x, y = SMALL.arrays("fp32")
        given = grams.arguments(x, y, name) | {"precision": precision}
        scaled = dict(given)
        for key in ("bandwidth_x", "bandwidth_y"):
            scaled[key] = None if given[key] is None else given[key] * 2.0**power
        want, got = call(x, y, **given), call(x * np.float32(2.0**power), y * np.float32(2.0**power), **scaled)
        order = {"linear": 2, "distance": 1, "rbf": 0}[name]
        for key in grams.without_errors(want):
            if key != "n" and not key.startswith("offset"):
                times = 2 if key.startswith("sum") else 1
                bounds.assert_same_bits(got[key], want[key] * 2.0 ** (power * order * times), key)

    @pytest.mark.parametrize("precision", ROUNDED)
    def test_float64_polynomials_and_few_rows_are_exact(
        self, gpu_backend: Backend, precision: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        x, y = SMALL.arrays("fp32")
        mixed = (x.astype(np.float64), y)
        bounds.assert_same_dicts(call(*mixed, precision=precision), call(*mixed, precision="exact"), "float64")
        given = grams.arguments(x, y, "polynomial")
        bounds.assert_same_dicts(
            call(x, y, **given, precision=precision), call(x, y, **given, precision="exact"), "polynomial"
        )
        monkeypatch.setattr(kernel, "ROWS_IN_FLOAT64", 60)
        bounds.assert_same_dicts(call(x, y, precision=precision), call(x, y, precision="exact"), "few rows")


class TestDefaultPrecision:
    @pytest.mark.parametrize(("case", "dtype"), [*EXTREMES, (NEAR_DUPLICATES, "fp32")], ids=str)
    def test_cka(self, gpu_backend: Backend, case: cases.Case, dtype: str) -> None:
        x, y = case.arrays(dtype)
        for name in KERNELS:
            given = grams.arguments(x, y, name)
            widths = {}
            for side in "xy":
                widths[side] = 1.0 if given[f"bandwidth_{side}"] is None else given[f"bandwidth_{side}"][1]
                if given[f"bandwidth_{side}"] is not None:
                    given[f"bandwidth_{side}"] = widths[side]
            state = ops.gram_sums(device.tensor(x), device.tensor(y), **given, backend=gpu_backend.name)
            truth = grams.dense_cka(
                grams.dense_matrix(x, name, widths["x"]), grams.dense_matrix(y, name, widths["y"]), "unbiased"
            )
            bounds.assert_absolute(gl.cka(state), float(truth), bounds.CKA_HIGH, f"{case.name} {name}")


class TestBlocks:
    @pytest.mark.parametrize("precision", ["exact", *ROUNDED])
    def test_integers_do_not_depend_on_pieces_and_tiles(
        self, gpu_backend: Backend, precision: str, request: pytest.FixtureRequest
    ) -> None:
        """All sums are exact, so that a tile that is left out or taken twice shows."""
        x, y = integers(300)
        whole = [call(x, y, precision=precision), call(x, None, precision=precision)]
        request.getfixturevalue("small_pieces")
        bounds.assert_same_dicts(call(x, y, precision=precision), whole[0], "in pieces")
        bounds.assert_same_dicts(call(x, None, precision=precision), whole[1], "x in pieces")

    @pytest.mark.usefixtures("small_tiles")
    @pytest.mark.parametrize("precision", ROUNDED)
    def test_sums_of_tiles_and_of_their_mirrors(self, gpu_backend: Backend, precision: str) -> None:
        """Each tile has the sums over its rows and its columns, and its squares twice, but for one on the diagonal."""
        x, y = integers(70)
        sides = [
            kernel.Side(a, kernel_functions.fit(a, "linear", None, degree=1, coef0=0.0, precision=precision))
            for a in map(device.tensor, (x, y))
        ]
        total = kernel.Total(sides, precision)
        total.config = kernel.CONFIGS[precision]["interpret"][0]
        matrices = [(a - grams.centre(a)) @ (a - grams.centre(a)).T for a in (x, y)]
        for left, right in (((0, 70), (0, 70)), ((0, 40), (40, 70))):
            blocks = [[side.block(piece, 128) for piece in (left, right)] for side in sides]
            sums, partials = total.run(total.config, blocks, right[0] - left[0])
            k, m = (np.array(a[slice(*left), slice(*right)]) for a in matrices)
            if left == right:
                np.fill_diagonal(k, 0)
                np.fill_diagonal(m, 0)
            for (rows, columns), side, values in zip(partials, sides, (k, m), strict=True):
                scale = device.to_host(side.fitted.scale)
                across, down = gpu_bounds.tile_sums(values, 32, left == right)
                assert np.array_equal(device.to_host(rows)[0] * scale, across)
                assert np.array_equal(device.to_host(columns)[0] * scale, across if left == right else down)
            xx, yy, xy = device.to_host(sums.sum(dim=2))[0]
            scales = [device.to_host(side.fitted.scale) for side in sides]
            twice = 1 if left == right else 2
            assert xx * scales[0] ** 2 == twice * (k * k).sum()
            assert yy * scales[1] ** 2 == twice * (m * m).sum()
            assert xy * scales[0] * scales[1] == twice * (k * m).sum()

    @pytest.mark.usefixtures("small_pieces")
    @pytest.mark.parametrize("precision", ROUNDED)
    def test_some_pairs_of_blocks_larger_than_pieces(self, gpu_backend: Backend, precision: str) -> None:
        x, y = integers(420)
        pairs = np.array([[0, 1], [1, 1]])
        got = call(x, y, block_rows=200, pairs=pairs, precision=precision)
        counted = grams.counted_pairs(420, 200, pairs)
        k, m = ((a - grams.centre(a)) @ (a - grams.centre(a)).T for a in (x, y))
        for side, values in (("x", k), ("y", m)):
            inside = np.where(counted, values, 0)
            assert np.array_equal(got[f"diagonal_{side}"][0], np.diagonal(inside))
            np.fill_diagonal(inside, 0)
            assert np.array_equal(got[f"rows_{side}"][0], inside.sum(axis=1))
            assert got[f"sum_{side}{side}"][0] == (inside * inside).sum()
        np.fill_diagonal(counted, False)
        assert got["sum_xy"][0] == np.where(counted, k * m, 0).sum()

    @pytest.mark.usefixtures("small_tiles")
    @pytest.mark.parametrize("name", ["rbf", "polynomial"])
    def test_small_tiles(self, gpu_backend: Backend, name: str) -> None:
        x, y = SMALL.arrays("fp32")
        got = grams.without_errors(call(x, y, **grams.arguments(x, y, name), precision="exact"))
        grams.assert_arrays(got, x, y, name)

    def test_block_rows_bound_the_bytes(self) -> None:
        for precision in ops_backends.PRECISIONS:
            for p, q in ((1, 0), (512, 512), (4096, 4096), (100_000, 100_000)):
                for bandwidths in (1, 10):
                    rows = kernel.default_block_rows(p, q, precision, bandwidths)
                    assert rows % 128 == 0
                    assert rows == 128 or kernel.scratch_bytes(10**6, p, q, precision, bandwidths) < 2**30


class TestSameBits:
    @pytest.mark.parametrize("precision", ROUNDED)
    @pytest.mark.parametrize("name", ["rbf", "cosine"])
    def test_layout_and_run_do_not_matter(self, gpu_backend: Backend, name: str, precision: str) -> None:
        x, y = SMALL.arrays("bf16")
        given = grams.arguments(x, y, name) | {"precision": precision}
        want = call(x, y, **given)
        for layout in ("c_order", "f_order", "sliced", "row_slice", "offset_by_one_element"):
            got = call(backends.layouts(x)[layout], backends.layouts(y)[layout], **given)
            bounds.assert_same_dicts(got, want, layout)

    @pytest.mark.parametrize("name", grams.WITH_WIDTH)
    def test_several_bandwidths_are_as_many_passes(self, gpu_backend: Backend, name: str) -> None:
        x, y = SMALL.arrays("fp32")
        given = grams.arguments(x, y, name) | {"precision": "high"}
        whole = grams.without_errors(call(x, y, **given))
        for s in range(3):
            one = {key: given[key][s : s + 1] for key in ("bandwidth_x", "bandwidth_y")}
            got = call(x, y, **given | one)
            for key in whole.keys() - {"n"}:
                bounds.assert_same_bits(got[key], whole[key][s : s + 1], key)

    @pytest.mark.parametrize("precision", ROUNDED)
    def test_x_alone_and_swapped(self, gpu_backend: Backend, precision: str) -> None:
        x, y = SMALL.arrays("fp32")
        given = {"kernel": "distance", "precision": precision}
        both, alone, swapped = call(x, y, **given), call(x, None, **given), call(y, x, **given)
        bounds.assert_same_dicts(alone, {key: both[key] for key in alone}, "x alone")
        for key in ("rows", "sum_x", "diagonal", "error"):
            one, two = (f"{key}x", f"{key}y") if key == "sum_x" else (f"{key}_x", f"{key}_y")
            bounds.assert_same_bits(swapped[two.replace("sum_xy", "sum_yy")], both[one], key)
        bounds.assert_same_bits(swapped["sum_xy"], both["sum_xy"], "sum_xy")

    def test_sample_gives_centre_and_offset(self, gpu_backend: Backend) -> None:
        """The sample of a whole array, for one of its parts."""
        x, _ = SMALL.arrays("fp32")
        sample = device.tensor(np.ascontiguousarray(x[::8][:7]))
        got = call(x, None, kernel="rbf", bandwidth_x=np.array([4.0]), sample_x=sample, precision="high")
        bounds.assert_same_dicts(
            got, call(x, None, kernel="rbf", bandwidth_x=np.array([4.0]), precision="high"), "its own sample"
        )


class TestFaults:
    @pytest.mark.usefixtures("small_pieces")
    @pytest.mark.parametrize("precision", ["exact", *ROUNDED])
    @pytest.mark.parametrize("value", [np.nan, -np.inf])
    def test_first_bad_row_of_those_that_count(self, gpu_backend: Backend, value: float, precision: str) -> None:
        x, y = (a.copy() for a in integers(300))
        x[[299, 140], 3] = value
        got = raw(x, y, precision=precision)
        assert int(got["bad_x"]) == 140
        assert int(got["bad_y"]) == 300
        some = raw(x, y, block_rows=100, pairs=np.array([[0, 2]]), precision=precision)
        assert int(some["bad_x"]) == 299
        none = raw(x, y, block_rows=100, pairs=np.array([[0, 0]]), precision=precision)
        assert int(none["bad_x"]) == 300

    @pytest.mark.parametrize("precision", ROUNDED)
    @pytest.mark.parametrize("name", KERNELS)
    def test_nan_stays_nan(self, gpu_backend: Backend, name: str, precision: str) -> None:
        x, y = (a.copy() for a in SMALL.arrays("fp32"))
        x[50, 3] = np.nan
        got = raw(x, y, **grams.arguments(x, y, name), precision=precision)
        assert torch.isnan(got["rows_x"]).all()
        assert torch.isnan(got["sum_xx"]).all()
        assert torch.isnan(got["sum_xy"]).all()
        assert torch.isfinite(got["rows_y"]).all()

    @pytest.mark.usefixtures("small_pieces")
    def test_first_row_of_zeros(self, gpu_backend: Backend) -> None:
        x, y = (a.copy() for a in integers(150))
        y[[149, 141]] = 0
        x[0], y[0] = 1, 1
        got = raw(np.abs(x) + 1, y, kernel="cosine", precision="fast")
        assert int(got["zero_x"]) == 150
        zeros = np.flatnonzero(~y.any(axis=1))
        assert int(got["zero_y"]) == zeros[0]


class TestEstimatedError:
    N = 600

    def arrays(self) -> np.ndarray:
        x, _ = cases.TYPICAL.arrays("fp32")
        rng = np.random.default_rng(0)
        return rng.standard_normal((self.N, x.shape[1])).astype(np.float32) @ np.diag(
            1 + np.arange(x.shape[1]) / 9
        ).astype(np.float32)

    @pytest.mark.parametrize("precision", ROUNDED)
    @pytest.mark.parametrize("name", KERNELS)
    def test_it_is_near_the_error_of_all_pairs(self, gpu_backend: Backend, name: str, precision: str) -> None:
        x = self.arrays()
        width = grams.typical_distance(x)
        given = {"bandwidth_x": np.array([width])} if name in grams.WITH_WIDTH else {}
        got = raw(x, None, kernel=name, **given, precision=precision)["error_x"]
        assert got.shape == ()
        off = grams.offset(x, name, width)
        held = gpu_bounds.held_matrix(x, name, precision, width, off)
        pairs = grams.Pairs.of(x, x, name, np.float32, grams.centre(x))
        true, _ = grams.matrix(pairs, name, width, off)
        gpu_bounds.assert_estimate(float(got), gpu_bounds.relative_error(held, true), f"{name} {precision}")

    def test_of_the_worst_bandwidth(self, gpu_backend: Backend) -> None:
        x = self.arrays()
        widths = grams.typical_distance(x) * np.array([0.5, 1.0, 3.0])
        errors = [
            float(raw(x, None, kernel="rbf", bandwidth_x=widths[part], precision="fast")["error_x"])
            for part in (slice(0, 1), slice(1, 2), slice(2, 3), slice(0, 3))
        ]
        assert errors[3] == max(errors[:3])

    @pytest.mark.parametrize("name", ["linear", "rbf", "distance"])
    def test_nothing_is_lost_of_constant_rows_or_float64(self, gpu_backend: Backend, name: str) -> None:
        given = {"kernel": name} | ({"bandwidth_x": np.ones(1)} if name == "rbf" else {})
        same = raw(np.full((self.N, 5), 2.5, np.float32), None, **given, precision="fast")
        assert float(same["error_x"]) == 0
        assert float(raw(self.arrays(), None, **given, precision="exact")["error_x"]) == 0

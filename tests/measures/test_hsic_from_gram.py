"""HSIC and CKA of all kernels against brute force and dense kernel matrices, and inputs on which peers fail."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest

import gramless as gl
from support import bounds, cases, grams
from support.backends import Backend

ESTIMATORS = ("unbiased", "biased")
# whose values do not depend on where the rows are
SHIFTED = ("linear", "rbf", "laplacian", "distance")
EXTREMES = {case.name: case for case in cases.EXTREMES}
# rows so many that their kernel values are in float32
MANY = grams.ROWS_IN_DOUBLE + 76


def options(kernel: str) -> dict:
    given = {"degree": grams.DEGREE, "coef0": grams.COEF0} if kernel == "polynomial" else {}
    return {"kernel": kernel, **given}


def dense(x: np.ndarray, y: np.ndarray, kernel: str) -> tuple[np.ndarray, np.ndarray]:
    """Kernel matrices of both, with the widths that the default rule chooses."""
    k, m = (grams.dense_matrix(a, kernel, gl.bandwidth(a).value) for a in (x, y))
    return k, m


def angle(rng: np.random.Generator, p: int) -> np.ndarray:
    return np.linalg.qr(rng.standard_normal((p, p)))[0]


class TestDefinition:
    @pytest.mark.parametrize("dtype", list(cases.DTYPES))
    @pytest.mark.parametrize("kernel", grams.KERNELS)
    def test_unbiased_hsic_is_the_u_statistic(self, backend: Backend, kernel: str, dtype: str) -> None:
        for n in (4, 5, 6):
            x, y = replace(grams.SMALL, name=f"tiny{n}", n=n, p=3, q=2).arrays(dtype)
            k, m = dense(x, y, kernel)
            size = math.sqrt(grams.u_statistic(k, k) * grams.u_statistic(m, m))
            got = gl.hsic(gl.GramSums(x, y, **options(kernel), backend=backend.name).run())
            bounds.assert_absolute(got, grams.u_statistic(k, m), bounds.bound_for(x.dtype) * size, f"hsic of {n} rows")

    @pytest.mark.parametrize("dtype", list(cases.DTYPES))
    @pytest.mark.parametrize("kernel", grams.KERNELS)
    def test_measures_are_those_of_dense_matrices(self, backend: Backend, kernel: str, dtype: str) -> None:
        x, y = grams.SMALL.arrays(dtype)
        k, m = dense(x, y, kernel)
        state = gl.GramSums(x, y, **options(kernel), backend=backend.name).run()
        for estimator in ESTIMATORS:
            truth = grams.dense_cka(k, m, estimator)
            bounds.assert_relative(gl.cka(state, estimator=estimator), truth, bounds.bound_for(x.dtype), estimator)
            got = gl.hsic(state, estimator=estimator)
            bounds.assert_relative(got, grams.dense_hsic(k, m, estimator), bounds.bound_for(x.dtype), estimator)
            got = gl.cka_distance(state, estimator=estimator)
            bounds.assert_relative(got, math.acos(truth), bounds.bound_for(x.dtype), estimator)

    @pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
    @pytest.mark.parametrize("kernel", grams.KERNELS)
    def test_many_rows(self, isa_level: str, kernel: str, dtype: str) -> None:
        """Against the same measure in float64, which the tests above hold to its definition."""
        x, y = cases.Case("gram_many", "", MANY, 8, 5).arrays(dtype)
        widths = {"bandwidth_x": 3.0, "bandwidth_y": 2.0} if kernel in grams.WITH_WIDTH else {}
        got, want = (
            gl.gram_sums(a, b, **options(kernel), **widths)
            for a, b in ((x, y), (x.astype(np.float64), y.astype(np.float64)))
        )
        for estimator in ESTIMATORS:
            truth = gl.cka(want, estimator=estimator)
            bounds.assert_relative(gl.cka(got, estimator=estimator), truth, bounds.FIRST_FP32, estimator)

    def test_distance_kernel_is_distance_covariance(self, backend: Backend) -> None:
        """S1 + S2 - 2 S3 of Szekely, Rizzo and Bakirov (2007), sums over all rows written out."""
        x, y = grams.shared(9)
        a, b = (np.linalg.norm(z[:, None] - z[None, :], axis=2) for z in (x, y))
        n = len(x)
        third = sum(a[i, j] * b[i, q] for i in range(n) for j in range(n) for q in range(n)) / n**3
        truth = (a * b).mean() + a.mean() * b.mean() - 2 * third
        got = gl.hsic(x, y, kernel="distance", estimator="biased", backend=backend.name)
        bounds.assert_relative(got * (n - 1) ** 2 / n**2, truth, bounds.SAME_FP64, "distance covariance")

    def test_linear_agrees_with_moments(self, backend: Backend) -> None:
        x, y = cases.TYPICAL.arrays("fp64")
        tiles, moments = (f(x, y, backend=backend.name) for f in (gl.gram_sums, gl.moments))
        for estimator in ESTIMATORS:
            for measure in (gl.hsic, gl.cka):
                got, want = measure(tiles, estimator=estimator), measure(moments, estimator=estimator)
                bounds.assert_relative(got, want, bounds.SAME_FP64, f"{estimator} {measure.__name__}")

    def test_few_rows_of_many_features_take_tiles(self) -> None:
        """The path of least work, and the answer does not show it."""
        x, y = cases.Case("short", "", 20, 40, 30).arrays("fp64")
        assert "gram_sums" in str(gl.explain("cka", x, y))
        bounds.assert_relative(gl.cka(x, y), gl.cka(gl.moments(x, y)), bounds.SAME_FP64)

    @pytest.mark.parametrize("kernel", grams.KERNELS)
    def test_arrays_and_states_give_the_same_bits(self, backend: Backend, kernel: str) -> None:
        x, y = replace(grams.SMALL, p=80, q=70, name="wide_small").arrays("fp32")
        state = gl.GramSums(x, y, **options(kernel), backend=backend.name).run()
        for estimator in ESTIMATORS:
            for measure in (gl.hsic, gl.cka, gl.cka_distance):
                got = measure(x, y, estimator=estimator, **options(kernel), backend=backend.name)
                assert got == measure(state, estimator=estimator)
                assert type(got) is float

    @pytest.mark.parametrize("kernel", grams.WITH_WIDTH)
    def test_one_of_several_bandwidths(self, kernel: str) -> None:
        x, y = grams.SMALL.arrays("fp64")
        state = gl.GramSums(x, y, kernel=kernel, bandwidth=[1.0, "median", 5.0]).run()
        for index, width in enumerate([1.0, "median", 5.0]):
            want = gl.cka(x, y, kernel=kernel, bandwidth=width)
            bounds.assert_relative(gl.cka(state.select(index)), want, bounds.SAME_FP64)


class TestInvariance:
    @pytest.mark.parametrize("kernel", grams.KERNELS)
    @pytest.mark.parametrize("dtype", ["fp32", "fp64"])
    def test_symmetric(self, backend: Backend, kernel: str, dtype: str) -> None:
        x, y = grams.SMALL.arrays(dtype)
        for estimator in ESTIMATORS:
            one, two = (
                gl.cka(a, b, estimator=estimator, **options(kernel), backend=backend.name) for a, b in ((x, y), (y, x))
            )
            bounds.assert_relative(one, two, bounds.SAME_FP64, estimator)

    @pytest.mark.parametrize("kernel", grams.KERNELS)
    def test_itself_is_1(self, backend: Backend, kernel: str) -> None:
        for dtype in cases.DTYPES:
            x, _ = grams.SMALL.arrays(dtype)
            for estimator in ESTIMATORS:
                got = gl.cka(x, x, estimator=estimator, **options(kernel), backend=backend.name)
                bounds.assert_relative(got, 1.0, bounds.SAME_FP64, f"{dtype} {estimator}")

    @pytest.mark.parametrize("kernel", SHIFTED)
    def test_rotation_translation_and_scale(self, kernel: str) -> None:
        rng = np.random.default_rng(0)
        x, y = grams.SMALL.arrays("fp64")
        moved = 3.0 * x @ angle(rng, x.shape[1]) + rng.standard_normal(x.shape[1])
        other = 0.2 * y @ angle(rng, y.shape[1]) - 100.0
        for estimator in ESTIMATORS:
            got, want = (gl.cka(a, b, estimator=estimator, kernel=kernel) for a, b in ((moved, other), (x, y)))
            # the rule takes distances of float64 rows in float64: only the rotation rounds
            bounds.assert_relative(got, want, bounds.INVARIANCE_FP64, estimator)

    @pytest.mark.parametrize("kernel", ["linear", "rbf", "laplacian", "distance", "cosine"])
    @pytest.mark.parametrize("power", [-20, -7, 7, 20])
    def test_scale_from_1e_6_to_1e6(self, kernel: str, power: int) -> None:
        """Powers of two, so that the rows are not rounded again; x and y by different ones."""
        x, y = cases.Case("gram_scale", "", MANY, 6, 4).arrays("fp32")
        for estimator in ESTIMATORS:
            want = gl.cka(x, y, kernel=kernel, estimator=estimator)
            got = gl.cka(np.float32(2.0**power) * x, y, kernel=kernel, estimator=estimator)
            bounds.assert_relative(got, want, bounds.FIRST_FP32, estimator)

    @pytest.mark.parametrize("kernel", grams.KERNELS)
    @pytest.mark.parametrize("dtype", ["fp32", "fp64"])
    def test_any_tile_size(self, backend: Backend, kernel: str, dtype: str) -> None:
        x, y = grams.SMALL.arrays(dtype)
        widths = {"bandwidth_x": 4.0, "bandwidth_y": 3.0} if kernel in grams.WITH_WIDTH else {}
        states = [
            gl.gram_sums(x, y, **options(kernel), **widths, block_rows=rows, backend=backend.name)
            for rows in (7, 16, 32, 60)
        ]
        for estimator in ESTIMATORS:
            want = gl.cka(states[-1], estimator=estimator)
            for state in states:
                bounds.assert_relative(gl.cka(state, estimator=estimator), want, bounds.SAME_FP64, estimator)


class TestHardInputs:
    @pytest.mark.parametrize("estimator", ESTIMATORS)
    @pytest.mark.parametrize(
        "name", ["offset_1e2", "offset_1e4", "massive_1e3", "massive_3e3", "scale_1e-6", "scale_1e6"]
    )
    @pytest.mark.parametrize("kernel", grams.KERNELS)
    def test_large_means_and_massive_coordinates(self, kernel: str, name: str, estimator: str) -> None:
        """Mean / std up to 1e4 in float32: distances do not see it, if the rows are centred first."""
        x, y = replace(EXTREMES[name], n=MANY, p=12, q=9).arrays("fp32")
        wide = x.astype(np.float64), y.astype(np.float64)
        widths = [gl.bandwidth(a).value for a in wide] if kernel in grams.WITH_WIDTH else [None, None]
        got, want = (
            gl.cka(
                gl.gram_sums(*pair, kernel=kernel, bandwidth_x=widths[0], bandwidth_y=widths[1]), estimator=estimator
            )
            for pair in ((x, y), wide)
        )
        bounds.assert_absolute(got, want, bounds.FIRST_FP32, name)

    @pytest.mark.parametrize("kernel", SHIFTED)
    def test_a_single_row_of_large_norm(self, kernel: str) -> None:
        x, y = (a.copy() for a in cases.Case("gram_row", "", MANY, 12, 9).arrays("fp32"))
        x[500] *= 1e3
        y[500] *= 1e3
        for estimator in ESTIMATORS:
            got = gl.cka(gl.GramSums(x, y, kernel=kernel).run(), estimator=estimator)
            want = gl.cka(
                gl.GramSums(*(a.astype(np.float64) for a in (x, y)), kernel=kernel).run(), estimator=estimator
            )
            bounds.assert_absolute(got, want, bounds.FIRST_FP32, estimator)

    @pytest.mark.parametrize("kernel", grams.WITH_WIDTH)
    def test_one_shared_row_does_not_make_independent_data_alike(self, kernel: str) -> None:
        """Biased linear CKA of these is 1; bounded kernels see one row of many, whatever its length."""
        rng = np.random.default_rng(3)
        x, y = rng.standard_normal((2, 200, 5))
        x[7] = y[7] = 1e4
        assert abs(gl.cka(x, y, kernel=kernel)) < bounds.LIMIT
        assert gl.cka(x, y, estimator="biased") > 1 - bounds.LIMIT

    @pytest.mark.parametrize("kernel", ["linear", "rbf", "laplacian", "distance", "cosine"])
    @pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
    def test_features_of_standard_deviation_3e4(self, isa_level: str, kernel: str, dtype: str) -> None:
        """Squares overflow half types, and the sums of squares of linear values are 1e23."""
        x, y = (np.clip(3e4 * a, -6e4, 6e4) for a in cases.Case("gram_3e4", "", MANY, 8, 5).arrays("fp64"))
        x, y = (a.astype(cases.DTYPES[dtype]) for a in (x, y))
        got = gl.cka(gl.GramSums(x, y, kernel=kernel).run())
        want = gl.cka(gl.GramSums(*(a.astype(np.float64) for a in (x, y)), kernel=kernel).run())
        bounds.assert_relative(got, want, bounds.FIRST_FP32)

    @pytest.mark.parametrize("kernel", grams.KERNELS)
    def test_independent_data_have_mean_0(self, kernel: str) -> None:
        rng = np.random.default_rng(5)
        values = np.array([gl.cka(*rng.standard_normal((2, 12, 3)), **options(kernel)) for _ in range(150)])
        error = values.std(ddof=1) / math.sqrt(len(values))
        bounds.assert_absolute(values.mean(), 0.0, bounds.STANDARD_ERRORS * error, "unbiased cka of independent data")
        assert (values < 0).any()


class TestLimits:
    @pytest.mark.parametrize("dtype", ["fp32", "fp64"])
    @pytest.mark.parametrize("n", [60, MANY])
    def test_wide_rbf_is_linear(self, n: int, dtype: str) -> None:
        x, y = replace(grams.SMALL, name=f"limit{n}", n=n).arrays(dtype)
        for estimator in ESTIMATORS:
            want = gl.cka(x, y, estimator=estimator)
            errors = [
                abs(gl.cka(x, y, kernel="rbf", bandwidth_scale=scale, estimator=estimator) - want)
                for scale in (3, 30, 300)
            ]
            assert errors[0] > errors[1] > errors[2]
            bounds.assert_absolute(errors[2], 0.0, bounds.SHARP_LIMIT, "rbf of 300 medians against linear")

    def test_wide_laplacian_is_distance(self) -> None:
        x, y = grams.SMALL.arrays("fp64")
        got = gl.cka(x, y, kernel="laplacian", bandwidth_scale=1e5)
        bounds.assert_absolute(got, gl.cka(x, y, kernel="distance"), bounds.SHARP_LIMIT)

    @pytest.mark.parametrize("kernel", grams.WITH_WIDTH)
    def test_biased_cka_of_narrow_kernels_tends_to_1_and_is_refused_there(self, kernel: str) -> None:
        """Independent data: only the diagonals are left of both kernels, and these are alike."""
        x, y = np.random.default_rng(1).standard_normal((2, 60, 4))

        def answer(width: float) -> float | str:
            try:
                return gl.cka(x, y, kernel=kernel, bandwidth=width, estimator="biased")
            except ValueError as error:
                return str(error)

        answers = [answer(2.0**-power) for power in range(12)]
        found = [value for value in answers if isinstance(value, float)]
        refused = re.compile(f"cka: x has a {kernel} kernel that is 0 between different rows .* is too small")
        assert all(refused.match(text) for text in answers[len(found) :])
        assert found == sorted(found)
        assert 1 - 10 * bounds.LIMIT < found[-1] < 1
        assert len(found) < len(answers)

    @pytest.mark.parametrize("estimator", ESTIMATORS)
    @pytest.mark.parametrize("kernel", grams.WITH_WIDTH)
    def test_saturated_kernels_are_reported(self, backend: Backend, kernel: str, estimator: str) -> None:
        x, y = grams.SMALL.arrays("fp32")
        chosen = {"kernel": kernel, "estimator": estimator, "backend": backend.name}
        for measure in (gl.hsic, gl.cka, gl.cka_distance):
            with pytest.raises(
                ValueError, match=rf"{measure.__name__}: x has a {kernel} .* bandwidth 0.01 is too small"
            ):
                measure(x, y, bandwidth=1e-2, **chosen)
            limit = {"rbf": "linear", "laplacian": "distance"}[kernel]
            with pytest.raises(
                ValueError, match=rf"x is constant or its bandwidth 1e\+12 is too large.*kernel='{limit}'"
            ):
                measure(x, y, bandwidth=1e12, **chosen)

    @pytest.mark.parametrize("estimator", ESTIMATORS)
    @pytest.mark.parametrize("kernel", grams.KERNELS)
    def test_either_side_may_be_saturated_or_constant(self, kernel: str, estimator: str) -> None:
        x, _ = grams.SMALL.arrays("fp32")
        for value in (0.5, -7e4, 1e-3):
            constant = np.full((60, 3), value, np.float32)
            widths = {"bandwidth": 3.0} if kernel in grams.WITH_WIDTH else {}
            for name, pair in (("x", (constant, x)), ("y", (x, constant))):
                with pytest.raises(ValueError, match=rf"cka: {name} is constant"):
                    gl.cka(gl.GramSums(*pair, kernel=kernel, **widths).run(), estimator=estimator)

    @pytest.mark.parametrize("kernel", [kernel for kernel in grams.KERNELS if kernel != "cosine"])
    def test_all_rows_but_one_equal(self, kernel: str) -> None:
        """Not constant, yet HSIC_1 is zero: the biased estimator answers, the unbiased one says why it cannot."""
        _, y = grams.SMALL.arrays("fp64")
        x = np.zeros((60, 3))
        x[7] = 1.0
        widths = {"bandwidth_x": 1.0, "bandwidth_y": 3.0} if kernel in grams.WITH_WIDTH else {}
        state = gl.gram_sums(x, y, kernel=kernel, **widths)
        with pytest.raises(ValueError, match="cka: x has no variation that the unbiased estimator can see"):
            gl.cka(state)
        assert 0 < gl.cka(state, estimator="biased") < 1

    def test_nan_is_not_called_constant(self) -> None:
        x, y = (a.copy() for a in grams.SMALL.arrays("fp32"))
        x[3, 3] = np.nan
        assert math.isnan(gl.cka(gl.gram_sums(x, y, kernel="distance", nonfinite="propagate")))


class TestStates:
    X, Y = grams.SMALL.arrays("fp32")

    @pytest.mark.parametrize(
        ("text", "arguments"),
        [
            ("expected a state of x and y, got one of x alone", {"y": None}),
            ("the state is of 2 bandwidths, choose one with state.select(k)", {"widths": [1.0, 2.0]}),
            ("the state holds 120 of 1770 pairs of rows, merge the others", {"block_rows": 16, "pairs": [[0, 0]]}),
            ("estimator='unbiased' needs at least 4 rows, got n = 3", {"n": 3}),
        ],
    )
    def test_what_no_measure_follows_from(self, text: str, arguments: dict) -> None:
        n, widths = arguments.pop("n", 60), arguments.pop("widths", [3.0])
        y = {"y": self.Y[:n]} | arguments
        width_y = {} if y["y"] is None else {"bandwidth_y": widths}
        state = gl.gram_sums(self.X[:n], **y, kernel="rbf", bandwidth_x=widths, **width_y)
        for measure in (gl.hsic, gl.cka, gl.cka_distance):
            with pytest.raises(ValueError, match=re.escape(f"{measure.__name__}: {text}")):
                measure(state)

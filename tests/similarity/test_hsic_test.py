"""Tests of independence: p-values are uniform where there is nothing to find and small where there is, on all paths."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
from scipy import stats

import gramless as gl
from gramless.similarity import permutation_null
from gramless.similarity.gram_sums_pass import GramSums
from gramless.similarity.pair_request import KernelPass
from support import bounds, cases, grams, memory
from support.backends import Backend, as_torch

ESTIMATORS = ("unbiased", "biased")
N_PERMUTATIONS = 19
# more features than half the rows: linear kernels go by tiles
WIDE = cases.Case("independence_wide", "", 14, 30, 20)
NARROW = cases.Case("independence_narrow", "", 40, 6, 4)


def asked(kernel: str, estimator: str, backend: str = "auto") -> KernelPass:
    given = keywords(kernel)
    return KernelPass("hsic", kernel, estimator, None, 1.0, given.get("degree", 3), given.get("coef0", 1.0), backend)


def keywords(kernel: str) -> dict[str, object]:
    given = {"degree": grams.DEGREE, "coef0": grams.COEF0} if kernel == "polynomial" else {}
    return {"kernel": kernel, **given}


def orders(n: int, count: int, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.permutation(n) for _ in range(count)]


def unrelated(rng: np.random.Generator, n: int, heavy: bool) -> tuple[np.ndarray, np.ndarray]:
    """Independent x (n, 3) and y (n, 2); heavy tails have rows of huge norm."""
    draw = (lambda size: rng.standard_t(1.5, size)) if heavy else rng.standard_normal
    return draw((n, 3)), draw((n, 2))


class TestPermutedValues:
    @pytest.mark.parametrize("estimator", ESTIMATORS)
    @pytest.mark.parametrize("case", [NARROW, WIDE], ids=str)
    @pytest.mark.parametrize("kernel", grams.KERNELS)
    def test_are_those_of_permuted_rows(
        self, backend: Backend, kernel: str, case: cases.Case, estimator: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each against a pass over x and the permuted y, whichever way it was taken."""
        x, y = case.arrays("fp64")
        request = asked(kernel, estimator, backend.name)
        truth = np.array(
            [
                gl.hsic(x, y[order], estimator=estimator, **keywords(kernel), backend=backend.name)
                for order in [np.arange(case.n), *orders(case.n, N_PERMUTATIONS, 5)]
            ]
        )
        for held in (permutation_null.HELD_ROWS, case.n - 1):
            monkeypatch.setattr(permutation_null, "HELD_ROWS", held)
            observed, values = permutation_null.permuted_hsics(request, request.state(x, y), x, y, N_PERMUTATIONS, 5)
            scale = np.full(len(truth), np.abs(truth).max())
            error = bounds.scaled_error(np.array([observed, *values]), truth, scale)
            assert error <= bounds.SAME_FP64, f"error {error:.3g}"

    @pytest.mark.parametrize("estimator", ESTIMATORS)
    def test_linear_values_are_the_same_from_moments_and_from_matrices(self, backend: Backend, estimator: str) -> None:
        x, y = NARROW.arrays("fp64")
        request = asked("linear", estimator, backend.name)
        state = GramSums(x, y, kernel="linear", backend=backend.name).run()
        ways = (
            permutation_null._by_moments(request, gl.moments(x, y, backend=backend.name), x, y),
            permutation_null._by_held_kernels(request, state, x, y),
            permutation_null._by_tiles(request, state, x, y),
        )
        for order in orders(NARROW.n, 5, 0):
            first, *others = (hsic_of(order) for hsic_of in ways)
            for other in others:
                bounds.assert_relative(other, first, bounds.SAME_FP64)

    @pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
    @pytest.mark.parametrize("kernel", ["rbf", "linear"])
    def test_any_dtype_and_library(self, backend: Backend, kernel: str, dtype: str) -> None:
        x, y = NARROW.arrays(dtype)
        found = [
            gl.hsic_test(*arrays, kernel=kernel, n_permutations=N_PERMUTATIONS, backend=backend.name)
            for arrays in ((x, y), (as_torch(x), as_torch(y)), (x.astype(np.float64), y.astype(np.float64)))
        ]
        assert len({test.pvalue for test in found}) == 1
        for test in found[1:]:
            bounds.assert_relative(test.statistic, found[0].statistic, bounds.INVARIANCE_FP32)


class TestClosedFormMoments:
    @pytest.mark.parametrize("case", [cases.Case("moments_6", "", 6, 2, 1), cases.Case("wide_5", "", 5, 9, 7)], ids=str)
    @pytest.mark.parametrize("kernel", grams.KERNELS)
    def test_over_all_permutations(self, backend: Backend, kernel: str, case: cases.Case) -> None:
        x, y = case.arrays("fp64")
        choice = {**keywords(kernel), "backend": backend.name}
        values = [gl.hsic(x, y[list(order)], estimator="biased", **choice) for order in permutations(range(case.n))]
        found = gl.hsic_test(x, y, null="gamma", **choice)
        bounds.assert_relative(found.null_mean, np.mean(values), bounds.SAME_FP64, "mean")
        bounds.assert_relative(found.null_std, np.std(values), bounds.SAME_FP64, "standard deviation")

    def test_unbiased_cka_has_a_null_that_depends_on_n_alone(self) -> None:
        """Over all permutations of any data its mean is 0 and its variance is 2 / (n (n - 3))."""
        x, y = cases.Case("null_6", "", 6, 3, 2).arrays("fp64")
        values = [gl.cka(x, y[list(order)], kernel="rbf") for order in permutations(range(6))]
        bounds.assert_absolute(np.mean(values), 0.0, bounds.SAME_FP64)
        bounds.assert_relative(np.var(values), 2 / (6 * 3), bounds.SAME_FP64)


class TestPValue:
    @pytest.mark.parametrize("heavy", [False, True], ids=["normal", "heavy_tails"])
    @pytest.mark.parametrize(
        ("kernel", "held", "count"), [("rbf", 4096, 400), ("linear", 4096, 200), ("distance", 0, 100)]
    )
    def test_is_uniform_where_nothing_is_to_be_found(
        self, kernel: str, held: int, count: int, heavy: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(permutation_null, "HELD_ROWS", held)
        rng = np.random.default_rng(7)
        pvalues = np.array(
            [
                gl.hsic_test(*unrelated(rng, 20, heavy), kernel=kernel, n_permutations=N_PERMUTATIONS, seed=seed).pvalue
                for seed in range(count)
            ]
        )
        # a p-value is one of 1/20, ..., 1: within its step it is made uniform by chance
        spread = pvalues - rng.uniform(size=count) / (N_PERMUTATIONS + 1)
        assert stats.kstest(spread, "uniform").pvalue > bounds.LEAST_PVALUE

    @pytest.mark.parametrize("kernel", ["rbf", "linear", "distance"])
    def test_gamma_is_close_to_its_level(self, kernel: str) -> None:
        rng = np.random.default_rng(3)
        count = 400
        pvalues = [gl.hsic_test(*unrelated(rng, 40, False), kernel=kernel, null="gamma").pvalue for _ in range(count)]
        for level in (0.05, 0.2, 0.5):
            share = np.mean(np.array(pvalues) <= level)
            noise = bounds.STANDARD_ERRORS * math.sqrt(level * (1 - level) / count)
            bounds.assert_absolute(share, level, noise + bounds.LIMIT, f"share of p-values up to {level}")

    def test_gamma_and_permutations_agree(self) -> None:
        rng = np.random.default_rng(11)
        for strength in (0.0, 0.15, 0.25):
            x = rng.standard_normal((150, 3))
            y = strength * x[:, :2] + rng.standard_normal((150, 2))
            drawn, fitted = (gl.hsic_test(x, y, null=null) for null in ("permutation", "gamma"))
            assert (drawn.statistic, drawn.null_mean, drawn.null_std) == (
                fitted.statistic, fitted.null_mean, fitted.null_std
            )  # fmt: skip
            noise = bounds.STANDARD_ERRORS * math.sqrt(fitted.pvalue * (1 - fitted.pvalue) / 999) + 1 / 1000
            bounds.assert_absolute(drawn.pvalue, fitted.pvalue, noise + bounds.LIMIT)

    @pytest.mark.parametrize("null", ["permutation", "gamma"])
    def test_finds_what_is_not_linear(self, null: str) -> None:
        """y = x^2 has no linear correlation with x."""
        rng = np.random.default_rng(2)
        found = {"rbf": [], "laplacian": [], "distance": [], "linear": []}
        for seed in range(20):
            x = rng.standard_normal((100, 1))
            y = x**2 + rng.standard_normal((100, 1))
            for kernel, pvalues in found.items():
                drawn = {"n_permutations": 99} if null == "permutation" else {}
                test = gl.hsic_test(x, y, kernel=kernel, null=null, seed=seed, **drawn)
                pvalues.append(test.pvalue)
        assert all(np.mean(np.array(found[kernel]) <= 0.05) >= bounds.COVERAGE for kernel in ("rbf", "laplacian"))
        assert np.median(found["linear"]) > 0.05 > np.median(found["distance"])

    def test_is_the_share_of_permutations_that_are_no_lower(self) -> None:
        x, y = NARROW.arrays("fp64")
        for seed in range(2):
            mixed = y + 3 * np.random.default_rng(seed).standard_normal(y.shape)
            observed = gl.hsic(x, mixed, kernel="rbf", estimator="biased")
            values = [gl.hsic(x, mixed[o], kernel="rbf", estimator="biased") for o in orders(40, 199, seed)]
            want = (1 + sum(value >= observed for value in values)) / 200
            assert gl.hsic_test(x, mixed, n_permutations=199, seed=seed).pvalue == want

    @pytest.mark.parametrize("kernel", ["rbf", "linear", "distance"])
    def test_equal_statistics_count_as_equal(self, backend: Backend, kernel: str) -> None:
        """Two groups of three rows: a tenth of all permutations leaves the groups, and the statistic, as they are."""
        groups = np.array([0.0, 0, 0, 0.7, 0.7, 0.7])[:, None] * [1.0, 3.0]
        arrays = groups, (0.1 + groups).astype(np.float32)
        choice = {"kernel": kernel, "n_permutations": 499, "backend": backend.name}
        if kernel == "rbf":
            choice["bandwidth"] = 1.0
        count = round(gl.hsic_test(*arrays, **choice).pvalue * 500) - 1
        assert stats.binomtest(count, 499, 0.1).pvalue > bounds.LEAST_PVALUE

    @pytest.mark.parametrize("overlap", [27, 23])
    def test_equal_statistics_count_as_equal_in_float32_sums(self, backend: Backend, overlap: int) -> None:
        """Half of a hundred rows is marked in x, and half in y: an overlap of 27 says as much as one of 23."""
        marks = np.zeros((2, 100, 1))
        marks[0, :50] = marks[1, 50 - overlap : 100 - overlap] = 0.7
        x, y = (marks * [1.2345, -0.777, 0.3141] + 0.1).astype(np.float32)
        found = gl.hsic_test(x, y, kernel="linear", n_permutations=999, backend=backend.name)
        share = 2 * stats.hypergeom(100, 50, 50).sf(26)
        assert stats.binomtest(round(found.pvalue * 1000) - 1, 999, share).pvalue > bounds.LEAST_PVALUE

    @pytest.mark.parametrize("dtype", ["fp32", "fp64"])
    @pytest.mark.parametrize("kernel", ["rbf", "linear"])
    def test_large_means_change_nothing(self, backend: Backend, kernel: str, dtype: str) -> None:
        x, y = (np.round(a * 64) / 64 for a in NARROW.arrays(dtype))
        y = y[orders(NARROW.n, 1, 0)[0]]
        choice = {"kernel": kernel, "n_permutations": 199, "backend": backend.name}
        # exact in both dtypes, so that only the algebra can make a difference
        moved = gl.hsic_test(x + x.dtype.type(4096), y - y.dtype.type(1024), **choice)
        still = gl.hsic_test(x, y, **choice)
        assert moved.pvalue == still.pvalue
        for field in ("statistic", "null_mean", "null_std"):
            bounds.assert_relative(getattr(moved, field), getattr(still, field), bounds.invariance_for(x.dtype), field)

    def test_a_massive_coordinate(self) -> None:
        """A coordinate of 1e3 that hardly varies hides nothing of the others."""
        x, y = cases.Case("massive_1e3", "", 260, 48, 33, cases._massive(1e3)).arrays("fp32")
        for kernel in ("rbf", "linear"):
            assert gl.hsic_test(x, y, kernel=kernel, n_permutations=99).pvalue == 1 / 100
            shuffled = y[orders(len(y), 1, 1)[0]]
            assert gl.hsic_test(x, shuffled, kernel=kernel, n_permutations=99).pvalue > 0.05


class TestResult:
    def test_fields(self) -> None:
        x, y = NARROW.arrays("fp32")
        found = gl.hsic_test(x, y, bandwidth_scale=0.5, n_permutations=9, seed=4)
        assert found.statistic == gl.hsic(x, y, kernel="rbf", bandwidth_scale=0.5, estimator="biased")
        assert (found.null, found.n, found.kernel, found.n_permutations, found.seed) == (
            "permutation", NARROW.n, "rbf", 9, 4
        )  # fmt: skip
        assert found.bandwidth_x == gl.bandwidth(x, scale=0.5).value
        assert found.bandwidth_y == gl.bandwidth(y, scale=0.5).value
        assert {type(found.statistic), type(found.pvalue), type(found.null_mean), type(found.null_std)} == {float}
        for kernel in ("linear", "distance"):
            other = gl.hsic_test(x, y, kernel=kernel, null="gamma")
            assert (other.bandwidth_x, other.bandwidth_y, other.n_permutations, other.seed) == (None, None, 0, None)

    def test_seed_decides(self) -> None:
        rng = np.random.default_rng(0)
        x, y = unrelated(rng, 30, False)
        pvalues = [gl.hsic_test(x, y, n_permutations=99, seed=seed).pvalue for seed in (0, 0, 1, 2, 3)]
        assert pvalues[0] == pvalues[1]
        assert len(set(pvalues)) > 1

    def test_progress_changes_nothing(self, capsys: pytest.CaptureFixture[str]) -> None:
        x, y = NARROW.arrays("fp32")
        assert gl.hsic_test(x, y, n_permutations=9, progress=True) == gl.hsic_test(x, y, n_permutations=9)
        assert "permutations" in capsys.readouterr().err

    @pytest.mark.parametrize("kernel", ["rbf", "linear"])
    def test_inputs_are_untouched(self, kernel: str) -> None:
        x, y = (a.copy() for a in NARROW.arrays("fp32"))
        before = x.tobytes(), y.tobytes()
        gl.hsic_test(x, y, kernel=kernel, n_permutations=3)
        assert (x.tobytes(), y.tobytes()) == before


class TestCalibrated:
    @pytest.mark.parametrize("estimator", ESTIMATORS)
    @pytest.mark.parametrize("kernel", ["rbf", "linear"])
    @pytest.mark.parametrize("measure", [gl.cka, gl.hsic])
    def test_is_the_value_beside_its_null(self, measure: object, kernel: str, estimator: str) -> None:
        x, y = NARROW.arrays("fp64")
        choice = {"kernel": kernel, "estimator": estimator}
        found = measure(x, y, **choice, null="permutation", n_permutations=49, seed=3)
        assert isinstance(found, gl.Calibrated)
        assert found == measure(x, y, **choice)
        values = [measure(x, y[order], **choice) for order in orders(NARROW.n, 49, 3)]
        bounds.assert_absolute(found.null_mean, np.mean(values), bounds.SAME_FP64)
        bounds.assert_relative(found.null_quantile, np.quantile(values, 0.95), bounds.SAME_FP64)
        assert found.pvalue == (1 + sum(value >= found for value in values)) / 50
        assert (found.n_permutations, found.seed) == (49, 3)

    def test_null_of_unbiased_cka_is_about_zero(self) -> None:
        n = 50
        x, y = unrelated(np.random.default_rng(0), n, True)
        found = gl.cka(x, y, kernel="rbf", null="permutation", n_permutations=400)
        noise = math.sqrt(2 / (n * (n - 3)) / 400)
        bounds.assert_absolute(found.null_mean, 0.0, bounds.STANDARD_ERRORS * noise)
        assert 0 < found.null_quantile < gl.cka(x, x, kernel="rbf")

    def test_null_of_biased_cka_is_not(self) -> None:
        """Many features, few rows: the value is large, and so is its null."""
        x, y = np.random.default_rng(0).standard_normal((2, 20, 200))
        found = gl.cka(x, y, estimator="biased", null="permutation", n_permutations=99)
        assert found.null_mean > 0.8
        assert found.pvalue > 0.05


class TestMemory:
    def test_no_matrix_of_all_pairs_beyond_the_stated_rows(self) -> None:
        n = permutation_null.HELD_ROWS + 1000
        prepare = f"""
rng = np.random.default_rng(0)
x = rng.standard_normal(({n}, 8), dtype=np.float32)
y = rng.standard_normal(({n}, 4), dtype=np.float32)
"""
        call = "gl.hsic_test({}, {}, bandwidth=2.0, n_permutations=2)"
        peak = memory.peak_extra_bytes(prepare, call.format("x", "y"), call.format("x[:300]", "y[:300]"))
        assert peak <= n * n, f"peak {peak:,} bytes are more than one for each pair of rows"

    def test_held_matrices_keep_to_their_formula(self) -> None:
        n = 1200
        prepare = f"x = np.random.default_rng(0).standard_normal(({n}, 8))"
        call = "gl.hsic_test({0}, {0}, bandwidth=2.0, n_permutations=2)"
        peak = memory.peak_extra_bytes(prepare, call.format("x"), call.format("x[:300]"))
        assert 12 * n * n <= peak <= bounds.MEMORY_FACTOR * 16 * n * n + bounds.MEMORY_SLACK_BYTES, f"{peak:,} bytes"


class TestErrors:
    X = np.random.default_rng(0).standard_normal((12, 3))

    @pytest.mark.parametrize(
        ("change", "error", "text"),
        [
            ({"null": "normal"}, ValueError, "expected null to be one of 'permutation', 'gamma', got 'normal'"),
            ({"kernel": "sigmoid"}, ValueError, "expected kernel to be one of"),
            ({"bandwidth": 0}, ValueError, "expected bandwidth above 0, got 0"),
            ({"bandwidth": "mean"}, ValueError, "expected bandwidth to be 'median' or 'kornblith' or a number"),
            ({"kernel": "linear", "bandwidth": 1.0}, ValueError, "kernel='linear' has no bandwidth"),
            ({"bandwidth_scale": -1.0}, ValueError, "expected bandwidth_scale above 0"),
            ({"n_permutations": 0}, ValueError, "expected n_permutations of at least 1, got 0"),
            ({"null": "gamma", "n_permutations": 99}, ValueError, "n_permutations=99 has no effect with null='gamma'"),
            ({"coef0": 0.5}, ValueError, "kernel='rbf' has no coef0, got coef0=0.5"),
            ({"n_permutations": 9.5}, TypeError, "expected n_permutations to be an int, got float"),
            ({"seed": -1}, ValueError, "expected seed of at least 0, got -1"),
            ({"seed": None}, TypeError, "expected seed to be an int, got NoneType"),
            ({"seed": True}, TypeError, "expected seed to be an int, got bool"),
            ({"backend": "tpu"}, ValueError, "expected backend to be one of"),
        ],
    )
    def test_arguments(self, change: dict, error: type[Exception], text: str) -> None:
        with pytest.raises(error, match="hsic_test: ") as caught:
            gl.hsic_test(self.X, self.X, **change)
        assert text in str(caught.value)

    @pytest.mark.parametrize("null", ["permutation", "gamma"])
    def test_rows(self, null: str) -> None:
        with pytest.raises(ValueError, match=r"hsic_test: expected at least 4 rows, got n = 3"):
            gl.hsic_test(self.X[:3], self.X[:3], null=null)
        with pytest.raises(ValueError, match=r"hsic_test: expected x and y with the same number of rows"):
            gl.hsic_test(self.X, self.X[:5], null=null)
        with pytest.raises(TypeError, match=r"hsic_test: expected y to be a NumPy array"):
            gl.hsic_test(self.X, [[1.0]], null=null)

    @pytest.mark.parametrize("kernel", ["rbf", "linear", "distance"])
    def test_constant(self, kernel: str) -> None:
        choice = {"kernel": kernel} | ({"bandwidth": 1.0} if kernel == "rbf" else {})
        with pytest.raises(ValueError, match="hsic_test: y is constant"):
            gl.hsic_test(self.X, np.full((12, 2), 0.1), **choice)

    @pytest.mark.parametrize(("width", "text"), [(1e-4, "too small"), (1e8, "too large")])
    def test_saturated_kernel(self, width: float, text: str) -> None:
        with pytest.raises(ValueError, match=f"hsic_test: x .*{text}"):
            gl.hsic_test(self.X, self.X, bandwidth=width)

    def test_non_finite(self) -> None:
        bad = self.X.copy()
        bad[3, 1] = np.nan
        for kernel in ("linear", "polynomial"):
            with pytest.raises(ValueError, match=r"x has non-finite values in rows 0\.\.11"):
                gl.hsic_test(bad, self.X, kernel=kernel)

    def test_gamma_needs_a_positive_mean(self) -> None:
        """A polynomial with a negative constant is no positive kernel: its trace about the means may be negative."""
        x = np.array([[100.0], [-100.0], [200.0], [-200.0], [50.0]])
        y = np.array([[0.1], [0.9], [0.4], [0.2], [0.7]])
        with pytest.raises(ValueError, match=r"hsic_test: null='gamma' needs .* use null='permutation'"):
            gl.hsic_test(x, y, kernel="polynomial", degree=2, coef0=-30.0, null="gamma")

"""HSIC and CKA against brute force, closed forms and dense Gram matrices, and inputs on which peers fail."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gramless as gl
from support import bounds, cases, oracle
from support.backends import Backend

ESTIMATORS = ("unbiased", "biased", "feature_corrected")
DENSE = {"unbiased": oracle.dense_cka, "biased": oracle.biased_cka, "feature_corrected": oracle.feature_corrected_cka}
FEW = cases.Case("few_features", "", 24, 6, 4)


def rotation(p: int, seed: int = 0) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((p, p)))[0]


class TestDefinition:
    @pytest.mark.parametrize("dtype", list(cases.DTYPES))
    @pytest.mark.parametrize("n", [4, 5, 6, 7])
    def test_unbiased_hsic_is_the_u_statistic(self, backend: Backend, n: int, dtype: str) -> None:
        x, y = cases.Case(f"tiny{n}", "", n, 3, 2).arrays(dtype)
        for a, b in ((x, y), (x, x), (y, y)):
            truth = float(oracle.u_statistic(a, b))
            size = math.sqrt(oracle.u_statistic(a, a) * oracle.u_statistic(b, b))
            bounds.assert_absolute(gl.hsic(a, b, backend=backend.name), truth, bounds.bound_for(x.dtype) * size, "hsic")

    @pytest.mark.parametrize("dtype", list(cases.DTYPES))
    @pytest.mark.parametrize("estimator", ESTIMATORS)
    @pytest.mark.parametrize("case", [FEW, cases.RAGGED_ROWS[7]], ids=str)
    def test_cka_is_that_of_dense_grams(self, backend: Backend, case: cases.Case, estimator: str, dtype: str) -> None:
        x, y = case.arrays(dtype)
        if estimator == "feature_corrected":
            x, y = x[:40, :6], y[:40, :4]
        got = gl.cka(x, y, estimator=estimator, backend=backend.name)
        bounds.assert_relative(got, DENSE[estimator](x, y), bounds.bound_for(x.dtype), f"{estimator} cka")

    @pytest.mark.parametrize("dtype", ["fp32", "fp64"])
    def test_biased_hsic_is_the_trace_of_centred_grams(self, backend: Backend, dtype: str) -> None:
        x, y = cases.TYPICAL.arrays(dtype)
        got = gl.hsic(x, y, estimator="biased", backend=backend.name)
        bounds.assert_relative(got, oracle.biased_hsic(x, y), bounds.bound_for(x.dtype))

    @pytest.mark.parametrize("dtype", ["fp32", "fp64"])
    def test_feature_corrected_hsic_is_the_mean_over_pairs(self, backend: Backend, dtype: str) -> None:
        x, y = FEW.arrays(dtype)
        got = gl.hsic(x, y, estimator="feature_corrected", backend=backend.name)
        bounds.assert_relative(got, float(oracle.feature_corrected_hsic(x, y)), bounds.bound_for(x.dtype))

    @pytest.mark.parametrize("features", [2, 3, 7])
    def test_feature_corrected_self_term(self, features: int) -> None:
        """Self terms leave out equal features: seen through cka, since a pair of arrays keeps all of them."""
        x, y = (a + a.mean(axis=1, keepdims=True) for a in cases.Case("self", "", 30, 7, 9).arrays("fp64"))
        x = x[:, :features]
        bounds.assert_relative(
            gl.cka(x, y, estimator="feature_corrected"), oracle.feature_corrected_cka(x, y), bounds.FIRST_FP64
        )

    def test_feature_corrected_self_term_without_a_root(self) -> None:
        """Independent features have no covariance on average, so that the self term may be negative: that is said."""
        x, y = np.random.default_rng(0).standard_normal((2, 12, 3))
        assert math.isnan(oracle.feature_corrected_cka(x, y))
        with pytest.raises(ValueError, match=r"cka: . has the feature-corrected self term -"):
            gl.cka(x, y, estimator="feature_corrected")

    def test_estimators_differ(self) -> None:
        x, y = FEW.arrays("fp64")
        assert len({round(gl.cka(x, y, estimator=e), 3) for e in ESTIMATORS}) == 3
        assert gl.cka(x, y) == gl.cka(x, y, estimator="unbiased")

    def test_distance_is_the_angle(self) -> None:
        x, y = FEW.arrays("fp64")
        for estimator in ("unbiased", "biased"):
            got = gl.cka_distance(x, y, estimator=estimator)
            bounds.assert_relative(got, math.acos(DENSE[estimator](x, y)), bounds.SAME_FP64)
        assert gl.cka_distance(x, x, estimator="biased") <= math.sqrt(bounds.SAME_FP64)

    def test_state_instead_of_arrays(self, backend: Backend) -> None:
        x, y = cases.TYPICAL.arrays("fp32")
        state = gl.moments(x, y, backend=backend.name)
        for estimator in ESTIMATORS:
            for measure in (gl.hsic, gl.cka):
                assert measure(state, estimator=estimator) == measure(x, y, estimator=estimator, backend=backend.name)
        assert gl.cka_distance(state) == gl.cka_distance(x, y, backend=backend.name)

    def test_measures_are_python_floats(self, backend: Backend) -> None:
        x, y = cases.TYPICAL.arrays("fp16")
        for measure in (gl.hsic, gl.cka, gl.cka_distance):
            assert type(measure(x, y, backend=backend.name)) is float


class TestClosedForms:
    @pytest.mark.parametrize(("n", "p"), [(50, 10), (50, 50), (50, 500), (200, 100)])
    def test_independent_gaussians(self, n: int, p: int) -> None:
        """Biased CKA of nothing is p / (p + n); unbiased is 0 within the noise of the draws."""
        draws = 40
        rng = np.random.default_rng([n, p])
        pairs = [(rng.standard_normal((n, p)), rng.standard_normal((n, p))) for _ in range(draws)]
        biased = np.mean([gl.cka(x, y, estimator="biased") for x, y in pairs])
        bounds.assert_absolute(biased, p / (p + n), bounds.LIMIT, "biased cka of independent data")
        values = np.array([gl.cka(x, y) for x, y in pairs])
        error = values.std(ddof=1) / math.sqrt(draws)
        bounds.assert_absolute(values.mean(), 0.0, bounds.STANDARD_ERRORS * error, "unbiased cka of independent data")
        assert (values < 0).any()

    def test_unbiased_hsic_averages_to_the_population_value(self) -> None:
        """y = x W + noise: the population HSIC is the squared norm of the cross-covariance, here that of W."""
        rng = np.random.default_rng(5)
        mix = rng.standard_normal((3, 2))
        values = []
        for _ in range(400):
            x = rng.standard_normal((10, 3))
            values.append(gl.hsic(x, x @ mix + rng.standard_normal((10, 2))))
        error = np.std(values, ddof=1) / math.sqrt(len(values))
        bounds.assert_absolute(np.mean(values), float((mix**2).sum()), bounds.STANDARD_ERRORS * error)

    @pytest.mark.parametrize("share", [0.05, 0.3, 0.5])
    def test_limit_of_moving_a_subset_away(self, backend: Backend, share: float) -> None:
        """Davari et al. 2022: CKA(X, X moved on a subset) tends to n r (1 - r) |mean in - mean out|^2 / |X^T X|."""
        rng = np.random.default_rng(3)
        n, p = 200, 12
        x = rng.standard_normal((n, p))
        inside = np.arange(n) < share * n
        moved = x + 1e7 * inside[:, None] * (np.arange(p) == 2)
        r = inside.mean()
        gap = x[inside].mean(0) - x[~inside].mean(0)
        centred = x - x.mean(0)
        limit = n * r * (1 - r) * (gap @ gap) / np.linalg.norm(centred.T @ centred)
        got = gl.cka(x, moved, estimator="biased", backend=backend.name)
        bounds.assert_relative(got, limit, bounds.SHARP_LIMIT, "moved subset")

    def test_rank_one_is_the_squared_correlation(self) -> None:
        rng = np.random.default_rng(0)
        u = rng.standard_normal(60)
        v = u + rng.standard_normal(60)
        x, y = np.outer(u, [1.0, -2.0, 0.5]), np.outer(v, [3.0, 1.0])
        bounds.assert_relative(gl.cka(x, y, estimator="biased"), np.corrcoef(u, v)[0, 1] ** 2, bounds.SAME_FP64)

    def test_equal_up_to_a_subspace(self) -> None:
        """p orthonormal columns against q of them: the squared norm of the overlap over sqrt(p q)."""
        basis = np.linalg.qr(np.random.default_rng(0).standard_normal((40, 8)) - 0.0)[0]
        basis = np.linalg.qr(basis - basis.mean(0))[0]
        got = gl.cka(basis[:, :5], basis[:, 2:8], estimator="biased")
        bounds.assert_relative(got, 3 / math.sqrt(5 * 6), bounds.SAME_FP64)


class TestInvariance:
    @pytest.mark.parametrize("dtype", ["fp32", "fp64"])
    @pytest.mark.parametrize("estimator", ["unbiased", "biased"])
    def test_rotation(self, backend: Backend, estimator: str, dtype: str) -> None:
        x, y = cases.TYPICAL.arrays(dtype)
        want = gl.cka(x, y, estimator=estimator, backend=backend.name)
        turned = (x @ rotation(x.shape[1]).astype(x.dtype), y @ rotation(y.shape[1], 1).astype(y.dtype))
        got = gl.cka(*turned, estimator=estimator, backend=backend.name)
        bounds.assert_relative(got, want, bounds.invariance_for(x.dtype), "after rotation")

    @pytest.mark.parametrize("dtype", ["fp32", "fp64"])
    @pytest.mark.parametrize("estimator", ESTIMATORS)
    @pytest.mark.parametrize("factor", [1e-6, 1e-3, -1.0, 7.0, 1e6])
    def test_scale(self, backend: Backend, factor: float, estimator: str, dtype: str) -> None:
        x, y = cases.TYPICAL.arrays(dtype)
        want = gl.cka(x, y, estimator=estimator, backend=backend.name)
        got = gl.cka(x * x.dtype.type(factor), y, estimator=estimator, backend=backend.name)
        bounds.assert_relative(got, want, bounds.invariance_for(x.dtype), f"scaled by {factor}")

    @pytest.mark.parametrize("dtype", ["fp32", "fp64"])
    @pytest.mark.parametrize("estimator", ESTIMATORS)
    def test_translation(self, backend: Backend, estimator: str, dtype: str) -> None:
        x, y = (np.round(a * 64) / 64 for a in cases.TYPICAL.arrays(dtype))
        want = gl.cka(x, y, estimator=estimator, backend=backend.name)
        # exact in both dtypes, so that only the algebra can make a difference
        got = gl.cka(x + x.dtype.type(1024), y - y.dtype.type(4096), estimator=estimator, backend=backend.name)
        bounds.assert_relative(got, want, bounds.bound_for(x.dtype), "after translation")

    @pytest.mark.parametrize("dtype", list(cases.DTYPES))
    def test_order_of_rows(self, backend: Backend, dtype: str) -> None:
        x, y = cases.TYPICAL.arrays(dtype)
        order = np.random.default_rng(0).permutation(len(x))
        want = gl.cka(x, y, backend=backend.name)
        got = gl.cka(x[order], y[order], backend=backend.name)
        bounds.assert_relative(got, want, bounds.bound_for(x.dtype), "rows in another order")
        other = gl.cka(x[order], y, backend=backend.name)
        assert abs(other) < want / 2, "rows that no longer belong together must not look similar"

    @pytest.mark.parametrize("estimator", ESTIMATORS)
    def test_symmetry(self, backend: Backend, estimator: str) -> None:
        x, y = cases.TYPICAL.arrays("fp64")
        for a, b in ((x, y), (x, 100 * y), (1e-3 * x, y)):
            one, two = (gl.hsic(*s, estimator=estimator, backend=backend.name) for s in ((a, b), (b, a)))
            bounds.assert_relative(one, two, bounds.FIRST_FP64, "hsic")
            one, two = (gl.cka(*s, estimator=estimator, backend=backend.name) for s in ((a, b), (b, a)))
            bounds.assert_relative(one, two, bounds.FIRST_FP64, "cka")

    @pytest.mark.parametrize("dtype", list(cases.DTYPES))
    @pytest.mark.parametrize("estimator", ["unbiased", "biased"])
    @pytest.mark.parametrize("n", [4, 5, 64, 8192])
    def test_self_is_one(self, backend: Backend, n: int, estimator: str, dtype: str) -> None:
        x, _ = cases.Case(f"self_{n}", "", n, 8, 1).arrays(dtype)
        got = gl.cka(x, x, estimator=estimator, backend=backend.name)
        bounds.assert_relative(got, 1.0, bounds.bound_for(x.dtype), "self cka")

    @given(st.integers(4, 9), st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**32 - 1))
    def test_never_beyond_one(self, n: int, p: int, q: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        x, y = rng.standard_t(1, (n, p)), rng.standard_t(1, (n, q))
        assert abs(gl.cka(x, y)) <= 1 + bounds.SAME_FP64
        assert gl.hsic(x, x) >= 0
        assert 0 <= gl.cka(x, y, estimator="biased") <= 1 + bounds.SAME_FP64

    def test_is_not_clipped(self) -> None:
        rng = np.random.default_rng(1)
        values = [gl.cka(rng.standard_normal((8, 3)), rng.standard_normal((8, 3))) for _ in range(50)]
        assert min(values) < 0


class TestExtremes:
    @pytest.mark.parametrize(("case", "dtype"), cases.with_dtypes(cases.EXTREMES), ids=str)
    def test_unbiased_against_dense(self, backend: Backend, case: cases.Case, dtype: str) -> None:
        x, y = case.arrays(dtype)
        bound = bounds.bound_for(x.dtype) + bounds.algebra(oracle.cancellation(x, y))
        bounds.assert_absolute(gl.cka(x, y, backend=backend.name), oracle.dense_cka(x, y), bound, "unbiased cka")

    @pytest.mark.parametrize("dtype", ["fp32", "fp64"])
    def test_a_jitter_of_a_few_last_places(self, backend: Backend, dtype: str) -> None:
        """Constant to the eye, yet every digit of the answer is in the data."""
        x, y = cases.Case("jitter", "", 40, 4, 3).arrays("fp64")
        tiny = 1e4 * float(np.finfo(cases.DTYPES[dtype]).eps) * 20
        x, y = ((1e4 + tiny * a).astype(cases.DTYPES[dtype]) for a in (x, y))
        got = gl.cka(x, y, backend=backend.name)
        bounds.assert_relative(got, oracle.exact_cka(x, y), bounds.bound_for(x.dtype), "jitter")

    @pytest.mark.parametrize("size", [100.0, 300.0, 1000.0, 3000.0])
    @pytest.mark.parametrize("dtype", ["bf16", "fp32"])
    def test_one_massive_dimension(self, backend: Backend, dtype: str, size: float) -> None:
        rng = np.random.default_rng(0)
        shared = rng.standard_normal((256, 8))
        x = shared @ rng.standard_normal((8, 96)) + 0.3 * rng.standard_normal((256, 96))
        y = shared @ rng.standard_normal((8, 96)) + 0.3 * rng.standard_normal((256, 96))
        x[:, 7] = size * (1 + 0.01 * rng.standard_normal(256))
        x, y = x.astype(cases.DTYPES[dtype]), y.astype(cases.DTYPES[dtype])
        bounds.assert_absolute(
            gl.cka(x, y, backend=backend.name), oracle.dense_cka(x, y), bounds.bound_for(x.dtype), "massive dimension"
        )

    def test_one_shared_huge_row(self, backend: Backend) -> None:
        """One row of large norm makes independent data look equal to the biased estimator, and not to the unbiased."""
        rng = np.random.default_rng(2)
        x, y = rng.standard_normal((100, 20)), rng.standard_normal((100, 20))
        x[17] *= 1e3
        y[17] *= 1e3
        assert gl.cka(x, y, estimator="biased", backend=backend.name) > 1 - bounds.SHARP_LIMIT
        got = gl.cka(x, y, backend=backend.name)
        bounds.assert_absolute(got, oracle.dense_cka(x, y), bounds.algebra(oracle.cancellation(x, y)), "huge row")
        assert abs(got) < bounds.LIMIT * 5

    @pytest.mark.parametrize("spread", [3e3, 3e4, 3e7])
    def test_large_features_in_float32(self, backend: Backend, spread: float) -> None:
        """hsic(x, x) hsic(y, y) overflows float32 long before its root does."""
        x, y = ((spread * a).astype(np.float32) for a in cases.TYPICAL.arrays("fp64"))
        bounds.assert_relative(gl.cka(x, y, backend=backend.name), oracle.dense_cka(x, y), bounds.FIRST_FP32)

    @pytest.mark.parametrize("spread", [1e-60, 1e60])
    def test_extreme_scales_in_float64(self, backend: Backend, spread: float) -> None:
        x, y = cases.TYPICAL.arrays("fp64")
        got = gl.cka(spread * x, y / spread, backend=backend.name)
        bounds.assert_relative(got, oracle.dense_cka(x, y), bounds.SAME_FP64)

    @pytest.mark.parametrize(("n", "p"), [(16, 512), (64, 2048)])
    @pytest.mark.parametrize("dtype", ["fp32", "fp64"])
    def test_many_more_features_than_rows(self, backend: Backend, dtype: str, n: int, p: int) -> None:
        x, y = cases.Case(f"wide_{n}_{p}", "cancellation of |C|^2 against P", n, p, p // 4).arrays(dtype)
        bounds.assert_absolute(
            gl.cka(x, y, backend=backend.name), oracle.dense_cka(x, y), bounds.bound_for(x.dtype), "wide data"
        )

    @pytest.mark.parametrize("dtype", list(cases.DTYPES))
    def test_dtype_of_the_rows_is_the_only_loss(self, backend: Backend, dtype: str) -> None:
        """16-bit rows are exact inputs: the answer is that of the rounded rows, not a 16-bit computation."""
        x, y = cases.TYPICAL.arrays(dtype)
        wide = gl.cka(x.astype(np.float64), y.astype(np.float64), backend=backend.name)
        bounds.assert_relative(gl.cka(x, y, backend=backend.name), wide, bounds.bound_for(x.dtype))


class TestWays:
    """Null, fraction and random features: what goes together, and what to call instead."""

    X, Y = cases.Case("ways", "", 40, 5, 4).arrays("fp64")

    @pytest.mark.parametrize(
        ("asked", "text"),
        [
            ({"null": "permutation", "fraction": 0.5}, "got null='permutation' and fraction=0.5"),
            ({"null": "permutation", "method": "rff", "kernel": "rbf"}, "got null='permutation' and method='rff'"),
            ({"fraction": 0.5, "method": "rff", "kernel": "rbf"}, "got fraction=0.5 and method='rff'"),
            ({"null": "gamma"}, "expected null to be one of 'permutation', got 'gamma'"),
            ({"null": "permutation", "n_permutations": 0}, "expected n_permutations of at least 1, got 0"),
            (
                {"null": "permutation", "estimator": "feature_corrected"},
                "null='permutation' is not defined for estimator='feature_corrected'",
            ),
        ],
    )
    def test_what_does_not_go_together(self, asked: dict, text: str) -> None:
        for measure in (gl.hsic, gl.cka):
            with pytest.raises(ValueError, match=f"^{measure.__name__}: ") as caught:
                measure(self.X, self.Y, **asked)
            assert text in str(caught.value)

    @pytest.mark.parametrize("asked", [{"null": "permutation"}, {"fraction": 0.5}])
    def test_a_state_has_no_rows_left(self, asked: dict) -> None:
        with pytest.raises(TypeError, match=r"cka: .* needs the arrays x and y, got a MomentState"):
            gl.cka(gl.moments(self.X, self.Y), **asked)

    @pytest.mark.parametrize("measure", [gl.hsic, gl.cka, gl.cka_distance])
    def test_what_is_nearly_a_state(self, measure: object) -> None:
        name = measure.__name__
        with pytest.raises(TypeError, match=rf"{name}: .* got the accumulator Moments; call \.finalize\(\) first"):
            measure(gl.Moments().update(self.X, self.Y))
        with pytest.raises(TypeError, match=rf"{name}: .* got the accumulator GramSums; call \.finalize\(\) first"):
            measure(gl.GramSums(self.X, self.Y, kernel="cosine"))
        with pytest.raises(TypeError, match=rf"{name}: .* got SelfMoments; pass moments\(x, y\)"):
            measure(gl.moments(self.X))
        with pytest.raises(TypeError, match=rf"{name}: .* got SelfMoments; pass moments\(x, y\)"):
            measure(gl.moments(self.X), self.Y)

    def test_what_is_not_asked_for_changes_nothing(self) -> None:
        plain = gl.cka(self.X, self.Y)
        assert type(plain) is float
        assert gl.cka(self.X, self.Y, seed=5, method="exact") == plain

    @pytest.mark.parametrize(
        ("options", "text"),
        [
            ({"n_permutations": 3}, "n_permutations=3 has no effect without null='permutation'"),
            ({"n_permutations": 3, "fraction": 0.5}, "n_permutations=3 has no effect without null='permutation'"),
            ({"n_features": 9, "null": "permutation"}, "n_features=9 has no effect without method='rff'"),
        ],
    )
    def test_what_has_no_effect_is_refused(self, options: dict, text: str) -> None:
        for name, measure in (("cka", gl.cka), ("hsic", gl.hsic)):
            with pytest.raises(ValueError, match=f"^{name}: {text}"):
                measure(self.X, self.Y, **options)

    def test_a_scale_beside_random_features_is_refused(self) -> None:
        of_x, of_y = (gl.RandomFeatures(a.shape[1], 3.0, seed=k) for k, a in enumerate((self.X, self.Y)))
        state = gl.moments(of_x.transform(self.X), of_y.transform(self.Y))
        assert gl.cka(state, kernel="rbf", method="rff") > 0
        with pytest.raises(ValueError, match="this MomentState has the bandwidth of its features, give it alone"):
            gl.cka(state, kernel="rbf", method="rff", bandwidth_scale=2.0)

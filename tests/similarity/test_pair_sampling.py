"""Values of a part of all pairs of rows: unbiased, with a standard error that holds, exact where the part is all."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
from scipy import stats

import gramless as gl
from gramless.similarity import pair_sampling
from support import bounds, cases, grams
from support.backends import Backend, as_torch, threads

MEASURES = (gl.hsic, gl.cka)
# t of a 95 % interval from the least number of orders
INTERVAL = float(stats.t.ppf(0.975, pair_sampling.LEAST_ORDERS - 1))


class TestWhole:
    @pytest.mark.parametrize("dtype", ["fp32", "fp64"])
    @pytest.mark.parametrize("kernel", grams.KERNELS)
    @pytest.mark.parametrize("measure", MEASURES)
    def test_all_pairs_give_the_exact_value(self, backend: Backend, measure: object, kernel: str, dtype: str) -> None:
        x, y = cases.Case("estimate", "", 60, 6, 4).arrays(dtype)
        found = measure(x, y, kernel=kernel, fraction=1, backend=backend.name)
        exact = measure(x, y, kernel=kernel, backend=backend.name)
        bounds.assert_relative(found, exact, bounds.invariance_for(x.dtype))
        assert (found.stderr, found.fraction, found.n_batches) == (0.0, 1.0, 1)

    def test_few_rows_are_taken_whole(self) -> None:
        """Eight orders of batches of four rows hold more pairs than ten rows have."""
        x, y = grams.shared(10)
        found = gl.cka(x, y, kernel="rbf", fraction=0.1)
        bounds.assert_relative(found, gl.cka(x, y, kernel="rbf"), bounds.SAME_FP64)
        assert (found.stderr, found.fraction) == (0.0, 1.0)


class TestPart:
    @pytest.mark.parametrize(("measure", "kernel"), [(gl.cka, "rbf"), (gl.hsic, "linear")])
    def test_is_unbiased_with_a_standard_error_that_holds(self, measure: object, kernel: str) -> None:
        """Over seeds, for one set of rows."""
        x, y = grams.shared(80)
        choice = {"kernel": kernel} | ({"bandwidth": 3.0} if kernel == "rbf" else {})
        exact = measure(x, y, **choice)
        # batches of eight rows, which more threads only wait for
        with threads(1):
            found = [measure(x, y, **choice, fraction=0.8, seed=seed) for seed in range(200)]
        values, errors = np.array(found), np.array([value.stderr for value in found])
        noise = values.std(ddof=1) / math.sqrt(len(values))
        # the ratio of means is biased by less than its noise
        bounds.assert_absolute(values.mean(), exact, bounds.STANDARD_ERRORS * noise)
        assert np.mean(np.abs(values - exact) <= INTERVAL * errors) >= bounds.COVERAGE
        ratio = math.sqrt(np.mean(errors**2)) / values.std(ddof=1)
        assert 1 / bounds.STDERR_FACTOR < ratio < bounds.STDERR_FACTOR

    def test_more_pairs_say_more(self) -> None:
        x, y = grams.shared(1000)
        found = [gl.cka(x, y, kernel="rbf", bandwidth=3.0, fraction=fraction) for fraction in (0.05, 0.2, 0.8)]
        for value, fraction in zip(found, (0.05, 0.2, 0.8), strict=True):
            bounds.assert_relative(value.fraction, fraction, 2 * bounds.LIMIT, "fraction")
        assert found[0].stderr > found[1].stderr > found[2].stderr > 0

    def test_a_small_part_still_tells_of_its_error(self) -> None:
        """Never fewer than eight orders of batches of four rows, whatever part is asked for."""
        x, y = grams.shared(100)
        found = gl.cka(x, y, kernel="rbf", fraction=0.001)
        assert (found.n_batches, found.fraction) == (8 * 25, 8 * 3 / 99)
        bounds.assert_absolute(found, gl.cka(x, y, kernel="rbf"), 2 * INTERVAL * found.stderr)

    def test_seed_decides(self) -> None:
        x, y = grams.shared(300)
        first, again, other = (gl.hsic(x, y, kernel="rbf", fraction=0.1, seed=seed) for seed in (0, 0, 1))
        assert (first, first.stderr) == (again, again.stderr)
        assert first != other

    @pytest.mark.parametrize(("n", "size"), [(4, 4), (10, 4), (103, 20), (4096, 1024)])
    def test_an_order_has_every_row_once(self, n: int, size: int) -> None:
        edges = np.linspace(0, n, n // size + 1).astype(int)
        for batches in pair_sampling._orders(n, edges, 3, 0):
            parts = list(batches)
            assert min(len(part) for part in parts) >= size
            assert all((np.diff(part) > 0).all() for part in parts)
            assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(n))

    @pytest.mark.parametrize("dtype", list(cases.DTYPES))
    def test_any_dtype_and_library(self, backend: Backend, dtype: str) -> None:
        x, y = cases.TYPICAL.arrays(dtype)
        choice = {"kernel": "rbf", "fraction": 0.3, "backend": backend.name}
        want = gl.cka(x.astype(np.float64), y.astype(np.float64), **choice)
        for arrays in ((x, y), (as_torch(x), as_torch(y))):
            found = gl.cka(*arrays, **choice)
            bounds.assert_relative(found, want, bounds.INVARIANCE_FP32)
            bounds.assert_relative(found.stderr, want.stderr, bounds.SHARP_LIMIT)

    @pytest.mark.parametrize("case", ["offset_1e4", "massive_1e3", "huge_row"])
    @pytest.mark.parametrize("kernel", ["rbf", "linear", "laplacian"])
    def test_extremes(self, kernel: str, case: str) -> None:
        """Large means and massive coordinates cost no digits: float32 rows give what float64 rows give."""
        x, y = next(c for c in cases.EXTREMES if c.name == case).arrays("fp32")
        found, want = (
            gl.cka(*arrays, kernel=kernel, fraction=0.3)
            for arrays in ((x, y), (x.astype(np.float64), y.astype(np.float64)))
        )
        bounds.assert_absolute(found, want, bounds.SHARP_LIMIT)
        bounds.assert_absolute(found, gl.cka(x, y, kernel=kernel), 2 * INTERVAL * found.stderr)


class TestErrors:
    X, Y = grams.shared(60)

    @pytest.mark.parametrize(
        ("change", "error", "text"),
        [
            ({"fraction": 0}, ValueError, "expected fraction above 0, got 0"),
            ({"fraction": -0.5}, ValueError, "expected fraction above 0, got -0.5"),
            ({"fraction": 1.5}, ValueError, "expected fraction of at most 1, got 1.5"),
            ({"fraction": math.nan}, ValueError, "expected fraction to be finite, got nan"),
            ({"fraction": "half"}, TypeError, "expected fraction to be a number, got str"),
            ({"fraction": True}, TypeError, "expected fraction to be a number, got bool"),
            ({"seed": -1}, ValueError, "expected seed of at least 0, got -1"),
            ({"seed": 1.0}, TypeError, "expected seed to be an int, got float"),
            ({"estimator": "biased"}, ValueError, "fraction=0.5 is not defined for estimator='biased'"),
        ],
    )
    def test_arguments(self, change: dict, error: type[Exception], text: str) -> None:
        for measure in MEASURES:
            with pytest.raises(error) as caught:
                measure(self.X, self.Y, **({"kernel": "rbf", "fraction": 0.5} | change))
            assert str(caught.value) == f"{measure.__name__}: {text}"

    def test_rows(self) -> None:
        with pytest.raises(ValueError, match="cka: estimator='unbiased' needs at least 4 rows, got n = 3"):
            gl.cka(self.X[:3], self.Y[:3], fraction=0.5)
        with pytest.raises(ValueError, match="cka: expected x and y with the same number of rows"):
            gl.cka(self.X, self.Y[:9], fraction=0.5)

    def test_non_finite(self) -> None:
        """Rows of a batch have other numbers, so that none is given."""
        bad = self.Y.copy()
        bad[7, 0] = np.inf
        with pytest.raises(ValueError, match=r"^cka: y has non-finite values$"):
            gl.cka(self.X, bad, fraction=0.2)

    @pytest.mark.parametrize("fraction", [0.2, 1.0])
    def test_constant(self, fraction: float) -> None:
        constant = np.full((60, 2), 0.3)
        for measure in MEASURES:
            with pytest.raises(ValueError, match=f"{measure.__name__}: y is constant"):
                measure(self.X, constant, fraction=fraction)

    @pytest.mark.parametrize(("width", "text"), [(1e-5, "too small"), (1e9, "too large")])
    def test_saturated_kernel(self, width: float, text: str) -> None:
        with pytest.raises(ValueError, match=f"cka: x .*{text}"):
            gl.cka(self.X, self.Y, kernel="rbf", bandwidth=width, fraction=0.2)

    def test_equal_rows_in_some_batches_are_no_error(self) -> None:
        x = self.X.copy()
        x[:40] = x[0]
        found = gl.cka(x, self.Y, kernel="rbf", bandwidth=2.0, fraction=0.3)
        bounds.assert_absolute(found, gl.cka(x, self.Y, kernel="rbf", bandwidth=2.0), 2 * INTERVAL * found.stderr)


class TestFloat:
    ESTIMATE = gl.Estimate(0.25, stderr=0.125, n_features=64)
    CALIBRATED = gl.Calibrated(0.5, null_mean=0.0, null_quantile=0.25, pvalue=0.5, n_permutations=9, seed=1)

    def test_is_a_float_with_facts(self) -> None:
        assert repr(self.ESTIMATE) == "Estimate(0.25, stderr=0.125, n_features=64)"
        assert self.ESTIMATE.fraction is None
        assert f"{self.CALIBRATED:.2f}" == "0.50"
        assert type(self.ESTIMATE + 0) is float
        assert (self.ESTIMATE == 0.25, hash(self.ESTIMATE)) == (True, hash(0.25))

    @pytest.mark.parametrize("value", [ESTIMATE, CALIBRATED], ids=["estimate", "calibrated"])
    def test_survives_copies(self, value: float) -> None:
        for other in (pickle.loads(pickle.dumps(value)), copy.copy(value), copy.deepcopy(value)):
            assert type(other) is type(value)
            assert repr(other) == repr(value)

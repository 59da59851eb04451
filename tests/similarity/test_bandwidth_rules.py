"""Bandwidth rules: by brute force, on all rows and on samples of them, and what they refuse."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

import gramless as gl
from gramless.similarity import bandwidth_rules
from support import backends, bounds, cases, grams
from support.backends import Backend

DTYPES = list(cases.DTYPES)


def distances(x: np.ndarray) -> np.ndarray:
    """All n^2 distances, from differences of rows."""
    wide = x.astype(np.float64)
    return np.stack([np.linalg.norm(wide - row, axis=1) for row in wide])


def median(x: np.ndarray) -> float:
    return float(np.median(distances(x)[np.triu_indices(len(x), 1)]))


def kornblith(x: np.ndarray) -> float:
    """As in the notebook: its kernel exp(-D / (2 threshold^2 median(D))) of squared distances D, threshold 1."""
    return math.sqrt(np.median(distances(x) ** 2))


BRUTE_FORCE = {"median": median, "kornblith": kornblith}


class TestRules:
    @pytest.mark.parametrize("rule", BRUTE_FORCE)
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_are_those_of_brute_force(self, backend: Backend, dtype: str, rule: str) -> None:
        """Odd and even numbers of distances, so that one or two of them are in the middle."""
        for n in (2, 3, 4, 5, 6, 31, 32, 33, 34):
            x, _ = cases.Case(f"width{n}", "", n, 7, 1).arrays(dtype)
            found = gl.bandwidth(x, rule, backend=backend.name)
            bounds.assert_relative(found.value, BRUTE_FORCE[rule](x), bounds.bound_for(x.dtype), f"{rule} of {n} rows")
            assert (found.rule, found.n, found.exact, found.stderr) == (rule, n, True, 0.0)

    def test_kornblith_counts_the_diagonal(self) -> None:
        """Of three rows 3 of 9 squares are zeros: the middle one is the smallest distance, not the middle one."""
        x = np.array([[0.0], [1.0], [3.0]])
        assert gl.bandwidth(x, "kornblith").value == 1.0
        assert gl.bandwidth(x, "median").value == 2.0
        assert gl.bandwidth(x[:2], "kornblith").value == math.sqrt(0.5)

    def test_kornblith_is_the_kernel_of_the_notebook(self) -> None:
        x, y = grams.shared(40)
        grams_of = []
        for a in (x, y):
            squares = distances(a) ** 2
            grams_of.append(np.exp(-squares / (2 * 0.4**2 * np.median(squares))))
        want = grams.dense_cka(*grams_of, "biased")
        got = gl.cka(x, y, kernel="rbf", bandwidth="kornblith", bandwidth_scale=0.4, estimator="biased")
        bounds.assert_relative(got, want, bounds.SAME_FP64)

    def test_scale(self) -> None:
        x, _ = grams.SMALL.arrays("fp64")
        for rule in (*BRUTE_FORCE, 3.0):
            whole, half = gl.bandwidth(x, rule), gl.bandwidth(x, rule, scale=0.5)
            assert half.value == whole.value / 2

    def test_a_number_reads_nothing(self) -> None:
        x = np.full((5, 2), np.nan)
        assert gl.bandwidth(x, 2, scale=1.5) == gl.Bandwidth(3.0, "given", 0, True, 0.0)
        assert gl.bandwidth(x, np.float32(0.5)).value == 0.5

    @pytest.mark.parametrize("dtype", ["fp32", "bf16"])
    def test_large_means(self, dtype: str) -> None:
        """Distances of float32 rows at 1e4 are right to their last digits: rows are centred first."""
        x, _ = cases.Case("far", "", 50, 6, 1).arrays("fp64")
        far = (x + 1e4).astype(np.float32) if dtype == "fp32" else (x + 64).astype(cases.DTYPES["bf16"])
        bounds.assert_relative(gl.bandwidth(far).value, median(far), bounds.FIRST_FP32)

    @pytest.mark.parametrize("exponent", [-40, 40])
    def test_scale_of_the_data(self, exponent: int) -> None:
        x, _ = grams.SMALL.arrays("fp32")
        got = gl.bandwidth(x * np.float32(2.0**exponent)).value
        bounds.assert_relative(got, gl.bandwidth(x).value * 2.0**exponent, bounds.FIRST_FP32)

    @pytest.mark.parametrize("layout", backends.LAYOUTS)
    def test_layouts(self, layout: str) -> None:
        x, _ = grams.SMALL.arrays("fp32")
        assert gl.bandwidth(backends.layouts(x)[layout]) == gl.bandwidth(x)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_torch_and_dlpack(self, dtype: str) -> None:
        x, _ = grams.SMALL.arrays(dtype)
        tensor = backends.as_torch(x)
        assert gl.bandwidth(tensor) == gl.bandwidth(backends.OnlyDLPack(tensor)) == gl.bandwidth(x)


class TestSamples:
    """With a few hundred rows as the most that are taken whole."""

    ROWS = 256

    @pytest.fixture(autouse=True)
    def _few_rows(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bandwidth_rules, "EXACT_ROWS", self.ROWS)

    def test_up_to_this_many_rows_are_taken_whole(self) -> None:
        x, _ = grams.shared(self.ROWS + 1)
        assert gl.bandwidth(x[:-1]).exact
        sampled = gl.bandwidth(x)
        assert (sampled.exact, sampled.n) == (False, self.ROWS)
        # but one row is left out
        bounds.assert_relative(sampled.value, median(x), bounds.LIMIT)
        assert 0 < sampled.stderr < sampled.value * bounds.LIMIT

    def test_seed_chooses_the_sample(self) -> None:
        x, _ = grams.shared(2000)
        assert gl.bandwidth(x, seed=1) == gl.bandwidth(x, seed=1)
        assert len({gl.bandwidth(x, seed=seed).value for seed in range(5)}) == 5
        assert gl.bandwidth(x) == gl.bandwidth(x, seed=0)

    @pytest.mark.parametrize("rule", BRUTE_FORCE)
    def test_coverage_of_the_standard_error(self, rule: str) -> None:
        x, _ = grams.shared(2000)
        truth = BRUTE_FORCE[rule](x)
        found = [gl.bandwidth(x, rule, seed=seed) for seed in range(150)]
        errors = np.array([(one.value - truth) / one.stderr for one in found])
        covered = np.mean(np.abs(errors) < 2)
        assert covered > bounds.LEAST_COVERAGE, f"{covered:.3f} of the intervals hold the truth"
        # nor are they so wide that they say nothing
        spread = np.std([one.value for one in found])
        mean = np.mean([one.stderr for one in found])
        assert spread / bounds.STDERR_FACTOR < mean < spread * bounds.STDERR_FACTOR

    def test_scale_is_that_of_the_standard_error_too(self) -> None:
        x, _ = grams.shared(1000)
        whole, double = gl.bandwidth(x), gl.bandwidth(x, scale=2.0)
        assert (double.value, double.stderr) == (2 * whole.value, 2 * whole.stderr)

    def test_clusters(self) -> None:
        """Rows in order of their class: a sample of the first rows would see one class alone."""
        rng = np.random.default_rng(0)
        x = np.repeat(10.0 * rng.standard_normal((4, 5)), 500, axis=0) + rng.standard_normal((2000, 5))
        found = gl.bandwidth(x)
        bounds.assert_absolute(found.value, median(x), 2 * bounds.STANDARD_ERRORS * found.stderr)

    def test_layouts(self, tmp_path: object) -> None:
        x = grams.shared(700)[0].astype(np.float32)
        np.save(tmp_path / "x.npy", x)
        want = gl.bandwidth(x)
        assert gl.bandwidth(np.load(tmp_path / "x.npy", mmap_mode="r")) == want
        assert gl.bandwidth(np.asfortranarray(x)) == want
        assert gl.bandwidth(backends.as_torch(x)) == want

    def test_rows_of_a_sample_have_no_numbers(self) -> None:
        x = grams.shared(700)[0].copy()
        x[:] = np.nan
        with pytest.raises(ValueError, match=r"^bandwidth: x has non-finite values$"):
            gl.bandwidth(x)


def test_many_rows() -> None:
    """A sample as large as it is by default."""
    x, _ = grams.shared(2 * bandwidth_rules.EXACT_ROWS)
    found = gl.bandwidth(x[:, :2].astype(np.float32))
    assert (found.n, found.exact) == (bandwidth_rules.EXACT_ROWS, False)
    # the median distance of normal points of the plane, whose squares are 4 times exponential
    bounds.assert_absolute(found.value, math.sqrt(4 * math.log(2)), 2 * bounds.LIMIT)


class TestErrors:
    X = grams.SMALL.arrays("fp32")[0]

    @pytest.mark.parametrize(
        ("error", "text", "keywords"),
        [
            (
                ValueError,
                "expected rule to be 'median' or 'kornblith' or a number above 0, got 'mean'",
                {"rule": "mean"},
            ),
            (ValueError, "expected rule above 0, got 0", {"rule": 0}),
            (ValueError, "expected rule above 0, got -1.5", {"rule": -1.5}),
            (ValueError, "expected rule to be finite, got nan", {"rule": math.nan}),
            (ValueError, "expected rule to be finite, got inf", {"rule": math.inf}),
            (TypeError, "expected rule to be a number, got list", {"rule": [1.0]}),
            (TypeError, "expected rule to be a number, got bool", {"rule": True}),
            (TypeError, "expected rule to be a number, got NoneType", {"rule": None}),
            (ValueError, "expected scale above 0, got 0", {"scale": 0}),
            (TypeError, "expected scale to be a number, got str", {"scale": "1"}),
            (ValueError, "expected seed of at least 0, got -1", {"seed": -1}),
            (TypeError, "expected seed to be an int, got float", {"seed": 1.5}),
            (ValueError, "expected backend to be one of", {"backend": "tpu"}),
        ],
        ids=lambda value: value if isinstance(value, str) else None,
    )
    def test_arguments(self, error: type[Exception], text: str, keywords: dict) -> None:
        with pytest.raises(error, match=re.escape(text)):
            gl.bandwidth(self.X, **keywords)

    def test_one_row(self) -> None:
        with pytest.raises(ValueError, match=r"^bandwidth: bandwidth='median' needs at least 2 rows, got n = 1$"):
            gl.bandwidth(self.X[:1])

    @pytest.mark.parametrize("rule", BRUTE_FORCE)
    def test_equal_rows(self, rule: str) -> None:
        for value in (0.0, 0.1, -7e4):
            with pytest.raises(
                ValueError, match=rf"^bandwidth: bandwidth='{rule}' is 0 for x, all pairs .* are equal$"
            ):
                gl.bandwidth(np.full((20, 3), value, np.float32), rule)
        x = np.zeros((20, 3))
        x[7] = 1.0
        with pytest.raises(ValueError, match=rf"'{rule}' is 0 for x, most pairs of its rows are equal; give"):
            gl.bandwidth(x, rule)

    def test_non_finite(self, backend: Backend) -> None:
        x = self.X.astype(np.float16)
        x[41, 2] = np.inf
        with pytest.raises(ValueError, match=r"^bandwidth: x has non-finite values in rows 0\.\.59 \(float16 holds"):
            gl.bandwidth(x, backend=backend.name)

    def test_overflow(self, backend: Backend) -> None:
        text = "^bandwidth: distances between the rows of x overflow; scale the data down$"
        for x in (np.array([[1e200], [-1e200], [2e200]]), np.array([[1e20], [-1e20], [2e20]], np.float32)):
            if backend.name == "cpu" or x.dtype == np.float64:
                with pytest.raises(ValueError, match=text):
                    gl.bandwidth(x, backend=backend.name)

    def test_measures_name_the_side(self) -> None:
        constant = np.zeros((60, 3), np.float32)
        with pytest.raises(ValueError, match="bandwidth='median' is 0 for y"):
            gl.cka(self.X, constant, kernel="rbf")

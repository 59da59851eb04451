"""Random Fourier features: unbiased, with a standard error that holds, in one pass whose parts merge."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

import gramless as gl
from gramless.similarity import random_features
from support import bounds, cases, grams
from support.backends import Backend, as_torch

MEASURES = (gl.hsic, gl.cka)
RFF = {"kernel": "rbf", "method": "rff"}
WIDTH = 3.0
INTERVAL = float(stats.norm.ppf(0.975))


def state_of(x: np.ndarray, y: np.ndarray, n_features: int, batch: int) -> gl.MomentState:
    """The moments of features, by batches in two streams that are merged."""
    makers = [gl.RandomFeatures(a.shape[1], WIDTH, n_features, seed=seed) for seed, a in enumerate((x, y))]
    streams = gl.Moments(), gl.Moments()
    for index, start in enumerate(range(0, len(x), batch)):
        rows = slice(start, start + batch)
        streams[index % 2].update(*(maker.transform(a[rows]) for maker, a in zip(makers, (x, y), strict=True)))
    return streams[0].merge(streams[1]).finalize()


class TestFeatures:
    def test_products_estimate_the_kernel(self) -> None:
        x = np.random.default_rng(0).standard_normal((30, 4))
        z = gl.RandomFeatures(4, WIDTH, 20000, seed=0).transform(x)
        kernel = np.exp(-np.sum((x[:, None] - x[None]) ** 2, axis=2) / (2 * WIDTH**2))
        assert np.abs(z @ z.T - kernel).max() < bounds.LIMIT
        assert bounds.scaled_error((z**2).sum(axis=1), np.ones(30), np.ones(30)) <= bounds.SAME_FP64

    @pytest.mark.parametrize("dtype", list(cases.DTYPES))
    def test_dtypes(self, dtype: str) -> None:
        x, _ = cases.TYPICAL.arrays(dtype)
        maker = gl.RandomFeatures(x.shape[1], 9.0, 16, seed=1)
        made = maker.transform(x)
        assert (made.shape, made.dtype) == ((len(x), 32), np.float64 if dtype == "fp64" else np.float32)
        bounds.assert_same_bits(maker.transform(as_torch(x)), made)
        wide = maker.transform(x.astype(np.float64))
        assert np.abs(made - wide).max() < bounds.INVARIANCE_FP32
        assert maker.transform(x[:0]).shape == (0, 32)

    def test_pivot_changes_no_product(self) -> None:
        x = np.random.default_rng(0).standard_normal((20, 3))
        plain = gl.RandomFeatures(3, WIDTH, 64, seed=0)
        moved = gl.RandomFeatures(3, WIDTH, 64, seed=0, pivot=np.array([5.0, -1.0, 2.0]))
        a, b = plain.transform(x), moved.transform(x)
        assert np.abs(a @ a.T - b @ b.T).max() < bounds.SAME_FP64
        assert np.abs(a - b).max() > bounds.LIMIT

    def test_pivot_saves_digits(self) -> None:
        x = (1e4 + np.random.default_rng(0).standard_normal((20, 3))).astype(np.float32)
        truth = gl.RandomFeatures(3, WIDTH, 64, seed=0, pivot=np.full(3, 1e4)).transform(x.astype(np.float64))
        found = gl.RandomFeatures(3, WIDTH, 64, seed=0, pivot=np.full(3, 1e4)).transform(x)
        assert np.abs(found @ found.T - truth @ truth.T).max() < bounds.INVARIANCE_FP32

    def test_seed_decides(self) -> None:
        x = np.random.default_rng(0).standard_normal((5, 3))
        made = [gl.RandomFeatures(3, WIDTH, 8, seed=seed).transform(x) for seed in (0, 0, 1, (0, 1))]
        bounds.assert_same_bits(made[0], made[1])
        assert len({a.tobytes() for a in made}) == 3


class TestEstimate:
    @pytest.mark.parametrize("estimator", ["unbiased", "biased"])
    def test_pairs_of_frequencies_are_those_of_their_own_kernels(self, estimator: str) -> None:
        x, y = grams.shared(23)
        state, m = state_of(x, y, 8, 5), 8
        found = random_features._pairs("hsic", state, estimator)
        features = [gl.RandomFeatures(a.shape[1], WIDTH, m, seed=seed).transform(a) for seed, a in enumerate((x, y))]
        kernels = [[m * (z[:, [f, m + f]] @ z[:, [f, m + f]].T) for f in range(m)] for z in features]
        for pairs, (left, right) in zip(found, ((0, 1), (0, 0), (1, 1)), strict=True):
            truth = np.array([[grams.dense_hsic(k, o, estimator) for o in kernels[right]] for k in kernels[left]])
            if left == right:
                np.fill_diagonal(truth, 0.0)
            assert bounds.scaled_error(pairs, truth, np.full((m, m), np.abs(truth).max())) <= bounds.SAME_FP64

    @pytest.mark.parametrize("estimator", ["unbiased", "biased"])
    @pytest.mark.parametrize("measure", MEASURES)
    def test_is_unbiased_with_a_standard_error_that_holds(self, measure: object, estimator: str) -> None:
        """Over seeds, for one set of rows."""
        x, y = grams.shared(120)
        choice = {"bandwidth": WIDTH, "estimator": estimator}
        exact = measure(x, y, kernel="rbf", **choice)
        found = [measure(x, y, **RFF, **choice, n_features=96, seed=seed) for seed in range(200)]
        values, errors = np.array(found), np.array([value.stderr for value in found])
        noise = values.std(ddof=1) / math.sqrt(len(values))
        if measure is gl.hsic:
            bounds.assert_absolute(values.mean(), exact, bounds.STANDARD_ERRORS * noise)
        else:
            # a ratio is biased by less than one standard error
            bounds.assert_absolute(values.mean(), exact, values.std())
        assert np.mean(np.abs(values - exact) <= INTERVAL * errors) >= bounds.COVERAGE
        ratio = math.sqrt(np.mean(errors**2)) / values.std(ddof=1)
        assert 1 / bounds.STDERR_FACTOR < ratio < bounds.STDERR_FACTOR

    def test_more_features_say_more(self) -> None:
        x, y = grams.shared(400)
        exact = gl.cka(x, y, kernel="rbf")
        found = [gl.cka(x, y, **RFF, n_features=count) for count in (32, 128, 512)]
        assert found[0].stderr > found[1].stderr > found[2].stderr > 0
        assert [value.n_features for value in found] == [32, 128, 512]
        for value in found:
            bounds.assert_absolute(value, exact, 2 * INTERVAL * value.stderr)

    def test_independent_data(self) -> None:
        rng = np.random.default_rng(0)
        values = np.array(
            [
                gl.cka(rng.standard_normal((60, 3)), rng.standard_normal((60, 3)), **RFF, n_features=64, seed=seed)
                for seed in range(100)
            ]
        )
        noise = values.std(ddof=1) / math.sqrt(len(values))
        bounds.assert_absolute(values.mean(), 0.0, bounds.STANDARD_ERRORS * noise)
        assert values.min() < 0

    @pytest.mark.parametrize("dtype", ["fp32", "fp64"])
    def test_large_means_change_nothing(self, backend: Backend, dtype: str) -> None:
        x, y = (np.round(a * 64) / 64 for a in cases.TYPICAL.arrays(dtype))
        choice = {**RFF, "bandwidth": 9.0, "n_features": 64, "backend": backend.name}
        still = gl.cka(x, y, **choice)
        moved = gl.cka(x + x.dtype.type(4096), y - y.dtype.type(1024), **choice)
        bounds.assert_relative(moved, still, bounds.SHARP_LIMIT)
        bounds.assert_relative(moved.stderr, still.stderr, bounds.SHARP_LIMIT)

    @pytest.mark.parametrize("case", ["offset_1e4", "massive_1e3", "huge_row"])
    def test_extremes(self, case: str) -> None:
        x, y = next(c for c in cases.EXTREMES if c.name == case).arrays("fp32")
        found = gl.cka(x, y, **RFF, n_features=1024)
        bounds.assert_absolute(found, gl.cka(x, y, kernel="rbf"), 2 * INTERVAL * found.stderr)

    def test_more_rows_than_a_chunk(self, monkeypatch: pytest.MonkeyPatch) -> None:
        x, y = grams.shared(300)
        whole = gl.cka(x, y, **RFF, n_features=32)
        monkeypatch.setattr(random_features, "CHUNK_ROWS", 37)
        bounds.assert_relative(gl.cka(x, y, **RFF, n_features=32), whole, bounds.SAME_FP64)


class TestStream:
    @pytest.mark.parametrize("measure", MEASURES)
    def test_batches_and_merges_change_nothing(self, measure: object) -> None:
        x, y = grams.shared(200)
        whole, parts = (measure(state_of(x, y, 48, batch), **RFF) for batch in (200, 17))
        bounds.assert_relative(parts, whole, bounds.SAME_FP64)
        bounds.assert_relative(parts.stderr, whole.stderr, bounds.SAME_FP64)
        exact = measure(x, y, kernel="rbf", bandwidth=WIDTH)
        bounds.assert_absolute(whole, exact, 2 * INTERVAL * whole.stderr)

    def test_other_states_are_refused(self) -> None:
        x, y = grams.shared(50)
        with pytest.raises(
            ValueError, match=r"cka: expected a state of RandomFeatures\.transform, got 6 features of x"
        ):
            gl.cka(gl.moments(x, y), **RFF)
        with pytest.raises(TypeError, match="cka: method='rff' needs the arrays x and y, got a GramState"):
            gl.cka(gl.gram_sums(x, y, kernel="rbf", bandwidth_x=1.0, bandwidth_y=1.0), **RFF)

    def test_a_state_stands_alone(self) -> None:
        x, y = grams.shared(50)
        state = state_of(x, y, 8, 50)
        for extra in ({"y": y}, {"bandwidth": 2.0}):
            with pytest.raises(ValueError, match="cka: this MomentState has the bandwidth of its features"):
                gl.cka(state, **extra, **RFF)


class TestErrors:
    X, Y = grams.shared(40)

    @pytest.mark.parametrize(
        ("change", "error", "text"),
        [
            ({"n_features": 7}, ValueError, "expected n_features of at least 8, got 7"),
            ({"n_features": 64.0}, TypeError, "expected n_features to be an int, got float"),
            ({"seed": -3}, ValueError, "expected seed of at least 0, got -3"),
            ({"kernel": "linear"}, ValueError, "method='rff' needs kernel='rbf', got kernel='linear'"),
            ({"kernel": "laplacian"}, ValueError, "method='rff' needs kernel='rbf', got kernel='laplacian'"),
            ({"method": "nystrom"}, ValueError, "expected method to be one of 'exact', 'rff', got 'nystrom'"),
        ],
    )
    def test_arguments(self, change: dict, error: type[Exception], text: str) -> None:
        for measure in MEASURES:
            with pytest.raises(error) as caught:
                measure(self.X, self.Y, **(RFF | change))
            assert str(caught.value) == f"{measure.__name__}: {text}"

    @pytest.mark.parametrize(
        ("arguments", "error", "text"),
        [
            ({"p": 0}, ValueError, "expected p of at least 1, got 0"),
            ({"bandwidth": 0.0}, ValueError, "expected bandwidth above 0, got 0.0"),
            ({"bandwidth": "median"}, TypeError, "expected bandwidth to be a number, got str"),
            ({"n_features": 4}, ValueError, "expected n_features of at least 8, got 4"),
            ({"seed": (1, -1)}, ValueError, "expected seed of at least 0, got -1"),
            ({"seed": "a"}, TypeError, "expected seed to be an int, got str"),
            ({"pivot": np.zeros(2)}, ValueError, "expected a finite pivot of shape (6,), got shape (2,)"),
            ({"pivot": np.full(6, np.nan)}, ValueError, "expected a finite pivot of shape (6,), got shape (6,)"),
        ],
    )
    def test_features(self, arguments: dict, error: type[Exception], text: str) -> None:
        with pytest.raises(error) as caught:
            gl.RandomFeatures(**({"p": 6, "bandwidth": 1.0, "seed": 0} | arguments))
        assert str(caught.value) == f"RandomFeatures: {text}"

    def test_transform(self) -> None:
        maker = gl.RandomFeatures(6, 1.0, seed=0)
        with pytest.raises(ValueError, match=r"RandomFeatures\.transform: .*changed number of features: x 6 to 4"):
            maker.transform(self.Y)
        with pytest.raises(TypeError, match=r"RandomFeatures\.transform: expected x"):
            maker.transform([[1.0]])

    def test_non_finite(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(random_features, "CHUNK_ROWS", 16)
        bad = self.Y.copy()
        bad[33, 1] = np.nan
        with pytest.raises(ValueError, match="cka: y has non-finite values in row 33"):
            gl.cka(self.X, bad, **RFF, bandwidth=1.0)

    def test_constant_and_narrow(self) -> None:
        for width, y in ((1.0, np.full((40, 2), 0.5)), (1e-4, self.Y)):
            with pytest.raises(ValueError, match=r"cka: (x|y) has the self term .* which has no root"):
                gl.cka(self.X, y, **RFF, bandwidth=width, n_features=8)

    def test_too_few_rows(self) -> None:
        with pytest.raises(ValueError, match="cka: estimator='unbiased' needs at least 4 rows, got n = 3"):
            gl.cka(self.X[:3], self.Y[:3], **RFF, bandwidth=1.0)

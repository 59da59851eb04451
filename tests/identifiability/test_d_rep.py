"""d_rep against loops over label sets and inputs, why its average is no statistic, and what is counted beside it."""

from __future__ import annotations

import re

import numpy as np
import pytest

import gramless as gl
from gramless.measures.identifiability import label_maps
from support import bounds, cases, two_models


def by_loops(models: two_models.Models, pivots: int, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """|h1 - A h2| for each label set and input, and sigma_min of each set."""
    labels, d = models[1].shape
    sets = two_models.label_sets(labels, d, pivots, count, seed)
    norms, sigma = zip(*(two_models.residuals(models, chosen) for chosen in sets), strict=True)
    return np.array(norms), np.array(sigma)


class TestDefinition:
    @pytest.mark.parametrize("squared", [True, False])
    @pytest.mark.parametrize(
        ("labels", "d", "pivots", "count"), [(5, 1, 5, 3), (9, 3, 4, 6), (7, 6, 7, 15), (40, 8, 3, 9)]
    )
    def test_published_average(self, labels: int, d: int, pivots: int, count: int, squared: bool) -> None:
        """The same label sets for the same seed, and the same mean over them and over inputs."""
        models = two_models.related(labels, labels=labels, d=d)
        found = gl.d_rep(*models, pivots=pivots, combinations=count, seed=5, squared=squared)
        norms, sigma = by_loops(models, pivots, count, 5)
        norms = norms**2 if squared else norms
        bounds.assert_relative(found.value, norms.mean(), bounds.INVARIANCE_FP64)
        want = norms.mean(axis=1)
        bounds.assert_relative(found.median, np.median(want), bounds.INVARIANCE_FP64)
        ends = len(want) // 10
        bounds.assert_relative(
            found.trimmed_mean, np.sort(want)[ends : len(want) - ends].mean(), bounds.INVARIANCE_FP64
        )
        for level, value in found.quantiles.items():
            bounds.assert_relative(value, np.quantile(sigma, level), bounds.INVARIANCE_FP64)
        assert (found.n_sets, found.singular, found.seed, found.squared) == (pivots * count, 0, 5, squared)
        for mine, theirs in zip(found.values, want, strict=True):
            bounds.assert_relative(mine, theirs, bounds.INVARIANCE_FP64)
        bounds.assert_relative(found.sigma_min.sum(), sigma.sum(), bounds.INVARIANCE_FP64)

    @pytest.mark.parametrize("squared", [True, False])
    @pytest.mark.parametrize("dtype", list(cases.DTYPES))
    def test_least_squares(self, dtype: str, squared: bool) -> None:
        """The residual of one map, fitted to the centred unembeddings of all labels; 16-bit inputs are exact."""
        models = tuple(a.astype(cases.DTYPES[dtype]) for a in two_models.related(1, n=3000, labels=2100))
        found = gl.d_rep(*models, pivots=2, combinations=2, squared=squared)
        h1, w1, h2, w2 = (a.astype(np.float64) for a in models)
        a = np.linalg.pinv(w1 - w1.mean(axis=0)) @ (w2 - w2.mean(axis=0))
        norms = np.linalg.norm(h1 - h2 @ a.T, axis=1)
        bounds.assert_relative(found.least_squares, (norms**2 if squared else norms).mean(), bounds.INVARIANCE_FP64)

    def test_number_of_label_sets(self) -> None:
        models = two_models.related(2)
        assert gl.d_rep(*models).n_sets == 9 * 20
        assert gl.d_rep(*two_models.related(2, labels=50), combinations=3).n_sets == 20 * 3
        assert gl.d_rep(*models, pivots=9, combinations=1).n_sets == 9

    def test_seed(self) -> None:
        models = two_models.related(3)
        one, same, other = (gl.d_rep(*models, seed=seed) for seed in (1, 1, 2))
        assert (one.value, one.quantiles) == (same.value, same.quantiles)
        assert one.value != other.value
        assert one.least_squares == other.least_squares

    def test_result_is_short_to_read(self) -> None:
        assert re.fullmatch(
            r"LinearDissimilarity\(value=[\d.]+, median=[\d.]+, trimmed_mean=[\d.]+, least_squares=[\d.]+, "
            r"n_sets=180, singular=0, squared=True, seed=0\)",
            repr(gl.d_rep(*two_models.related(2))),
        )


class TestInvariance:
    @pytest.mark.parametrize("squared", [True, False])
    def test_same_class(self, squared: bool) -> None:
        """0 up to rounding, and never below: what differences of second moments would not keep."""
        h, w, _, _ = two_models.related(4)
        for seed in range(5):
            found = gl.d_rep(h, w, *two_models.recoordinated(h, w, seed), squared=squared)
            assert (found.values >= 0).all()
            bounds.assert_absolute(found.value, 0.0, bounds.SAME_CLASS)
            bounds.assert_absolute(found.least_squares, 0.0, bounds.SAME_CLASS)

    def test_coordinates_of_the_second_model(self) -> None:
        h1, w1, h2, w2 = two_models.related(5)
        found = gl.d_rep(h1, w1, h2, w2)
        moved = gl.d_rep(h1, w1, *two_models.recoordinated(h2, w2))
        bounds.assert_relative(moved.value, found.value, bounds.INVARIANCE_FP64)
        bounds.assert_relative(moved.least_squares, found.least_squares, bounds.INVARIANCE_FP64)

    def test_units_are_those_of_the_first_model(self) -> None:
        h1, w1, h2, w2 = two_models.related(6)
        found = gl.d_rep(h1, w1, h2, w2)
        bounds.assert_relative(gl.d_rep(3 * h1, w1 / 3, h2, w2).median / found.median, 9.0, bounds.INVARIANCE_FP64)
        assert gl.d_rep(h2, w2, h1, w1).median != found.median

    def test_translations_of_both_unembeddings(self) -> None:
        h1, w1, h2, w2 = two_models.related(7)
        found, moved = gl.d_rep(h1, w1, h2, w2), gl.d_rep(h1, w1 + 5, h2, w2 - [1, 2, 3])
        bounds.assert_relative(moved.value, found.value, bounds.INVARIANCE_FP64)


class TestSingularSets:
    @pytest.mark.parametrize("squared", [True, False])
    def test_counted_and_left_out(self, squared: bool) -> None:
        """Padding: sets with two of its rows have no map. They are counted, and the others are what is averaged."""
        h1, w1, h2, w2 = (a.copy() for a in two_models.related(8, labels=12))
        w1[3:6] = 0.0
        found = gl.d_rep(h1, w1, h2, w2, pivots=12, combinations=10, seed=1, squared=squared)
        sets = list(two_models.label_sets(12, 3, 12, 10, 1))
        singular = [len(set(chosen.tolist()) & {3, 4, 5}) > 1 for chosen in sets]
        assert 0 < sum(singular) == found.singular
        assert found.n_sets == 120 - found.singular
        kept = [c for c, bad in zip(sets, singular, strict=True) if not bad]
        norms = np.array([two_models.residuals((h1, w1, h2, w2), chosen)[0] for chosen in kept])
        bounds.assert_relative(found.value, (norms**2 if squared else norms).mean(), bounds.INVARIANCE_FP64)
        assert found.quantiles[0.0] > 0

    def test_singular_second_unembedding_is_no_trouble(self) -> None:
        h1, w1, h2, w2 = (a.copy() for a in two_models.related(9))
        w2[:] = w2[0]
        found = gl.d_rep(h1, w1, h2, w2)
        bounds.assert_relative(found.value, (h1**2).sum(axis=1).mean(), bounds.INVARIANCE_FP64)

    def test_all_singular(self) -> None:
        h1, w1, h2, w2 = (a.copy() for a in two_models.related(10))
        for flat in (np.zeros_like(w1), np.ones_like(w1), w1 * [1.0, 0.0, 1.0], w1[:, [0, 0, 1]]):
            with pytest.raises(ValueError, match=r"d_rep: all 180 label sets of w1 are singular"):
                gl.d_rep(h1, flat, h2, w2)

    @pytest.mark.parametrize("d", [3, 48, 49, 90])
    @pytest.mark.parametrize("scale", [1e-200, 1.0, 1e150])
    def test_smallest_singular_value(self, d: int, scale: float) -> None:
        """Small matrices by all singular values, larger ones by an iteration; both as the dense decomposition."""
        rng = np.random.default_rng(d)
        matrices = rng.standard_normal((5, d, d))
        matrices[1, :, 0] = matrices[1, :, 1] + 1e-6 * rng.standard_normal(d)
        matrices[2, :, 0], matrices[3, 0], matrices[4] = matrices[2, :, 1], matrices[3, 1], 0.0
        second = rng.standard_normal((5, d, d))
        maps, sigma = label_maps(scale * matrices, scale * second)
        assert (sigma > 0).tolist() == [True, True, False, False, False]
        want = np.linalg.svd(matrices, compute_uv=False)[:, -1]
        for k in (0, 1):
            bounds.assert_relative(sigma[k], scale * want[k], bounds.INVARIANCE_FP32)
        error = np.abs(matrices[0] @ maps[0] - second[0]).max()
        bounds.assert_absolute(error, 0.0, bounds.INVARIANCE_FP64)


def test_published_average_is_not_a_stable_statistic() -> None:
    """One label set in a hundred is most of it; the median and the residual over all labels stay as they are."""
    models = two_models.related(11, n=200, labels=60, d=20, noise=0.1)
    draws = [gl.d_rep(*models, pivots=20, combinations=25, seed=seed) for seed in range(6)]
    shares = [np.sort(found.values)[-5:].sum() / found.values.sum() for found in draws]
    assert min(shares) > 0.5
    averages, medians = ([getattr(found, name) for found in draws] for name in ("value", "median"))
    assert max(averages) / min(averages) > 5
    assert max(medians) / min(medians) < 1.5
    assert len({found.least_squares for found in draws}) == 1
    assert draws[0].least_squares < min(medians)


class TestRefusals:
    @pytest.mark.parametrize(
        ("changed", "error", "text"),
        [
            ({"pivots": 10}, ValueError, "d_rep: expected at most V = 9 pivots, got 10"),
            ({"pivots": 0}, ValueError, "d_rep: expected pivots of at least 1, got 0"),
            ({"combinations": 1.5}, TypeError, "d_rep: expected combinations to be an int, got float"),
            ({"seed": -3}, ValueError, "d_rep: expected seed of at least 0, got -3"),
        ],
    )
    def test_options(self, changed: dict, error: type[Exception], text: str) -> None:
        with pytest.raises(error, match=re.escape(text)):
            gl.d_rep(*two_models.related(), **changed)

    @pytest.mark.parametrize("labels", [2, 3])
    def test_no_more_labels_than_features(self, labels: int) -> None:
        text = f"d_rep: expected more labels than hidden size, got V = {labels} and d = 3"
        with pytest.raises(ValueError, match=text):
            gl.d_rep(*two_models.related(labels=labels))

    def test_hidden_sizes(self) -> None:
        with pytest.raises(ValueError, match="d_rep: expected models of one hidden size, got d = 3 and 4: the map A"):
            gl.d_rep(*two_models.related(d2=4))

    @pytest.mark.parametrize("name", two_models.ARRAYS)
    def test_non_finite(self, name: str) -> None:
        arrays = dict(
            zip(two_models.ARRAYS, (a.astype(np.float16) for a in two_models.related(n=700, labels=600)), strict=True)
        )
        arrays[name][400, 1] = np.nan
        with pytest.raises(
            ValueError, match=rf"d_rep: {name} has non-finite values in rows 256\.\.511 \(float16 holds"
        ):
            gl.d_rep(**arrays)


def test_overflow_and_flags_are_refused():
    h, w = np.random.default_rng(5).standard_normal((2, 20, 3))
    for scale, squared in ((1e200, True), (1.0, False)):
        with pytest.raises(ValueError, match=r"^d_rep: residuals overflow; scale the data down"):
            gl.d_rep(1e200 * h, w, 1e200 / scale * h, w[::-1] * 1e200, squared=squared)
    with pytest.raises(TypeError, match=r"^d_rep: expected squared to be a bool, got str"):
        gl.d_rep(h, w, h, w, squared="x")


def scales_of(power: float) -> list[tuple[float, float, float, float, float]]:
    """Powers of two for h1, w1, h2 and w2, and what they make of |h1 - A h2|: A has the scale of w2 over that of w1."""
    s = 2.0**power
    return [(s, 1, s, 1, s), (1, 1, s, 1 / s, 1), (s, 1 / s, 1, 1, s), (s, s, s, s, s), (1, s, s, s, 1 if s < 1 else s)]


class TestScale:
    """Powers of two are exact, so that every number is the same to the last bit in its own units."""

    @pytest.mark.parametrize("power", [660, -660, -990])
    @pytest.mark.parametrize("case", range(4))
    def test_norms_at_the_ends_of_float64(self, power: int, case: int) -> None:
        models, (*factors, unit) = two_models.related(12), scales_of(power)[case]
        plain = gl.d_rep(*models, squared=False)
        found = gl.d_rep(*(f * a for f, a in zip(factors, models, strict=True)), squared=False)
        for name in ("value", "median", "trimmed_mean", "least_squares"):
            assert getattr(found, name) == unit * getattr(plain, name), name
        bounds.assert_same_bits(found.values, unit * plain.values)
        bounds.assert_same_bits(found.sigma_min, factors[1] * plain.sigma_min)

    @pytest.mark.parametrize("case", [0, 1, 2, 3])
    def test_squares_that_are_normal_numbers(self, case: int) -> None:
        models, (*factors, unit) = two_models.related(13), scales_of(-480)[case]
        found = gl.d_rep(*(f * a for f, a in zip(factors, models, strict=True)))
        bounds.assert_same_bits(found.values, unit**2 * gl.d_rep(*models).values)

    @pytest.mark.parametrize("h1", [1.0, 0.0])
    def test_squares_that_underflow_are_refused(self, h1: float) -> None:
        models = two_models.related(14)
        for scale in (2.0**-660, 1e-200, 2.0**-540):
            with pytest.raises(ValueError, match=r"^d_rep: residuals underflow; scale the data up"):
                gl.d_rep(h1 * scale * models[0], models[1], scale * models[2], models[3])

    def test_norms_that_underflow_are_refused(self) -> None:
        h1, w1, h2, w2 = two_models.related(14)
        with pytest.raises(ValueError, match=r"^d_rep: residuals underflow; scale the data up"):
            gl.d_rep(2.0**-1040 * h1, w1, 2.0**-1040 * h2, w2, squared=False)

    @pytest.mark.parametrize("squared", [True, False])
    def test_nothing_underflows_where_all_is_zero(self, squared: bool) -> None:
        h, w, _, _ = two_models.related(15)
        found = gl.d_rep(0 * h, 2.0**-660 * w, 0 * h, w, squared=squared)
        assert (found.value, found.least_squares) == (0.0, 0.0)

    @pytest.mark.parametrize("squared", [True, False])
    @pytest.mark.parametrize("side", ["h1", "h2", "w2"])
    def test_zeros_have_no_scale(self, side: str, squared: bool) -> None:
        """What is zero leaves a tiny other part as it is, whatever the scale of the unembeddings."""
        models = dict(zip(two_models.ARRAYS, two_models.related(16), strict=True))
        models[side] = np.zeros_like(models[side])
        plain = gl.d_rep(**models, squared=squared)
        for labels in (2.0**-400, 2.0**400):
            scaled = {k: a * (2.0**-400 if k[0] == "h" else labels) for k, a in models.items()}
            found = gl.d_rep(**scaled, squared=squared)
            bounds.assert_same_bits(found.values, plain.values * 2.0 ** (-800 if squared else -400))

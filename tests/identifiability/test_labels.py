"""Label covariance and similarity, centred unembeddings, and the cosines that any of them may be given."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

import gramless as gl
from gramless.identifiability import labels as label_measures
from support import bounds, cases, two_models

# five labels of the published example: labels 0 and 1 have cosine 0.8
FIVE = np.array([[1.0, 0.5], [0.5, 1.0], [-1.0, 0.4], [-0.8, -0.8], [0.9, -1.2]])


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def assert_close(got: np.ndarray, want: np.ndarray, bound: float) -> None:
    assert got.shape == want.shape
    bounds.assert_absolute(np.abs(got - want).max() / np.abs(want).max(), 0.0, bound)


class TestCovariance:
    @pytest.mark.parametrize("dtype", list(cases.DTYPES))
    def test_is_that_of_centred_log_probabilities(self, dtype: str) -> None:
        """A function of the predictions alone: centred logits are centred log-likelihoods."""
        h, w, _, _ = (a.astype(cases.DTYPES[dtype]) for a in two_models.related(1, n=3000, labels=40, d=4))
        logs = two_models.log_likelihoods(h.astype(np.float64), w.astype(np.float64))
        centred = logs - logs.mean(axis=1, keepdims=True)
        chosen = [7, 3, 39]
        covariance, similarity = np.cov(centred.T), np.corrcoef(centred.T)
        assert_close(gl.label_covariance(h, w), covariance, bounds.INVARIANCE_FP64)
        assert_close(gl.label_covariance(h, w, chosen), covariance[np.ix_(chosen, chosen)], bounds.INVARIANCE_FP64)
        assert_close(gl.label_similarity(h, w), similarity, bounds.INVARIANCE_FP64)
        assert_close(gl.label_similarity(h, w, chosen), similarity[np.ix_(chosen, chosen)], bounds.INVARIANCE_FP64)

    def test_coordinates_change_nothing(self) -> None:
        h, w, _, _ = two_models.related(2)
        for seed in range(4):
            moved = two_models.recoordinated(h + 3, w, seed)
            for measure in (gl.label_covariance, gl.label_similarity):
                assert_close(measure(*moved), measure(h, w), bounds.INVARIANCE_FP64)

    def test_symmetric_and_in_range(self) -> None:
        found = gl.label_similarity(*two_models.related(3)[:2])
        bounds.assert_same_bits(found, found.T.copy())
        assert np.abs(found).max() <= 1 + bounds.SAME_FP64
        for one in np.diag(found):
            bounds.assert_relative(one, 1.0, bounds.SAME_FP64)
        assert np.linalg.eigvalsh(found).min() >= -bounds.SAME_FP64

    def test_opposite_and_equal_labels(self) -> None:
        h = np.random.default_rng(0).standard_normal((50, 2))
        w = np.array([[1.0, 2.0], [-2.0, -4.0], [1.0, 2.0], [0.0, 0.0], [4.0, 1.0], [-4.0, -1.0]])
        found = gl.label_similarity(h, w[[0, 1, 2, 4, 5]] - w[3])
        bounds.assert_relative(found[0, 1], -1.0, bounds.SAME_FP64)
        bounds.assert_relative(found[0, 2], 1.0, bounds.SAME_FP64)

    def test_logits_that_do_not_vary(self) -> None:
        h, w, _, _ = (a.copy() for a in two_models.related(4))
        h[:, 1] = 0.1
        w[:, [0, 2]] -= w[:, [0, 2]].mean(axis=0)
        w[[4, 6], 0], w[[4, 6], 2] = 0.0, 0.0
        w[0, [0, 2]] -= w[:, [0, 2]].sum(axis=0)
        with pytest.raises(ValueError, match=r"label_similarity: the centred logits of labels 4, 6 do not vary with h"):
            gl.label_similarity(h, w)
        with pytest.raises(ValueError, match="of labels 6 do not vary"):
            gl.label_similarity(h, w, [1, 6])

    @pytest.mark.parametrize("measure", [gl.label_covariance, gl.label_similarity])
    def test_refusals(self, measure: object, monkeypatch: pytest.MonkeyPatch) -> None:
        name = measure.__name__
        h, w, _, _ = two_models.related()
        for arguments, error, text in (
            ((h[:1], w), ValueError, "expected at least 2 rows of h, got 1"),
            ((h[:, 1:], w), ValueError, "expected h (N, d) and w (V, d) with the same d, got h (60, 2) and w (9, 3)"),
            ((h, w, [0, 9]), ValueError, "expected labels in 0..8, got 9"),
            ((h, w, []), TypeError, "expected labels to be whole numbers of shape (m,)"),
            ((h, w, [1, 1]), ValueError, "expected each of labels once"),
            ((h, w * np.nan), ValueError, "w has non-finite values in rows 0..8"),
            ((h * np.nan, w), ValueError, "h has non-finite values in rows 0..59"),
        ):
            with pytest.raises(error, match=re.escape(f"{name}: {text}")):
                measure(*arguments)
        monkeypatch.setattr(label_measures, "MOST_LABELS", 8)
        with pytest.raises(ValueError, match=f"{name}: expected labels, since V = 9 is above 8"):
            measure(h, w)
        assert measure(h, w, np.arange(9)).shape == (9, 9)


class TestCentred:
    @pytest.mark.parametrize("dtype", list(cases.DTYPES))
    def test_mean_is_gone(self, dtype: str) -> None:
        w = (two_models.related(5, labels=3000)[1] + 40).astype(cases.DTYPES[dtype])
        before = w.copy()
        found = gl.center_unembedding(w)
        wide = w.astype(np.float64)
        assert found.dtype == (np.float64 if dtype == "fp64" else np.float32)
        assert_close(found, wide - wide.mean(axis=0), bounds.invariance_for(found.dtype))
        bounds.assert_same_bits(w, before)
        found[0] = 0.0
        bounds.assert_same_bits(w, before)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    def test_torch_stays_torch(self, dtype: torch.dtype) -> None:
        w = torch.tensor(two_models.related(5)[1], dtype=dtype)
        found = gl.center_unembedding(w)
        assert isinstance(found, torch.Tensor)
        assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        bounds.assert_absolute(found.double().mean(0).abs().max(), 0.0, bounds.INVARIANCE_FP32)

    def test_refusals(self) -> None:
        with pytest.raises(ValueError, match="center_unembedding: w: expected a 2-d array"):
            gl.center_unembedding(np.zeros(3))
        with pytest.raises(ValueError, match=r"center_unembedding: w has non-finite values in rows 0\.\.2"):
            gl.center_unembedding(np.full((3, 2), np.inf))


class TestCosines:
    def test_published_example(self) -> None:
        h = np.random.default_rng(0).standard_normal((1000, 2))
        found = gl.cosine_ambiguity(FIVE, 0, 1, h=h)
        bounds.assert_relative(found.cosine, 0.8, bounds.SAME_FP64)
        for move, got, want in zip(found.translations, found.cosines, (-1.0, 1.0), strict=True):
            bounds.assert_relative(got, want, bounds.SAME_FP64)
            bounds.assert_relative(cosine(FIVE[0] + move, FIVE[1] + move), want, bounds.SAME_FP64)
            assert ((h @ (FIVE + move).T).argmax(1) == (h @ FIVE.T).argmax(1)).all()
        # the paper's translations: -a - t (b - a) with t = 1/2 and -1/2
        a, b = FIVE[:2]
        assert_close(found.translations, np.array([-a - 0.5 * (b - a), -a + 0.5 * (b - a)]), bounds.SAME_FP64)
        bounds.assert_absolute(found.probability_change, 0.0, bounds.SAME_FP64)

    @pytest.mark.parametrize("t", [-3.0, -0.2, 0.2, 0.7, 1.1, 4.0])
    def test_section_7_of_the_measures(self, t: float) -> None:
        """v = -a - t (b - a): cosine -1 for 0 < t < 1, else 1, and probabilities as they were."""
        h = np.random.default_rng(1).standard_normal((100, 2))
        a, b = FIVE[2], FIVE[4]
        moved = FIVE - a - t * (b - a)
        bounds.assert_relative(cosine(moved[2], moved[4]), -1.0 if 0 < t < 1 else 1.0, bounds.SAME_FP64)
        change = np.exp(two_models.log_likelihoods(h, FIVE)) - np.exp(two_models.log_likelihoods(h, moved))
        bounds.assert_absolute(np.abs(change).max(), 0.0, bounds.SAME_FP64)

    @pytest.mark.parametrize("target", [-1.0, -0.999, -0.5, 0.0, 0.3, 0.99, 1.0])
    @pytest.mark.parametrize("d", [2, 3, 20])
    def test_any_cosine(self, d: int, target: float) -> None:
        h, w, _, _ = two_models.related(6, d=d)
        bias = np.random.default_rng(0).standard_normal(9)
        found = gl.cosine_ambiguity(w, 3, 8, cosines=[target], h=h, bias=bias)
        moved = w + found.translations[0]
        bounds.assert_absolute(cosine(moved[3], moved[8]), target, bounds.SAME_FP64)
        bounds.assert_absolute(found.cosines[0], target, bounds.SAME_FP64)
        p, q = (np.exp(two_models.log_likelihoods(h, v, bias)) for v in (w, moved))
        bounds.assert_absolute(np.abs(p - q).max(), 0.0, bounds.SAME_FP64)
        bounds.assert_absolute(found.probability_change, np.abs(p - q).max(), bounds.SAME_FP64)

    def test_the_change_is_measured(self) -> None:
        """A translation that is large enough changes probabilities by rounding, and that is what is told."""
        h = np.random.default_rng(0).standard_normal((50, 2))
        assert gl.cosine_ambiguity(FIVE, 0, 1, h=h, cosines=[1 - 1e-12]).probability_change > bounds.SAME_FP64
        assert gl.cosine_ambiguity(FIVE, 0, 1).probability_change is None

    @pytest.mark.parametrize("pair", [(0, 1), (0, 2), (1, 3)])
    def test_points_on_a_line_through_zero(self, pair: tuple[int, int]) -> None:
        w = np.array([[1.0, 2.0, 0.0], [-1.0, -2.0, 0.0], [3.0, 6.0, 0.0], [0.0, 0.0, 5.0]])
        found = gl.cosine_ambiguity(w, *pair, cosines=[-1, 0.25, 1])
        for got, want in zip(found.cosines, (-1, 0.25, 1), strict=True):
            bounds.assert_absolute(got, want, bounds.SAME_FP64)

    @pytest.mark.parametrize("shift", [0.0, 1e-9, 1e-5])
    def test_points_on_a_line_but_for_rounding(self, shift: float) -> None:
        """What rounding leaves across their difference gives no direction."""
        line = np.array([0.1, 0.3, 0.7])
        for stretch in (3.3, -0.7, 1.1, 7.7):
            w = np.stack([line, stretch * line + [shift, 0.0, 0.0]])
            found = gl.cosine_ambiguity(w, 0, 1, cosines=[-0.3, 0.9])
            for got, want in zip(found.cosines, (-0.3, 0.9), strict=True):
                bounds.assert_absolute(got, want, bounds.SAME_FP64)

    def test_far_translations_make_all_cosines_one(self) -> None:
        w = FIVE + 1e9 * np.array([0.6, -0.8])
        assert min(cosine(a, b) for a in w for b in w) >= 1 - bounds.SAME_FP64

    def test_one_dimension(self) -> None:
        w = np.array([[2.0], [3.0], [-1.0]])
        found = gl.cosine_ambiguity(w, 0, 1)
        assert (found.cosine, found.cosines.tolist()) == (1.0, [-1.0, 1.0])
        with pytest.raises(ValueError, match="cosine_ambiguity: with d = 1 cosines are -1 or 1, got"):
            gl.cosine_ambiguity(w, 0, 1, cosines=[0.5])

    def test_centring_does_not_make_them_informative(self) -> None:
        """The published centred example, and what (A, A^-T) makes of it; label similarity stays."""
        w = np.array([[1.4, -1.0], [1.4, 1.0], [-0.9, 0.3], [-1.0, 0.0], [-0.9, -0.3]])
        assert_close(gl.center_unembedding(w), w, bounds.SAME_FP64)
        found = [round(cosine(w[i], w[j]), 3) for i, j in ((0, 1), (1, 2), (2, 4))]
        assert found == [0.324, -0.588, 0.8]
        a = np.diag([4.0, 1.0])
        moved = w @ np.linalg.inv(a)
        assert cosine(moved[2], moved[4]) < 0 < cosine(w[2], w[4])
        h = np.random.default_rng(0).standard_normal((100, 2))
        assert_close(gl.label_similarity(h @ a.T, moved), gl.label_similarity(h, w), bounds.INVARIANCE_FP64)

    @pytest.mark.parametrize(
        ("arguments", "keywords", "error", "text"),
        [
            ((FIVE, 0, 5), {}, ValueError, "expected b in 0..4, got 5"),
            ((FIVE, "0", 1), {}, TypeError, "expected a to be an int, got str"),
            (
                (FIVE, 2, 2),
                {},
                ValueError,
                "labels 2 and 2 have equal unembeddings, whose cosine is 1 whatever is added",
            ),
            ((FIVE * [[0], [1], [1], [1], [1]], 0, 1), {}, ValueError, "the unembedding of label 0 is zero"),
            ((FIVE, 0, 1), {"cosines": [0.5, 1.5]}, ValueError, "expected cosines in [-1, 1], got [0.5, 1.5]"),
            ((FIVE, 0, 1), {"cosines": 0.5}, ValueError, "expected cosines of shape (1,), got ()"),
            ((FIVE, 0, 1), {"cosines": "x"}, TypeError, "expected cosines to be an array of real numbers"),
            ((FIVE, 0, 1), {"h": np.eye(3)}, ValueError, "expected h (N, d) and w (V, d) with the same d"),
            ((FIVE, 0, 1), {"h": np.eye(2), "bias": [1.0]}, ValueError, "expected bias of shape (5,), got (1,)"),
            ((FIVE * np.nan, 0, 1), {}, ValueError, "w has non-finite values"),
        ],
    )
    def test_refusals(self, arguments: tuple, keywords: dict, error: type[Exception], text: str) -> None:
        with pytest.raises(error, match=re.escape(f"cosine_ambiguity: {text}")):
            gl.cosine_ambiguity(*arguments, **keywords)


@pytest.mark.parametrize("scale", [2.0**660, 2.0**-660], ids=["large", "small"])
def test_cosines_and_similarities_do_not_depend_on_scale(scale):
    h, w = np.random.default_rng(5).standard_normal((2, 20, 3))
    plain, found = gl.cosine_ambiguity(w, 0, 1), gl.cosine_ambiguity(scale * w, 0, 1)
    assert found.cosine == plain.cosine
    np.testing.assert_array_equal(found.cosines, plain.cosines)
    np.testing.assert_array_equal(found.translations, scale * plain.translations)
    np.testing.assert_allclose(gl.label_similarity(scale * h, w), gl.label_similarity(h, w), atol=1e-13)
    np.testing.assert_allclose(gl.label_similarity(h, scale * w), gl.label_similarity(h, w), atol=1e-13)


def test_what_overflows_says_so():
    h, w = np.random.default_rng(5).standard_normal((2, 20, 3))
    with pytest.raises(ValueError, match=r"^center_unembedding: .* overflow; scale the data down"):
        gl.center_unembedding(np.full((4, 2), 1.7e308))
    with pytest.raises(ValueError, match=r"^label_covariance: .* overflow; scale the data down"):
        gl.label_covariance(1e160 * h, w)
    with pytest.raises(ValueError, match=r"^center_unembedding: w less its mean overflows; scale the data down"):
        gl.center_unembedding(np.float32([[-3.4e38, 0], [3.4e38, 0], [3.4e38, 0]]))
    # a cosine near 1 takes a long translation
    with pytest.raises(ValueError, match=r"^cosine_ambiguity: translations overflow; scale the data down"):
        gl.cosine_ambiguity(1e304 * w, 0, 1, cosines=[1 - 2.0**-50])
    with pytest.raises(ValueError, match=r"^cosine_ambiguity: logits overflow; scale the data down"):
        gl.cosine_ambiguity(1e200 * w, 0, 1, h=1e200 * h)


@pytest.mark.parametrize("power", [660, -660, -990])
def test_covariances_of_opposite_scales(power):
    """What is between h and w may be beyond float64, and does not count."""
    h, w = np.random.default_rng(5).standard_normal((2, 20, 3))
    bounds.assert_same_bits(gl.label_covariance(2.0**power * h, 2.0**-power * w), gl.label_covariance(h, w))


def test_covariances_that_underflow_say_so():
    h, w = np.random.default_rng(5).standard_normal((2, 20, 3))
    bounds.assert_same_bits(gl.label_covariance(2.0**-500 * h, w), 2.0**-1000 * gl.label_covariance(h, w))
    # of one label alone, too: w less its mean has one row on the axis where h hardly varies
    h[:, 2] *= 1e-200
    one = np.array([[1.0, 2.0, 0.0], [-1.0, -2.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, -1.0]])
    for states, unembedding, labels in ((1e-200 * h, w, None), (h, 1e-200 * w, None), (h, one, [2])):
        with pytest.raises(ValueError, match=r"^label_covariance: covariances underflow; scale the data up"):
            gl.label_covariance(states, unembedding, labels)
    # and where nothing varies there is nothing to lose
    assert not gl.label_covariance(h, np.ones((4, 3))).any()

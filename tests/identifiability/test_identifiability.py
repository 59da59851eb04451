"""Mean canonical correlation, mSVD and d_SVD against their definitions, and what they may not depend on."""

from __future__ import annotations

import re

import numpy as np
import pytest
from sklearn.cross_decomposition import CCA, PLSSVD

import gramless as gl
from support import bounds, cases, two_models
from support.backends import Backend


def correlations(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Canonical correlations from orthonormal bases of all rows."""
    bases = [np.linalg.qr(a - a.mean(axis=0))[0] for a in (x, y)]
    return np.linalg.svd(bases[0].T @ bases[1], compute_uv=False)


class TestMeanCCA:
    @pytest.mark.parametrize("dtype", list(cases.DTYPES))
    @pytest.mark.parametrize(("n", "p", "q"), [(7, 1, 1), (60, 5, 3), (300, 3, 17), (2500, 8, 8)])
    def test_definition(self, backend: Backend, n: int, p: int, q: int, dtype: str) -> None:
        x, y = cases.Case(f"cca{n}", "", n, p, q).arrays(dtype)
        truth = correlations(*(a.astype(np.float64) for a in (x, y)))
        got = gl.mean_cca(x, y, backend=backend.name)
        bounds.assert_relative(got, truth.mean(), bounds.SAME_FP64)
        assert (got.rank_x, got.rank_y) == (p, q)
        bounds.assert_relative(gl.mean_cca(y, x, backend=backend.name), got, bounds.SAME_FP64)

    def test_published_iteration(self) -> None:
        x, y = cases.Case("cca_sklearn", "", 200, 3, 3).arrays("fp64")
        scores = CCA(n_components=3, max_iter=5000, tol=1e-12).fit_transform(x, y)
        pairs = zip(*(a.T for a in scores), strict=True)
        published = np.mean([np.corrcoef(a, b)[0, 1] for a, b in pairs])
        bounds.assert_relative(gl.mean_cca(x, y), published, bounds.ITERATED)

    def test_affine_maps_change_nothing(self) -> None:
        x, y = cases.Case("cca_affine", "", 120, 4, 4).arrays("fp64")
        rng = np.random.default_rng(0)
        maps = [rng.standard_normal((4, 4)) for _ in range(2)]
        moved = gl.mean_cca(x @ maps[0] + 7, y @ maps[1] - 3)
        bounds.assert_relative(moved, gl.mean_cca(x, y), bounds.INVARIANCE_FP64)
        bounds.assert_relative(gl.mean_cca(x, x @ maps[0] + 5), 1.0, bounds.INVARIANCE_FP64)

    @pytest.mark.parametrize("scale", [1e-60, 1e-3, 1e40])
    def test_scale_of_one_feature(self, scale: float) -> None:
        """Features that differ by any factor, as massive activations do, are told from rounding."""
        x, y = (a.copy() for a in cases.Case("cca_scale", "", 200, 5, 4).arrays("fp64"))
        want = gl.mean_cca(x, y)
        x[:, 2] *= scale
        bounds.assert_relative(gl.mean_cca(x, y), want, bounds.INVARIANCE_FP64)

    @pytest.mark.parametrize("dtype", ["fp32", "fp64"])
    def test_rank_is_found(self, backend: Backend, dtype: str) -> None:
        """Features that repeat, or do not vary, add no directions: their correlations would be those of rounding."""
        rng = np.random.default_rng(1)
        x = rng.standard_normal((400, 3)).astype(cases.DTYPES[dtype])
        y = (x[:, :2] + rng.standard_normal((400, 2))).astype(x.dtype)
        wide = np.concatenate([x, x[:, :2] + x[:, 1:], np.full((400, 2), 0.1, x.dtype)], axis=1)
        got = gl.mean_cca(wide, y, backend=backend.name)
        assert (got.rank_x, got.rank_y) == (3, 2)
        bounds.assert_relative(got, gl.mean_cca(x, y, backend=backend.name), bounds.INVARIANCE_FP32)

    def test_cutoff_is_asked_for(self) -> None:
        rng = np.random.default_rng(2)
        x = rng.standard_normal((500, 2))
        close = np.concatenate([x, x[:, :1] + 1e-3 * rng.standard_normal((500, 1))], axis=1)
        assert gl.mean_cca(close, x).rank_x == 3
        assert gl.mean_cca(close, x, rtol=1e-4).rank_x == 2

    def test_state_instead_of_arrays(self, backend: Backend) -> None:
        x, y = cases.Case("cca_state", "", 300, 6, 5).arrays("fp64")
        state = gl.moments(x[:100], y[:100], backend=backend.name).merge(gl.moments(x[100:], y[100:]))
        bounds.assert_relative(gl.mean_cca(state), gl.mean_cca(x, y), bounds.SAME_FP64)
        single = gl.moments(*(a.astype(np.float32) for a in (x, y)), backend=backend.name)
        bounds.assert_relative(gl.mean_cca(single), gl.mean_cca(x, y), bounds.INVARIANCE_FP32)

    def test_rank_of_a_state_in_float32(self, backend: Backend) -> None:
        rng = np.random.default_rng(3)
        x = rng.standard_normal((3000, 4)).astype(np.float32)
        wide = x @ rng.standard_normal((4, 40)).astype(np.float32)
        assert gl.mean_cca(gl.moments(wide, x, backend=backend.name)).rank_x == 4

    @pytest.mark.parametrize("n", [5, 6])
    def test_as_many_features_as_rows(self, n: int) -> None:
        """Every canonical correlation is 1 then, of whatever rows."""
        x, y = np.random.default_rng(0).standard_normal((2, n, 5))
        assert correlations(x, y).mean() >= 1 - bounds.SAME_FP64
        with pytest.raises(ValueError, match=rf"mean_cca: expected at least 7 rows .* got n = {n}: "):
            gl.mean_cca(x, y)
        with pytest.raises(ValueError, match="mean_cca: expected at least 7 rows"):
            gl.mean_cca(gl.moments(x[:, :2], y))

    def test_independent_rows(self) -> None:
        x, y = np.random.default_rng(0).standard_normal((2, 4000, 10))
        bounds.assert_absolute(gl.mean_cca(x, y), 8 / (3 * np.pi) * np.sqrt(10 / 4000), bounds.LIMIT)

    @pytest.mark.parametrize(
        ("arguments", "error", "text"),
        [
            ((np.ones((9, 2)), np.eye(9)[:, :2]), ValueError, "mean_cca: x is constant"),
            ((np.eye(9)[:, :2], np.full((9, 1), 0.1)), ValueError, "mean_cca: y is constant"),
            ((np.eye(9)[:, :2], np.eye(8)), ValueError, "mean_cca: expected x and y with the same number of rows"),
            ((np.eye(9)[:, :2], None), TypeError, "mean_cca: expected two arrays or a MomentState, got ndarray alone"),
            ((np.eye(9), [1.0]), TypeError, "mean_cca: expected y to be a NumPy array"),
            ((gl.Moments(), None), TypeError, "got the accumulator Moments; call .finalize() first"),
            ((gl.moments(np.eye(9)), None), TypeError, "got SelfMoments; pass moments(x, y)"),
            ((gl.moments(np.eye(9), np.eye(9)), np.eye(9)), TypeError, "mean_cca: expected a MomentState alone"),
            ((np.eye(9) * np.nan, np.eye(9)), ValueError, "mean_cca: x has non-finite values in rows 0..8"),
        ],
    )
    def test_refusals(self, arguments: tuple, error: type[Exception], text: str) -> None:
        with pytest.raises(error, match=re.escape(text)):
            gl.mean_cca(*arguments)

    @pytest.mark.parametrize("rtol", [-1e-3, 1.0, np.nan])
    def test_cutoff_out_of_range(self, rtol: float) -> None:
        with pytest.raises(ValueError, match="mean_cca: expected rtol"):
            gl.mean_cca(np.eye(9)[:, :2], np.eye(9)[:, :2], rtol=rtol)


class TestMSVD:
    @pytest.mark.parametrize("d", [2, 3, 5])
    def test_definition(self, d: int) -> None:
        models = two_models.related(d, d=d)
        rows = [7, 2, 5, 0, 8, 1][: d + 1]
        bounds.assert_relative(gl.msvd(*models, rows=rows), two_models.msvd(*models, rows), bounds.SAME_FP64)
        h1, w1, h2, w2 = models
        swapped = w1, h1, w2, h2
        bounds.assert_relative(gl.msvd(*swapped, rows=rows), two_models.msvd(*swapped, rows), bounds.SAME_FP64)

    def test_published_code(self) -> None:
        """The paper's: z-scored coordinates, PLSSVD of all components, the mean covariance of its scores."""
        h1, w1, h2, w2 = two_models.related(4)
        rows = [3, 1, 7, 4]
        seen = [h @ (w[rows[1:]] - w[rows[0]]).T for h, w in ((h1, w1), (h2, w2))]
        scores = PLSSVD(n_components=3).fit_transform(*((a - a.mean(0)) / a.std(0, ddof=1) for a in seen))
        published = np.mean([np.cov(a, b)[0, 1] for a, b in zip(*(a.T for a in scores), strict=True)])
        bounds.assert_relative(gl.msvd(h1, w1, h2, w2, rows=rows), published, bounds.SAME_FP64)

    def test_fewer_and_more_rows_than_features(self) -> None:
        models = two_models.related(5)
        for rows in ([4, 0], [4, 0, 1, 2, 3, 5, 6]):
            bounds.assert_relative(gl.msvd(*models, rows=rows), two_models.msvd(*models, rows), bounds.SAME_FP64)

    def test_what_it_does_not_depend_on(self) -> None:
        h1, w1, h2, w2 = two_models.related(6)
        value = gl.msvd(h1, w1, h2, w2, rows=[0, 1, 2, 3])
        bounds.assert_relative(gl.msvd(h2, w2, h1, w1, rows=[0, 1, 2, 3]), value, bounds.INVARIANCE_FP64)
        bounds.assert_relative(gl.msvd(h1, w1, h2, w2, rows=[0, 3, 1, 2]), value, bounds.INVARIANCE_FP64)
        moved = gl.msvd(*two_models.recoordinated(h1 + 5, w1), h2, w2, rows=[0, 1, 2, 3])
        bounds.assert_relative(moved, value, bounds.INVARIANCE_FP64)
        same = gl.msvd(h1, w1, *two_models.recoordinated(h1, w1), rows=[0, 1, 2, 3])
        bounds.assert_relative(same, 1.0, bounds.INVARIANCE_FP64)

    def test_equal_labels(self) -> None:
        h1, w1, h2, w2 = (a.copy() for a in two_models.related(7))
        w2[5] = w2[0]
        with pytest.raises(ValueError, match=r"msvd: the differences of rows 5 of w1 or w2 from row 0 do not vary"):
            gl.msvd(h1, w1, h2, w2, rows=[0, 2, 5])
        h1[:, 0] = 2.0
        w1[3] = w1[0] + [1.0, 0.0, 0.0]
        with pytest.raises(ValueError, match="rows 3 of w1"):
            gl.msvd(h1, w1, h2, w2, rows=[0, 3])

    @pytest.mark.parametrize(
        ("rows", "error", "text"),
        [
            ([0], ValueError, "expected at least 2 rows, got 1"),
            ([0, 9], ValueError, "expected rows in 0..8, got 9"),
            ([0, -1], ValueError, "expected rows in 0..8, got -1"),
            ([0, 1, 1], ValueError, "expected each of rows once"),
            ([0.5, 1], TypeError, "expected rows to be whole numbers of shape (m,)"),
            (3, TypeError, "expected rows to be whole numbers of shape (m,)"),
        ],
    )
    def test_rows_refused(self, rows: object, error: type[Exception], text: str) -> None:
        with pytest.raises(error, match=re.escape(f"msvd: {text}")):
            gl.msvd(*two_models.related(), rows=rows)

    def test_one_input(self) -> None:
        with pytest.raises(ValueError, match="msvd: expected at least 2 rows of h1 and h2, got 1"):
            gl.msvd(*two_models.related(n=1), rows=[0, 1])


class TestDSVD:
    @pytest.mark.parametrize(("labels", "d"), [(5, 2), (8, 3), (6, 4)])
    def test_definition(self, labels: int, d: int) -> None:
        models = two_models.related(8, labels=labels, d=d)
        inputs = list(range(0, 3 * (d + 1), 3))
        found = gl.d_svd(*models, pivot=1, leave_out=3, inputs=inputs)
        worst, other = two_models.d_svd(models, 1, 3, inputs)
        bounds.assert_absolute(found.embeddings, worst, bounds.SAME_FP64)
        bounds.assert_absolute(found.unembeddings, other, bounds.SAME_FP64)
        assert found.value == max(found.embeddings, found.unembeddings)
        assert found.exhaustive
        assert found.singular == 0
        assert not {1, 3} & set(found.labels)
        bounds.assert_relative(1 - gl.msvd(*models, rows=[1, *found.labels]), worst, bounds.INVARIANCE_FP64)

    def test_takes_what_d_llv_returns(self) -> None:
        models = two_models.related(8)
        far = gl.d_llv(*models)
        chosen = {"pivot": far.pivot, "leave_out": far.leave_out, "inputs": far.inputs}
        assert gl.d_svd(*models, far) == gl.d_svd(*models, **chosen)
        with pytest.raises(ValueError, match="d_svd: the result of d_llv gives pivot, leave_out and inputs"):
            gl.d_svd(*models, far, pivot=far.pivot)
        with pytest.raises(TypeError, match="d_svd: expected the result of d_llv, or leave_out, inputs as well"):
            gl.d_svd(*models, pivot=far.pivot)
        with pytest.raises(TypeError, match="d_svd: expected the result of d_llv, got float"):
            gl.d_svd(*models, far.value)

    def test_sampled_sets(self) -> None:
        models = two_models.related(9, labels=14)
        ways = {"pivot": 0, "leave_out": 1, "inputs": [0, 1, 2, 3]}
        everything = gl.d_svd(*models, **ways)
        some = gl.d_svd(*models, **ways, n_sets=20, seed=3)
        assert (everything.n_sets, everything.exhaustive, some.n_sets, some.exhaustive) == (220, True, 20, False)
        assert some.embeddings <= everything.embeddings
        assert some == gl.d_svd(*models, **ways, n_sets=20, seed=3)
        assert some.labels != gl.d_svd(*models, **ways, n_sets=20, seed=4).labels

    def test_labels_with_the_logits_of_the_pivot_are_counted(self) -> None:
        h1, w1, h2, w2 = (a.copy() for a in two_models.related(10, labels=7))
        w1[4] = w1[2]
        ways = {"pivot": 2, "inputs": [0, 1, 2, 3]}
        found = gl.d_svd(h1, w1, h2, w2, leave_out=0, **ways)
        assert (found.n_sets, found.singular) == (4, 6)
        assert gl.d_svd(h1, w1, h2, w2, leave_out=4, **ways).singular == 0
        w1[:] = w1[2]
        with pytest.raises(ValueError, match=r"d_svd: each of 10 label sets has a label with the logits of the pivot"):
            gl.d_svd(h1, w1, h2, w2, leave_out=0, **ways)

    @pytest.mark.parametrize(
        ("changed", "error", "text"),
        [
            ({"pivot": 9}, ValueError, "d_svd: expected pivot in 0..8, got 9"),
            ({"leave_out": -1}, ValueError, "d_svd: expected leave_out in 0..8, got -1"),
            ({"pivot": 1.0}, TypeError, "d_svd: expected pivot to be an int, got float"),
            ({"inputs": [0, 60]}, ValueError, "d_svd: expected inputs in 0..59, got 60"),
            ({"n_sets": 0}, ValueError, "d_svd: expected n_sets of at least 1, got 0"),
            ({"seed": -1}, ValueError, "d_svd: expected seed of at least 0, got -1"),
        ],
    )
    def test_refusals(self, changed: dict, error: type[Exception], text: str) -> None:
        with pytest.raises(error, match=re.escape(text)):
            gl.d_svd(*two_models.related(), **{"pivot": 0, "leave_out": 1, "inputs": [0, 1, 2, 3]} | changed)

    def test_too_few_labels_and_equal_inputs(self) -> None:
        ways = {"pivot": 0, "leave_out": 1, "inputs": [0, 1, 2, 3]}
        with pytest.raises(ValueError, match=r"d_svd: expected at least d \+ 2 = 5 labels, got V = 4"):
            gl.d_svd(*two_models.related(labels=4), **ways)
        with pytest.raises(ValueError, match="d_svd: expected models of one hidden size, got d = 3 and 4"):
            gl.d_svd(*two_models.related(d2=4), **ways)
        h1, w1, h2, w2 = (a.copy() for a in two_models.related())
        h2[3] = h2[0]
        with pytest.raises(ValueError, match="d_svd: inputs 3 have the logits of input 0"):
            gl.d_svd(h1, w1, h2, w2, **ways)


@pytest.mark.parametrize("scale", [2.0**660, 2.0**300, 2.0**-300, 2.0**-660], ids=lambda scale: f"{scale:.0e}")
def test_correlations_do_not_depend_on_scale(scale):
    h, w, other = np.random.default_rng(5).standard_normal((3, 20, 3))
    assert np.isclose(gl.mean_cca(scale * h, other), gl.mean_cca(h, other), rtol=1e-12)
    plain = gl.msvd(h, w, other, w, rows=[0, 1, 2])
    assert np.isclose(gl.msvd(scale * h, w, other, w, rows=[0, 1, 2]), plain, rtol=1e-12)
    assert np.isclose(gl.msvd(h, scale * w, other, w, rows=[0, 1, 2]), plain, rtol=1e-12)


def test_sums_that_overflow_are_named():
    h, w = np.random.default_rng(5).standard_normal((2, 20, 3))
    state = gl.moments(1e200 * h, w, nonfinite="propagate")
    with pytest.raises(ValueError, match=r"^mean_cca: sums of squares of x overflow; scale the data down"):
        gl.mean_cca(state)
    large = np.resize([1.7e308, -1.7e308], (20, 1)) * np.ones(3)
    with pytest.raises(ValueError, match=r"^msvd: sums over rows of h1 and h2 overflow; scale the data down"):
        gl.msvd(large, w, h, w, rows=[0, 1, 2])

"""The factor of two unembeddings against the dense definition, in extended precision."""

from __future__ import annotations

import numpy as np
import pytest

import gramless as gl
from gramless.predictions import factorization, stacked_weights, unembedding_pair
from support import backends, bounds, cases
from support.backends import Backend
from support.heads import LONG, MODELS, assert_rows, factor_by, models, near, truth

# (V, d1, d2, N); d1 = d2 is the difference basis, and V <= D keeps the rows themselves
SHAPES = (
    (50, 7, 7, 9), (50, 7, 5, 9), (50, 1, 3, 4), (600, 12, 12, 5), (600, 9, 12, 5), (1000, 33, 33, 3),
    (6, 4, 4, 3), (6, 5, 2, 3), (2, 3, 2, 1), (2, 1, 1, 1), (1, 2, 2, 3), (8, 4, 4, 2), (9, 4, 4, 2), (10, 4, 4, 2),
    (9001, 3, 3, 4), (9001, 2, 3, 4),
)  # fmt: skip


@pytest.mark.parametrize("biased", [False, True], ids=["", "biased"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows_are_the_definition(backend: Backend, shape: tuple[int, ...], biased: bool) -> None:
    h1, w1, h2, w2 = models(*shape)
    bias = {"b1": np.linspace(-3, 2, shape[0]), "b2": np.geomspace(1, 9, shape[0])} if biased else {}
    pair = gl.UnembeddingPair(w1, w2, **bias, backend=backend.name)
    assert (pair.d1, pair.d2, pair.labels) == (shape[1], shape[2], shape[0])
    assert pair.factor.shape[1] == shape[1] + shape[2] + biased
    assert pair.factor.shape[0] <= min(shape[0], pair.factor.shape[1])
    assert_rows(pair.squared_distances(h1, h2), truth(h1, w1, h2, w2, **bias))


@pytest.mark.parametrize("method", ["gram", "qr"])
@pytest.mark.parametrize("shape", [s for s in SHAPES if s[0] > s[1] + s[2] + 1], ids=str)
def test_both_ways_are_the_definition(shape: tuple[int, ...], method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    factor_by(method, monkeypatch)
    h1, w1, h2, w2 = models(*shape)
    b1 = np.linspace(-3, 2, shape[0]) ** 3
    pair = gl.UnembeddingPair(w1, w2, b1=b1)
    assert pair.method == method
    assert_rows(pair.squared_distances(h1, h2), truth(h1, w1, h2, w2, b1))


@pytest.mark.parametrize(("dtype", "other"), [*((d, d) for d in cases.DTYPES), *cases.MIXED])
@pytest.mark.parametrize("sizes", [(6, 6), (6, 4)], ids=str)
def test_dtypes_are_taken_as_they_are(dtype: str, other: str, sizes: tuple[int, int]) -> None:
    h1, w1, h2, w2 = models(200, *sizes, 7, dtype, other)
    assert_rows(gl.UnembeddingPair(w1, w2).squared_distances(h1, h2), truth(h1, w1, h2, w2))
    tensors = [backends.as_torch(a) for a in (h1, w1, h2, w2)]
    assert_rows(
        gl.UnembeddingPair(tensors[1], tensors[3]).squared_distances(tensors[0], tensors[2]), truth(h1, w1, h2, w2)
    )


class TestNearEqualModels:
    @pytest.mark.parametrize("method", ["gram", "qr"])
    @pytest.mark.parametrize("dtype", ["fp32", "fp64"])
    @pytest.mark.parametrize("ratio", [1e-2, 1e-4, 1e-6])
    def test_are_resolved(self, ratio: float, dtype: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """The difference basis loses nothing, whatever the ratio."""
        factor_by(method, monkeypatch)
        h1, w1, h2, w2 = near(400, 24, 30, ratio, dtype)
        assert_rows(gl.UnembeddingPair(w1, w2).squared_distances(h1, h2), truth(h1, w1, h2, w2))

    def test_logits_of_their_dtype_do_not_resolve_them(self) -> None:
        """If these passed, the test above would prove nothing."""
        h1, w1, h2, w2 = near(400, 24, 30, 1e-4, "fp32")
        delta = h1 @ w1.T - h2 @ w2.T
        naive = np.square(delta - delta.mean(axis=1, keepdims=True)).sum(axis=1).astype(np.float64)
        want = truth(h1, w1, h2, w2)
        assert bounds.scaled_error(naive, want, want) > bounds.LOGIT_DISTANCE

    @pytest.mark.parametrize("ratio", [1e-2, 1e-4, 1e-6])
    def test_are_resolved_with_other_sizes(self, ratio: float) -> None:
        """Without a difference basis reflections do it, and the moments are refused by the test of conditioning."""
        h1, w1, h2, w2 = near(400, 24, 30, ratio)
        h2, w2 = np.hstack([h2, np.ones((30, 1))]), np.hstack([w2, np.zeros((400, 1))])
        pair = gl.UnembeddingPair(w1, w2)
        assert (pair.basis, pair.method) == ("plain", "gram" if ratio == 1e-2 else "qr")
        assert_rows(pair.squared_distances(h1, h2), truth(h1, w1, h2[:, :24], w2[:, :24]), bounds.LOGIT_DISTANCE)

    def test_moments_would_not_resolve_them(self, monkeypatch: pytest.MonkeyPatch) -> None:
        h1, w1, h2, w2 = near(400, 24, 30, 1e-6)
        h2, w2 = np.hstack([h2, np.ones((30, 1))]), np.hstack([w2, np.zeros((400, 1))])
        factor_by("gram", monkeypatch)
        pair, want = gl.UnembeddingPair(w1, w2), truth(h1, w1, h2[:, :24], w2[:, :24])
        assert pair.method == "gram"
        assert bounds.scaled_error(pair.squared_distances(h1, h2), want, want) > bounds.LOGIT_DISTANCE

    @pytest.mark.parametrize("shape", [(300, 8), (12, 8)], ids=str)
    def test_equal_models_have_distance_zero(self, shape: tuple[int, int]) -> None:
        v, d = shape
        h, w, *_ = models(v, d, d, 20, "fp32")
        b = np.linspace(0, 7, v)
        pair = gl.UnembeddingPair(w, w, b1=b, b2=b)
        bounds.assert_same_bits(pair.squared_distances(h, h), np.zeros(20))

    def test_one_frozen_head_needs_half_the_factor(self) -> None:
        h1, w, h2, _ = models(300, 8, 8, 20)
        pair = gl.UnembeddingPair(w, w)
        assert pair.factor.shape == (8, 16)
        assert not pair.factor[:, 8:].any()
        assert_rows(pair.squared_distances(h1, h2), truth(h1, w, h2, w))

    def test_a_difference_of_low_rank(self) -> None:
        rng = np.random.default_rng(3)
        h, w, *_ = models(500, 16, 16, 20)
        adapted = w + 1e-4 * np.outer(rng.standard_normal(500), rng.standard_normal(16))
        assert_rows(gl.UnembeddingPair(w, adapted).squared_distances(h, h), truth(h, w, h, adapted))


class TestInvariance:
    """Of the logits' class: what changes no centred logit changes no distance."""

    @pytest.mark.parametrize("sizes", [(9, 9), (9, 6)], ids=str)
    @pytest.mark.parametrize("shift", [1.0, 1e3, 1e6])
    def test_translation_of_an_unembedding(self, sizes: tuple[int, int], shift: float) -> None:
        h1, w1, h2, w2 = models(300, *sizes, 8)
        # shifts that rows of this size take without rounding
        w1, w2 = (np.round(w, 3) * 2**10 // 1 / 2**10 for w in (w1, w2))
        v1, v2 = (np.round(shift * np.linspace(-1, 1, d) * 2**10) / 2**10 for d in sizes)
        moved = gl.UnembeddingPair(w1 + v1, w2 + v2).squared_distances(h1, h2)
        assert_rows(moved, truth(h1, w1, h2, w2), bounds.INVARIANCE_FP64)
        assert_rows(gl.UnembeddingPair(w1, w2, b1=np.full(300, shift)).squared_distances(h1, h2), truth(h1, w1, h2, w2))

    @pytest.mark.parametrize("method", ["gram", "qr"])
    @pytest.mark.parametrize("sizes", [(9, 9), (9, 6)], ids=str)
    def test_any_invertible_map_of_a_model(
        self, sizes: tuple[int, int], method: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        factor_by(method, monkeypatch)
        h1, w1, h2, w2 = models(300, *sizes, 8)
        rng = np.random.default_rng(5)
        maps = [np.eye(d) + 0.1 * rng.standard_normal((d, d)) for d in sizes]
        moved = gl.UnembeddingPair(w1 @ np.linalg.inv(maps[0]), w2 @ np.linalg.inv(maps[1]))
        got = moved.squared_distances(h1 @ maps[0].T, h2 @ maps[1].T)
        assert_rows(got, truth(h1, w1, h2, w2), bounds.INVARIANCE_FP64)

    def test_shared_rotations(self) -> None:
        h1, w1, h2, w2 = near(300, 9, 8, 1e-4)
        rotation = np.linalg.qr(np.random.default_rng(6).standard_normal((9, 9)))[0]
        got = gl.UnembeddingPair(w1 @ rotation, w2 @ rotation).squared_distances(h1 @ rotation, h2 @ rotation)
        assert_rows(got, truth(h1, w1, h2, w2), bounds.INVARIANCE_FP64)

    def test_order_of_the_labels(self) -> None:
        h1, w1, h2, w2 = models(300, 9, 6, 8)
        order = np.random.default_rng(7).permutation(300)
        assert_rows(
            gl.UnembeddingPair(w1[order], w2[order]).squared_distances(h1, h2),
            gl.UnembeddingPair(w1, w2).squared_distances(h1, h2),
        )

    def test_which_model_comes_first(self) -> None:
        h1, w1, h2, w2 = near(300, 9, 8, 1e-3)
        assert_rows(
            gl.UnembeddingPair(w2, w1).squared_distances(h2, h1), gl.UnembeddingPair(w1, w2).squared_distances(h1, h2)
        )


class TestHardInput:
    @pytest.mark.parametrize("sizes", [(9, 9), (9, 6)], ids=str)
    def test_an_outlier_dimension(self, sizes: tuple[int, int]) -> None:
        h1, w1, h2, w2 = models(300, *sizes, 8, "fp32")
        for h, w in ((h1, w1), (h2, w2)):
            h[:, 2] = 1e3 * (1 + 0.01 * h[:, 2])
            w[:, 2] *= 1e-3
        assert_rows(gl.UnembeddingPair(w1, w2).squared_distances(h1, h2), truth(h1, w1, h2, w2))

    @pytest.mark.parametrize("method", ["gram", "qr"])
    @pytest.mark.parametrize("sizes", [(9, 9), (9, 6)], ids=str)
    def test_a_large_common_offset(self, sizes: tuple[int, int], method: str, monkeypatch: pytest.MonkeyPatch) -> None:
        factor_by(method, monkeypatch)
        h1, w1, h2, w2 = models(3000, *sizes, 8, "fp32")
        w1, w2 = w1 + np.float32(1e4), w2 - np.float32(3e4)
        assert_rows(gl.UnembeddingPair(w1, w2).squared_distances(h1, h2), truth(h1, w1, h2, w2))

    @pytest.mark.parametrize("sizes", [(5, 5), (5, 4)], ids=str)
    def test_duplicated_and_zero_labels(self, sizes: tuple[int, int]) -> None:
        h1, w1, h2, w2 = models(12, *sizes, 8)
        w1, w2 = (np.repeat(w[:4], 50, axis=0) for w in (w1, w2))
        w1[:60], w2[:60] = 0.0, 0.0
        pair = gl.UnembeddingPair(w1, w2)
        assert pair.method == "qr"
        assert_rows(pair.squared_distances(h1, h2), truth(h1, w1, h2, w2))

    def test_dead_columns(self) -> None:
        h1, w1, h2, w2 = models(200, 6, 5, 8)
        w1[:, 1], w1[:, 4], w2[:, 0] = 0.0, 7.25, -0.1
        pair = gl.UnembeddingPair(w1, w2)
        assert (pair.method, len(pair.factor)) == ("gram", 8)
        assert_rows(pair.squared_distances(h1, h2), truth(h1, w1, h2, w2))

    @pytest.mark.parametrize("scale", [1e-30, 1e30])
    def test_scales(self, scale: float) -> None:
        h1, w1, h2, w2 = models(200, 6, 5, 8)
        pair = gl.UnembeddingPair(scale * w1, w2 / scale)
        assert_rows(pair.squared_distances(h1 / scale, scale * h2), truth(h1, w1, h2, w2))

    @pytest.mark.parametrize("name", backends.LAYOUTS)
    def test_layouts(self, name: str) -> None:
        h1, w1, h2, w2 = models(700, 6, 6, 8, "fp32")
        laid = [backends.layouts(a)[name] for a in (h1, w1, h2, w2)]
        plain, pair = gl.UnembeddingPair(w1, w2), gl.UnembeddingPair(laid[1], laid[3])
        assert pair.fingerprint == plain.fingerprint
        assert_rows(pair.squared_distances(laid[0], laid[2]), plain.squared_distances(h1, h2))

    def test_no_rows(self) -> None:
        pair = gl.UnembeddingPair(*models(50, 6, 5, 8)[1::2])
        assert pair.squared_distances(np.zeros((0, 6)), np.zeros((0, 5))).shape == (0,)

    def test_blocks_of_rows_and_labels(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """However rows and labels are cut."""
        h1, w1, h2, w2 = models(700, 9, 7, 50)
        pair = gl.UnembeddingPair(w1, w2)
        want = pair.squared_distances(h1, h2)
        monkeypatch.setattr(factorization, "_QR_ROWS", 33)
        for name, value in (("PIECE_ROWS", 64), ("BLOCK_ROWS", 128), ("_MARKED_BYTES", 400)):
            monkeypatch.setattr(stacked_weights, name, value)
        for name, value in (("_LEAST_ROWS", 7), ("_BLOCK_BYTES", 100), ("_FACTOR_ROWS", 5)):
            monkeypatch.setattr(unembedding_pair, name, value)
        for method in ("gram", "qr"):
            factor_by(method, monkeypatch)
            cut = gl.UnembeddingPair(w1, w2)
            assert_rows(cut.squared_distances(h1, h2), want)
            assert cut.fingerprint == pair.fingerprint
            cut.check(w1, w2)


class TestLabels:
    def test_a_sub_vocabulary(self) -> None:
        h1, w1, h2, w2 = models(300, 9, 6, 8)
        labels = np.random.default_rng(1).permutation(300)[:120]
        pair = gl.UnembeddingPair(w1, w2, labels=labels)
        assert pair.labels == 120
        assert_rows(pair.squared_distances(h1, h2), truth(h1, w1[labels], h2, w2[labels]))
        assert pair.fingerprint == gl.UnembeddingPair(w1, w2, labels=np.sort(labels)).fingerprint
        whole = gl.UnembeddingPair(w1, w2)
        assert pair.fingerprint != whole.fingerprint
        assert gl.UnembeddingPair(w1, w2, labels=np.arange(300)[::-1]).fingerprint == whole.fingerprint

    @pytest.mark.parametrize("labels", [None, np.arange(0, 300, 2)], ids=["all", "every other"])
    def test_labels_masked_in_both_are_left_out(self, labels: np.ndarray | None) -> None:
        h1, w1, h2, w2 = models(300, 9, 6, 8)
        rng = np.random.default_rng(2)
        b1, b2 = rng.standard_normal(300), rng.standard_normal(300)
        masked = np.arange(300) % 7 == 2
        b1[masked], b2[masked], w1[masked] = -np.inf, -np.inf, np.nan
        kept = np.setdiff1d(np.arange(300) if labels is None else labels, np.flatnonzero(masked))
        pair = gl.UnembeddingPair(w1, w2, b1=b1, b2=b2, labels=labels)
        assert pair.labels == len(kept)
        assert_rows(pair.squared_distances(h1, h2), truth(h1, w1[kept], h2, w2[kept], b1[kept], b2[kept]))

    def test_rows_that_do_not_count(self) -> None:
        h1, w1, h2, w2 = models(300, 9, 6, 40)
        mask = np.arange(40) % 3 > 0
        h1[~mask] = np.nan
        pair = gl.UnembeddingPair(w1, w2)
        assert_rows(pair.squared_distances(h1, h2, mask=mask), truth(h1[mask], w1, h2[mask], w2))
        assert pair.squared_distances(h1, h2, mask=np.zeros(40, bool)).shape == (0,)


@pytest.mark.parametrize("sizes", [(20, 20), (20, 1)], ids=str)
def test_the_worst_row_of_any_conditioning(sizes: tuple[int, int]) -> None:
    """Where moments are taken, no row loses more than is promised; where they would, they are not."""
    found = set()
    for conditioning in 10.0 ** np.arange(1, 8):
        h1, w1, h2, w2 = models(500, *sizes, 1)
        left, _, right = np.linalg.svd(w1 - w1.mean(axis=0), full_matrices=False)
        w1 = left * np.geomspace(1, 1 / conditioning, sizes[0]) @ right
        pair = gl.UnembeddingPair(w1, w2)
        h1, h2 = right[-1:], np.zeros_like(h2)
        assert_rows(
            pair.squared_distances(h1, h2), truth(h1, w1, h2, w2), bounds.LOGIT_DISTANCE, f"{pair} at {conditioning:g}"
        )
        found.add(pair.method)
    assert found == {"gram", "qr"}


class TestGuard:
    """Rows whose terms cancel are told of, and no others."""

    @staticmethod
    def rotated(ratio: float) -> tuple[MODELS, np.ndarray]:
        """One model in two bases, with hidden states that differ by this ratio beside that."""
        h, w, *_ = models(400, 12, 12, 30)
        turn = np.linalg.qr(np.random.default_rng(9).standard_normal((12, 12)))[0]
        moved = h + ratio * np.random.default_rng(10).standard_normal(h.shape)
        h1, w1, h2, w2 = h, w, moved @ turn, w @ turn
        return (h1, w1, h2, w2), truth(h, w, moved, w)

    @pytest.mark.parametrize("ratio", [1.0, 1e-3, 1e-6])
    def test_resolved_rows_are_quiet(self, ratio: float) -> None:
        (h1, w1, h2, w2), _ = self.rotated(ratio)
        pair = gl.UnembeddingPair(w1, w2)
        assert pair.method == "qr"
        delta = h1.astype(LONG) @ w1.astype(LONG).T - h2.astype(LONG) @ w2.astype(LONG).T
        delta -= delta.mean(axis=1, keepdims=True)
        assert_rows(pair.squared_distances(h1, h2), np.square(delta).sum(axis=1), bounds.LOGIT_DISTANCE)

    @pytest.mark.parametrize(("ratio", "digits"), [(0.0, "0"), (1e-10, "[3-5]")])
    def test_cancelling_rows_are_told_of(self, ratio: float, digits: str) -> None:
        (h1, w1, h2, w2), want = self.rotated(ratio)
        pair = gl.UnembeddingPair(w1, w2)
        with pytest.warns(RuntimeWarning, match=f"30 of 30 rows; {digits} digits"):
            got = pair.squared_distances(h1, h2)
        terms = np.square(np.hstack([h1 - h2, h2])) @ np.square(pair.factor).sum(axis=0)
        noise = bounds.CANCELLED_ULPS * np.finfo(np.float64).eps * np.sqrt(terms)
        assert (np.abs(np.sqrt(got) - np.sqrt(want.astype(np.float64))) <= noise).all()

    def test_only_the_rows_that_cancel(self) -> None:
        (h1, w1, h2, w2), _ = self.rotated(0.0)
        h1[:7] += 1.0
        with pytest.warns(RuntimeWarning, match="23 of 30"):
            gl.UnembeddingPair(w1, w2).squared_distances(h1, h2)

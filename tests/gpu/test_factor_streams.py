"""Logit distances of tensors on a GPU: whole and in streams, whose updates wait for nothing."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch

import gramless as gl
from support import bounds, device, gpu_bounds
from support.backends import Backend
from support.factors import BACKEND, PRECISIONS
from support.heads import models, near, truth


def there(*arrays: np.ndarray) -> list[Any]:
    return [device.tensor(a) for a in arrays]


def on_device(mask: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(mask).to("cuda" if device.label() == "cuda" else "cpu")


def stream_of(pair: gl.UnembeddingPair, precision: str = "exact") -> gl.LogitDistance:
    return gl.LogitDistance(pair, precision=precision, backend=BACKEND)


def assert_same_result(got: Any, want: Any) -> None:
    assert got.n == want.n
    for name in ("value", "stderr", "mean_square"):
        bounds.assert_relative(getattr(got, name), getattr(want, name), bounds.SAME_FP64, name)


class TestDistance:
    @pytest.mark.parametrize("method", ["auto", "factor", "vocabulary"])
    @pytest.mark.parametrize("biased", [False, True], ids=["", "biased"])
    @pytest.mark.parametrize("shape", [(300, 9, 9, 60), (300, 9, 7, 8), (12, 9, 7, 8)], ids=str)
    def test_is_that_of_the_host(self, gpu_backend: Backend, shape: tuple[int, ...], biased: bool, method: str) -> None:
        h1, w1, h2, w2 = models(*shape, "fp32")
        more: dict[str, Any] = {"mask": np.arange(shape[3]) % 3 > 0, "labels": np.arange(0, shape[0], 2)}
        if biased:
            more |= {"b1": np.linspace(-3, 2, shape[0]), "b2": np.where(np.arange(shape[0]) == 4, -np.inf, 1.0)}
            more["b1"][4] = -np.inf
        want = gl.logit_distance(h1, w1, h2, w2, rows=True, **more)
        options = {"method": method, "precision": "exact", "backend": BACKEND}
        got = gl.logit_distance(*there(h1, w1, h2, w2), rows=True, **more, **options)
        assert got.dtype == np.float64
        assert bounds.scaled_error(got, want, want) <= bounds.SAME_FP64
        whole = gl.logit_distance(*there(h1, w1, h2, w2), temperature=2.0, **more, **options)
        assert type(whole) is float
        bounds.assert_relative(whole, float(np.sqrt(np.square(want).mean())) / 2, bounds.SAME_FP64)

    @pytest.mark.parametrize("precision", PRECISIONS)
    @pytest.mark.parametrize("method", ["factor", "vocabulary"])
    def test_near_equal_models_are_resolved(self, gpu_backend: Backend, method: str, precision: str) -> None:
        """By logits themselves in any precision, since that is float64."""
        h1, w1, h2, w2 = near(300, 20, 30, 1e-4, "fp32")
        want = np.sqrt(truth(h1, w1, h2, w2))
        options = {"method": method, "precision": precision, "backend": BACKEND}
        got = gl.logit_distance(*there(h1, w1, h2, w2), rows=True, **options)
        bound = bounds.LOGIT_DISTANCE if method == "vocabulary" else 2 * gpu_bounds.FACTOR_ROUNDING.get(precision, 1e-9)
        assert bounds.scaled_error(got, want, want) <= bound

    def test_weights_in_float64_are_exact(self, gpu_backend: Backend) -> None:
        h1, w1, h2, w2 = models(300, 9, 7, 60, "fp32", "fp32")
        tensors = there(h1, w1.astype(np.float64), h2, w2)
        got = gl.logit_distance(*tensors, method="factor", precision="fast", backend=BACKEND)
        bounds.assert_relative(got, float(np.sqrt(truth(h1, w1, h2, w2).mean())), bounds.SAME_FP64)

    def test_with_a_pair_of_the_host(self, gpu_backend: Backend) -> None:
        h1, w1, h2, w2 = models(300, 9, 7, 60, "fp32")
        pair, (t1, t2) = gl.UnembeddingPair(w1, w2), there(h1, h2)
        got = gl.logit_distance(t1, None, t2, None, pair=pair, precision="exact", backend=BACKEND)
        bounds.assert_relative(got, gl.logit_distance(h1, None, h2, None, pair=pair), bounds.SAME_FP64)

    @pytest.mark.parametrize("method", ["factor", "vocabulary"])
    def test_bad_rows_and_weights(self, gpu_backend: Backend, method: str) -> None:
        for place, name in enumerate(("h1", "w1", "h2", "w2")):
            arrays = list(models(60, 4, 3, 8, "fp32"))
            arrays[place][6, 2] = np.nan
            with pytest.raises(ValueError, match=rf"^logit_distance: {name} has non-finite values in row"):
                gl.logit_distance(*there(*arrays), method=method, backend=BACKEND)
        tensors, masked = there(*models(60, 4, 3, 8, "fp32")), np.where(np.arange(60) == 9, -np.inf, 0.0)
        with pytest.raises(ValueError, match=r"^logit_distance: label 9 is masked .* in one model only"):
            gl.logit_distance(*tensors, b1=masked, method=method, backend=BACKEND)
        with pytest.raises(ValueError, match=r"^logit_distance: expected at least one row that counts"):
            gl.logit_distance(*tensors, mask=np.zeros(8, bool), method=method, backend=BACKEND)


class TestStream:
    @pytest.mark.parametrize("sizes", [(100,), (40, 60), (1, 0, 2, 97), (50, 50)], ids=str)
    @pytest.mark.parametrize("masked", ["no", "host", "device"])
    def test_is_that_of_the_host(self, gpu_backend: Backend, sizes: tuple[int, ...], masked: str) -> None:
        h1, w1, h2, w2 = models(300, 9, 7, 100, "fp32")
        pair = gl.UnembeddingPair(w1, w2)
        # the first of two batches may have no row that counts
        counted = np.arange(100) % 3 > 0 if len(sizes) < 4 else np.arange(100) > 1
        want, got, start = gl.LogitDistance(pair), stream_of(pair), 0
        for size in sizes:
            part = slice(start, start + size)
            mask = None if masked == "no" else counted[part]
            want.update(h1[part], h2[part], mask=mask)
            given = on_device(mask) if masked == "device" else mask
            assert got.update(*there(h1[part], h2[part]), mask=given) is got
            start += size
        assert_same_result(got.finalize(), want.finalize())
        assert got.n == want.n
        state, other = got.state_dict(), want.state_dict()
        assert {key: value.dtype for key, value in state.items()} == {key: v.dtype for key, v in other.items()}
        bounds.assert_same_bits(state["fingerprint"], other["fingerprint"])

    @pytest.mark.parametrize("precision", ["fast", "high"])
    def test_precisions(self, gpu_backend: Backend, precision: str) -> None:
        h1, w1, h2, w2 = models(300, 9, 7, 100, "fp32")
        pair = gl.UnembeddingPair(w1, w2)
        got = stream_of(pair, precision).update(*there(h1, h2)).finalize()
        error = abs(got.mean_square / truth(h1, w1, h2, w2).mean() - 1)
        assert 0 < error <= 2 * gpu_bounds.FACTOR_ROUNDING[precision]

    def test_hosts_and_gpus_mix(self, gpu_backend: Backend) -> None:
        """Updates, merges, states and copies, in any order."""
        h1, w1, h2, w2 = models(300, 9, 7, 100, "fp32")
        pair = gl.UnembeddingPair(w1, w2)
        want = gl.LogitDistance(pair).update(h1, h2).finalize()
        mixed = stream_of(pair).update(*there(h1[:20], h2[:20]))
        mixed._backend = "auto"
        mixed.update(h1[20:50], h2[20:50])
        later = stream_of(pair).update(*there(h1[50:80], h2[50:80])).merge(gl.LogitDistance(pair))
        later.merge(stream_of(pair).update(*there(h1[80:], h2[80:])))
        restored = gl.LogitDistance(pair)
        restored.load_state_dict(later.state_dict())
        empty = gl.LogitDistance(pair)
        for one in (later, restored, copy.deepcopy(later), copy.copy(later), pickle.loads(pickle.dumps(later))):
            assert_same_result(copy.copy(mixed).merge(one).finalize(), want)
            assert_same_result(copy.copy(empty).merge(one).merge(mixed).finalize(), want)
        assert_same_result(copy.copy(mixed).update(h1[50:], h2[50:]).finalize(), want)
        assert (mixed.n, later.n) == (50, 50)

    def test_equal_models_single_rows_and_none(self, gpu_backend: Backend) -> None:
        h, w, *_ = models(300, 9, 9, 5, "fp32")
        equal = stream_of(gl.UnembeddingPair(w, w)).update(*there(h, h)).finalize()
        assert (equal.value, equal.stderr, equal.n) == (0.0, 0.0, 5)
        one = stream_of(gl.UnembeddingPair(w, -w)).update(*there(h[:1], h[:1])).finalize()
        assert one.value > 0
        assert np.isnan(one.stderr)
        none = stream_of(gl.UnembeddingPair(w, -w)).update(*there(h[:0], h[:0]))
        assert none.n == 0
        none.update(*there(h, h), mask=on_device(np.zeros(5, bool)))
        with pytest.raises(ValueError, match=r"^LogitDistance\.finalize: no rows yet"):
            none.finalize()
        none.load_state_dict(none.state_dict())
        assert none.n == 0

    def test_a_mask_may_be_read_only(self, gpu_backend: Backend) -> None:
        h1, w1, h2, w2 = models(50, 7, 5, 12)
        pair, mask = gl.UnembeddingPair(w1, w2), np.arange(12) % 3 > 0
        mask.flags.writeable = False
        made = stream_of(pair).update(*there(h1, h2), mask=mask)
        assert_same_result(made.finalize(), gl.LogitDistance(pair).update(h1, h2, mask=mask).finalize())

    def test_runs_agree_to_the_bit(self, gpu_backend: Backend) -> None:
        h1, w1, h2, w2 = models(300, 9, 7, 140, "fp32")
        pair = gl.UnembeddingPair(w1, w2)
        streams = [stream_of(pair, "high") for _ in "ab"]
        for stream in streams:
            stream.update(*there(h1, h2)).update(*there(h1[:9], h2[:9]))
        first, second = streams
        bounds.assert_same_dicts(first.state_dict(), second.state_dict())

    def test_variance_of_rows_far_from_zero(self, gpu_backend: Backend) -> None:
        """Squares about the mean, not sums of squares less those of the mean."""
        h1, w1, h2, w2 = models(300, 9, 9, 1)
        step = np.linspace(0, 1e-7, 100)[:, None] * h1
        h1, h2 = h1 + step, np.repeat(h2, 100, axis=0)
        pair = gl.UnembeddingPair(w1, w2)
        got, want = stream_of(pair), gl.LogitDistance(pair)
        for part in (slice(0, 60), slice(60, 100)):
            got.update(*there(h1[part], h2[part]))
            want.update(h1[part], h2[part])
        bounds.assert_relative(got.finalize().stderr, want.finalize().stderr, bounds.LOGIT_DISTANCE)


class TestFaults:
    def test_are_told_when_sums_are_read(self, gpu_backend: Backend) -> None:
        h1, w1, h2, w2 = models(300, 9, 7, 40, "fp32")
        bad = h2.copy()
        bad[7, 3] = np.inf
        pair = gl.UnembeddingPair(w1, w2)
        stream = stream_of(pair).update(*there(h1, h2)).update(*there(h1, bad)).update(*there(h1, h2))
        for name in ("finalize", "state_dict"):
            with pytest.raises(ValueError, match=rf"^LogitDistance\.{name}: h2 has non-finite values in row 47$"):
                getattr(stream, name)()
        merged = gl.LogitDistance(pair).update(h1, h2).merge(stream)
        with pytest.raises(ValueError, match="h2 has non-finite values in row 87"):
            merged.finalize()
        stream.reset()
        assert stream.update(*there(h1, h2)).finalize().n == 40

    def test_rows_that_do_not_count_may_be_anything(self, gpu_backend: Backend) -> None:
        h1, w1, h2, w2 = models(300, 9, 7, 40, "fp32")
        mask, want = np.arange(40) % 3 > 0, gl.LogitDistance(gl.UnembeddingPair(w1, w2))
        want.update(h1, h2, mask=mask)
        h1[~mask], h2[~mask] = np.nan, np.inf
        got = stream_of(want._pair).update(*there(h1, h2), mask=on_device(mask))
        assert_same_result(got.finalize(), want.finalize())

    def test_overflow(self, gpu_backend: Backend) -> None:
        h1, w1, h2, w2 = models(50, 7, 5, 9)
        stream = stream_of(gl.UnembeddingPair(1e100 * w1, 1e100 * w2)).update(*there(1e100 * h1, 1e100 * h2))
        with pytest.raises(ValueError, match=r"^LogitDistance\.finalize: squared distances overflow"):
            stream.finalize()

    def test_rows_that_cancel_are_told_of(self, gpu_backend: Backend) -> None:
        h, w, *_ = models(300, 12, 12, 30)
        turn = np.linalg.qr(np.random.default_rng(9).standard_normal((12, 12)))[0]
        stream = stream_of(gl.UnembeddingPair(w, w @ turn))
        stream.update(*there(h, h @ turn), mask=on_device(np.arange(30) > 4)).update(*there(h + 1, h @ turn))
        with pytest.warns(RuntimeWarning, match=r"^LogitDistance\.finalize: .* 25 of 55 rows; 0 digits") as told:
            stream.finalize()
        assert told[0].filename == __file__

    def test_an_update_that_is_refused_changes_nothing(self, gpu_backend: Backend) -> None:
        h1, w1, h2, w2 = models(50, 7, 5, 9, "fp32")
        stream = stream_of(gl.UnembeddingPair(w1, w2)).update(*there(h1, h2))
        before = stream.finalize()
        for arrays, mask in ((there(h1, h2[:3]), None), (there(h2, h1), None), (there(h1, h2), np.ones(3, bool))):
            with pytest.raises(ValueError, match=r"^LogitDistance\.update: expected"):
                stream.update(*arrays, mask=mask)
        assert stream.finalize() == before

    def test_arguments(self) -> None:
        pair = gl.UnembeddingPair(*models(50, 7, 5, 1)[1::2])
        with pytest.raises(ValueError, match=r"^LogitDistance: expected precision to be one of"):
            gl.LogitDistance(pair, precision="low")
        with pytest.raises(ValueError, match=r"^LogitDistance: expected backend to be one of"):
            gl.LogitDistance(pair, backend="gpu")


class TestNoUpdateWaits:
    @pytest.fixture
    def pair(self) -> gl.UnembeddingPair:
        return gl.UnembeddingPair(*there(*models(300, 9, 7, 1, "fp32")[1::2]), backend=BACKEND)

    @pytest.mark.parametrize("precision", PRECISIONS)
    def test_of_any_rows(self, pair: gl.UnembeddingPair, request: pytest.FixtureRequest, precision: str) -> None:
        tensors = there(*models(1, 9, 7, 140, "bf16")[::2])
        masks = (None, np.arange(140) > 7, on_device(np.arange(140) > 7))
        request.getfixturevalue("forbidden")
        stream = gl.LogitDistance(pair, precision=precision, backend="cuda")
        for size in (10, 0, 140):
            for mask in masks:
                stream.update(*(t[:size] for t in tensors), mask=None if mask is None else mask[:size])
        stream.merge(copy.copy(stream))
        for read in (stream.finalize, stream.state_dict, lambda: stream.n):
            with pytest.raises(AssertionError, match="waited"):
                read()

    def test_rows_are_read_once(self, pair: gl.UnembeddingPair, monkeypatch: pytest.MonkeyPatch) -> None:
        tensors, seen = there(*models(1, 9, 7, 140, "fp32")[::2]), []
        before = torch.Tensor.cpu
        monkeypatch.setattr(torch.Tensor, "cpu", lambda self: seen.append(self.shape) or before(self))
        pair.squared_distances(*tensors, mask=np.arange(140) > 7, backend=BACKEND)
        assert len(seen) == 1

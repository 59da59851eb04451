"""Streams of predictions: what they keep, how they merge, what they refuse; and the sketch of their quantiles."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gramless as gl
from gramless._base import quantile_sketch
from support import bounds, memory
from support.backends import Backend, as_torch

N, V = 260, 40
RNG = np.random.default_rng(3)
H1, W1 = RNG.standard_normal((N, 9)), RNG.standard_normal((V, 9)) / 2
H2, W2 = H1[:, :6] + 0.3 * RNG.standard_normal((N, 6)), W1[:, :6] + 0.1 * RNG.standard_normal((V, 6))
TARGETS = RNG.integers(-1, V, N)
SIZES = (100, 1, 64, 3, 92)


def slices() -> Iterator[slice]:
    start = 0
    for size in SIZES:
        yield slice(start, start + size)
        start += size


def fed(batches: Any = None, **options: Any) -> gl.LogitPairs:
    stream = gl.LogitPairs(W1, W2, **options)
    for rows in slices() if batches is None else batches:
        stream.update(H1[rows], H2[rows], targets=TARGETS[rows])
    return stream


def assert_same(got: gl.LogitComparison, want: gl.LogitComparison) -> None:
    assert (got.n, got.labels, got.n_targets, got.infinite) == (want.n, want.labels, want.n_targets, want.infinite)
    assert got.stderr.keys() == want.stderr.keys()
    for name, error in want.stderr.items():
        bounds.assert_relative(getattr(got, name), getattr(want, name), bounds.SAME_FP64, name)
        bounds.assert_relative(got.stderr[name], error, bounds.SAME_FP64, f"stderr of {name}")


class TestStream:
    def test_is_the_comparison(self, backend: Backend) -> None:
        want = gl.compare_logits(H1, W1, H2, W2, targets=TARGETS, backend=backend.name)
        assert_same(fed(backend=backend.name).finalize(), want)
        one = fed([slice(None)], backend=backend.name).finalize()
        assert one.to_dict() == want.to_dict()

    def test_options(self) -> None:
        options: dict[str, Any] = {"b1": W1[:, 0], "b2": W2[:, 0], "labels": np.arange(5, 30), "temperature": 0.7}
        options |= {"softcap1": 2.0, "softcap2": 4.0, "ignore_index": -1, "divergences": False}
        aims = np.where(TARGETS < 5, -1, np.minimum(TARGETS, 29))
        stream = gl.LogitPairs(W1, W2, **options)
        for rows in slices():
            stream.update(H1[rows], H2[rows], targets=aims[rows], mask=rows.start + np.arange(len(aims[rows])) > 50)
        want = gl.compare_logits(H1, W1, H2, W2, targets=aims, mask=np.arange(N) > 50, **options)
        assert_same(stream.finalize(), want)
        assert want.n == want.n_targets < N

    def test_logits(self) -> None:
        stream = gl.LogitPairs()
        for rows in slices():
            stream.update(H1[rows] @ W1.T, H2[rows] @ W2.T, targets=TARGETS[rows])
        assert_same(stream.finalize(), fed().finalize())

    def test_torch_in_bfloat16(self) -> None:
        w1, w2, h1, h2 = (as_torch(a.astype(ml_dtypes.bfloat16)) for a in (W1, W2, H1, H2))
        stream = gl.LogitPairs(w1, w2).update(h1, h2, targets=torch.from_numpy(TARGETS))
        assert stream.finalize().to_dict() == gl.compare_logits(h1, w1, h2, w2, targets=TARGETS).to_dict()

    def test_batches_with_and_without_targets(self) -> None:
        stream = fed([slice(0, 100)]).update(H1[100:], H2[100:])
        got, want = stream.finalize(), gl.compare_logits(H1[:100], W1, H2[:100], W2, targets=TARGETS[:100])
        assert (got.n, got.n_targets) == (N, want.n_targets)
        bounds.assert_relative(got.nll_p, want.nll_p, bounds.SAME_FP64)
        bounds.assert_relative(got.stderr["nll_p"], want.stderr["nll_p"], bounds.SAME_FP64)

    def test_infinite_values(self) -> None:
        b2 = np.where(np.arange(V) == 2, -np.inf, 0.0)
        stream = gl.LogitPairs(W1, W2, b2=b2)
        for rows in slices():
            stream.update(H1[rows], H2[rows])
        got = stream.finalize()
        assert got.kl_pq == got.logit_distance == math.inf
        assert got.infinite["kl_pq"] == N
        assert got.kl_qp < math.inf
        restored = gl.LogitPairs(W1, W2, b2=b2)
        restored.load_state_dict(stream.state_dict())
        assert restored.finalize().to_dict() == got.to_dict()

    def test_nan_that_is_propagated(self) -> None:
        bad = H1.copy()
        bad[120] = np.nan
        stream = gl.LogitPairs(W1, W2, nonfinite="propagate")
        for rows in slices():
            stream.update(bad[rows], H2[rows])
        got = stream.finalize()
        assert math.isnan(got.kl_pq)
        assert math.isfinite(got.entropy_q)

    def test_interruption_keeps_the_rows_so_far(self, monkeypatch: pytest.MonkeyPatch) -> None:
        stream = fed([slice(0, 100)])
        before = stream.state_dict()

        def interrupted(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(gl.ops, "logit_pairs", interrupted)
            with pytest.raises(KeyboardInterrupt):
                stream.update(H1, H2)
        bounds.assert_same_dicts(stream.state_dict(), before)

    def test_repr_and_bytes(self) -> None:
        assert repr(gl.LogitPairs(W1, W2)) == "LogitPairs(n=0)"
        assert repr(fed()) == "LogitPairs(n=260, labels=40)"
        assert 200_000 < fed().nbytes < 250_000


class TestKeptRows:
    def test_rows_in_order(self) -> None:
        stream = fed(keep_rows=True)
        got, want = stream.finalize(), gl.compare_logits(H1, W1, H2, W2, targets=TARGETS, keep_rows=True)
        for name, rows in want.rows.items():
            scale = np.full(N, 50.0)
            np.testing.assert_array_equal(np.isnan(got.rows[name]), np.isnan(rows))
            bounds.assert_within_algebra(np.nan_to_num(got.rows[name]), np.nan_to_num(rows), scale, name)
            assert len(got.rows[name]) == N
        bounds.assert_relative(got.quantiles("kl_pq", 0.3), want.quantiles("kl_pq", 0.3), bounds.SAME_FP64)

    def test_merge_puts_the_other_behind(self) -> None:
        first, second = fed([slice(0, 100)], keep_rows=True), fed([slice(100, N)], keep_rows=True)
        got, want = first.merge(second).finalize(), fed([slice(0, 100), slice(100, N)], keep_rows=True).finalize()
        for name, rows in want.rows.items():
            np.testing.assert_array_equal(got.rows[name], rows)

    def test_state_dict(self) -> None:
        stream, restored = fed(keep_rows=True), gl.LogitPairs(W1, W2, keep_rows=True)
        restored.load_state_dict(stream.state_dict())
        bounds.assert_same_dicts(restored.state_dict(), stream.state_dict())
        assert restored.finalize().quantiles("js", 0.7) == stream.finalize().quantiles("js", 0.7)
        assert stream.nbytes - fed().nbytes == 14 * 8 * N

    def test_what_it_hands_out_cannot_change_it(self) -> None:
        stream = fed(keep_rows=True)
        before = stream.state_dict()
        for rows in stream.finalize().rows.values():
            rows[:] = -1
        bounds.assert_same_dicts(stream.state_dict(), before)
        state = gl.logit_pairs(H1, W1, H2, W2, divergences=True)
        stream = gl.LogitPairs(keep_rows=True).add(state)
        want = state.js.copy()
        state.js[:] = -1
        np.testing.assert_array_equal(stream.finalize().rows["js"], want)


class TestAdd:
    def test_states_of_slices(self) -> None:
        parts, stream = [slice(0, 7), slice(7, 25), slice(25, V)], gl.LogitPairs()
        for rows in slices():
            heads = [(H1[rows], W1[part], H2[rows], W2[part]) for part in parts]
            whole = None
            for head, part in zip(heads, parts, strict=True):
                inside = (TARGETS[rows] >= part.start) & (TARGETS[rows] < part.stop)
                aims = np.where(inside, TARGETS[rows] - part.start, -1)
                state = gl.logit_pairs(*head, targets=aims).numbered_from(part.start)
                whole = state if whole is None else whole.merge(state)
            shares = [gl.logit_divergences(*head, whole.lse_p, whole.lse_q) for head in heads]
            assert stream.add(replace(whole, **{name: sum(s[name] for s in shares) for name in ("js", "tv")})) is stream
        assert_same(stream.finalize(), fed().finalize())

    def test_refusals(self) -> None:
        stream = fed()
        before = stream.state_dict()
        whole = gl.logit_pairs(H1, W1, H2, W2)
        merged = gl.logit_pairs(H1, W1[:9], H2, W2[:9]).merge(gl.logit_pairs(H1, W1[9:], H2, W2[9:]).numbered_from(9))
        for state in (whole, merged):
            with pytest.raises(ValueError, match=r"LogitPairs\.add: the state has no js and tv; .*divergences=False"):
                stream.add(state)
        with pytest.raises(ValueError, match=r"LogitPairs\.add: expected 40 labels, as before, got 39"):
            stream.add(gl.logit_pairs(H1, W1[1:], H2, W2[1:], divergences=True))
        for name, value in (("temperature", 2.0), ("softcap1", 5.0), ("softcap2", 5.0)):
            other, text = gl.logit_pairs(H1, W1, H2, W2, divergences=True, **{name: value}), f"got {name}={value}"
            with pytest.raises(ValueError, match=rf"LogitPairs\.add: expected a state with {name}=.* {text}"):
                stream.add(other)
            assert gl.LogitPairs(**{name: value}).add(other).n == N
        with pytest.raises(TypeError, match=r"LogitPairs\.add: expected a LogitPairState, got LogitState"):
            stream.add(gl.logsumexp(H1, W1))
        bounds.assert_same_dicts(stream.state_dict(), before)
        assert gl.LogitPairs(W1, W2, divergences=False).add(merged).n == N

    def test_threads_lose_no_rows(self) -> None:
        stream, state = gl.LogitPairs(), gl.logit_pairs(H1[:2], W1, H2[:2], W2, divergences=True)
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            with ThreadPoolExecutor(4) as pool:
                list(pool.map(stream.add, [state] * 100))
        finally:
            sys.setswitchinterval(interval)
        assert stream.n == 200

    def test_no_rows(self) -> None:
        assert gl.LogitPairs().add(gl.logit_pairs(H1[:0], W1, H2[:0], W2, divergences=True)).n == 0


OTHERS: dict[str, tuple[tuple[Any, Any], dict[str, Any], str]] = {
    "temperature": ((W1, W2), {"temperature": 2.0}, "temperature=2.0, not 1.0"),
    "softcap": ((W1, W2), {"softcap1": 2.0}, "softcap1=2.0, not None"),
    "divergences": ((W1, W2), {"divergences": False}, "divergences=False, not True"),
    "keep_rows": ((W1, W2), {"keep_rows": True}, "keep_rows=True, not False"),
    "labels": ((W1, W2), {"labels": np.arange(30)}, "other unembeddings, biases or labels"),
    "bias": ((W1, W2), {"b1": np.arange(40.0)}, "other unembeddings"),
    "values": ((W1, W2 + 1e-9), {}, "other unembeddings"),
    "models": ((W2, W1), {}, "other unembeddings"),
    "dtype": ((W1.astype(np.float32), W2), {}, "other unembeddings"),
    "fewer": ((W1[:39], W2[:39]), {}, "other unembeddings"),
    "logits": ((None, None), {}, "other unembeddings"),
}


class TestMerge:
    @pytest.mark.parametrize("case", OTHERS)
    def test_other_models_are_refused(self, case: str) -> None:
        weights, options, text = OTHERS[case]
        stream, other = fed(), gl.LogitPairs(*weights, **options)
        before = stream.state_dict()
        with pytest.raises(ValueError, match=rf"^LogitPairs\.merge: .*{text}"):
            stream.merge(other)
        with pytest.raises(ValueError, match=rf"^LogitPairs\.load_state_dict: .*{text}"):
            stream.load_state_dict(other.state_dict())
        bounds.assert_same_dicts(stream.state_dict(), before)

    def test_the_same_weights_elsewhere(self) -> None:
        other = gl.LogitPairs(np.asfortranarray(W1), as_torch(W2)).update(H1, H2)
        assert fed().merge(other).n == 2 * N

    def test_other_numbers_of_labels(self) -> None:
        stream = gl.LogitPairs().update(H1, H1)
        for refused in (lambda: stream.update(H2, H2), lambda: stream.merge(gl.LogitPairs().update(H2, H2))):
            with pytest.raises(ValueError, match=r"LogitPairs\.\w+: expected 9 labels, as before, got 6"):
                refused()
        assert stream.n == N


def changed(**changes: Any) -> dict[str, Any]:
    state = fed().state_dict() | changes
    return {key: value for key, value in state.items() if value is not None}


COUNTS = np.zeros(quantile_sketch.SIZE, np.int64)
HOSTILE: dict[str, tuple[Any, str]] = {
    "kind": ([1], "expected a dict"),
    "format": (changed(format="gramless.moments/1"), "expected a state of format"),
    "n": (changed(n=np.array(-1)), "'n' to be a whole number"),
    "other n": (changed(n=np.array(N + 1)), "'kl_pq.numbers' are not those of 261 rows"),
    "labels": (changed(labels=np.array(0)), "'labels' of at least 1"),
    "settings": (changed(settings="{"), "'settings' to be options as JSON"),
    "settings kind": (changed(settings="3"), "'settings' to be options as JSON"),
    "settings more": (changed(settings=json.dumps(fed()._settings | {"x": 1})), "rows of other options"),
    "fingerprint": (changed(fingerprint=None), "no 'fingerprint'"),
    "missing": (changed(**{"js.numbers": None}), "'js.numbers' to be an array of shape"),
    "shape": (changed(**{"js.numbers": np.zeros(6)}), "'js.numbers' to be an array of shape"),
    "nan": (changed(**{"js.numbers": np.full(7, np.nan)}), "'js.numbers' has non-finite"),
    "negative": (changed(**{"js.numbers": np.array([N, 0, 0, 0.1, -1, 0, 1])}), "not those of 260 rows"),
    "extremes": (changed(**{"js.numbers": np.array([N, 0, 0, 0.1, 1, 1, 0.0])}), "of other rows"),
    "no sketch": (changed(**{"tv.sketch": None}), "'tv.sketch' to be int64 counts"),
    "sketch kind": (changed(**{"tv.sketch": COUNTS * 1.0}), "'tv.sketch' to be int64 counts"),
    "sketch sum": (changed(**{"tv.sketch": COUNTS}), "'tv.numbers' and 'tv.sketch' are of other rows"),
    "sketch signs": (changed(**{"tv.sketch": COUNTS - 1}), "'tv.sketch' to be int64 counts"),
    "unknown": (changed(extra=np.zeros(2)), "unknown keys"),
    "rows of none": (changed(n=np.array(0)), "unknown keys"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_states_are_refused(case: str) -> None:
    state, text = HOSTILE[case]
    stream = fed([slice(0, 50)])
    before = stream.state_dict()
    with pytest.raises((TypeError, ValueError), match=rf"LogitPairs\.load_state_dict: .*{text}"):
        stream.load_state_dict(state)
    bounds.assert_same_dicts(stream.state_dict(), before)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "text"),
    [
        ((W1, W2[1:]), {}, ValueError, "same labels in both models"),
        ((W1[0], W2), {}, ValueError, "w1: expected a 2-d array"),
        ((W1, "w"), {}, TypeError, "expected w2 to be"),
        ((W1, W2), {"b2": np.zeros(3)}, ValueError, "expected b2 of shape"),
        ((W1, W2), {"labels": [40]}, ValueError, "expected labels from 0 to 39"),
        ((W1, W2), {"temperature": -1}, ValueError, "temperature above 0"),
        ((W1, W2), {"softcap2": math.nan}, ValueError, "softcap2 to be finite"),
        ((W1, W2), {"ignore_index": "pad"}, TypeError, "ignore_index to be an int"),
        ((W1, W2), {"nonfinite": "no"}, ValueError, "nonfinite"),
        ((W1, W2), {"workspace": 0}, ValueError, "workspace of at least 1"),
        ((W1, W2), {"backend": "gpu"}, ValueError, "backend"),
    ],
)
def test_wrong_models_are_refused_at_once(arguments: Any, options: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=f"^LogitPairs: .*{text}"):
        gl.LogitPairs(*arguments, **options)


def test_update_refuses_what_it_cannot_ignore() -> None:
    with pytest.raises(ValueError, match=r"LogitPairs\.update: ignore_index=-100 needs targets"):
        gl.LogitPairs(W1, W2, ignore_index=-100).update(H1, H2)


def test_memory_does_not_grow_with_the_rows() -> None:
    prepare = """
rng = np.random.default_rng(0)
h, w = rng.standard_normal((256, 8), dtype=np.float32), rng.standard_normal((50, 8), dtype=np.float32)
def stream(batches):
    made = gl.LogitPairs(w, w[::-1])
    for _ in range(batches):
        made.update(h, h)
    return made.finalize()
"""
    assert memory.peak_extra_bytes(prepare, "stream(2000)", "stream(3)") < bounds.MEMORY_SLACK_BYTES


class TestSketch:
    def quantile(self, values: np.ndarray, share: float) -> float:
        finite = values[np.isfinite(values)]
        return quantile_sketch.quantile(
            quantile_sketch.tally(values), share, finite.min(initial=np.inf), finite.max(initial=-np.inf)
        )

    @given(st.lists(st.floats(quantile_sketch.LOW, quantile_sketch.HIGH), min_size=1, max_size=50), st.floats(0, 1))
    def test_relative_accuracy(self, values: list[float], share: float) -> None:
        ordered = np.sort(np.array(values))
        truth = ordered[quantile_sketch.rank(share, len(ordered)) - 1]
        bounds.assert_relative(self.quantile(np.array(values), share), truth, bounds.SKETCH)

    def test_accuracy_over_the_whole_range(self) -> None:
        values = np.geomspace(quantile_sketch.LOW, quantile_sketch.HIGH, 20_001)
        for value in values[::37]:
            got = quantile_sketch.quantile(quantile_sketch.tally(np.full(3, value)), 0.5, 0.0, np.inf)
            bounds.assert_relative(got, value, bounds.SKETCH)

    def test_order_and_parts_do_not_matter(self) -> None:
        values = np.exp(5 * RNG.standard_normal(1000))
        values[::7] = 0
        whole = quantile_sketch.tally(values)
        np.testing.assert_array_equal(quantile_sketch.tally(RNG.permutation(values)), whole)
        np.testing.assert_array_equal(sum(map(quantile_sketch.tally, np.split(values, [3, 3, 500]))), whole)

    def test_what_lies_outside(self) -> None:
        values = np.array([-1e-17, 0.0, 1e-300, 5e-13, 1.0, 2e6, 3e7, np.inf])
        got = [self.quantile(values, k / 8) for k in range(1, 9)]
        assert got[:2] == [-1e-17, 0.0]
        assert all(0 < value < quantile_sketch.LOW for value in got[2:4])
        assert got[5:] == [3e7, 3e7, math.inf]
        assert self.quantile(np.zeros(3), 0.5) == 0
        assert self.quantile(np.full(3, np.inf), 0.5) == math.inf

    def test_ranks(self) -> None:
        assert [quantile_sketch.rank(k / 10, 30) for k in range(11)] == [1, *range(3, 31, 3)]
        assert quantile_sketch.rank(0.5, 3) == 2


@pytest.mark.parametrize(
    "change",
    [{"labels": -1}, {"labels": 2.0}, {"lse_p": [1.0]}, {"js": np.zeros(3)}, {"top_p": np.zeros(5)}],
    ids=["labels", "labels kind", "list", "shape", "dtype"],
)
def test_states_changed_by_hand_are_refused(change):
    h, w = np.random.default_rng(5).standard_normal((2, 5, 4))
    state = replace(gl.logit_pairs(h, w, h, w), **change)
    name = next(iter(change))
    with pytest.raises((TypeError, ValueError), match=f"^LogitPairs.add: expected {name} of the state"):
        gl.LogitPairs().add(state)
    with pytest.raises((TypeError, ValueError), match=f"^compare_logits: expected {name} of the state"):
        gl.compare_logits(state)


@pytest.mark.parametrize("flag", ["divergences", "keep_rows"])
def test_flags_are_bools(flag):
    with pytest.raises(TypeError, match=f"^LogitPairs: expected {flag} to be a bool, got str"):
        gl.LogitPairs(**{flag: "x"})

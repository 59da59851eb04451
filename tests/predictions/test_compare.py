"""Comparisons of predictions against dense float64 formulas, their standard errors by simulation, and every refusal."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from scipy.special import log_softmax

import gramless as gl
from gramless.predictions.batching import LEAST_ROWS, rows_at_a_time
from support import bounds
from support.backends import Backend, as_torch

N, V, D1, D2 = 300, 70, 9, 6
RNG = np.random.default_rng(0)
H1, W1 = RNG.standard_normal((N, D1)), RNG.standard_normal((V, D1)) / 2
H2, W2 = H1[:, :D2] + 0.3 * RNG.standard_normal((N, D2)), W1[:, :D2] + 0.1 * RNG.standard_normal((V, D2))
B1, B2 = RNG.standard_normal((2, V))
# of Student's t with 199 degrees of freedom
T_200 = 1.972
MODELS = (H1, W1, H2, W2)
TARGETS = RNG.integers(0, V, N)
MEANS = (
    "kl_pq", "kl_qp", "jeffreys", "js", "tv", "logit_l1", "top1_agreement", "entropy_p", "entropy_q",
    "cross_entropy_pq", "cross_entropy_qp",
)  # fmt: skip


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))


def dense_rows(z1: np.ndarray, z2: np.ndarray) -> dict[str, np.ndarray]:
    """The values of each row, by the textbook."""
    log_p, log_q = log_softmax(z1, axis=1), log_softmax(z2, axis=1)
    p, q = np.exp(log_p), np.exp(log_q)
    delta, middle = z1 - z2, np.log((p + q) / 2)
    kl_pq, kl_qp = (p * (log_p - log_q)).sum(1), (q * (log_q - log_p)).sum(1)
    return {
        "kl_pq": kl_pq,
        "kl_qp": kl_qp,
        "jeffreys": kl_pq + kl_qp,
        "js": (p * (log_p - middle) + q * (log_q - middle)).sum(1) / 2,
        "tv": np.abs(p - q).sum(1) / 2,
        "logit_distance": np.linalg.norm(delta - delta.mean(1, keepdims=True), axis=1),
        "logit_l1": np.abs(delta).mean(1),
        "top1_agreement": (z1.argmax(1) == z2.argmax(1)).astype(float),
        "entropy_p": -(p * log_p).sum(1),
        "entropy_q": -(q * log_q).sum(1),
        "cross_entropy_pq": -(p * log_q).sum(1),
        "cross_entropy_qp": -(q * log_p).sum(1),
    }


def dense(z1: np.ndarray, z2: np.ndarray, targets: np.ndarray | None = None) -> dict[str, tuple[float, float]]:
    """Every value with its standard error."""
    rows = dense_rows(z1, z2)
    found = {name: mean_and_error(rows[name]) for name in MEANS}
    square, error = mean_and_error(rows["logit_distance"] ** 2)
    found["logit_distance"] = (math.sqrt(square), error / (2 * math.sqrt(square)))
    if targets is not None:
        aimed = targets >= 0
        for side, z in (("p", z1), ("q", z2)):
            nll = -log_softmax(z, axis=1)[aimed, targets[aimed]]
            mean, error = mean_and_error(nll)
            found[f"nll_{side}"] = (mean, error)
            found[f"perplexity_{side}"] = (math.exp(mean), math.exp(mean) * error)
    return found


def assert_is(got: gl.LogitComparison, want: dict[str, tuple[float, float]], bound: float) -> None:
    assert got.stderr.keys() == want.keys()
    for name, (value, error) in want.items():
        bounds.assert_relative(getattr(got, name), value, bound, name)
        bounds.assert_relative(got.stderr[name], error, bound, f"stderr of {name}")


def logits(h: np.ndarray, w: np.ndarray, b: Any = 0.0, softcap: float | None = None) -> np.ndarray:
    z = h.astype(np.float64) @ w.astype(np.float64).T + b
    return z if softcap is None else softcap * np.tanh(z / softcap)


class TestValues:
    def test_dense(self, backend: Backend) -> None:
        got = gl.compare_logits(*MODELS, backend=backend.name)
        assert (got.n, got.labels, got.n_targets, got.rows, got.infinite) == (N, V, 0, None, {})
        assert got.nll_p is got.nll_q is got.perplexity_p is got.perplexity_q is None
        assert_is(got, dense(logits(H1, W1), logits(H2, W2)), bounds.SAME_FP64)

    @pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16], ids=lambda d: np.dtype(d).name)
    def test_dtypes(self, dtype: Any) -> None:
        models = [a.astype(dtype) for a in MODELS]
        assert_is(gl.compare_logits(*models), dense(logits(*models[:2]), logits(*models[2:])), bounds.INVARIANCE_FP32)
        wide = [a if k % 2 else a.astype(np.float64) for k, a in enumerate(models)]
        assert_is(gl.compare_logits(*wide), dense(logits(*models[:2]), logits(*models[2:])), bounds.SAME_FP64)

    def test_options(self, backend: Backend) -> None:
        labels, mask = RNG.permutation(V)[:40], RNG.random(N) < 0.6
        targets = np.where(RNG.random(N) < 0.3, -100, RNG.choice(labels, N))
        targets[::5] = -1
        got = gl.compare_logits(
            *MODELS, b1=B1, b2=B2, labels=labels, mask=mask, targets=targets, ignore_index=-100, temperature=1.7,
            softcap1=3.0, softcap2=5.0, backend=backend.name,
        )  # fmt: skip
        kept = mask & (targets != -100)
        columns = np.sort(labels)
        z1, z2 = (logits(h[kept], w, b, c)[:, columns] / 1.7 for h, w, b, c in ((H1, W1, B1, 3.0), (H2, W2, B2, 5.0)))
        aims = np.where(targets[kept] < 0, -1, np.searchsorted(columns, targets[kept]))
        assert_is(got, dense(z1, z2, aims), bounds.SAME_FP64)
        assert (got.n, got.labels, got.n_targets) == (kept.sum(), 40, (aims >= 0).sum())
        assert got.n_targets < got.n

    def test_logits_given(self) -> None:
        z1, z2 = logits(H1, W1), logits(H2, W2)
        assert_is(gl.compare_logits(z1, None, z2, None, targets=TARGETS), dense(z1, z2, TARGETS), bounds.SAME_FP64)

    def test_torch(self) -> None:
        bf16 = [a.astype(ml_dtypes.bfloat16) for a in MODELS]
        got = gl.compare_logits(*map(as_torch, bf16), targets=as_torch(TARGETS), mask=as_torch(TARGETS > 5))
        want = gl.compare_logits(*bf16, targets=TARGETS, mask=TARGETS > 5)
        assert got.to_dict() == want.to_dict()

    def test_swapped_models(self) -> None:
        one, other = gl.compare_logits(*MODELS), gl.compare_logits(H2, W2, H1, W1)
        for name in MEANS:
            mirrored = {"pq": "qp", "qp": "pq", "p": "q", "q": "p"}
            head, _, tail = name.rpartition("_")
            twin = f"{head}_{mirrored[tail]}" if tail in mirrored else name
            bounds.assert_relative(getattr(one, name), getattr(other, twin), bounds.SAME_FP64, name)

    def test_without_divergences(self) -> None:
        got, want = gl.compare_logits(*MODELS, divergences=False), gl.compare_logits(*MODELS)
        assert got.js is got.tv is None
        assert "js" not in got.stderr
        assert got.kl_pq == want.kl_pq

    def test_one_row(self) -> None:
        got = gl.compare_logits(H1[:1], W1, H2[:1], W2, keep_rows=True)
        assert got.n == 1
        assert all(math.isnan(error) for error in got.stderr.values())
        assert got.kl_pq == got.rows["kl_pq"][0]
        assert " - " in str(got)


class TestBatches:
    @pytest.mark.parametrize("batch_rows", [1, 7, 256, 10**6])
    def test_batches_do_not_matter(self, batch_rows: int) -> None:
        keep = TARGETS % 3 > 0
        options: dict[str, Any] = {"targets": np.where(TARGETS < 9, -1, TARGETS), "mask": keep, "keep_rows": True}
        got, want = (gl.compare_logits(*MODELS, **options, **more) for more in ({"batch_rows": batch_rows}, {}))
        assert_is(got, {k: (getattr(want, k), e) for k, e in want.stderr.items()}, bounds.SAME_FP64)
        for name, rows in want.rows.items():
            np.testing.assert_array_equal(np.isnan(rows), np.isnan(got.rows[name]))
            scale = np.full(N, 100.0)[: len(rows)]
            bounds.assert_within_algebra(np.nan_to_num(got.rows[name]), np.nan_to_num(rows), scale, name)

    def test_a_batch_without_rows_that_count(self) -> None:
        mask = np.arange(N) >= 200
        got = gl.compare_logits(*MODELS, mask=mask, batch_rows=50)
        assert got.n == 100
        bounds.assert_relative(got.kl_pq, gl.compare_logits(H1[200:], W1, H2[200:], W2).kl_pq, bounds.SAME_FP64)

    def test_rows_at_a_time(self) -> None:
        assert rows_at_a_time(10**6, 10**5, 10**6) == LEAST_ROWS
        for sizes in ((50257, 1536, 6144), (100, 8, 32), (7, 0, 28)):
            assert rows_at_a_time(*sizes) % 256 == 0

    def test_progress(self, capsys: pytest.CaptureFixture[str]) -> None:
        gl.compare_logits(*MODELS, batch_rows=100, progress=True)
        out, err = capsys.readouterr()
        assert (out, "batches of rows" in err) == ("", True)

    def test_bad_rows_are_numbered_among_all(self) -> None:
        bad = H2.copy()
        bad[270, 1] = np.nan
        with pytest.raises(ValueError, match=r"^compare_logits: h2 has non-finite values in rows 250\.\.299$"):
            gl.compare_logits(H1, W1, bad, W2, batch_rows=50 * 5)


class TestRows:
    def test_rows(self) -> None:
        targets = np.where(TARGETS < 20, -1, TARGETS)
        got = gl.compare_logits(*MODELS, targets=targets, keep_rows=True)
        z1, z2 = logits(H1, W1), logits(H2, W2)
        want = dense_rows(z1, z2)
        assert set(got.rows) == {*want, "nll_p", "nll_q"}
        for name, rows in want.items():
            bounds.assert_within_algebra(got.rows[name], rows, np.full(N, 100.0), name)
        np.testing.assert_array_equal(np.isnan(got.rows["nll_q"]), targets < 0)

    @pytest.mark.parametrize("name", ["kl_pq", "js", "logit_distance", "nll_q"])
    def test_quantiles(self, name: str) -> None:
        """Exact from rows; from a sketch within what it promises."""
        exact, sketched = (gl.compare_logits(*MODELS, targets=TARGETS, keep_rows=rows) for rows in (True, False))
        shares = np.linspace(0, 1, 21)
        # that many rows of 300, from 1
        want = np.sort(exact.rows[name])[np.maximum(15 * np.arange(21), 1) - 1]
        np.testing.assert_array_equal(exact.quantiles(name, shares), want)
        for got, truth in zip(sketched.quantiles(name, shares), want, strict=True):
            bounds.assert_relative(got, truth, bounds.SKETCH)
        assert sketched.quantiles(name, 0.0) == want[0]
        assert sketched.quantiles(name, 1) == want[-1]
        assert isinstance(sketched.quantiles(name, 0.5), float)
        assert sketched.quantiles(name, [[0.5, 0.9]]).shape == (1, 2)

    @pytest.mark.parametrize("rows", [None, np.zeros(3), np.zeros(N, np.float32)], ids=["none", "shape", "dtype"])
    def test_saved_rows_of_another_kind_are_refused(self, rows: Any) -> None:
        stream = gl.LogitPairs(W1, W2, keep_rows=True).update(H1, H2)
        with pytest.raises(ValueError, match=rf"'js\.rows' to be float64 of shape \({N},\)"):
            stream.load_state_dict(stream.state_dict() | {"js.rows": rows})

    def test_refusals(self) -> None:
        got = gl.compare_logits(*MODELS, divergences=False)
        for name in ("js", "nll_p", "top1_agreement", "kl"):
            with pytest.raises(ValueError, match=f"quantiles: expected name to be one of kl_pq, .*, got '{name}'"):
                got.quantiles(name, 0.5)
        for q in (-0.1, 1.1, math.nan, [0.5, 2]):
            with pytest.raises(ValueError, match="quantiles: expected q from 0 to 1"):
                got.quantiles("kl_pq", q)


class TestExtremes:
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_equal_models(self, dtype: Any) -> None:
        h, w = H1.astype(dtype), W1.astype(dtype)
        got = gl.compare_logits(h, w, h, w)
        for name in ("kl_pq", "kl_qp", "jeffreys", "js", "tv", "logit_distance", "logit_l1"):
            assert (getattr(got, name), got.stderr[name], got.quantiles(name, 0.95)) == (0, 0, 0), name
        assert (got.top1_agreement, got.stderr["top1_agreement"]) == (1, 0)
        assert got.entropy_p == got.entropy_q == got.cross_entropy_pq

    @pytest.mark.parametrize("step", [1e-2, 1e-4])
    def test_near_equal_models(self, step: float) -> None:
        w2 = W1 * (1 + step * RNG.standard_normal(W1.shape))
        got = gl.compare_logits(H1, W1, H1, w2)
        z1, z2 = (H1.astype(np.longdouble) @ w.astype(np.longdouble).T for w in (W1, w2))
        log_p, log_q = (z - np.log(np.exp(z).sum(1, keepdims=True)) for z in (z1, z2))
        kl = (np.exp(log_p) * (log_p - log_q)).sum(1)
        lost = float((np.abs(z1).max() + np.log(V)) / kl.mean())
        bounds.assert_relative(got.kl_pq, float(kl.mean()), bounds.algebra(lost))
        assert got.js <= math.log(2)
        bounds.assert_relative(got.js, got.jeffreys / 8, step)

    def test_a_label_of_one_model_only(self) -> None:
        b2 = np.zeros(V)
        b2[4] = -np.inf
        got = gl.compare_logits(*MODELS, b2=b2, targets=np.where(np.arange(N) < 3, 4, TARGETS % 3))
        endless = ("kl_pq", "jeffreys", "logit_distance", "logit_l1", "cross_entropy_pq", "nll_q", "perplexity_q")
        for name in got.stderr:
            assert (getattr(got, name) == math.inf) == (name in endless), name
            assert math.isnan(got.stderr[name]) == (name in endless), name
        assert got.infinite["kl_pq"] == N
        assert got.infinite["nll_q"] == 3
        assert got.quantiles("kl_pq", 0.5) == math.inf
        assert got.quantiles("nll_q", 0.5) < math.inf
        assert "target, -ln q in 3" in str(got)
        found = json.loads(json.dumps(got.to_dict(), allow_nan=False))
        assert found["kl_pq"] is None
        assert found["infinite"]["kl_pq"] == N

    def test_propagated(self) -> None:
        h1 = H1.copy()
        h1[7] = np.nan
        got = gl.compare_logits(h1, W1, H2, W2, targets=TARGETS, nonfinite="propagate", keep_rows=True)
        assert math.isnan(got.kl_pq)
        assert math.isnan(got.nll_p)
        assert math.isnan(got.quantiles("kl_pq", 0.5))
        assert math.isfinite(got.entropy_q)
        np.testing.assert_array_equal(np.flatnonzero(np.isnan(got.rows["kl_pq"])), [7])
        assert json.loads(json.dumps(got.to_dict(), allow_nan=False))["kl_pq"] is None
        assert gl.compare_logits(h1, W1, H2, W2, nonfinite="propagate").nll_p is None

    def test_a_perplexity_beyond_floats(self) -> None:
        z = np.zeros((4, 2))
        z[:, 0] = 1e4
        got = gl.compare_logits(z, None, z, None, targets=np.ones(4, int))
        assert (got.nll_p, got.perplexity_p) == (1e4, math.inf)

    @pytest.mark.parametrize("scale", [1e-40, 1e-30, 1e-20, 1e20, 1e37])
    def test_distances_whose_squares_float32_does_not_hold(self, backend: Backend, scale: float) -> None:
        z1, z2 = ((scale * logits(h, w)).astype(np.float32) for h, w in ((H1, W1), (H2, W2)))
        got = gl.compare_logits(z1, None, z2, None, backend=backend.name)
        delta = z1.astype(np.float64) - z2
        square = np.square(delta - delta.mean(1, keepdims=True)).sum(1).mean()
        bounds.assert_relative(got.logit_distance, math.sqrt(square), bounds.INVARIANCE_FP32)


class TestState:
    def test_state(self) -> None:
        state = gl.logit_pairs(*MODELS, targets=TARGETS, divergences=True)
        got, want = gl.compare_logits(state, keep_rows=True), gl.compare_logits(*MODELS, targets=TARGETS)
        assert got.to_dict() | {"quantiles": 0} == want.to_dict() | {"quantiles": 0}
        assert set(got.rows) > {"js", "nll_q"}

    def test_slices_of_the_vocabulary(self) -> None:
        low, high = (gl.logit_pairs(H1, W1[part], H2, W2[part]) for part in (slice(0, 30), slice(30, V)))
        got, want = gl.compare_logits(low.merge(high.numbered_from(30))), gl.compare_logits(*MODELS, divergences=False)
        assert got.js is None
        assert_is(got, {k: (getattr(want, k), e) for k, e in want.stderr.items()}, bounds.SAME_FP64)

    @pytest.mark.parametrize(
        "more", [{"w1": W1}, {"h2": H2}, {"b2": B2}, {"mask": TARGETS > 3}, {"temperature": 2.0}, {"batch_rows": 5}]
    )
    def test_a_state_stands_alone(self, more: dict[str, Any]) -> None:
        with pytest.raises(TypeError, match=f"compare_logits: a LogitPairState .* got {next(iter(more))}, too"):
            gl.compare_logits(gl.logit_pairs(*MODELS), **more)

    @pytest.mark.parametrize(
        ("change", "text"),
        [
            ({"temperature": 0.0}, "temperature of the state above 0, got 0.0"),
            ({"temperature": None}, "temperature of the state to be a number, got NoneType"),
            ({"softcap2": "5"}, "softcap2 of the state to be a number, got str"),
        ],
    )
    def test_options_changed_by_hand_are_refused(self, change: dict[str, Any], text: str) -> None:
        with pytest.raises((TypeError, ValueError), match=f"^compare_logits: expected {text}"):
            gl.compare_logits(replace(gl.logit_pairs(*MODELS), **change))

    def test_no_rows(self) -> None:
        with pytest.raises(ValueError, match="compare_logits: expected at least one row, got a state of none"):
            gl.compare_logits(gl.logit_pairs(H1[:0], W1, H2[:0], W2))


class TestStandardErrors:
    def test_coverage(self) -> None:
        """95 % intervals hold the truth of the population in 95 of 100 samples."""
        # over 12 seeds the shares are 0.943 to 0.953
        rng, v, n, samples = np.random.default_rng(1), 12, 200, 400
        w1 = rng.standard_normal((v, 3)) / 2
        w2 = w1 + 0.2 * rng.standard_normal((v, 3))

        def draw(count: int) -> dict[str, Any]:
            h = rng.standard_normal((count, 3))
            h2 = h + 0.2 * rng.standard_normal((count, 3))
            return {"h1": h, "w1": w1, "h2": h2, "w2": w2, "targets": rng.integers(0, v, count)}

        truth = gl.compare_logits(**draw(400_000))
        found = [gl.compare_logits(**draw(n)) for _ in range(samples)]
        for name in truth.stderr:
            values, errors = (np.array([get(one) for one in found]) for get in (
                lambda one, name=name: getattr(one, name), lambda one, name=name: one.stderr[name]
            ))  # fmt: skip
            bounds.assert_coverage(np.abs(values - getattr(truth, name)) < T_200 * errors, name)
            assert 1 / bounds.STDERR_FACTOR < errors.mean() / values.std() < bounds.STDERR_FACTOR, name


NAN = np.where(np.arange(V)[:, None] == 3, np.nan, W1)
REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "rows": ({"h2": H2[:-1]}, ValueError, "h1 and h2 with the same number of rows"),
    "features": ({"w1": W2}, ValueError, "same number of features, got h1 \\(300, 9\\) and w1 \\(70, 6\\)"),
    "transposed": ({"w1": W1.T.copy()}, ValueError, "use w1.T"),
    "labels of models": ({"w2": W2[:60]}, ValueError, "same labels in both models, got 70 .* 60 .*; pass w1\\[:60\\]"),
    "no second model": ({"h2": None}, TypeError, "h1, w1, h2 and w2, or a LogitPairState, got no h2"),
    "no array": ({"h1": [[1.0]]}, TypeError, "expected h1 to be a NumPy array"),
    "dtype": ({"w2": W2.astype(int)}, TypeError, "expected w2 of dtype"),
    "no rows": ({"h1": H1[:0], "h2": H2[:0]}, ValueError, "at least one row that counts, got none"),
    "no row counts": ({"mask": np.zeros(N, bool)}, ValueError, "at least one row that counts, got none"),
    "all ignored": (
        {"targets": np.full(N, -100), "ignore_index": -100}, ValueError, "at least one row that counts, got none"
    ),
    "ignore_index alone": ({"ignore_index": -100}, ValueError, "ignore_index=-100 needs targets"),
    "ignore_index kind": ({"targets": TARGETS, "ignore_index": 1.5}, TypeError, "ignore_index to be an int, got float"),
    "targets": ({"targets": np.full(N, V)}, ValueError, "expected targets from 0 to 69, .* got 70 in row 0"),
    "targets shape": ({"targets": TARGETS[:5], "ignore_index": 0}, ValueError, "expected targets of shape \\(300,\\)"),
    "targets kind": ({"targets": TARGETS * 1.0, "ignore_index": 0}, TypeError, "expected targets to be whole numbers"),
    "mask": ({"mask": np.ones(5, bool)}, ValueError, "expected mask of shape"),
    "mask kind": (
        {"mask": np.ones(N), "targets": TARGETS, "ignore_index": 0}, TypeError, "expected mask to be an array of bool"
    ),
    "labels": ({"labels": [0, V]}, ValueError, "expected labels from 0 to 69, got 70"),
    "bias": ({"b1": np.zeros(3)}, ValueError, "expected b1 of shape"),
    "all masked": ({"b2": np.full(V, -np.inf)}, ValueError, "b2 masks every label"),
    "temperature": ({"temperature": 0.0}, ValueError, "expected temperature above 0, got 0.0"),
    "temperature kind": ({"temperature": "hot"}, TypeError, "expected temperature to be a number"),
    "softcap": ({"softcap2": -1.0}, ValueError, "expected softcap2 above 0"),
    "batch_rows": ({"batch_rows": 0}, ValueError, "expected batch_rows of at least 1, got 0"),
    "batch_rows kind": ({"batch_rows": 1.5}, TypeError, "expected batch_rows to be an int"),
    "workspace": ({"workspace": 0}, ValueError, "expected workspace of at least 1"),
    "nonfinite": ({"nonfinite": "warn"}, ValueError, "nonfinite"),
    "backend": ({"backend": "tpu"}, ValueError, "expected backend to be one of"),
    "nan": ({"w1": NAN}, ValueError, "w1 has non-finite values in rows 0..69"),
    "overflow": ({"h1": 1e200 * H1, "w1": 1e200 * W1}, ValueError, "logits overflow"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    change, error, text = REFUSED[case]
    with pytest.raises(error, match=f"^compare_logits: .*{text}") as caught:
        gl.compare_logits(**dict(zip(("h1", "w1", "h2", "w2"), MODELS, strict=True)) | change)
    assert "\n" not in str(caught.value)

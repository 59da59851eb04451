"""What two models predict: the definition against SciPy, every backend against more precision."""

from __future__ import annotations

import importlib
import inspect

import numpy as np
import pytest
from scipy import special

from gramless import ops
from gramless.measures import logits as values
from support import backends, bounds, cases, logit_truth, logits
from support.backends import Backend
from support.logits import Inputs

STEM = "logit_pairs"
DTYPES = list(cases.DTYPES)


def assert_close(got, want, dtype, what: str) -> None:
    for one, other in zip(got, want, strict=True):
        bounds.assert_relative(one, other, bounds.bound_for(dtype), what)


class TestDefinition:
    """The reference against SciPy and sums written out."""

    @pytest.mark.parametrize("case", [logits.OPTIONS[0], *logits.EXTREMES], ids=str)
    def test_is_that_of_scipy(self, case: logits.Case) -> None:
        inputs = case.inputs("fp64")
        z1 = inputs.h1 @ inputs.w1.T + inputs.options.get("b1", 0.0)
        z2 = inputs.h2 @ inputs.w2.T + inputs.options.get("b2", 0.0)
        p, q, m = special.softmax(z1, axis=1), special.softmax(z2, axis=1), None
        m, size = (p + q) / 2, 1 + np.abs(z1).max(axis=1) + np.abs(z2).max(axis=1)
        got = logits.pairs(Backend("reference"), inputs, divergences=True)
        js = (special.rel_entr(p, m) + special.rel_entr(q, m)).sum(axis=1) / 2
        # rel_entr takes the logarithm of p / q, which is 0 or infinite where one of them underflows
        if (q > 0).all() and (p > 0).all():
            bounds.assert_within_algebra(values.kl_pq(got), special.rel_entr(p, q).sum(axis=1), size, "KL(p||q)")
            bounds.assert_within_algebra(values.kl_qp(got), special.rel_entr(q, p).sum(axis=1), size, "KL(q||p)")
        bounds.assert_within_algebra(got.js, js, size, "JS")
        bounds.assert_within_algebra(got.tv, np.abs(p - q).sum(axis=1) / 2, size, "TV")
        bounds.assert_within_algebra(got.lse_q, special.logsumexp(z2, axis=1), size, "lse")

    def test_small_differences_keep_their_digits(self) -> None:
        """The square about the mean, KL and JS, of two models that are equal but for 1e-9, in extended precision."""
        rng = np.random.default_rng(5)
        z1 = 5 * rng.standard_normal((6, 50))
        z2 = z1 + 1e-9 * rng.standard_normal(z1.shape)
        got = ops.logit_pairs(z1, None, z2, None, divergences=True, backend="reference")
        exact = [z.astype(np.longdouble) for z in (z1, z2)]
        delta = exact[0] - exact[1]
        spread = np.sum((delta - delta.mean(axis=1, keepdims=True)) ** 2, axis=1)
        bounds.assert_within_algebra(got.delta_square, spread, spread, "square about the mean")
        log_p, log_q = (z - np.log(np.exp(z).sum(axis=1, keepdims=True)) for z in exact)
        p, q = np.exp(log_p), np.exp(log_q)
        # to second order: of the variance of ln p - ln q, which is of 1e-18
        gap = log_p - log_q
        variance = np.sum(p * (gap - np.sum(p * gap, axis=1, keepdims=True)) ** 2, axis=1)
        size = 1 + np.abs(z1).max(axis=1)
        bounds.assert_within_algebra(values.kl_pq(got), variance / 2, size, "KL(p||q)")
        # terms of JS are squares, of which rounding of p and q takes 1e-16 / 1e-9 of the difference
        np.testing.assert_array_less(np.abs(got.js - variance / 8), bounds.LIMIT * variance / 8)
        bounds.assert_within_algebra(got.tv, np.abs(p - q).sum(axis=1) / 2, size, "TV")

    def test_written_out(self) -> None:
        z1, z2 = np.array([[0.0, np.log(3)]]), np.array([[np.log(2), 0.0]])
        got = ops.logit_pairs(z1, None, z2, None, targets=[1], divergences=True, backend="reference")
        p, q = (0.25, 0.75), (2 / 3, 1 / 3)
        delta = (-np.log(2), np.log(3))
        mean = sum(delta) / 2
        want = {
            "lse_p": np.log(4),
            "lse_q": np.log(3),
            "mean_p": 0.75 * np.log(3),
            "mean_q": 2 / 3 * np.log(2),
            "delta_p": p[0] * delta[0] + p[1] * delta[1],
            "delta_q": q[0] * delta[0] + q[1] * delta[1],
            "delta_mean": mean,
            "delta_square": sum((d - mean) ** 2 for d in delta),
            "delta_abs": np.log(2) + np.log(3),
            "delta_max": np.log(3),
            "top_logit_p": np.log(3),
            "top_logit_q": np.log(2),
            "target_p": np.log(3),
            "js": sum(
                a / 2 * np.log(2 * a / (a + b)) + b / 2 * np.log(2 * b / (a + b)) for a, b in zip(p, q, strict=True)
            ),
            "tv": 2 / 3 - 0.25,
        }
        for key, value in want.items():
            bounds.assert_relative(getattr(got, key)[0], value, bounds.SAME_FP64, key)
        assert (got.top_p[0], got.top_q[0], got.target_q[0], got.labels) == (1, 0, 0.0, 2)

    @pytest.mark.parametrize(("name", "only"), [("reference", "precision"), ("cuda", "")])
    def test_the_second_entry_has_one_signature_too(self, name: str, only: str) -> None:
        """Less the precision of products, of which the host has one."""
        public = inspect.signature(ops.logit_divergences).parameters
        room = {"reference": "gramless.reference", "cuda": "gramless._triton"}[name]
        kernel = inspect.signature(importlib.import_module(f"{room}.logit_pairs").logit_divergences)
        assert [(p.name, p.kind, p.default) for p in public.values() if p.name not in ("backend", only)] == [
            (p.name, p.kind, p.default) for p in kernel.parameters.values()
        ]


class TestValue:
    @pytest.mark.parametrize(("case", "dtype"), [(c, d) for c in logits.ALL for d in DTYPES if d in c.dtypes], ids=str)
    def test_every_case(self, backend: Backend, case: logits.Case, dtype: str) -> None:
        inputs = case.inputs(dtype)
        got = logits.pairs(backend, inputs, divergences=True)
        logit_truth.assert_pairs(got, inputs, logit_truth.known(case, dtype), divergences=True)

    @pytest.mark.parametrize("case", [logits.TYPICAL, logits.RAGGED[5], *logits.OPTIONS], ids=str)
    def test_every_level(self, isa_level: str, case: logits.Case) -> None:
        inputs = case.inputs("fp32")
        got = logits.pairs(Backend("cpu"), inputs, divergences=True)
        logit_truth.assert_pairs(got, inputs, logit_truth.known(case, "fp32"), divergences=True)

    @pytest.mark.parametrize("workspace", [1, 10_000, 8 * 7 * 100, None])
    def test_blocks_of_rows_and_workspaces(self, backend: Backend, workspace: int | None) -> None:
        """Logits that are kept, in blocks or all, and those that are computed again."""
        case = logits.WIDE
        got = logits.pairs(backend, case.inputs("fp32"), divergences=True, workspace=workspace)
        logit_truth.assert_pairs(got, case.inputs("fp32"), logit_truth.known(case, "fp32"), divergences=True)

    @pytest.mark.parametrize("case", [logits.TYPICAL, *logits.OPTIONS], ids=str)
    def test_logits_given(self, backend: Backend, case: logits.Case) -> None:
        """Of one model or of both."""
        inputs = case.inputs("fp32")
        both = inputs.given()
        for mixed in (both, Inputs(both.h1, None, inputs.h2, inputs.w2, both.options)):
            logit_truth.assert_pairs(logits.pairs(backend, mixed, divergences=True), mixed, divergences=True)

    def test_logits_given_may_be_minus_infinity(self, backend: Backend) -> None:
        """In some rows of both models, in others of one: a label on which they agree, or that KL is infinite for."""
        both = logits.TYPICAL.inputs("fp32").given()
        z1, z2 = both.h1.copy(), both.h2.copy()
        z1[::2, 5:300:7] = z2[::2, 5:300:7] = -np.inf
        z2[::6, 2] = z1[1::6, 3] = -np.inf
        for options in ({}, {"softcap1": 5.0, "softcap2": 7.0}):
            inputs = Inputs(z1, None, z2, None, options)
            logit_truth.assert_pairs(logits.pairs(backend, inputs, divergences=True), inputs, divergences=True)

    @pytest.mark.parametrize("dtype", ["fp32", "fp64"])
    def test_labels_that_no_row_can_have_are_none(self, backend: Backend, dtype: str) -> None:
        both = logits.TYPICAL.inputs(dtype).given()
        z1, z2, some = both.h1.copy(), both.h2.copy(), np.arange(both.h1.shape[1]) % 3 > 0
        z1[:, ~some] = z2[:, ~some] = -np.inf
        got = logits.pairs(backend, Inputs(z1 + 100, None, z2, None, {}), divergences=True)
        want = logits.pairs(backend, Inputs(z1[:, some] + 100, None, z2[:, some], None, {}), divergences=True)
        np.testing.assert_array_equal(got.counted, some.sum())
        for key in ("lse_p", "delta_p", "delta_mean", "delta_square", "delta_abs", "js", "tv"):
            assert_close(getattr(got, key), getattr(want, key), z1.dtype, key)

    def test_large_logits_leave_kl_its_digits(self, backend: Backend) -> None:
        """What the largest logits have in common is not rounded."""
        z1, z2 = np.array([[1e10, 0, 1], [3e7, 0, 1]], np.float32), np.array([[0.3, 0.5, 1]] * 2, np.float32)
        got, want = (backend.logit_pairs(z1.astype(t), None, z2.astype(t), None) for t in "fd")
        assert_close(values.kl_pq(got), values.kl_pq(want), z1.dtype, "KL")
        alone = backend.logit_pairs(z1[:, :1], None, z2[:, :1], None)
        bounds.assert_absolute(np.abs(values.kl_pq(alone)).max(), 0.0, bounds.algebra(z1.max()), "KL of one label")

    @pytest.mark.parametrize("size", [1e-30, 1e-20, 1e15, 1e20, 1e30])
    def test_squares_beyond_float32_keep_their_digits(self, backend: Backend, size: float) -> None:
        z1, z2 = (np.float32(size) * np.array([row], np.float32) for row in ([1, 0, 0.25], [0, 0.5, 1]))
        got = backend.logit_pairs(z1, None, z2, None)
        want = ops.logit_pairs(z1.astype(np.float64), None, z2.astype(np.float64), None, backend="reference")
        for key in ("delta_square", "delta_abs", "delta_max"):
            assert_close(getattr(got, key), getattr(want, key), z1.dtype, key)

    def test_a_row_without_labels_propagates_as_nan(self, backend: Backend) -> None:
        both = logits.TYPICAL.inputs("fp32").given()
        z1 = both.h1.copy()
        z1[2] = -np.inf
        got = backend.logit_pairs(z1, None, both.h2, None, divergences=True, nonfinite="propagate")
        lost = np.arange(len(z1)) == 2
        for key in ("lse_p", "mean_p", "delta_p", "delta_q", "delta_mean", "delta_square", "delta_abs", "js", "tv"):
            np.testing.assert_array_equal(np.isnan(getattr(got, key)), lost, err_msg=key)
        assert np.isfinite(got.lse_q).all()

    @pytest.mark.parametrize("cap", [1e-300, 1e-46, 1e39, 1e300])
    def test_caps_beyond_float32(self, backend: Backend, cap: float) -> None:
        h, w = np.ones((1, 2), np.float32), np.array([[3, 1], [0, 1], [1, 1]], np.float32)
        got = backend.logit_pairs(h, w, h, w, softcap1=cap)
        want = np.log(3) if cap < 1 else np.log(np.exp([4, 1, 2]).sum())
        assert_close(got.lse_p, [want], h.dtype, "lse")

    @pytest.mark.parametrize(("first", "second"), [*cases.MIXED, ("fp64", "fp32")])
    def test_mixed_dtypes(self, backend: Backend, first: str, second: str) -> None:
        inputs = logits.TYPICAL.inputs(first, second)
        got = logits.pairs(backend, inputs, divergences=True)
        logit_truth.assert_pairs(got, inputs, logit_truth.known(logits.TYPICAL, first, second), divergences=True)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_integers_are_exact(self, backend: Backend, dtype: str) -> None:
        inputs = logits.INTEGERS.inputs(dtype)
        z1, z2 = (h.astype(np.float64) @ w.astype(np.float64).T for h, w in (inputs.arrays[:2], inputs.arrays[2:]))
        targets = np.arange(len(z1)) * 13 % z1.shape[1]
        got = logits.pairs(backend, inputs, targets=targets)
        rows = np.arange(len(z1))
        for side, z in (("p", z1), ("q", z2)):
            np.testing.assert_array_equal(getattr(got, f"top_{side}"), z.argmax(axis=1))
            np.testing.assert_array_equal(getattr(got, f"top_logit_{side}"), z.max(axis=1))
            np.testing.assert_array_equal(getattr(got, f"target_{side}"), z[rows, targets])
        np.testing.assert_array_equal(got.delta_max, np.abs(z1 - z2).max(axis=1))
        np.testing.assert_array_equal(got.delta_abs, np.abs(z1 - z2).sum(axis=1))

    @pytest.mark.parametrize("labels", [None, [600, 3, 17, 699, 4]])
    def test_of_equal_logits_the_lowest_label_wins(self, backend: Backend, labels: list | None) -> None:
        h, w = np.ones((4, 3), np.float32), np.ones((700, 3), np.float32)
        got = backend.logit_pairs(h, w, 2 * h, w, labels=labels)
        for top in (got.top_p, got.top_q):
            np.testing.assert_array_equal(top, 0 if labels is None else 3)

    def test_one_label(self, backend: Backend) -> None:
        inputs = logits.INTEGERS.inputs("fp32")
        got = logits.pairs(backend, inputs, labels=[7], divergences=True)
        delta = (inputs.h1 @ inputs.w1[7] - inputs.h2 @ inputs.w2[7]).astype(np.float64)
        for key in ("delta_p", "delta_q", "delta_mean"):
            np.testing.assert_array_equal(getattr(got, key), delta, err_msg=key)
        for name in ("kl_pq", "kl_qp", "js", "tv", "logit_distance", "entropy_p"):
            np.testing.assert_array_equal(getattr(values, name)(got), 0, err_msg=name)
        assert got.labels == 1

    def test_what_is_left_out_may_be_anything(self, backend: Backend) -> None:
        made = logits.Case("padding", "", 6, 700, 5, 4).inputs("fp32")
        want = backend.logit_pairs(made.h1[[0, 4]], made.w1[:690], made.h2[[0, 4]], made.w2[:690])
        h1, w1, h2, w2 = (a.copy() for a in made.arrays)
        mask, b = np.isin(np.arange(6), [0, 4]), np.where(np.arange(700) < 690, 0.0, -np.inf)
        h1[~mask], h2[~mask], w1[690:], w2[690:] = np.nan, np.inf, np.inf, np.nan
        for given in ({"b1": b, "b2": b}, {"labels": np.arange(690)}):
            got = logits.flat(backend.logit_pairs(h1, w1, h2, w2, mask=mask, **given))
            for key, value in logits.flat(want).items():
                plain = np.nan_to_num(value)
                bounds.assert_no_worse_than_naive(np.nan_to_num(got[key]), plain, plain, compute=np.float32, what=key)

    @pytest.mark.parametrize("given", [False, True])
    def test_no_rows(self, backend: Backend, given: bool) -> None:
        h1, w1, h2, w2 = (logits.TYPICAL.inputs("fp32").given() if given else logits.TYPICAL.inputs("fp32")).arrays
        nothing, none = np.zeros(len(h1), bool), np.zeros(0)
        for first, second, mask in ((h1[:0], h2[:0], None), (h1, h2, nothing)):
            got = backend.logit_pairs(first, w1, second, w2, mask=mask, divergences=True)
            assert {value.shape for key, value in logits.flat(got).items() if key != "labels"} == {(0,)}
            assert got.n == got.merge(got).n == 0
            parts = backend.logit_divergences(first, w1, second, w2, none, none, mask=mask)
            assert {value.shape for value in parts.values()} == {(0,)}

    @pytest.mark.parametrize("dtype", ["bf16", "fp64"])
    def test_threads_change_no_bit(self, dtype: str) -> None:
        inputs = logits.Case("threads", "", 300, 5003, 20, 9, options=logits.OPTIONS[5].options).inputs(dtype)
        results = []
        for count in (1, 2, 7):
            with backends.threads(count):
                state = logits.pairs(Backend("cpu"), inputs, divergences=True, workspace=1 << 20)
                again = logits.shares(Backend("cpu"), inputs, state)
                results.append(logits.flat(state) | {f"{key}_again": value for key, value in again.items()})
        for result in results[1:]:
            bounds.assert_same_dicts(result, results[0], "threads")

    def test_divergences_are_there_when_asked_for(self, backend: Backend) -> None:
        inputs = logits.TYPICAL.inputs("fp32")
        without, with_them = logits.pairs(backend, inputs), logits.pairs(backend, inputs, divergences=True)
        for key in logits.DIVERGENCES:
            assert np.isnan(getattr(without, key)).all()
        rest = [key for key in logits.flat(without) if key not in logits.DIVERGENCES]
        bounds.assert_same_dicts(
            {key: logits.flat(without)[key] for key in rest}, {key: logits.flat(with_them)[key] for key in rest}
        )


class TestNearEqual:
    def test_kl_keeps_its_digits(self, backend: Backend) -> None:
        """Of models in float32 whose KL is 1e-4, the mean over rows."""
        inputs = logits.NEAR_KL.inputs("fp32")
        exact, _ = logit_truth.known(logits.NEAR_KL, "fp32")
        assert abs(np.log(exact["kl_pq"].mean() / 1e-4)) < 1, "the case is not what it says"
        got = logits.row_values(logits.pairs(backend, inputs, divergences=True))
        for key in ("kl_pq", "kl_qp", "js"):
            bounds.assert_relative(got[key].mean(), exact[key].mean(), bounds.NEAR_EQUAL_KL, key)
        jeffreys = (exact["kl_pq"] + exact["kl_qp"]).mean()
        bounds.assert_relative(got["jeffreys"].mean(), jeffreys, bounds.NEAR_EQUAL_KL, "Jeffreys")
        distance = np.sqrt(exact["delta_square"]).mean()
        bounds.assert_relative(got["logit_distance"].mean(), distance, bounds.NEAR_EQUAL_KL, "logit distance")

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("case", [logits.TYPICAL, logits.EXTREMES[1], logits.OPTIONS[-1]], ids=str)
    def test_equal_models(self, backend: Backend, case: logits.Case, dtype: str) -> None:
        """Not even rounding is between them."""
        got = logits.pairs(backend, case.inputs(dtype).alone, divergences=True)
        for name in ("kl_pq", "kl_qp", "jeffreys", "js", "tv", "logit_distance", "logit_l1"):
            np.testing.assert_array_equal(getattr(values, name)(got), 0, err_msg=name)
        np.testing.assert_array_equal(values.top1_agreement(got), 1)

    @pytest.mark.parametrize("dtype", ["fp32", "fp64"])
    def test_a_constant_changes_nothing_but_lse(self, backend: Backend, dtype: str) -> None:
        """Added to all logits of one model; they are integers, so that rounding has no part in it."""
        inputs = logits.INTEGERS.inputs(dtype)
        plain = logits.pairs(backend, inputs, divergences=True)
        moved = logits.pairs(backend, inputs, b2=np.full(logits.INTEGERS.v, 96.0), divergences=True)
        bound = bounds.invariance_for(inputs.compute)
        for key, value in logits.row_values(plain).items():
            for row, (got, want) in enumerate(zip(logits.row_values(moved)[key], value, strict=True)):
                bounds.assert_absolute(got, want, bound * max(1.0, abs(want)), f"{key} of row {row}")
        np.testing.assert_array_equal(moved.top_q, plain.top_q)
        np.testing.assert_array_equal(moved.top_logit_q, plain.top_logit_q + 96)
        for row in range(plain.n):
            bounds.assert_relative(moved.lse_q[row], plain.lse_q[row] + 96, bound, "lse")

    def test_other_coordinates(self, backend: Backend) -> None:
        """(A, A^-T) on hidden states and unembedding, and a vector added to all unembeddings: the same predictions."""
        rng = np.random.default_rng(3)
        h, w, _, _ = logits.TYPICAL.inputs("fp64").arrays
        change = np.eye(h.shape[1]) + 0.1 * rng.standard_normal((h.shape[1], h.shape[1]))
        moved = (w + rng.standard_normal(w.shape[1])) @ np.linalg.inv(change).T
        got = logits.row_values(backend.logit_pairs(h, w, h @ change, moved, divergences=True))
        for key in ("kl_pq", "kl_qp", "js", "tv", "logit_distance"):
            for row, value in enumerate(got[key]):
                bounds.assert_absolute(value, 0.0, bounds.INVARIANCE_FP64, f"{key} of row {row}")


class TestBounds:
    @pytest.mark.parametrize("case", [*logits.EXTREMES, *logits.MASKED_IN_ONE], ids=str)
    def test_hold(self, backend: Backend, case: logits.Case) -> None:
        """0 <= JS <= ln 2, 0 <= TV <= 1, TV^2 <= KL / 2, JS <= TV ln 2, up to rounding."""
        inputs = case.inputs("fp32")
        state = logits.pairs(backend, inputs, divergences=True)
        # rounding of logits, of which probabilities are exponentials
        got, slack = logits.row_values(state), bounds.INVARIANCE_FP32 * (1 + np.abs(state.lse_p) + np.abs(state.lse_q))
        for lower, upper in (
            (0, got["js"]),
            (got["js"], np.log(2)),
            (0, got["tv"]),
            (got["tv"], 1),
            (got["tv"] ** 2, got["kl_pq"] / 2),
            (got["tv"] ** 2, got["kl_qp"] / 2),
            (got["js"], got["tv"] * np.log(2)),
        ):
            assert np.all(lower <= upper + slack)

    def test_models_with_nothing_in_common(self, backend: Backend) -> None:
        b = np.where(np.arange(40) < 20, 0.0, -np.inf)
        inputs = logits.Case("apart", "", 5, 40, 3, 3).inputs("fp32")
        got = backend.logit_pairs(*inputs.arrays, b1=b, b2=b[::-1], divergences=True)
        for row in range(5):
            bounds.assert_relative(got.js[row], np.log(2), bounds.INVARIANCE_FP32, "JS")
            bounds.assert_relative(got.tv[row], 1.0, bounds.INVARIANCE_FP32, "TV")
        np.testing.assert_array_equal(values.kl_pq(got), np.inf)
        np.testing.assert_array_equal(values.kl_qp(got), np.inf)

    def test_swapping_models_swaps_the_answer(self, backend: Backend) -> None:
        inputs = logits.Case("swapped", "", 9, 300, 8, 8).inputs("fp64")
        one = logits.row_values(logits.pairs(backend, inputs, divergences=True))
        two = logits.row_values(logits.pairs(backend, Inputs(*inputs.arrays[2:], *inputs.arrays[:2]), divergences=True))
        for here, there in (("kl_pq", "kl_qp"), ("js", "js"), ("tv", "tv"), ("logit_distance", "logit_distance")):
            for row in range(9):
                bounds.assert_relative(one[here][row], two[there][row], bounds.SAME_FP64, here)


class TestLayouts:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("layout", backends.LAYOUTS)
    def test_layout_does_not_matter(self, backend: Backend, layout: str, dtype: str) -> None:
        inputs = logits.TYPICAL.inputs(dtype)
        moved = Inputs(*(backends.layouts(a)[layout] for a in inputs.arrays), inputs.options)
        got = logits.pairs(backend, moved, divergences=True)
        logit_truth.assert_pairs(got, inputs, logit_truth.known(logits.TYPICAL, dtype), divergences=True)
        # bfloat16 whose columns lie apart is not multiplied by the bfloat16 unit
        if backend.name != "reference" and dtype != "bf16":
            bounds.assert_same_dicts(
                logits.flat(got), logits.flat(logits.pairs(backend, inputs, divergences=True)), layout
            )

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("wrap", [lambda t: t, backends.OnlyDLPack], ids=["torch", "dlpack"])
    def test_torch_and_dlpack(self, backend: Backend, wrap: object, dtype: str) -> None:
        import torch

        inputs = logits.OPTIONS[-1].inputs(dtype)
        options = {key: torch.from_numpy(np.array(a)) if np.ndim(a) else a for key, a in inputs.options.items()}
        arrays = [wrap(backends.as_torch(a)) for a in inputs.arrays]
        got = backend.logit_pairs(*arrays, **options)
        bounds.assert_same_dicts(logits.flat(got), logits.flat(logits.pairs(backend, inputs)), "foreign array")

    def test_inputs_are_untouched(self, backend: Backend) -> None:
        inputs = logits.OPTIONS[-1].inputs("fp32")
        copies = {key: a.copy() for key, a in inputs.options.items() if isinstance(a, np.ndarray)}
        arrays = [a.copy() for a in inputs.arrays]
        moved = Inputs(*arrays, dict(inputs.options) | copies)
        state = logits.pairs(backend, moved, divergences=True)
        lse = state.lse_p.copy(), state.lse_q.copy()
        logits.shares(backend, moved, state)
        kept = [(copies[key], inputs.options[key]) for key in copies]
        for got, want in [
            *zip(arrays, inputs.arrays, strict=True),
            *kept,
            *zip(lse, (state.lse_p, state.lse_q), strict=True),
        ]:
            bounds.assert_same_bits(got, want, "input")

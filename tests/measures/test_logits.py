"""Row values of states over logits: closed forms, identities, and the inequalities between them."""

from __future__ import annotations

import inspect
from dataclasses import replace

import numpy as np
import pytest
from scipy import special

from gramless import LogitPairState, LogitState, logit_pairs, logsumexp
from gramless.measures import logits as values
from support import bounds, logits

N, V = 8, 200
PAIR_VALUES = ("kl_pq", "kl_qp", "jeffreys", "js", "tv", "logit_distance", "logit_l1", "top1_agreement")
OF_BOTH = ("entropy_p", "entropy_q", "cross_entropy_pq", "cross_entropy_qp", "nll_p", "nll_q")
OF_ONE = ("entropy", "perplexity", "renyi2", "effective_candidates", "uniform_distance", "target_log_probability")


def normal(count: int, scale: float = 2.0) -> list[np.ndarray]:
    rng = np.random.default_rng(17)
    return [scale * rng.standard_normal((N, V)) for _ in range(count)]


def pair(z1: np.ndarray, z2: np.ndarray, **options: object) -> LogitPairState:
    return logit_pairs(z1, None, z2, None, divergences=True, backend="reference", **options)


def one(z: np.ndarray, **options: object) -> LogitState:
    return logsumexp(z, None, backend="reference", **options)


def assert_rows(got: np.ndarray, want: object, what: str, scale: float = 1.0) -> None:
    """Of float64 rounding of the logits."""
    assert got.dtype == np.float64
    want = np.broadcast_to(np.asarray(want, dtype=np.float64), got.shape)
    bounds.assert_within_algebra(got, want, scale * (20 + np.abs(want)), what)


class TestClosedForms:
    def test_uniform(self) -> None:
        state = one(np.full((N, V), 3.5))
        for name, want in (
            ("entropy", np.log(V)),
            ("perplexity", V),
            ("renyi2", np.log(V)),
            ("effective_candidates", V),
            ("uniform_distance", 0),
        ):
            assert_rows(getattr(values, name)(state), want, name)

    def test_one_candidate(self) -> None:
        z = np.zeros((N, V))
        z[:, 5] = 1000.0
        state = one(z, targets=np.full(N, 5))
        for name, want in (
            ("entropy", 0),
            ("perplexity", 1),
            ("effective_candidates", 1),
            ("uniform_distance", 1 - 1 / V),
            ("target_log_probability", 0),
        ):
            assert_rows(getattr(values, name)(state), want, name, 100)

    def test_of_one_model(self) -> None:
        (z,) = normal(1)
        targets = np.arange(N)
        state, p = one(z, targets=targets), special.softmax(z, axis=1)
        assert_rows(values.entropy(state), special.entr(p).sum(axis=1), "entropy")
        assert_rows(values.renyi2(state), -np.log((p**2).sum(axis=1)), "Renyi entropy")
        assert_rows(values.uniform_distance(state), ((p - 1 / V) ** 2).sum(axis=1), "distance to uniform")
        assert_rows(values.target_log_probability(state), np.log(p[targets, targets]), "target")

    def test_of_two_models(self) -> None:
        z1, z2 = normal(2)
        targets = np.arange(N)
        state = pair(z1, z2, targets=targets)
        p, q = special.softmax(z1, axis=1), special.softmax(z2, axis=1)
        gap = (z1 - z1.mean(axis=1, keepdims=True)) - (z2 - z2.mean(axis=1, keepdims=True))
        for name, want in {
            "kl_pq": special.rel_entr(p, q).sum(axis=1),
            "kl_qp": special.rel_entr(q, p).sum(axis=1),
            "jeffreys": ((p - q) * np.log(p / q)).sum(axis=1),
            "logit_distance": np.sqrt((gap**2).sum(axis=1)),
            "logit_l1": np.abs(z1 - z2).mean(axis=1),
            "top1_agreement": z1.argmax(axis=1) == z2.argmax(axis=1),
            "entropy_p": special.entr(p).sum(axis=1),
            "entropy_q": special.entr(q).sum(axis=1),
            "cross_entropy_pq": -(p * np.log(q)).sum(axis=1),
            "cross_entropy_qp": -(q * np.log(p)).sum(axis=1),
            "nll_p": -np.log(p[targets, targets]),
            "nll_q": -np.log(q[targets, targets]),
        }.items():
            assert_rows(getattr(values, name)(state), want, name)

    def test_logit_distance_is_that_of_log_probabilities(self) -> None:
        """d^2 = V Var_y(ln p - ln q), in which no softmax is needed; of raw logits it is less by V mean(delta)^2."""
        z1, z2 = normal(2)
        state = pair(z1, z2)
        gap = special.log_softmax(z1, axis=1) - special.log_softmax(z2, axis=1)
        square = values.logit_distance(state) ** 2
        assert_rows(square, V * gap.var(axis=1), "variance of log ratios")
        assert_rows(((z1 - z2) ** 2).sum(axis=1), square + V * state.delta_mean**2, "raw logits")

    def test_agreement_is_that_of_labels(self) -> None:
        z1 = np.eye(N, V)
        z2 = z1.copy()
        z2[2, 7] = 5.0
        np.testing.assert_array_equal(values.top1_agreement(pair(z1, z2)), np.arange(N) != 2)


class TestIdentities:
    @pytest.mark.parametrize("case", [logits.TYPICAL, *logits.OPTIONS], ids=str)
    def test_between_values(self, case: logits.Case) -> None:
        inputs = case.inputs("fp64")
        state = logit_pairs(*inputs.arrays, **inputs.options)
        kl_pq, kl_qp = values.kl_pq(state), values.kl_qp(state)
        assert_rows(values.jeffreys(state), kl_pq + kl_qp, "Jeffreys")
        assert_rows(values.cross_entropy_pq(state), values.entropy_p(state) + kl_pq, "cross-entropy of p and q")
        assert_rows(values.cross_entropy_qp(state), values.entropy_q(state) + kl_qp, "cross-entropy of q and p")
        assert (kl_pq > 0).all()
        assert (kl_qp > 0).all()

    def test_triangle_inequality_of_distances(self) -> None:
        """The logit distance, the roots of JS, and TV are metrics."""
        z = normal(3)
        for measure in (values.logit_distance, lambda state: np.sqrt(values.js(state)), values.tv):
            first, second, across = (measure(pair(z[a], z[b])) for a, b in ((0, 1), (1, 2), (0, 2)))
            assert (across <= first + second).all()
            assert_rows(measure(pair(z[1], z[0])), first, "symmetry")

    def test_logit_distance_bounds(self) -> None:
        """d^2 <= (2 / tau) KL where all probabilities are at least tau."""
        z1, z2 = normal(2, 0.5)
        tau = min(special.softmax(z, axis=1).min() for z in (z1, z2))
        state = pair(z1, z2)
        assert (values.logit_distance(state) ** 2 <= 2 / tau * values.kl_pq(state)).all()

    def test_constants_and_temperature(self) -> None:
        """Constants of rows change no comparison of predictions; temperature scales logits."""
        z1, z2 = normal(2)
        plain, moved = pair(z1, z2), pair(z1 + np.arange(N)[:, None], z2 - 4)
        for name in set(PAIR_VALUES) - {"logit_l1"}:
            assert_rows(getattr(values, name)(moved), getattr(values, name)(plain), name)
        for name in ("kl_pq", "js", "logit_distance", "entropy_q"):
            cooled = getattr(values, name)(pair(z1, z2, temperature=0.5))
            assert_rows(cooled, getattr(values, name)(pair(2 * z1, 2 * z2)), name)

    def test_masked_in_one_model(self) -> None:
        z1, z2 = normal(2)
        z2[0, 3] = -np.inf
        z1[1, 3] = -np.inf
        state = pair(z1, z2)
        infinite = {"kl_pq": [0], "kl_qp": [1], "jeffreys": [0, 1], "logit_distance": [0, 1], "logit_l1": [0, 1]}
        for name in PAIR_VALUES:
            found = np.flatnonzero(np.isinf(getattr(values, name)(state)))
            np.testing.assert_array_equal(found, infinite.get(name, []), err_msg=name)
            assert not np.isnan(getattr(values, name)(state)).any()


class TestMissing:
    def test_divergences(self) -> None:
        z1, z2 = normal(2)
        state = logit_pairs(z1, None, z2, None)
        for name in ("js", "tv"):
            with pytest.raises(ValueError, match=f"^{name}: the state has no divergences; pass divergences=True"):
                getattr(values, name)(state)
        np.testing.assert_array_equal(values.js(replace(state, js=np.ones(N))), 1)

    def test_targets(self) -> None:
        z1, z2 = normal(2)
        for name in ("nll_p", "nll_q"):
            with pytest.raises(ValueError, match=f"^{name}: the state has no targets; pass targets="):
                getattr(values, name)(pair(z1, z2))
        with pytest.raises(ValueError, match=r"^target_log_probability: the state has no targets"):
            values.target_log_probability(one(z1))
        some = np.where(np.arange(N) % 2, 3, -1)
        np.testing.assert_array_equal(np.isnan(values.nll_p(pair(z1, z2, targets=some))), some < 0)

    def test_rows_of_nan_are_nan(self) -> None:
        """Those that non-finite input has made so, and no others, even if they are all that there are."""
        z1, z2 = normal(2)
        z1[4] = np.nan
        state = pair(z1, z2, targets=np.arange(N), nonfinite="propagate")
        for name in PAIR_VALUES:
            np.testing.assert_array_equal(np.isnan(getattr(values, name)(state)), np.arange(N) == 4, err_msg=name)
        lost = pair(z1[4:5], z2[4:5], nonfinite="propagate")
        assert np.isnan(values.js(lost)).all()

    def test_no_rows(self) -> None:
        empty = np.zeros((0, 5))
        for names, state in ((PAIR_VALUES + OF_BOTH, pair(empty, empty)), (OF_ONE, one(empty))):
            for name in names:
                assert getattr(values, name)(state).shape == (0,), name

    def test_every_value_is_tested_here(self) -> None:
        public = {name for name, value in vars(values).items() if inspect.isfunction(value) and name[0] != "_"}
        assert public == {*PAIR_VALUES, *OF_BOTH, *OF_ONE}


class TestStates:
    def test_are_small_and_say_so(self) -> None:
        z1, z2 = normal(2)
        assert repr(pair(z1, z2)) == f"LogitPairState(n={N}, labels={V})"
        assert repr(one(z1)) == f"LogitState(n={N}, labels={V})"
        assert (pair(z1, z2).nbytes, one(z1).nbytes) == (152 * N, 56 * N)

    def test_numbered_from(self) -> None:
        z1, z2 = normal(2)
        state = pair(z1, z2)
        moved = state.numbered_from(100)
        np.testing.assert_array_equal(moved.top_p, state.top_p + 100)
        np.testing.assert_array_equal(moved.top_q, state.top_q + 100)
        np.testing.assert_array_equal(one(z1).numbered_from(7).top, state.top_p + 7)
        for first, error in ((-1, ValueError), (1.5, TypeError), ("a", TypeError), (2**62, ValueError)):
            with pytest.raises(error, match="numbered_from: expected first"):
                state.numbered_from(first)

    def test_merging_is_associative(self) -> None:
        z1, z2 = normal(2)
        z2[3, 150] = -np.inf
        cuts = ((0, 10), (10, 11), (11, 140), (140, V))
        a, b, c, d = (
            logit_pairs(z1[:, i:j], None, z2[:, i:j], None, backend="reference").numbered_from(i) for i, j in cuts
        )
        whole = pair(z1, z2)
        for merged in (a.merge(b).merge(c).merge(d), d.merge(c).merge(b.merge(a)), a.merge(d).merge(b.merge(c))):
            assert merged.labels == V
            for key in (
                "lse_p",
                "mean_q",
                "delta_p",
                "delta_q",
                "delta_mean",
                "delta_square",
                "delta_abs",
                "delta_max",
            ):
                got, want = getattr(merged, key), getattr(whole, key)
                np.testing.assert_array_equal(np.isinf(got), np.isinf(want), err_msg=key)
                finite = np.isfinite(want)
                assert_rows(got[finite], want[finite], key)
            np.testing.assert_array_equal(merged.top_p, whole.top_p)

"""Log-sum-exp of logits: the definition against SciPy, every backend against more precision, every bad input."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pytest
from scipy import special

from gramless import ops
from support import backends, bounds, cases, logit_truth, logits
from support.backends import Backend
from support.logits import Inputs

STEM = "logsumexp"
DTYPES = list(cases.DTYPES)


def integers(n: int = 6, v: int = 40, d: int = 5) -> tuple[np.ndarray, np.ndarray]:
    case = logits.Case("integers_of_one", "", n, v, d, 1, logits.INTEGERS.build)
    return case.inputs("fp32").arrays[:2]


class TestDefinition:
    """The reference against SciPy and sums written out."""

    @pytest.mark.parametrize("case", logits.OPTIONS[:1] + logits.EXTREMES[:3], ids=str)
    def test_is_that_of_scipy(self, case: logits.Case) -> None:
        inputs = case.inputs("fp64")
        b = inputs.options.get("b1", np.zeros(case.v))
        z = inputs.h1 @ inputs.w1.T + b
        got = ops.logsumexp(inputs.h1, inputs.w1, b=b, backend="reference")
        p, size = special.softmax(z, axis=1), 1 + np.abs(z).max(axis=1)
        bounds.assert_within_algebra(got.lse, special.logsumexp(z, axis=1), size, "lse")
        bounds.assert_within_algebra(got.lse2, special.logsumexp(2 * z, axis=1), 2 * size, "lse2")
        bounds.assert_within_algebra(got.mean, (p * z).sum(axis=1), size, "mean")
        bounds.assert_within_algebra(got.lse - got.mean, special.entr(p).sum(axis=1), 2 * size, "entropy")
        np.testing.assert_array_equal(got.top, z.argmax(axis=1))

    def test_written_out(self) -> None:
        h, w, b = [[1.0], [2.0]], [[1.0], [-1.0], [3.0]], [0.5, 0.25, -np.inf]
        got = ops.logsumexp(
            np.array(h), np.array(w), b=np.array(b), targets=[1, 0], temperature=2.0, softcap=3.0, backend="reference"
        )
        for row, x in enumerate((1.0, 2.0)):
            z = [3 * np.tanh((x * weight + bias) / 3) / 2 for weight, bias in ((1.0, 0.5), (-1.0, 0.25))]
            total = sum(np.exp(z))
            bounds.assert_relative(got.lse[row], np.log(total), bounds.SAME_FP64, "lse")
            bounds.assert_relative(got.lse2[row], np.log(sum(np.exp(2 * np.array(z)))), bounds.SAME_FP64, "lse2")
            bounds.assert_relative(got.mean[row], np.exp(z) @ z / total, bounds.SAME_FP64, "mean")
            bounds.assert_relative(got.target[row], z[1 - row], bounds.SAME_FP64, "target")
        assert got.labels == 2
        np.testing.assert_array_equal(got.top, [0, 0])


class TestValue:
    @pytest.mark.parametrize(("case", "dtype"), [(c, d) for c in logits.ALL for d in DTYPES if d in c.dtypes], ids=str)
    def test_every_case(self, backend: Backend, case: logits.Case, dtype: str) -> None:
        inputs = case.inputs(dtype)
        logit_truth.assert_single(logits.single(backend, inputs), inputs, logit_truth.known(case, dtype, alone=True))

    @pytest.mark.parametrize("case", [logits.TYPICAL, logits.RAGGED[5], *logits.OPTIONS], ids=str)
    def test_every_level(self, isa_level: str, case: logits.Case) -> None:
        inputs = case.inputs("fp32")
        logit_truth.assert_single(
            logits.single(Backend("cpu"), inputs), inputs, logit_truth.known(case, "fp32", alone=True)
        )

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("case", [logits.TYPICAL, *logits.OPTIONS], ids=str)
    def test_logits_given(self, backend: Backend, case: logits.Case, dtype: str) -> None:
        made = case.inputs("fp32").given()
        inputs = Inputs(made.h1.astype(cases.DTYPES[dtype]), None, made.h1, None, made.options)
        logit_truth.assert_single(logits.single(backend, inputs), inputs)

    def test_logits_given_may_be_minus_infinity(self, backend: Backend) -> None:
        """In some rows, as a sampler leaves them: such a label has no probability there."""
        z = logits.TYPICAL.inputs("fp32").given().h1.copy()
        z[::2, 5:300:7] = -np.inf
        inputs = Inputs(z, None, z, None)
        logit_truth.assert_single(logits.single(backend, inputs), inputs)
        capped = Inputs(z, None, z, None, {"softcap1": 5.0, "temperature": 2.0})
        logit_truth.assert_single(logits.single(backend, capped), capped)

    @pytest.mark.parametrize(("h", "w"), [*cases.MIXED, ("fp64", "fp32"), ("fp16", "bf16")])
    def test_mixed_dtypes(self, backend: Backend, h: str, w: str) -> None:
        made = logits.TYPICAL.inputs("fp64")
        inputs = Inputs(
            made.h1.astype(cases.DTYPES[h]), made.w1.astype(cases.DTYPES[w]), made.h2, made.w2, made.options
        )
        logit_truth.assert_single(logits.single(backend, inputs), inputs)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_integers_are_exact(self, backend: Backend, dtype: str) -> None:
        """Largest logits and their labels, the lowest of many equal ones; targets."""
        inputs = logits.INTEGERS.inputs(dtype)
        z = inputs.h1.astype(np.float64) @ inputs.w1.astype(np.float64).T
        targets = np.arange(len(z)) * 13 % z.shape[1]
        got = logits.single(backend, inputs, targets=targets)
        np.testing.assert_array_equal(got.top, z.argmax(axis=1))
        np.testing.assert_array_equal(got.top_logit, z.max(axis=1))
        np.testing.assert_array_equal(got.target, z[np.arange(len(z)), targets])

    @pytest.mark.parametrize("labels", [None, [600, 3, 17, 699, 4]])
    def test_of_equal_logits_the_lowest_label_wins(self, backend: Backend, labels: list | None) -> None:
        h, w = np.ones((4, 3), np.float32), np.ones((700, 3), np.float32)
        got = backend.logsumexp(h, w, labels=labels)
        np.testing.assert_array_equal(got.top, 0 if labels is None else 3)
        count = 700 if labels is None else 5
        bounds.assert_no_worse_than_naive(
            got.lse, np.full(4, 3 + np.log(count)), np.full(4, 3 + np.log(count)), compute=np.float32, what="lse"
        )

    def test_one_label(self, backend: Backend) -> None:
        h, w = integers()
        got = backend.logsumexp(h, w, labels=[7])
        z = (h @ w[7]).astype(np.float64)
        for key in ("lse", "mean", "top_logit"):
            np.testing.assert_array_equal(getattr(got, key), z, err_msg=key)
        np.testing.assert_array_equal(got.lse2, 2 * z)
        np.testing.assert_array_equal(got.top, 7)
        assert got.labels == 1

    def test_what_is_left_out_may_be_anything(self, backend: Backend) -> None:
        """Rows and labels that do not count are not read: padding need not be finite."""
        h, w = (a.copy() for a in integers(6, 700))
        want = backend.logsumexp(h[[0, 4]], w[:690])
        h[[1, 2, 3, 5]], w[690:] = np.nan, np.inf
        mask = np.isfinite(h[:, 0])
        b = np.where(np.arange(700) < 690, 0.0, -np.inf)
        for given in ({"b": b}, {"labels": np.arange(690)}, {"b": b, "labels": np.arange(5, 700)[::-1]}):
            got = backend.logsumexp(h, w, mask=mask, **given)
            if "labels" in given and "b" in given:
                want = backend.logsumexp(h[[0, 4]], w[5:690]).numbered_from(5)
            for key, value in logits.flat(want).items():
                bounds.assert_no_worse_than_naive(
                    np.nan_to_num(logits.flat(got)[key]),
                    np.nan_to_num(value),
                    np.nan_to_num(value),
                    compute=h.dtype,
                    what=key,
                )

    @pytest.mark.parametrize("given", [False, True])
    def test_no_rows(self, backend: Backend, given: bool) -> None:
        h, w = integers()
        w = None if given else w
        for got in (
            backend.logsumexp(h[:0], w, targets=np.zeros(0, int)),
            backend.logsumexp(h, w, mask=np.zeros(len(h), bool), targets=np.full(len(h), 99)),
        ):
            assert got.n == 0
            assert {value.shape for key, value in logits.flat(got).items() if key != "labels"} == {(0,)}
            assert got.merge(got).n == 0

    @pytest.mark.parametrize("dtype", ["bf16", "fp64"])
    def test_threads_change_no_bit(self, dtype: str) -> None:
        inputs = logits.Case("threads", "", 300, 5003, 20, 1, options=logits.OPTIONS[5].options).inputs(dtype)
        results = []
        for count in (1, 2, 7):
            with backends.threads(count):
                results.append(logits.flat(logits.single(Backend("cpu"), inputs)))
        for result in results[1:]:
            bounds.assert_same_dicts(result, results[0], "threads")


class TestSlices:
    @pytest.mark.parametrize("case", [logits.TYPICAL, logits.RAGGED[5], *logits.EXTREMES[:3]], ids=str)
    def test_merge_to_the_whole(self, backend: Backend, case: logits.Case) -> None:
        """Slices of w, in any order, each with the targets that it has."""
        inputs = case.inputs("fp32")
        given, cuts = inputs.single, [0, 1, case.v // 3, case.v]
        targets = np.arange(case.n) * 7 % case.v
        parts = []
        for first, last in pairwise(cuts):
            part = slice(first, last)
            kept = given | ({"b": given["b"][part]} if "b" in given else {})
            kept["targets"] = np.where((targets >= first) & (targets < last), targets - first, -1)
            parts.append(backend.logsumexp(inputs.h1, inputs.w1[part], **kept).numbered_from(first))
        want = Inputs(*inputs.arrays, inputs.options | {"targets": targets})
        logit_truth.assert_single(parts[0].merge(parts[1]).merge(parts[2]), want)
        logit_truth.assert_single(parts[1].merge(parts[2].merge(parts[0])), want)

    def test_labels_merge_too(self, backend: Backend) -> None:
        inputs = logits.TYPICAL.inputs("fp32")
        order = np.random.default_rng(0).permutation(logits.TYPICAL.v)
        parts = [logits.single(backend, inputs, labels=chosen, targets=None) for chosen in np.array_split(order, 3)]
        merged = parts[2].merge(parts[0]).merge(parts[1])
        kept = {key: value for key, value in inputs.options.items() if key != "targets"}
        logit_truth.assert_single(merged, Inputs(*inputs.arrays, kept))

    def test_of_equal_tops_the_lowest_label_wins(self) -> None:
        h, w = np.ones((2, 3)), np.ones((9, 3))
        low, high = ops.logsumexp(h, w[:4]), ops.logsumexp(h, w[4:]).numbered_from(4)
        for merged in (low.merge(high), high.merge(low)):
            np.testing.assert_array_equal(merged.top, [0, 0])

    def test_lost_rows_stay_lost(self, backend: Backend) -> None:
        h, w = (a.copy() for a in integers())
        h[2] = np.nan
        parts = [backend.logsumexp(h, part, nonfinite="propagate") for part in (w[:10], w[10:])]
        merged = parts[0].merge(parts[1].numbered_from(10))
        np.testing.assert_array_equal(np.isnan(merged.lse), np.arange(6) == 2)
        np.testing.assert_array_equal(np.isnan(merged.mean), np.arange(6) == 2)

    def test_what_does_not_merge_is_refused(self) -> None:
        h, w = integers()
        low, high = ops.logsumexp(h, w[:9], targets=np.full(6, 3)), ops.logsumexp(h, w[9:], targets=np.full(6, 3))
        with pytest.raises(ValueError, match=r"got label \d+ in both"):
            low.merge(low)
        with pytest.raises(ValueError, match="a target of row 0 in both"):
            low.merge(high.numbered_from(9))
        with pytest.raises(ValueError, match="of the same rows, got n = 6 and n = 5"):
            low.merge(ops.logsumexp(h[:5], w[9:]))
        with pytest.raises(TypeError, match="expected a LogitState, got dict"):
            low.merge({})


class TestLayouts:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("layout", backends.LAYOUTS)
    def test_layout_does_not_matter(self, backend: Backend, layout: str, dtype: str) -> None:
        inputs = logits.TYPICAL.inputs(dtype)
        h, w = (backends.layouts(a)[layout] for a in (inputs.h1, inputs.w1))
        for moved, plain in (
            (Inputs(h, w, h, w, inputs.options), inputs),
            (Inputs(h, None, h, None), Inputs(inputs.h1, None, inputs.h1, None)),
        ):
            got = logits.single(backend, moved)
            if plain is inputs:
                logit_truth.assert_single(got, plain, logit_truth.known(logits.TYPICAL, dtype, alone=True))
            # bfloat16 whose columns lie apart is not multiplied by the bfloat16 unit
            if backend.name != "reference" and dtype != "bf16":
                bounds.assert_same_dicts(logits.flat(got), logits.flat(logits.single(backend, plain)), layout)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("wrap", [lambda t: t, backends.OnlyDLPack], ids=["torch", "dlpack"])
    def test_torch_and_dlpack(self, backend: Backend, wrap: object, dtype: str) -> None:
        import torch

        inputs = logits.OPTIONS[-1].inputs(dtype)
        options = {key: torch.from_numpy(np.array(a)) if np.ndim(a) else a for key, a in inputs.single.items()}
        h, w = (wrap(backends.as_torch(a)) for a in (inputs.h1, inputs.w1))
        got = backend.logsumexp(h, w, **options)
        bounds.assert_same_dicts(logits.flat(got), logits.flat(logits.single(backend, inputs)), "foreign array")

    def test_biases_of_any_type(self, backend: Backend) -> None:
        h, w = integers()
        b = np.arange(len(w)) % 5 - 2
        want = logits.flat(backend.logsumexp(h, w, b=b))
        for given in (b.tolist(), b.astype(cases.DTYPES["bf16"]), b.astype(np.float16), np.repeat(b, 2)[::2] * 1.0):
            bounds.assert_same_dicts(logits.flat(backend.logsumexp(h, w, b=given)), want, "bias")

    def test_inputs_are_untouched(self, backend: Backend) -> None:
        inputs = logits.OPTIONS[-1].inputs("fp32")
        copies = {key: a.copy() for key, a in inputs.single.items() if isinstance(a, np.ndarray)}
        h, w = inputs.h1.copy(), inputs.w1.copy()
        backend.logsumexp(h, w, **(inputs.single | copies))
        for got, want in [(h, inputs.h1), (w, inputs.w1), *((copies[key], inputs.single[key]) for key in copies)]:
            bounds.assert_same_bits(got, want, "input")


class TestNonfinite:
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_hidden_states(self, backend: Backend, value: float) -> None:
        h, w = (a.copy() for a in integers(600))
        h[530, 2] = value
        # infinite logits, which a softcap would hide
        w[:, 2] = 1
        for given in ({}, {"softcap": 5.0}):
            with pytest.raises(ValueError, match=re.escape("logsumexp: h has non-finite values in rows 512..599")):
                backend.logsumexp(h, w, **given)
        got = backend.logsumexp(h, w, nonfinite="propagate")
        for key in ("lse", "mean", "lse2", "top_logit"):
            np.testing.assert_array_equal(np.isnan(getattr(got, key)), np.arange(600) == 530, err_msg=key)

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_unembeddings(self, backend: Backend, value: float) -> None:
        h, w = (a.copy() for a in integers(6, 600))
        # infinite logits, which a softcap would hide
        w[300, 2], h[:, 2] = value, 1
        for given in ({}, {"softcap": 5.0}, {"b": np.where(np.arange(600) == 3, -np.inf, 0.0)}):
            with pytest.raises(ValueError, match=re.escape("logsumexp: w has non-finite values in rows 256..511")):
                backend.logsumexp(h, w, **given)
        got = backend.logsumexp(h, w, nonfinite="propagate")
        assert np.isnan(got.lse).any()

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_logits(self, backend: Backend, value: float) -> None:
        z = np.zeros((600, 9), np.float32)
        z[300, 2] = value
        for given in ({}, {"softcap": 5.0}):
            with pytest.raises(ValueError, match=re.escape("logsumexp: h has non-finite values in rows 256..511")):
                backend.logsumexp(z, None, **given)
        got = backend.logsumexp(z, None, nonfinite="propagate")
        np.testing.assert_array_equal(np.isnan(got.lse), np.arange(600) == 300)

    def test_row_without_a_label(self, backend: Backend) -> None:
        z = np.zeros((5, 9))
        z[3] = -np.inf
        with pytest.raises(ValueError, match="row 3 of h has no label that can be: all its logits are -inf"):
            backend.logsumexp(z, None)

    def test_overflow(self, backend: Backend) -> None:
        h, w = (1e200 * a.astype(np.float64) for a in integers())
        with pytest.raises(ValueError, match="logsumexp: logits overflow although the input is finite; scale it down"):
            backend.logsumexp(h, w)

    def test_float16_is_a_likely_cause(self, backend: Backend) -> None:
        h, w = (a.astype(np.float16) for a in integers())
        h[0, 0] = np.inf
        with pytest.raises(ValueError, match="float16 holds at most 65504"):
            backend.logsumexp(h, w)


H, W = np.zeros((4, 3), np.float32), np.zeros((7, 3), np.float32)
REFUSED = [
    ((H, W[:, :2]), {}, ValueError, "same number of features, got h (4, 3) and w (7, 2)"),
    ((H, W.T), {}, ValueError, "got h (4, 3) and w (3, 7); w has one row for each label, use w.T"),
    ((H[0], W), {}, ValueError, "h: expected a 2-d array"),
    ((H[None], W), {}, ValueError, "h: expected a 2-d array (rows, features), got shape (1, 4, 3)"),
    ((H, W[None]), {}, ValueError, "w: expected a 2-d array"),
    ((H, W[:0]), {}, ValueError, "expected w with at least one row and one feature"),
    ((H.astype(int), W), {}, TypeError, "expected h of dtype float16, bfloat16, float32 or float64, got int64"),
    ((H, W.tolist()), {}, TypeError, "expected w to be a NumPy array"),
    ((H, W), {"b": np.zeros(6)}, ValueError, "expected b of shape (7,), one for each label, got (6,)"),
    ((H, W), {"b": np.zeros((7, 1))}, ValueError, "expected b of shape (7,)"),
    (
        (H, W),
        {"b": np.array([0, 0, np.nan, 0, 0, 0, 0])},
        ValueError,
        "b finite, or -inf to mask a label, got nan of 2",
    ),
    (
        (H, W),
        {"b": np.array([0, np.inf, 0, 0, 0, 0, 0])},
        ValueError,
        "b finite, or -inf to mask a label, got inf of 1",
    ),
    ((H, W), {"b": "none"}, TypeError, "expected b to be an array of real numbers, got dtype <U4"),
    ((H, W), {"b": np.full(7, -np.inf)}, ValueError, "b masks every label"),
    ((H, W), {"b": [0.0] + 6 * [-np.inf], "labels": [1, 2]}, ValueError, "b masks every label"),
    ((H, W), {"labels": [0, 7]}, ValueError, "expected labels from 0 to 6, got 7"),
    ((H, W), {"labels": [0, -1]}, ValueError, "expected labels from 0 to 6, got -1"),
    ((H, W), {"labels": [4, 1, 4]}, ValueError, "expected each label once, got 4 twice"),
    ((H, W), {"labels": []}, ValueError, "expected labels of shape (V',), at least one, got shape (0,)"),
    ((H, W), {"labels": np.zeros(0, int)}, ValueError, "at least one, got shape (0,)"),
    ((H, W), {"labels": [[0, 1]]}, ValueError, "expected labels of shape (V',)"),
    ((H, W), {"labels": [0.5]}, TypeError, "expected labels to be whole numbers of shape (V',), got dtype float64"),
    ((H, W), {"labels": np.ones(7, bool)}, TypeError, "got dtype bool; use np.flatnonzero(labels)"),
    ((H, W), {"mask": np.ones(3, bool)}, ValueError, "expected mask of shape (4,), one for each row, got (3,)"),
    ((H, W), {"mask": np.ones(4, int)}, TypeError, "expected mask to be an array of bool"),
    ((H, W), {"targets": [0, 1, 2]}, ValueError, "expected targets of shape (4,), one for each row, got (3,)"),
    ((H, W), {"targets": [0.0, 1, 2, 3]}, TypeError, "expected targets to be whole numbers"),
    (
        (H, W),
        {"targets": [0, 1, 2, 7]},
        ValueError,
        "targets from 0 to 6, or -1 for none, got 7 in row 3; mask= leaves",
    ),
    ((H, W), {"targets": [0, -100, 2, 6]}, ValueError, "got -100 in row 1"),
    ((H, W), {"targets": [0, 1, 2, 0], "labels": [2, 0]}, ValueError, "target 1 of row 1 is not among the labels"),
    (
        (H, W),
        {"targets": [0, 1, 2, 0], "b": [0, 0, -np.inf, 0, 0, 0, 0]},
        ValueError,
        "target 2 of row 2 is not among the labels, or masked",
    ),
    ((H, W), {"temperature": 0}, ValueError, "expected temperature above 0, got 0"),
    ((H, W), {"temperature": -1.0}, ValueError, "expected temperature above 0"),
    ((H, W), {"temperature": np.nan}, ValueError, "expected temperature to be finite"),
    ((H, W), {"temperature": "1"}, TypeError, "expected temperature to be a number, got str"),
    ((H, W), {"softcap": 0.0}, ValueError, "expected softcap above 0, got 0.0"),
    ((H, W), {"nonfinite": "ignore"}, ValueError, "expected nonfinite to be one of 'raise', 'propagate'"),
    ((H, W), {"backend": "gpu"}, ValueError, "expected backend to be one of 'auto', 'reference', 'cpu'"),
]


@pytest.mark.parametrize(("arrays", "options", "kind", "text"), REFUSED, ids=[str(k) for k in range(len(REFUSED))])
def test_bad_input_is_one_clear_error(arrays: tuple, options: dict, kind: type, text: str) -> None:
    with pytest.raises(kind, match=f"^logsumexp: .*{re.escape(text)}|^logsumexp: {re.escape(text)}"):
        ops.logsumexp(*arrays, **options)

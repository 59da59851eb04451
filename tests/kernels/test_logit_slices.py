"""What two models predict over slices of the vocabulary: states merge, and shares in JS and TV add up."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from gramless import ops
from support import bounds, cases, logit_truth, logits
from support.backends import Backend
from support.logits import Inputs

STEM = "logit_pairs"
DTYPES = list(cases.DTYPES)


class TestSlices:
    @pytest.mark.parametrize(
        "case",
        [logits.TYPICAL, logits.RAGGED[5], *logits.EXTREMES[:4], *logits.MASKED_IN_ONE],
        ids=str,
    )
    def test_merge_to_the_whole(self, backend: Backend, case: logits.Case) -> None:
        """Slices of w, in any order, each with the targets that it has; then the shares in JS and TV add up."""
        inputs, cuts = case.inputs("fp32"), [0, 3, case.v // 3, case.v]
        targets = np.arange(case.n) * 7 % case.v
        options = dict(inputs.options) | {"targets": targets}
        gone = np.all([options.get(key, np.zeros(case.v)) == -np.inf for key in ("b1", "b2")], axis=0)
        targets[gone[targets]] = -1
        parts, slices = [], []
        for first, last in pairwise(cuts):
            part = slice(first, last)
            kept = options | {key: options[key][part] for key in ("b1", "b2") if key in options}
            kept["targets"] = np.where((targets >= first) & (targets < last), targets - first, -1)
            slices.append(Inputs(inputs.h1, inputs.w1[part], inputs.h2, inputs.w2[part], kept))
            parts.append(logits.pairs(backend, slices[-1], divergences=True).numbered_from(first))
        want = Inputs(*inputs.arrays, options)
        expected = logit_truth.truth(want), logit_truth.naive(want)
        merged = parts[0].merge(parts[1]).merge(parts[2])
        logit_truth.assert_pairs(merged, want, expected)
        logit_truth.assert_pairs(parts[1].merge(parts[2].merge(parts[0])), want, expected)
        assert np.isnan(merged.js).all()
        assert np.isnan(merged.tv).all()
        found = [logits.shares(backend, part, merged) for part in slices]
        sums = {key: sum(share[key] for share in found) for key in logits.DIVERGENCES}
        exact, rough = expected
        for key in logits.DIVERGENCES:
            bounds.assert_no_worse_than_naive(
                sums[key], exact[key], rough[key], compute=np.float32, scale=exact["scale"][key], terms=case.v, what=key
            )

    @pytest.mark.parametrize("case", [logits.TYPICAL, *logits.OPTIONS], ids=str)
    @pytest.mark.parametrize("dtype", ["bf16", "fp64"])
    def test_shares_of_all_labels_are_the_whole(self, backend: Backend, case: logits.Case, dtype: str) -> None:
        inputs = case.inputs(dtype)
        state = logits.pairs(backend, inputs, divergences=True)
        got = logits.shares(backend, inputs, state)
        exact, rough = logit_truth.known(case, dtype)
        for key in logits.DIVERGENCES:
            bounds.assert_no_worse_than_naive(
                got[key], exact[key], rough[key], compute=inputs.compute, scale=exact["scale"][key], terms=case.v
            )

    def test_labels_merge_too(self, backend: Backend) -> None:
        inputs = logits.TYPICAL.inputs("fp32")
        order = np.random.default_rng(0).permutation(logits.TYPICAL.v)
        parts = [logits.pairs(backend, inputs, labels=chosen, targets=None) for chosen in np.array_split(order, 3)]
        kept = {key: value for key, value in inputs.options.items() if key != "targets"}
        logit_truth.assert_pairs(parts[2].merge(parts[0]).merge(parts[1]), Inputs(*inputs.arrays, kept))

    def test_lost_rows_stay_lost(self, backend: Backend) -> None:
        h1, w1, h2, w2 = (a.copy() for a in logits.INTEGERS.inputs("fp32").arrays)
        h1[2] = np.nan
        slices = (slice(0, 9), slice(9, None))
        parts = [backend.logit_pairs(h1, w1[s], h2, w2[s], nonfinite="propagate") for s in slices]
        merged = logits.flat(parts[0].merge(parts[1].numbered_from(9)))
        for key in ("lse_p", "mean_p", "delta_p", "delta_q", "delta_mean", "delta_square", "delta_abs"):
            np.testing.assert_array_equal(np.isnan(merged[key]), np.arange(len(h1)) == 2, err_msg=key)

    def test_what_does_not_merge_is_refused(self) -> None:
        h1, w1, h2, w2 = logits.INTEGERS.inputs("fp32").arrays
        low = ops.logit_pairs(h1, w1[:9], h2, w2[:9])
        with pytest.raises(ValueError, match=r"got label \d+ in both; labels of a slice w\[first:\] are numbered by"):
            low.merge(low)
        with pytest.raises(ValueError, match="of the same rows, got n = 50 and n = 5"):
            low.merge(ops.logit_pairs(h1[:5], w1, h2[:5], w2))
        with pytest.raises(TypeError, match="expected a LogitPairState, got LogitState"):
            low.merge(ops.logsumexp(h1, w1))

    def test_other_options_are_refused(self) -> None:
        h1, w1, h2, w2 = logits.INTEGERS.inputs("fp32").arrays
        made = {"temperature": 2.0, "softcap1": 3.0, "softcap2": 4.0}
        low = ops.logit_pairs(h1, w1[:9], h2, w2[:9], **made)
        for name, other in (("temperature", 1.0), ("softcap1", None), ("softcap2", 3.0)):
            high = ops.logit_pairs(h1, w1[9:], h2, w2[9:], **made | {name: other}).numbered_from(9)
            with pytest.raises(ValueError, match=f"the same {name}, got {name}={made[name]} and {name}={other}"):
                low.merge(high)
        whole = low.merge(ops.logit_pairs(h1, w1[9:], h2, w2[9:], **made).numbered_from(9))
        assert (whole.temperature, whole.softcap1, whole.softcap2) == (2.0, 3.0, 4.0)

    def test_other_options_of_one_model_are_refused(self) -> None:
        h, w = logits.INTEGERS.inputs("fp32").arrays[:2]
        made = {"temperature": 2.0, "softcap": 3.0}
        low = ops.logsumexp(h, w[:9], **made)
        for name, other in (("temperature", 1.0), ("softcap", None)):
            high = ops.logsumexp(h, w[9:], **made | {name: other}).numbered_from(9)
            with pytest.raises(ValueError, match=f"the same {name}, got {name}={made[name]} and {name}={other}"):
                low.merge(high)
        whole = low.merge(ops.logsumexp(h, w[9:], **made).numbered_from(9))
        assert (whole.temperature, whole.softcap) == (2.0, 3.0)

"""What two models predict, of bad input: one clear error, or NaN where that is asked for."""

from __future__ import annotations

import re

import numpy as np
import pytest

from gramless import ops
from support import cases, logits
from support.backends import Backend

STEM = "logit_pairs"
DTYPES = list(cases.DTYPES)


class TestNonfinite:
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("name", logits.ARRAYS)
    def test_is_refused_by_name(self, backend: Backend, name: str, value: float) -> None:
        arrays = dict(
            zip(logits.ARRAYS, logits.Case("nonfinite", "", 600, 600, 3, 2).inputs("fp32").arrays, strict=True)
        )
        arrays[name] = arrays[name].copy()
        arrays[name][300, 1] = value
        for given in ({}, {"softcap1": 5.0, "softcap2": 5.0}, {"b1": np.where(np.arange(600) == 3, -np.inf, 0.0)}):
            with pytest.raises(ValueError, match=f"logit_pairs: {name} has non-finite values in rows 256..511"):
                backend.logit_pairs(*arrays.values(), **given)
        with pytest.raises(ValueError, match=f"logit_divergences: {name} has non-finite values in rows 256..511"):
            backend.logit_divergences(*arrays.values(), np.zeros(600), np.zeros(600))

    @pytest.mark.parametrize("name", ["h1", "h2"])
    def test_propagates_to_its_rows(self, backend: Backend, name: str) -> None:
        arrays = dict(zip(logits.ARRAYS, logits.INTEGERS.inputs("fp32").arrays, strict=True))
        arrays[name] = arrays[name].copy()
        arrays[name][7, 1] = np.nan
        told = {"divergences": True, "nonfinite": "propagate", "targets": np.zeros(len(arrays["h1"]), int)}
        got = logits.flat(backend.logit_pairs(*arrays.values(), **told))
        side = "p" if name == "h1" else "q"
        own = [f"{key}_{side}" for key in ("lse", "mean", "top_logit", "target")]
        shared = ["delta_p", "delta_q", "delta_mean", "delta_square", "delta_abs", "delta_max", "js", "tv"]
        for key in own + shared:
            np.testing.assert_array_equal(np.isnan(got[key]), np.arange(len(arrays["h1"])) == 7, err_msg=key)

    def test_overflow(self, backend: Backend) -> None:
        arrays = [1e200 * a for a in logits.INTEGERS.inputs("fp64").arrays]
        with pytest.raises(
            ValueError, match="logit_pairs: logits overflow although the input is finite; scale it down"
        ):
            backend.logit_pairs(*arrays)

    @pytest.mark.parametrize("temperature", [1e-310, 1e-3])
    def test_overflow_names_the_temperature_where_it_is_to_blame(self, backend: Backend, temperature: float) -> None:
        h1, w1, h2, w2 = arrays = logits.INTEGERS.inputs("fp64").arrays
        given = {"temperature": temperature}
        large = [1e200 * a for a in arrays]
        blamed = "logits overflow although the input is finite; raise temperature=1e-310, or scale it down"
        for call in (lambda *given, **more: backend.logsumexp(*given[:2], **more), backend.logit_pairs):
            if temperature < 1e-300:
                with pytest.raises(ValueError, match=blamed):
                    call(h1, w1, h2, w2, **given)
            with pytest.raises(ValueError, match="although the input is finite; scale it down"):
                call(*large, **given)

    @pytest.mark.parametrize("size", [1e160, 1e300])
    def test_squares_overflow(self, backend: Backend, size: float) -> None:
        z1, z2 = np.array([[size, 0, 1]]), np.array([[0, 0.5, size]])
        with pytest.raises(ValueError, match="logit_pairs: logits overflow although the input is finite"):
            backend.logit_pairs(z1, None, z2, None)

    def test_row_without_a_label(self, backend: Backend) -> None:
        z1, z2 = np.zeros((5, 9)), np.zeros((5, 9))
        z2[3] = -np.inf
        with pytest.raises(ValueError, match="row 3 of h2 has no label that can be: all its logits are -inf"):
            backend.logit_pairs(z1, None, z2, None)


H1, W1, H2, W2 = (np.zeros(shape, np.float32) for shape in ((4, 3), (7, 3), (4, 2), (7, 2)))
Z = np.zeros((4, 9), np.float32)
MASKED = [0.0] + 6 * [-np.inf]
REFUSED = [
    (
        (H1, W2, H2, W2),
        {},
        ValueError,
        "expected h1 (N, d) and w1 (V, d) with the same number of features, got h1 (4, 3)",
    ),
    (
        (H1, W1, H2, W1),
        {},
        ValueError,
        "expected h2 (N, d) and w2 (V, d) with the same number of features, got h2 (4, 2)",
    ),
    (
        (H1[:3], W1, H2, W2),
        {},
        ValueError,
        "expected h1 and h2 with the same number of rows, got h1 (3, 3) and h2 (4, 2)",
    ),
    (
        (H1, W1, H2, W2[:5]),
        {"b1": np.zeros(7)},
        ValueError,
        "expected the same labels in both models, got 7 of model 1 and 5 of model 2; pass w1[:5] and b1[:5] if the "
        "first 5 labels are the same, and labels= for those of them that both models share",
    ),
    ((H1, W1, Z, None), {}, ValueError, "got 7 of model 1 and 9 of model 2; pass h2[:, :7] if the first 7 labels"),
    ((H1, W1, H2[None], W2), {}, ValueError, "h2: expected a 2-d array"),
    (
        (H1, W1, H2, W2.astype(int)),
        {},
        TypeError,
        "expected w2 of dtype float16, bfloat16, float32 or float64, got int",
    ),
    ((H1, None, H2, W2), {}, ValueError, "got 3 of model 1 and 7 of model 2"),
    ((H1, W1, H2, W2), {"b1": np.zeros(6)}, ValueError, "expected b1 of shape (7,), one for each label, got (6,)"),
    (
        (H1, W1, H2, W2),
        {"b2": np.full(7, np.nan)},
        ValueError,
        "expected b2 finite, or -inf to mask a label, got nan of 0",
    ),
    (
        (H1, W1, H2, W2),
        {"b2": np.full(7, -np.inf)},
        ValueError,
        "b2 masks every label, expected one that is above -inf",
    ),
    ((H1, W1, H2, W2), {"b1": MASKED, "labels": [2, 3]}, ValueError, "b1 masks every label"),
    ((H1, W1, H2, W2), {"labels": [0, 7]}, ValueError, "expected labels from 0 to 6, got 7"),
    ((H1, W1, H2, W2), {"labels": []}, ValueError, "expected labels of shape (V',), at least one, got shape (0,)"),
    (
        (H1, W1, H2, W2),
        {"labels": np.ones(7, bool)},
        TypeError,
        "expected labels to be whole numbers of shape (V',), got dtype bool; use np.flatnonzero(labels)",
    ),
    ((H1, W1, H2, W2), {"labels": [4, 1, 4]}, ValueError, "expected each label once, got 4 twice"),
    ((H1, W1, H2, W2), {"mask": np.ones(3, bool)}, ValueError, "expected mask of shape (4,)"),
    ((H1, W1, H2, W2), {"temperature": 0.0}, ValueError, "expected temperature above 0, got 0.0"),
    ((H1, W1, H2, W2), {"softcap1": -2.0}, ValueError, "expected softcap1 above 0, got -2.0"),
    ((H1, W1, H2, W2), {"softcap2": True}, TypeError, "expected softcap2 to be a number, got bool"),
    ((H1, W1, H2, W2), {"nonfinite": None}, TypeError, "expected nonfinite to be one of 'raise', 'propagate'"),
]
REFUSED_OF_PAIRS = [
    ({"targets": [0, 1, 2, 7]}, ValueError, "expected targets from 0 to 6, or -1 for none, got 7 in row 3"),
    (
        {"targets": [0, 1, -100, 3]},
        ValueError,
        "expected targets from 0 to 6, or -1 for none, got -100 in row 2; mask= leaves rows out, as does "
        "ignore_index=-100 of compare_logits and LogitPairs",
    ),
    (
        {"targets": np.ones(4, bool)},
        TypeError,
        "expected targets to be whole numbers of shape (N,), got dtype bool",
    ),
    (
        {"targets": [0, 1, 2, 0], "b1": MASKED, "b2": MASKED},
        ValueError,
        "target 1 of row 1 is not among the labels, or mask",
    ),
    ({"workspace": 0}, ValueError, "expected workspace of at least 1, got 0"),
    ({"workspace": 1e6}, TypeError, "expected workspace to be an int, got float"),
    ({"backend": "gpu"}, ValueError, "expected backend to be one of 'auto', 'reference', 'cpu'"),
]


@pytest.mark.parametrize(("arrays", "options", "kind", "text"), REFUSED, ids=[str(k) for k in range(len(REFUSED))])
def test_bad_input_is_one_clear_error(arrays: tuple, options: dict, kind: type, text: str) -> None:
    for call, more in ((ops.logit_pairs, ()), (ops.logit_divergences, (np.zeros(4), np.zeros(4)))):
        with pytest.raises(kind, match=f"^{call.__name__}: .*{re.escape(text)}|^{call.__name__}: {re.escape(text)}"):
            call(*arrays, *more, **options)


@pytest.mark.parametrize(("options", "kind", "text"), REFUSED_OF_PAIRS)
def test_bad_options_are_refused(options: dict, kind: type, text: str) -> None:
    with pytest.raises(kind, match=f"^logit_pairs: {re.escape(text)}") as caught:
        ops.logit_pairs(H1, W1, H2, W2, **options)
    assert ("flatnonzero" in str(caught.value)) <= ("labels" in options)


def test_targets_may_be_masked_in_one_model(backend: Backend) -> None:
    got = backend.logit_pairs(H1, W1, H2, W2, b2=MASKED, targets=[0, 1, 0, 1])
    np.testing.assert_array_equal(got.target_p, 0)
    np.testing.assert_array_equal(got.target_q, [0, -np.inf, 0, -np.inf])


@pytest.mark.parametrize(
    ("lse", "kind", "text"),
    [
        (np.zeros(3), ValueError, "expected lse_p of shape (4,), one for each row that counts, got (3,)"),
        (np.zeros(4, np.float32), TypeError, "expected lse_p to be a float64 array"),
        (None, TypeError, "expected lse_p to be a float64 array"),
        (np.array([0, np.nan, 0, 0]), ValueError, "lse_p has non-finite values"),
    ],
)
def test_bad_log_normalisers_are_refused(lse: object, kind: type, text: str) -> None:
    with pytest.raises(kind, match=f"^logit_divergences: {re.escape(text)}"):
        ops.logit_divergences(H1, W1, H2, W2, lse, np.zeros(4))

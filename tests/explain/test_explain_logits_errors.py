"""What `explain` refuses of predictions, and in which words: those of the function itself."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import gramless as gl
from gramless.ops import backends
from support.heads import models

FUNCTIONS = ("logsumexp", "logit_pairs", "compare_logits", "logit_distance")
# N = 90 rows, V = 300 labels
H1, W1, H2, W2 = models(300, 12, 9, 90, "fp32")
ROWS = np.arange(90) % 3 > 0
PAIR = gl.UnembeddingPair(W1, W2)
STATE = gl.logit_pairs(H1, W1, H2, W2)
ONE_MASKED = np.where(np.arange(300) == 4, -np.inf, 0.0)


def arguments(function: str, h1: Any = H1, w1: Any = W1, h2: Any = H2, w2: Any = W2) -> tuple[Any, ...]:
    return (h1, w1) if function == "logsumexp" else (h1, w1, h2, w2)


def named(value: Any) -> str:
    """The name of a test."""
    return "+".join(value) if isinstance(value, dict) else str(value)


def assert_refuses_alike(function: str, arrays: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError, RuntimeError)) as of_function:
        getattr(gl, function)(*arrays, **keywords)
    with pytest.raises(of_function.type, match=f"^{re.escape(str(of_function.value))}$"):
        gl.explain(function, *arrays, **keywords)


class TestWithoutCore:
    @pytest.fixture(autouse=True)
    def without_core(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(backends, "_load_core", lambda: (None, "none was built"))

    @pytest.mark.parametrize("function", FUNCTIONS)
    def test_the_definition_runs(self, function: str) -> None:
        keywords = {"method": "vocabulary"} if function == "logit_distance" else {}
        said = gl.explain(function, *arguments(function), **keywords)
        assert said.backend == "reference"
        assert said.why.startswith("the compiled module cannot be loaded (none was built)")
        asked = gl.explain(function, *arguments(function), **keywords, backend="reference")
        costs = ("path", "flops", "bytes_read", "peak_extra_bytes")
        assert [getattr(said, name) for name in costs] == [getattr(asked, name) for name in costs]

    @pytest.mark.parametrize("function", FUNCTIONS)
    def test_a_named_backend_is_refused(self, function: str) -> None:
        assert_refuses_alike(function, arguments(function), {"backend": "cpu"})

    def test_a_factor_needs_none(self) -> None:
        pair = gl.UnembeddingPair(W1[:20], W2[:20], backend="reference")
        assert gl.explain("logit_distance", H1, None, H2, None, pair=pair, backend="cpu").backend == "numpy"


class TestErrors:
    """As those of the function, to the letter."""

    @pytest.mark.parametrize(
        ("function", "keywords"),
        [
            *[(function, keywords) for function in FUNCTIONS for keywords in (
                {"temperature": 0},
                {"temperature": "warm"},
                {"labels": [0, 300]},
                {"labels": [1, 1]},
                {"labels": []},
                {"mask": np.ones(89, bool)},
                {"mask": np.ones(90)},
                {"backend": "tpu"},
                {"backend": None},
                {"backend": "tpu", "precision": "half"},
                {"precision": "half"},
                {"precision": None},
                {"bandwidth": 1.0},
                {"x": H1},
            )],
            *[(function, keywords) for function in FUNCTIONS[:3] for keywords in (
                {"nonfinite": "ignore"},
                {"targets": np.full(90, 300)},
                {"targets": np.zeros(3, int)},
                {"targets": np.arange(90), "labels": [5]},
            )],
            *[("logsumexp", keywords) for keywords in (
                {"b": np.zeros(3)},
                {"b": np.full(300, -np.inf)},
                {"b": np.full(300, np.nan)},
                {"softcap": -1.0},
                {"divergences": True},
            )],
            *[(function, keywords) for function in FUNCTIONS[1:3] for keywords in (
                {"softcap2": 0.0},
                {"workspace": 0},
                {"workspace": 1.5},
                {"b2": np.full(300, -np.inf)},
                {"w1": W1},
            )],
            *[("compare_logits", keywords) for keywords in (
                {"batch_rows": 0},
                {"ignore_index": 3},
                {"ignore_index": "pad", "targets": np.zeros(90, int)},
                {"mask": np.zeros(90, bool)},
                {"mask": np.zeros(90, bool), "workspace": 0},
                {"precision": "half", "batch_rows": 0},
                {"precision": "half", "mask": np.zeros(90, bool)},
            )],
            *[("logit_distance", keywords) for keywords in (
                {"method": "qr"},
                {"b1": ONE_MASKED},
                {"b1": ONE_MASKED, "method": "vocabulary"},
                {"mask": np.zeros(90, bool)},
                {"mask": np.zeros(90, bool), "method": "vocabulary"},
                {"pair": W1},
                {"pair": PAIR, "method": "vocabulary"},
                {"pair": PAIR, "labels": [1, 2]},
                {"pair": PAIR, "b1": np.zeros(300)},
                {"pair": PAIR, "mask": np.zeros(90, bool)},
                {"pair": PAIR, "temperature": -1},
                {"pair": PAIR, "precision": "half"},
                {"pair": gl.UnembeddingPair(W2, W1)},
                {"pair": gl.UnembeddingPair(W1[:200], W2[:200])},
            )],
        ],
        ids=named,
    )  # fmt: skip
    def test_of_keywords(self, function: str, keywords: dict) -> None:
        assert_refuses_alike(function, arguments(function), keywords)

    @pytest.mark.parametrize("function", FUNCTIONS)
    @pytest.mark.parametrize(
        "changed",
        [
            {"h1": H1.T}, {"w1": W1.T}, {"h1": H1[:, :5]}, {"h1": H1[0]}, {"h1": H1.astype(int)}, {"w1": W1[:, :0]},
            {"w1": [[1.0]]}, {"h1": H1[:50]}, {"w1": W1[:50]}, {"h2": H2[:50]}, {"w2": W2[:50]}, {"h2": None},
            {"w1": None}, {"w2": None}, {"h1": None}, {"h1": H1[:0], "h2": H2[:0]},
        ],
        ids=named,
    )  # fmt: skip
    def test_of_arrays(self, function: str, changed: dict) -> None:
        arrays = arguments(function, **changed)
        try:
            getattr(gl, function)(*arrays)
        except (TypeError, ValueError):
            assert_refuses_alike(function, arrays, {})
        else:
            assert gl.explain(function, *arrays).path.startswith(f"{function} <- ")

    @pytest.mark.parametrize(
        ("arrays", "keywords"),
        [
            ((H1, None, H2[:3], None), {}),
            ((H1[:, :5], None, H2, None), {}),
            ((H1, None, H2[:, :5], None), {}),
            ((H1, None, None, None), {}),
            ((H1, W1, H2, None), {}),
            ((H1, W1[:7], H2, W2), {}),
            ((H1, W1[:7], H2, W2[:7]), {}),
            ((H1, W1[:, :5], H2, W2), {}),
            ((H1, W1, H2, W2), {"b2": np.ones(300)}),
            ((H1, None, H2, None), {"mask": np.zeros(3, bool)}),
        ],
        ids=named,
    )
    def test_of_a_pair(self, arrays: tuple[Any, ...], keywords: dict) -> None:
        assert_refuses_alike("logit_distance", arrays, {"pair": PAIR} | keywords)

    def test_values_are_not_read(self) -> None:
        """Those of weights beside a pair, like all others."""
        other = gl.explain("logit_distance", H1, 2 * W1, H2, W2, pair=PAIR)
        assert other == gl.explain("logit_distance", H1, W1, H2, W2, pair=PAIR)
        with pytest.raises(ValueError, match="other weights"):
            gl.logit_distance(H1, 2 * W1, H2, W2, pair=PAIR)

    @pytest.mark.parametrize("keywords", [{"temperature": 2.0}, {"mask": ROWS}, {"backend": "cpu"}], ids=named)
    def test_of_a_state(self, keywords: dict) -> None:
        assert_refuses_alike("compare_logits", (STATE,), keywords)
        assert_refuses_alike("compare_logits", (STATE, W1, H2, W2), {})
        assert_refuses_alike("compare_logits", (gl.logit_pairs(H1[:0], W1, H2[:0], W2),), {})

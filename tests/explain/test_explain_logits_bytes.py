"""The bytes that `explain` says of predictions are those that they take."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gramless as gl
from support import backends, bounds, memory
from support.heads import models

# of N rows and V labels, and the keywords of a call that takes some of them
CHOICES = """
bias, labels, mask, targets = np.zeros({1}), np.arange({1})[::-1], np.arange({0}) % 2 > 0, np.zeros({0}, int)
options = dict({2})
"""


def arguments(function: str, h1: Any, w1: Any, h2: Any, w2: Any) -> tuple[Any, ...]:
    return (h1, w1) if function == "logsumexp" else (h1, w1, h2, w2)


class TestBytes:
    @pytest.mark.parametrize(
        ("function", "n", "v", "d1", "d2", "keywords"),
        [
            ("logsumexp", 30_000, 3000, 512, 1, ""),
            ("logsumexp", 1000, 5000, 64, 1, "backend='reference'"),
            ("logsumexp", 30, 1_000_000, 8, 1, "b=bias, labels=labels"),
            ("logit_pairs", 20_000, 3000, 512, 700, "divergences=True"),
            ("logit_pairs", 20_000, 30_000, 128, 64, "divergences=True, workspace=1000"),
            ("logit_pairs", 500_000, 30, 4, 8, "mask=mask, targets=targets"),
            ("logit_pairs", 500, 5000, 64, 32, "divergences=True, backend='reference'"),
            ("compare_logits", 200_000, 100, 64, 32, "keep_rows=True"),
            ("compare_logits", 4000, 1000, 64, 32, "batch_rows=500, backend='reference'"),
            ("logit_distance", 3000, 20_000, 500, 300, "method='factor', mask=mask"),
            ("logit_distance", 3000, 9000, 1500, 1500, "method='factor'"),
            ("logit_distance", 3000, 1500, 1000, 1000, "method='factor'"),
            ("logit_distance", 30, 1_000_000, 8, 8, "method='factor', b1=bias, labels=labels"),
            ("logit_distance", 3000, 3000, 1000, 1000, "method='vocabulary'"),
            ("logit_distance", 500_000, 30, 10, 10, "method='vocabulary'"),
        ],
        ids=str,
    )
    def test_are_what_is_measured(self, function: str, n: int, v: int, d1: int, d2: int, keywords: str) -> None:
        """Products of BLAS, which keeps its own memory, are warmed up first."""
        few, all_of_them = CHOICES.format(min(n, 300), min(v, 300), keywords), CHOICES.format(n, v, keywords)
        prepare = f"""
rng = np.random.default_rng(0)
shapes = ({n}, {d1}), ({v}, {d1}), ({n}, {d2}), ({v}, {d2})
h1, w1, h2, w2 = (rng.standard_normal(shape, dtype=np.float32) for shape in shapes)
np.ones((4000, 128)) @ np.ones((128, 128))
{few}
few = options
{all_of_them}"""
        call, warm = (
            ", ".join(arguments(function, *(name + part for name in ("h1", "w1", "h2", "w2"))))
            for part in ("", "[:300, :20]")
        )
        call, warm = f"gl.{function}({call}, **options)", f"gl.{function}({warm}, **few)"
        peak = memory.peak_extra_bytes(prepare, call, warm, 2)
        made: dict[str, Any] = {"np": np}
        exec(all_of_them, made)
        arrays = (np.broadcast_to(np.float32(0), shape) for shape in ((n, d1), (v, d1), (n, d2), (v, d2)))
        with backends.threads(2):
            said = gl.explain(function, *arguments(function, *arrays), **made["options"]).peak_extra_bytes
        assert peak <= bounds.MEMORY_FACTOR * said + bounds.MEMORY_SLACK_BYTES
        assert said <= 2 * peak + bounds.MEMORY_SLACK_BYTES

    def test_of_a_pair(self) -> None:
        n, d = 100_000, 200
        prepare = f"""
rng = np.random.default_rng(0)
w1, w2 = (rng.standard_normal((2000, {d}), dtype=np.float32) for _ in range(2))
h = rng.standard_normal(({n}, {d}), dtype=np.float32)
pair = gl.UnembeddingPair(w1, w2)
np.ones((4000, 128)) @ np.ones((128, 128))
"""
        call = "gl.logit_distance(h{0}, None, h{0}, None, pair=pair)"
        peak = memory.peak_extra_bytes(prepare, call.format(""), call.format("[:9]"), 2)
        _, w1, _, w2 = models(2000, d, d, 1, "fp32")
        h = np.broadcast_to(np.float32(0), (n, d))
        said = gl.explain("logit_distance", h, None, h, None, pair=gl.UnembeddingPair(w1, w2)).peak_extra_bytes
        assert peak <= bounds.MEMORY_FACTOR * said + bounds.MEMORY_SLACK_BYTES
        assert said <= 2 * peak + bounds.MEMORY_SLACK_BYTES

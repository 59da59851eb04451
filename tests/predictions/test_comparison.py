"""What a comparison of predictions looks like: as text, and for JSON."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

import gramless as gl
from support import bounds

N, V, D1, D2 = 300, 70, 9, 6
RNG = np.random.default_rng(0)
H1, W1 = RNG.standard_normal((N, D1)), RNG.standard_normal((V, D1)) / 2
H2, W2 = H1[:, :D2] + 0.3 * RNG.standard_normal((N, D2)), W1[:, :D2] + 0.1 * RNG.standard_normal((V, D2))
MODELS = (H1, W1, H2, W2)
TARGETS = RNG.integers(0, V, N)


class TestTexts:
    def test_repr(self) -> None:
        got = gl.compare_logits(*MODELS)
        numbers = f"kl_pq={got.kl_pq:.4g}, kl_qp={got.kl_qp:.4g}, logit_distance={got.logit_distance:.4g}"
        assert repr(got) == f"LogitComparison(n=300, labels=70, {numbers})"

    def test_table(self) -> None:
        got = gl.compare_logits(*MODELS, targets=np.where(TARGETS < 9, -1, TARGETS))
        lines = str(got).splitlines()
        assert lines[0] == "300 rows, 70 labels; p is model 1, q is model 2"
        assert all(len(line) <= 80 for line in lines)
        assert len(lines) == 2 + len(got.stderr) + 1
        kl = next(line for line in lines if line.startswith("KL(p||q)")).split()
        assert float(kl[1]) == float(f"{got.kl_pq:.4g}")
        assert float(kl[2]) == float(f"{got.stderr['kl_pq']:.3g}")
        assert float(kl[3]) == float(f"{got.quantiles('kl_pq', 0.5):.2g}")
        assert lines[-1] == f"targets of {got.n_targets} rows"

    @pytest.mark.parametrize("scale", [1e-6, 1.0, 40.0, 1e4])
    def test_quantiles_have_the_digits_that_are_known(self, scale: float) -> None:
        """Two of a sketch, three of the values themselves."""
        z1, z2 = (scale * RNG.standard_normal((N, V)) for _ in range(2))
        kept, sketched = (gl.compare_logits(z1, None, z2, None, keep_rows=rows) for rows in (True, False))
        line = next(k for k, text in enumerate(str(kept).splitlines()) if text.startswith("logit distance"))
        exact, rough = (str(found).splitlines()[line].split()[-2:] for found in (kept, sketched))
        for share, three, two in zip((0.5, 0.95), exact, rough, strict=True):
            value = kept.quantiles("logit_distance", share)
            place = 10.0 ** (math.floor(math.log10(value)) - 1)
            assert float(three) == float(f"{value:.3g}")
            assert float(two) == float(f"{sketched.quantiles('logit_distance', share):.2g}")
            bounds.assert_absolute(float(two), value, place / 2 + bounds.SKETCH * value)

    def test_quantiles_beyond_what_a_sketch_knows(self) -> None:
        z1, z2 = np.random.default_rng(1).standard_normal((2, 9, V))
        for scale, shown in ((1e-14, "<1e-12"), (1e8, ">1e+06")):
            line = str(gl.compare_logits(scale * z1, None, scale * z2, None)).splitlines()[7]
            assert line.split()[-2:] == [shown, shown]
            assert line.startswith("logit distance")

    def test_json(self) -> None:
        got = gl.compare_logits(*MODELS, targets=TARGETS)
        found = json.loads(json.dumps(got.to_dict(), allow_nan=False))
        assert found["format"] == "gramless.logit_comparison/1"
        assert (found["n"], found["labels"], found["n_targets"]) == (N, V, N)
        assert all(found[name] == getattr(got, name) for name in got.stderr)
        assert found["stderr"] == got.stderr
        assert found["quantiles"]["kl_pq"]["0.5"] == got.quantiles("kl_pq", 0.5)

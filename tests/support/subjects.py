"""Accumulators that more than one test file holds to the contract."""

from __future__ import annotations

import numpy as np

import gramless as gl
from support import cases
from support.contract import Subject

PAIR = cases.Case("stream", "", 260, 13, 7)


def pair_rows() -> tuple[np.ndarray, np.ndarray]:
    return tuple(a.copy() for a in PAIR.arrays("fp64"))


def logit_pairs_subject(h1: np.ndarray, h2: np.ndarray) -> Subject:
    rng = np.random.default_rng(9)
    w1, w2 = rng.standard_normal((30, 13)), rng.standard_normal((30, 7))
    poisoned = h1[:9].copy()
    poisoned[5, 2] = np.nan
    # every value of a row is a sum of terms that are no larger than its logits
    largest = float(np.abs(h1).max() * np.abs(w1).sum(1).max() + np.abs(h2).max() * np.abs(w2).sum(1).max())

    def values(found: gl.LogitComparison) -> dict[str, np.ndarray]:
        numbers = {name: getattr(found, name) for name in ("n", "labels", *found.stderr) if "perplexity" not in name}
        numbers |= {f"stderr.{name}": found.stderr[name] for name in numbers if name in found.stderr}
        return {name: np.array(float(number)) for name, number in numbers.items()}

    whole = values(gl.LogitPairs(w1, w2).update(h1, h2).finalize())
    return Subject(
        "LogitPairs",
        lambda: gl.LogitPairs(w1, w2),
        (h1, h2),
        values,
        lambda _: dict.fromkeys(whole, np.array(largest)),
        (
            ((h1[:5], h2[:6]), ValueError, "same number of rows"),
            ((h1[:5, :12], h2[:5]), ValueError, "same number of features"),
            ((h1[:5], h2[:5, :3]), ValueError, "same number of features"),
            ((poisoned, h2[:9]), ValueError, r"LogitPairs\.update: h1 has non-finite values in rows 0\.\.8"),
            ((h1[:5].astype(np.int64), h2[:5]), TypeError, "dtype"),
            ((h1[:5], h2[0]), ValueError, "2-d"),
            (("rows", h2[:5]), TypeError, "array"),
        ),
    )

"""Named inputs, each with the mistake it catches. Arrays are made in float64 and rounded to the dtype under test."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import ml_dtypes
import numpy as np

DTYPES = {
    "fp16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "fp32": np.dtype(np.float32),
    "fp64": np.dtype(np.float64),
}
MIXED = (("fp16", "fp32"), ("bf16", "fp64"), ("fp32", "fp64"), ("bf16", "fp16"), ("fp64", "fp16"))

FEATURES = (1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 47, 63, 64, 65, 95, 97, 127, 129, 257, 385, 513)
ROWS = (1, 2, 3, 4, 5, 7, 63, 64, 65, 255, 256, 257, 1000)

Build = Callable[[np.random.Generator, int, int, int], tuple[np.ndarray, np.ndarray]]


def correlated(rng: np.random.Generator, n: int, p: int, q: int) -> tuple[np.ndarray, np.ndarray]:
    """Two views of a shared latent of rank 6, with noise, so that CKA is neither 0 nor 1."""
    latent = rng.standard_normal((n, 6))
    x = latent @ rng.standard_normal((6, p)) / 2 + rng.standard_normal((n, p))
    y = latent @ rng.standard_normal((6, q)) / 2 + rng.standard_normal((n, q))
    return x, y


def _offset(ratio: float) -> Build:
    def build(rng: np.random.Generator, n: int, p: int, q: int) -> tuple[np.ndarray, np.ndarray]:
        x, y = correlated(rng, n, p, q)
        return x + ratio * rng.uniform(-1, 1, p), y + ratio * rng.uniform(-1, 1, q)

    return build


def _scaled(scale: float) -> Build:
    def build(rng: np.random.Generator, n: int, p: int, q: int) -> tuple[np.ndarray, np.ndarray]:
        x, y = correlated(rng, n, p, q)
        return scale * x, scale * y

    return build


def _massive(size: float) -> Build:
    def build(rng: np.random.Generator, n: int, p: int, q: int) -> tuple[np.ndarray, np.ndarray]:
        x, y = correlated(rng, n, p, q)
        x[:, p // 2] = size * (1 + 0.01 * rng.standard_normal(n))
        y[:, q // 3] = size * (1 + 0.01 * rng.standard_normal(n))
        return x, y

    return build


def _huge_row(rng: np.random.Generator, n: int, p: int, q: int) -> tuple[np.ndarray, np.ndarray]:
    x, y = correlated(rng, n, p, q)
    x[n // 2] *= 300.0
    y[n // 2] *= 300.0
    return x, y


def _near_equal(rng: np.random.Generator, n: int, p: int, q: int) -> tuple[np.ndarray, np.ndarray]:
    x, _ = correlated(rng, n, max(p, q), 1)
    return x[:, :p].copy(), x[:, :q] + 1e-3 * rng.standard_normal((n, q))


def _low_rank(rng: np.random.Generator, n: int, p: int, q: int) -> tuple[np.ndarray, np.ndarray]:
    latent = rng.standard_normal((n, 2))
    return latent @ rng.standard_normal((2, p)), latent[:, :1] @ rng.standard_normal((1, q)) + 2.0


def _unlike_first_rows(rng: np.random.Generator, n: int, p: int, q: int) -> tuple[np.ndarray, np.ndarray]:
    x, y = correlated(rng, n, p, q)
    x[:64] += 50.0
    y[:64] -= 50.0
    return x, y


def _dead_features(rng: np.random.Generator, n: int, p: int, q: int) -> tuple[np.ndarray, np.ndarray]:
    x, y = correlated(rng, n, p, q)
    x[:, ::3] = 0.0
    y[:, 1::2] = 7.25
    return x, y


@dataclass(frozen=True)
class Case:
    name: str
    catches: str
    n: int
    p: int
    q: int
    build: Build = correlated
    # dtypes in which the data still says what the case is about
    dtypes: tuple[str, ...] = ("fp16", "bf16", "fp32", "fp64")

    def arrays(self, dtype_x: str, dtype_y: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Read-only x (n, p) and y (n, q), the same at every call."""
        return _arrays(self, dtype_x, dtype_y or dtype_x)

    def __str__(self) -> str:
        return self.name


@lru_cache(maxsize=64)
def _arrays(case: Case, dtype_x: str, dtype_y: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(zlib.crc32(case.name.encode()))
    x, y = case.build(rng, case.n, case.p, case.q)
    out = x.astype(DTYPES[dtype_x]), y.astype(DTYPES[dtype_y])
    for a in out:
        a.setflags(write=False)
    return out


RAGGED_FEATURES = tuple(
    Case(f"p{p}_q{q}", "masked lanes and tail panels in the feature direction", 64 + i % 5, p, q)
    for i, (p, q) in enumerate(zip(FEATURES, FEATURES[::-1], strict=True))
)
RAGGED_ROWS = tuple(
    Case(f"n{n}", "tail rows of a chunk, of the pivot rows, of a thread's share", n, 33, 17) for n in ROWS
)
EXTREMES = (
    Case("offset_1e2", "moments taken about zero instead of about the pivot", 300, 40, 24, _offset(1e2)),
    Case("offset_1e4", "the same, where float32 loses every digit", 300, 40, 24, _offset(1e4), ("fp32", "fp64")),
    Case(
        "massive_1e3",
        "one coordinate of 1e3 beside others of 1, as in hidden states of language models",
        260,
        48,
        33,
        _massive(1e3),
    ),
    Case("massive_3e3", "the same, larger", 260, 48, 33, _massive(3e3)),
    Case(
        "huge_row",
        "one row of large norm: fourth powers overflow half types and swamp float32 sums",
        300,
        40,
        24,
        _huge_row,
    ),
    Case(
        "scale_1e-6",
        "absolute epsilons, subnormals in fourth powers",
        200,
        40,
        24,
        _scaled(1e-6),
        ("bf16", "fp32", "fp64"),
    ),
    Case("scale_1e6", "overflow of fourth powers", 200, 40, 24, _scaled(1e6), ("bf16", "fp32", "fp64")),
    Case(
        "near_equal", "cancellation between models that are almost the same", 200, 33, 33, _near_equal, ("fp32", "fp64")
    ),
    Case("low_rank", "division by or root of what should be zero", 200, 40, 24, _low_rank),
    Case("wide", "more features than rows", 20, 600, 300),
    Case("unlike_first_rows", "a pivot that is far from the mean", 400, 24, 17, _unlike_first_rows),
    Case("dead_features", "constant columns", 200, 40, 24, _dead_features),
)
# the same in every dtype and exact in float32 whatever the order of the sums
INTEGERS = Case(
    "integers",
    "any wrong index: every answer is exact",
    257,
    67,
    45,
    lambda rng, n, p, q: (
        rng.integers(-1, 2, (n, p)).astype(np.float64),
        rng.integers(-1, 2, (n, q)).astype(np.float64),
    ),
)
TYPICAL = Case("typical", "the plain case", 256, 64, 48)


def with_dtypes(cases: tuple[Case, ...], dtypes: tuple[str, ...] = tuple(DTYPES)) -> list[tuple[Case, str]]:
    return [(case, dtype) for case in cases for dtype in dtypes if dtype in case.dtypes]


def label(value: object) -> str:
    """Test id of a (case, dtype) pair."""
    return "-".join(str(v) for v in value) if isinstance(value, tuple) else str(value)

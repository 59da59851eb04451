"""The first test of the repository: an offset of the data, however large, may not change the answer.

Moments about zero lose every digit in float32 once mean/std reaches 30; moments about a pivot lose none.
"""

from __future__ import annotations

import numpy as np
import pytest

import gramless as gl
from support import bounds, cases, oracle
from support.backends import Backend

SHAPES = ((24, 5, 4), (300, 64, 48))


def offset_data(n: int, p: int, q: int, ratio: float, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([n, p, q])
    x, y = cases.correlated(rng, n, p, q)
    x, y = x / x.std(), y / y.std()
    return (x + ratio).astype(dtype), (y - ratio).astype(dtype)


@pytest.mark.parametrize("ratio", bounds.FIRST_OFFSETS)
@pytest.mark.parametrize("dtype", ["fp32", "fp64"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_offset_does_not_change_unbiased_cka(
    backend: Backend, shape: tuple[int, int, int], dtype: str, ratio: float
) -> None:
    x, y = offset_data(*shape, ratio, cases.DTYPES[dtype])
    truth = oracle.exact_cka(x, y) if x.size < 200 else oracle.dense_cka(x, y)
    got = gl.cka(x, y, backend=backend.name)
    bounds.assert_relative(got, truth, bounds.bound_for(x.dtype), f"cka at mean/std {ratio:g} in {dtype}")


@pytest.mark.parametrize("ratio", bounds.FIRST_OFFSETS)
@pytest.mark.parametrize("dtype", ["fp32", "fp64"])
def test_offset_does_not_change_a_stream(dtype: str, ratio: float) -> None:
    x, y = offset_data(300, 64, 48, ratio, cases.DTYPES[dtype])
    stream = gl.Moments()
    for start in range(0, 300, 37):
        stream.update(x[start : start + 37], y[start : start + 37])
    bounds.assert_relative(gl.cka(stream.finalize()), oracle.dense_cka(x, y), bounds.bound_for(x.dtype), "streamed cka")


@pytest.mark.parametrize("dtype", ["fp32", "fp64"])
def test_the_naive_way_fails_here(dtype: str) -> None:
    """If moments about zero passed this, the test above would prove nothing."""
    x, y = offset_data(300, 64, 48, 1e4, cases.DTYPES[dtype])
    zero_x, zero_y = np.zeros(64), np.zeros(48)
    raw = oracle.naive_moments(x, y, zero_x, zero_y)
    centred = raw["sxy"] - np.outer(raw["sum_x"], raw["sum_y"]) / x.dtype.type(300)
    truth = oracle.moments(x, y, oracle.pivot(x), oracle.pivot(y))
    want = truth["sxy"] - np.outer(truth["sum_x"], truth["sum_y"]) / 300
    error = float(np.abs(centred - want).max() / np.abs(want).max())
    assert error > bounds.bound_for(x.dtype)

"""The moments kernel of a GPU on the shapes, layouts and bad rows of `kernels/test_moments.py`, one dtype for each."""

from __future__ import annotations

import numpy as np
import pytest

from support import backends, bounds, cases, judge
from support.backends import Backend

DTYPES = tuple(cases.DTYPES)
SHAPES = cases.RAGGED_FEATURES + cases.RAGGED_ROWS


def rotated(values: tuple) -> list[tuple]:
    """Each value with one dtype: what reads the rows does not know the shape of what multiplies them."""
    return [(value, DTYPES[place % len(DTYPES)]) for place, value in enumerate(values)]


@pytest.mark.parametrize(("case", "dtype"), rotated(SHAPES), ids=str)
def test_ragged(gpu_backend: Backend, case: cases.Case, dtype: str) -> None:
    x, y = case.arrays(dtype)
    judge.assert_moments(gpu_backend.moments(x, y), x, y)


@pytest.mark.parametrize(("layout", "dtype"), rotated(backends.LAYOUTS))
def test_layout_does_not_matter(gpu_backend: Backend, layout: str, dtype: str) -> None:
    x, y = (a[:130, :33] for a in cases.TYPICAL.arrays(dtype))
    got = gpu_backend.moments(backends.layouts(x)[layout], backends.layouts(y)[layout])
    judge.assert_moments(got, x, y)
    bounds.assert_same_dicts(got, gpu_backend.moments(np.ascontiguousarray(x), np.ascontiguousarray(y)), layout)


@pytest.mark.parametrize(("row", "dtype"), rotated((0, 63, 255, 256, 511, 599)))
@pytest.mark.parametrize(("name", "value"), [("x", np.nan), ("y", -np.inf)])
def test_raises_and_names_argument_and_rows(
    gpu_backend: Backend, name: str, value: float, row: int, dtype: str
) -> None:
    rng = np.random.default_rng(0)
    arrays = {side: rng.standard_normal((600, 5)).astype(cases.DTYPES[dtype]) for side in "xy"}
    arrays[name][row, 4] = value
    first = row // 256 * 256
    with pytest.raises(ValueError, match=rf"moments: {name} has .* in rows {first}\.\.{min(first + 255, 599)}$"):
        gpu_backend.moments(**arrays)

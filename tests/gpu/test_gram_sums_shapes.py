"""gram_sums of a GPU on the shapes, layouts and bad rows of `kernels/test_gram_sums.py`, one dtype for each."""

from __future__ import annotations

import numpy as np
import pytest

from support import backends, bounds, cases, grams
from support.backends import Backend

DTYPES = tuple(cases.DTYPES)
ROADS = ("linear", "polynomial", "rbf", "cosine")


def rotated(values: tuple) -> list[tuple]:
    """Each value with one dtype: what reads the rows does not know the shape of what multiplies them."""
    return [(value, DTYPES[place % len(DTYPES)]) for place, value in enumerate(values)]


@pytest.mark.parametrize(("case", "dtype"), rotated(grams.RAGGED), ids=str)
def test_ragged(gpu_backend: Backend, case: cases.Case, dtype: str) -> None:
    for kernel in grams.KERNELS:
        grams.assert_case(gpu_backend.gram_sums, case, dtype, kernel)


@pytest.mark.parametrize(("layout", "dtype"), rotated(backends.LAYOUTS))
def test_layout_does_not_matter(gpu_backend: Backend, layout: str, dtype: str) -> None:
    x, y = grams.SMALL.arrays(dtype)
    for kernel in ROADS:
        given = grams.arguments(x, y, kernel)
        got = gpu_backend.gram_sums(backends.layouts(x)[layout], backends.layouts(y)[layout], **given)
        grams.assert_sums(got, grams.expected_of_case(grams.SMALL, dtype, kernel), grams.compute_dtype(x, y, kernel))
        bounds.assert_same_dicts(got, gpu_backend.gram_sums(x, y, **given), layout)


@pytest.mark.parametrize(("row", "dtype"), rotated((0, 255, 256, 599)))
@pytest.mark.parametrize(("name", "value"), [("x", np.nan), ("x", np.inf), ("y", -np.inf)])
def test_raises_and_names_argument_and_rows(
    gpu_backend: Backend, name: str, value: float, row: int, dtype: str
) -> None:
    rng = np.random.default_rng(0)
    arrays = {side: rng.standard_normal((600, 4)).astype(cases.DTYPES[dtype]) for side in "xy"}
    arrays[name][row, 3] = value
    first = row // 256 * 256
    with pytest.raises(ValueError, match=rf"gram_sums: {name} has .* in rows {first}\.\.{min(first + 255, 599)}$"):
        gpu_backend.gram_sums(arrays["x"], arrays["y"])

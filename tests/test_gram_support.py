"""The tools that judge kernel sums: they agree with other roads to the same answer, and see what is wrong."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from support import bounds, grams, oracle
from support.backends import Backend

X, Y = grams.SMALL.arrays("fp64")


def sums(kernel: str) -> dict:
    return Backend("reference").gram_sums(X, Y, **grams.arguments(X, Y, kernel))


def moved(key: str) -> Callable[[dict], object]:
    """One entry larger by a part in 1e10: beyond the rounding of float64, below that of float32."""

    def spoil(got: dict) -> None:
        got[key].flat[0] *= 1 + 1e-10

    return spoil


SPOILT = {
    "a row sum": moved("rows_x"),
    "a diagonal": moved("diagonal_y"),
    "a square": moved("sum_xx"),
    "the product": moved("sum_xy"),
    "rows in another order": lambda got: got.update(rows_y=got["rows_y"][:, ::-1].copy()),
    "bandwidths in another order": lambda got: got.update(sum_yy=got["sum_yy"][::-1].copy()),
    "the other offset": lambda got: got.update(offset_x=1 - got["offset_x"]),
    "the diagonal counted": lambda got: got.update(sum_xx=got["sum_xx"] + (got["diagonal_x"] ** 2).sum(axis=1)),
    "each pair once": lambda got: got.update(sum_xy=got["sum_xy"] / 2),
    "NaN": lambda got: got["rows_x"].fill(np.nan),
    "float32": lambda got: got.update(sum_xx=got["sum_xx"].astype(np.float32)),
    "another shape": lambda got: got.update(sum_xx=got["sum_xx"][:1]),
    "n": lambda got: got.update(n=59),
    "a key": lambda got: got.pop("sum_yy"),
}


@pytest.mark.parametrize("fault", SPOILT)
def test_wrong_sums_are_seen(fault: str) -> None:
    got, want = sums("rbf"), grams.expected_of_case(grams.SMALL, "fp64", "rbf")
    grams.assert_sums(got, want, np.float64)
    SPOILT[fault](got)
    with pytest.raises((AssertionError, IndexError)):
        grams.assert_sums(got, want, np.float64)


@pytest.mark.parametrize("kernel", grams.KERNELS)
def test_hsic_by_matrices_is_that_by_quadruples(kernel: str) -> None:
    k, m = (grams.dense_matrix(a[:6], kernel, 3.0) for a in (X, Y))
    bounds.assert_relative(grams.dense_hsic(k, m, "unbiased"), grams.u_statistic(k, m), bounds.SAME_FP64)


def test_linear_measures_are_those_of_the_other_oracle() -> None:
    k, m = (grams.dense_matrix(a, "linear") for a in (X, Y))
    bounds.assert_relative(grams.dense_cka(k, m, "unbiased"), oracle.dense_cka(X, Y), bounds.SAME_FP64)
    bounds.assert_relative(grams.dense_cka(k, m, "biased"), oracle.biased_cka(X, Y), bounds.SAME_FP64)


def test_counted_pairs() -> None:
    counted = grams.counted_pairs(5, 2, np.array([[0, 1], [2, 2]]))
    blocks = np.array([[0, 1, 0], [1, 0, 0], [0, 0, 1]], dtype=bool)
    assert np.array_equal(counted, np.kron(blocks, np.ones((2, 2), dtype=bool))[:5, :5])

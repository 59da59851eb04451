"""The tools that judge are judged first, above all with inputs that must fail."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from support import backends, bounds, cases, memory, oracle, poison


@pytest.fixture
def product() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(truth, naive float32 value, scale) of a matrix product."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((200, 7)), rng.standard_normal((200, 5))
    a32, b32 = a.astype(np.float32), b.astype(np.float32)
    truth = a32.astype(np.float64).T @ b32.astype(np.float64)
    naive = np.zeros((7, 5), np.float32)
    for left, right in zip(a32, b32, strict=True):
        naive += np.outer(left, right)
    return truth, naive, np.abs(a32.T.astype(np.float64)) @ np.abs(b32)


def judge(kernel: object, truth: object, naive: object, scale: object = None, **keywords: object) -> None:
    bounds.assert_no_worse_than_naive(kernel, truth, naive, compute=np.float32, scale=scale, **keywords)


class TestNoWorseThanNaive:
    def test_accepts_the_truth_and_the_naive_value(self, product: tuple) -> None:
        truth, naive, scale = product
        judge(truth, truth, naive, scale)
        judge(naive, truth, naive, scale)
        judge(np.zeros(3), np.zeros(3), np.zeros(3))

    def test_accepts_a_lucky_naive_value(self, product: tuple) -> None:
        truth, _, scale = product
        judge(truth + scale * np.finfo(np.float32).eps, truth, truth, scale)

    @pytest.mark.parametrize("position", [(0, 0), (6, 4), (3, 2)])
    def test_refuses_one_wrong_element(self, product: tuple, position: tuple[int, int]) -> None:
        truth, naive, scale = product
        wrong = truth.copy()
        wrong[position] += 1e-3 * scale[position]
        with pytest.raises(AssertionError, match="naive"):
            judge(wrong, truth, naive, scale)

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_refuses_what_is_not_finite(self, product: tuple, bad: float) -> None:
        truth, naive, scale = product
        wrong = truth.copy()
        wrong[2, 2] = bad
        with pytest.raises(AssertionError, match="naive"):
            judge(wrong, truth, naive, scale)
        with pytest.raises(AssertionError, match="not finite"):
            judge(truth, truth, wrong, scale)
        with pytest.raises(AssertionError, match="not finite"):
            judge(truth, wrong, naive, scale)

    def test_refuses_shapes_that_would_broadcast(self, product: tuple) -> None:
        truth, naive, scale = product
        for wrong in (truth[:1], truth.T, truth[0, 0], truth[None]):
            with pytest.raises(AssertionError, match="shapes differ"):
                judge(wrong, truth, naive, scale)

    def test_refuses_nothing_to_compare(self) -> None:
        empty = np.zeros((0, 3))
        with pytest.raises(AssertionError, match="nothing to compare"):
            judge(empty, empty, empty)

    def test_refuses_an_error_where_the_truth_is_zero(self) -> None:
        with pytest.raises(AssertionError, match="naive"):
            judge(np.array([1e-30, 0.0]), np.zeros(2), np.zeros(2))

    def test_the_factor_counts(self, product: tuple) -> None:
        truth, naive, scale = product
        worse = truth + 40 * (naive - truth)
        judge(worse, truth, naive, scale, factor=40)
        with pytest.raises(AssertionError, match="factor"):
            judge(worse, truth, naive, scale)

    def test_refuses_float32_where_float64_is_due(self, product: tuple) -> None:
        truth, naive, scale = product
        with pytest.raises(AssertionError, match="naive"):
            bounds.assert_no_worse_than_naive(naive, truth, truth, compute=np.float64, scale=scale)


class TestOtherRules:
    @pytest.mark.parametrize("rule", [bounds.assert_relative, bounds.assert_absolute])
    def test_scalars(self, rule: object) -> None:
        rule(1.0, 1.0, 0.0)
        for got in (float("nan"), float("inf"), 1.1):
            with pytest.raises(AssertionError):
                rule(got, 1.0, 1e-3)

    def test_relative_error_of_zero(self) -> None:
        assert bounds.relative_error(0.0, 0.0) == 0.0
        assert bounds.relative_error(1e-300, 0.0) == float("inf")
        assert bounds.relative_error(float("nan"), float("nan")) == float("inf")

    def test_algebra(self) -> None:
        one = np.ones(3)
        bounds.assert_within_algebra(one + 1e-15, one, one)
        with pytest.raises(AssertionError, match="absolute terms"):
            bounds.assert_within_algebra(one + 1e-9, one, one)

    def test_same_bits(self) -> None:
        bounds.assert_same_bits(np.array([np.nan]), np.array([np.nan]))
        for other in (np.float32([1.0]), np.array([[1.0]]), np.array([1.0 + 2**-52]), np.array([-1.0])):
            with pytest.raises(AssertionError):
                bounds.assert_same_bits(other, np.array([1.0]))
        with pytest.raises(AssertionError):
            bounds.assert_same_bits(np.array([-0.0]), np.array([0.0]))

    def test_same_dicts(self) -> None:
        bounds.assert_same_dicts({"a": 1.0, "f": "x"}, {"a": 1.0, "f": "x"})
        for other in ({"a": 1.0}, {"a": 1.0, "f": "y"}, {"a": 2.0, "f": "x"}, {"a": 1.0, "f": "x", "b": 0}):
            with pytest.raises(AssertionError):
                bounds.assert_same_dicts(other, {"a": 1.0, "f": "x"})


class TestOracles:
    """Each oracle by hand or against another one that shares no line with it."""

    def test_u_statistic_by_hand(self) -> None:
        # rows 0, 1, 2, 3 on a line, K_ij = ij, zero diagonal: the trace is 98, the total 22, the squared row sums 170
        line = np.arange(4.0)[:, None]
        assert oracle.u_statistic(line, line) == (98 + Fraction(22 * 22, 6) - 170) / 4 == Fraction(13, 6)

    @pytest.mark.parametrize("n", [4, 5, 6, 7])
    @pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32", "fp64"])
    def test_u_centring_is_the_u_statistic_exactly(self, n: int, dtype: str) -> None:
        x, y = cases.Case(f"tiny{n}", "", n, 3, 2).arrays(dtype)
        assert oracle.exact_hsic(x, y) == oracle.u_statistic(x, y)
        assert oracle.exact_hsic(x, x) == oracle.u_statistic(x, x) > 0

    def test_dense_against_exact(self) -> None:
        x, y = cases.Case("small", "", 40, 6, 5).arrays("fp64")
        for a, b in ((x, y), (x, x), (y, y)):
            bounds.assert_relative(float(oracle.dense_hsic(a, b)), float(oracle.exact_hsic(a, b)), bounds.FIRST_FP64)
        bounds.assert_relative(oracle.dense_cka(x, y), oracle.exact_cka(x, y), bounds.FIRST_FP64)

    def test_the_exact_oracle_does_not_see_an_offset(self) -> None:
        x, y = cases.INTEGERS.arrays("fp64")
        x, y = x[:20, :5], y[:20, :4]
        assert oracle.exact_hsic(x + 2.0**40, y - 2.0**39) == oracle.exact_hsic(x, y)

    def test_biased_is_the_norm_of_the_cross_covariance(self) -> None:
        x, y = cases.Case("small", "", 40, 6, 5).arrays("fp64")
        cross = (x - x.mean(0)).T @ (y - y.mean(0))
        bounds.assert_relative(oracle.biased_hsic(x, y), float((cross**2).sum()) / 39**2, bounds.SAME_FP64)

    def test_feature_corrected_sums_to_the_plain_one(self) -> None:
        x, y = cases.Case("few", "", 12, 4, 3).arrays("fp64")
        mean = float(oracle.feature_corrected_hsic(x, y))
        bounds.assert_relative(mean * 12, float(oracle.dense_hsic(x, y)), bounds.SAME_FP64)

    def test_moments_of_two_rows_by_hand(self) -> None:
        x, y = np.array([[1.0, 2.0], [3.0, 5.0]]), np.array([[2.0], [7.0]])
        got = oracle.moments(x, y, np.array([1.0, 1.0]), np.array([1.0]))
        # rows about the pivot are (0, 1), (2, 4) and 1, 6; their squared norms 1, 20 and 1, 36
        want = {
            "n": 2, "sum_x": [2, 5], "sxx": [[4, 8], [8, 17]], "weighted_xx": [40, 81], "norms_xx": 401,
            "cubes_x": [8, 65], "fourths_x": [16, 257], "sum_y": [7], "syy": [[37]], "weighted_yy": [217],
            "norms_yy": 1297, "cubes_y": [217], "fourths_y": [1297], "sxy": [[12], [25]],
            "weighted_xy": [72, 145], "weighted_yx": [121], "norms_xy": 721,
        }  # fmt: skip
        assert got.keys() == want.keys()
        for key, value in want.items():
            assert np.array_equal(np.asarray(got[key], np.float64), np.array(value, np.float64)), key


class TestPoison:
    @pytest.mark.skipif(not poison.available(), reason="only glibc can fill fresh memory")
    def test_fresh_memory_is_poisoned(self) -> None:
        with poison.poisoned_allocations():
            fresh = np.empty(5000, np.uint8)
        # the allocator writes its own links into the first and the last words of a block
        assert (fresh[64:-64] == poison.FILL).all()

    @pytest.mark.parametrize("dtype", list(cases.DTYPES.values()), ids=list(cases.DTYPES))
    def test_the_fill_ruins_a_sum(self, dtype: np.dtype) -> None:
        value = float(np.full(8, poison.FILL, np.uint8).view(dtype)[0])
        assert not abs(value) < 1e38


class TestCases:
    def test_names_are_unique_and_say_what_they_catch(self) -> None:
        every = [*cases.RAGGED_FEATURES, *cases.RAGGED_ROWS, *cases.EXTREMES, cases.INTEGERS, cases.TYPICAL]
        assert len({case.name for case in every}) == len(every)
        assert all(case.catches for case in every)

    @pytest.mark.parametrize(("case", "dtype"), cases.with_dtypes(cases.EXTREMES), ids=str)
    def test_extremes_are_finite_and_repeatable(self, case: cases.Case, dtype: str) -> None:
        x, y = case.arrays(dtype)
        assert x.shape == (case.n, case.p)
        assert y.shape == (case.n, case.q)
        assert np.isfinite(x.astype(np.float64)).all()
        assert np.isfinite(y.astype(np.float64)).all()
        assert not x.flags.writeable

    def test_layouts_hold_the_same_values(self) -> None:
        x, _ = cases.TYPICAL.arrays("fp32")
        for name, view in backends.layouts(x).items():
            assert np.array_equal(view, x), name

    def test_unaligned_is_unaligned(self) -> None:
        made = backends.layouts(cases.TYPICAL.arrays("fp32")[0])
        assert made["unaligned_by_one_byte"].ctypes.data % 4 == 1
        assert made["offset_by_one_element"].ctypes.data % 16 == 4


class TestMemory:
    def test_sees_an_allocation_that_is_gone_at_the_end(self) -> None:
        size = 64 << 20
        peak = memory.peak_extra_bytes("", f"np.ones({size}, np.uint8).sum()", "np.ones(10).sum()")
        # the kernel counts pages in batches, some of which it may not have added up yet
        assert size - bounds.MEMORY_SLACK_BYTES <= peak <= bounds.MEMORY_FACTOR * size + bounds.MEMORY_SLACK_BYTES

    def test_sees_nothing_where_there_is_nothing(self) -> None:
        peak = memory.peak_extra_bytes("x = np.ones(64 << 20, np.uint8)", "x.sum()", "x[:10].sum()")
        assert peak <= bounds.MEMORY_SLACK_BYTES

    def test_a_failing_child_fails_the_test(self) -> None:
        with pytest.raises(AssertionError, match="on purpose"):
            memory.run("raise ValueError('on purpose')")

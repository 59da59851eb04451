"""The numbers and rules the tests judge by: no test file holds a tolerance. Their own tests are in test_support.py."""

from __future__ import annotations

import numpy as np

# the promise of the project: relative error of unbiased CKA whatever the offset of the data
FIRST_FP32 = 1e-6
FIRST_FP64 = 1e-12
FIRST_OFFSETS = (0.0, 1.0, 1e2, 1e4)

# a kernel against the naive expression evaluated in its own compute dtype
VALUE_FACTOR = 2.0
GRADIENT_FACTOR = 3.0
# naive can be right by luck (n = 1, integers): this many units in the last place are always granted
FLOOR_ULPS = 4.0

# float64 algebra on states (merge, translate): units in the last place of the sum of the absolute values of all terms
ALGEBRA_ULPS = 64.0
# the mean of 64 rows, summed in float64 in any order, then rounded once to the dtype of the rows
PIVOT_ULPS = 2.0
PIVOT_TERMS = 64.0
# a CKA of well conditioned data in units of that algebra: its terms are this much larger than their sum
CKA_TERMS = 100.0
# a CKA computed from two routes in float64 on well conditioned data
SAME_FP64 = 1e-11
# invariances hold on data that is itself rounded again (rotated, scaled), so the bound is that of the input dtype
INVARIANCE_FP32 = 1e-5
INVARIANCE_FP64 = 1e-10
# a minimum counts as independent of the noise of the draw within this many standard errors
STANDARD_ERRORS = 3.0
# a seeded simulation whose own test has a p-value below this contradicts what is simulated
LEAST_PVALUE = 1e-3
# least share of 95 % intervals that hold the truth, of 200 or more
COVERAGE = 0.9
# what such intervals should hold, and how far a share of simulations may be from it, in standard deviations
NOMINAL_COVERAGE = 0.95
COVERAGE_DEVIATIONS = 2.0
# a mean standard error against the spread that it is an estimate of, over 100 or more draws
STDERR_FACTOR = 1.3
# an interval of two standard errors holds the truth in 95 of 100 draws; fewer than this show that they are too small
LEAST_COVERAGE = 0.9
# mean KL of 1e-4 between models in float32, against float64
NEAR_EQUAL_KL = 1e-3
# relative error promised for the logit distance of a row, however near the models are; and what cancelling may cost
# where nothing better is to be had, in units of the rounding of float64 times the terms that cancel
LOGIT_DISTANCE = 1e-6
CANCELLED_ULPS = 32.0
# an iteration that has converged, against the closed form
ITERATED = 1e-5
# measures of two models that are 0 for equal predictions, in float64
SAME_CLASS = 1e-10
# an inequality that rounding may overstep by this share
INEQUALITY = 1e-9
# figures from another seed of the same construction
RESEEDED = 0.03
# a figure in the documents, in units of its last digit
PRINTED_UNITS = 1.0
# closed forms that hold only in the limit (p, n large; c to infinity)
LIMIT = 0.02
# the same where the distance to the limit is itself below this
SHARP_LIMIT = 1e-4

# a quantile of a sketch, as it promises
SKETCH = 0.01

# what a GPU kernel rounds data to, relative to x - pivot: one bfloat16, or the sum of two, whose lower half has 2^-9 of
# the half that it is the rest of
ROUNDING = {"fast": 2.0**-8, "high": 2.0**-17, "exact": 0.0}
# products of two lower halves are left out
LEFT_OUT = {"fast": 0.0, "high": 2.0**-16, "exact": 0.0}
# one digit of float32, cut off at each 16 rows by a matrix unit, or rounded at each row
FLOAT32_STEP = 2.0**-24
# Numbers that one sum in float32 adds up in a CPU's sums of kernel values, and what that may lose if they are equal, as
# a share of them: addition i rounds a sum of i of these numbers, whatever the instruction set, by at most one step of
# it, 2 / 8 + 3 / 8 + .. + 8 / 8 steps of the whole; squares are rounded themselves, one step more.
GRAM_RUN = 8
GRAM_RUN_LOSS = (1 + sum(range(2, GRAM_RUN + 1)) / GRAM_RUN) * FLOAT32_STEP
# the promise for CKA of a GPU in its default precision, whatever the data
CKA_HIGH = 1e-4
# the same of data without cancellation but for rows that are far longer: some units of the rounding of the others,
# which are many; with these rows in sums of float32 it would be 10 times as much and more
CKA_LONG_ROWS = {"fast": 1e-4, "high": 1e-6}

# memory: allocator slack and the interpreter's own growth, beside the formula of the kernel
MEMORY_SLACK_BYTES = 4 << 20
MEMORY_FACTOR = 1.1
# of the bytes of tensors, which the interpreter counts one by one: those of a few numbers for each column
INTERPRETED_MEMORY_SHARE = 0.02


def bound_for(dtype: object) -> float:
    """Relative error promised for unbiased CKA of rows of this dtype (16-bit rows multiply in float32)."""
    return FIRST_FP64 if np.dtype(dtype) == np.float64 else FIRST_FP32


def invariance_for(dtype: object) -> float:
    return INVARIANCE_FP64 if np.dtype(dtype) == np.float64 else INVARIANCE_FP32


def assert_coverage(inside: object, what: str = "coverage") -> None:
    """The share of these intervals that hold the truth is the nominal one, within the noise of their number."""
    held = np.asarray(inside)
    share, noise = float(held.mean()), np.sqrt(NOMINAL_COVERAGE * (1 - NOMINAL_COVERAGE) / held.size)
    assert abs(share - NOMINAL_COVERAGE) <= COVERAGE_DEVIATIONS * noise, f"{what}: {share:.3f} of {held.size} intervals"


def algebra(cancellation: float) -> float:
    """What float64 algebra may lose where the terms are this many times larger than their sum."""
    return ALGEBRA_ULPS * float(np.finfo(np.float64).eps) * cancellation


def relative_error(got: float, truth: float) -> float:
    """|got - truth| / |truth|; a NaN or a wrong sign of infinity gives infinity."""
    error = abs(float(got) - float(truth))
    if not np.isfinite(error):
        return float("inf")
    if error == 0.0:
        return 0.0
    return error / abs(float(truth)) if float(truth) != 0.0 else float("inf")


def assert_relative(got: float, truth: float, bound: float, what: str = "value") -> None:
    error = relative_error(got, truth)
    assert error <= bound, (
        f"{what}: got {float(got)!r}, expected {float(truth)!r}: relative error {error:.3g} > {bound:.3g}"
    )


def assert_absolute(got: float, truth: float, bound: float, what: str = "value") -> None:
    error = abs(float(got) - float(truth))
    assert error <= bound, f"{what}: got {float(got)!r}, expected {float(truth)!r}: error {error:.3g} > {bound:.3g}"


def scaled_error(got: object, truth: object, scale: object) -> float:
    """Largest |got - truth| / scale over the elements. Shapes must agree exactly: broadcasting hides mistakes."""
    g, t, s = (np.asarray(a) for a in (got, truth, scale))
    assert g.shape == t.shape == s.shape, f"shapes differ: got {g.shape}, truth {t.shape}, scale {s.shape}"
    assert g.size, "nothing to compare"
    g, t, s = (a.astype(np.longdouble) for a in (g, t, s))
    assert np.isfinite([t, s]).all(), "the truth or its scale is not finite"
    assert (s >= 0).all(), "the scale is negative"
    if not np.isfinite(g).all():
        return float("inf")
    error = np.abs(g - t)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(error == 0, np.longdouble(0), error / s)
    return float(ratio.max())


def assert_no_worse_than_naive(
    kernel: object,
    truth: object,
    naive: object,
    *,
    compute: object,
    factor: float = VALUE_FACTOR,
    scale: object = None,
    terms: int = 1,
    what: str = "value",
) -> None:
    """The error of ``kernel`` against ``truth`` is at most ``factor`` times that of ``naive``, plus a tiny floor.

    ``scale`` is the same shape as truth: the sum of the absolute values of the terms that make each element, so that an
    element that cancels to nothing is not asked for relative accuracy. Without it, each element is its own scale.
    ``terms`` is how many terms are summed: one naive sum may come out exact by luck, so that the walk of that many
    float64 roundings is always granted.
    """
    spread = np.abs(np.asarray(truth).astype(np.longdouble)) if scale is None else scale
    allowed = scaled_error(naive, truth, spread)
    assert np.isfinite(allowed), f"{what}: the naive value is itself not finite, so it allows everything"
    walk = float(np.sqrt(terms)) * float(np.finfo(np.float64).eps)
    floor = FLOOR_ULPS * float(np.finfo(np.dtype(compute)).eps) + walk
    error = scaled_error(kernel, truth, spread)
    assert error <= factor * allowed + floor, (
        f"{what}: error {error:.3g} against {allowed:.3g} of the naive expression (factor {factor}, floor {floor:.3g})"
    )


def assert_within_algebra(
    got: object, truth: object, scale: object, what: str = "value", ulps: float = ALGEBRA_ULPS
) -> None:
    """Equal up to float64 rounding of the terms whose absolute values sum to ``scale``."""
    error = scaled_error(got, truth, scale)
    bound = ulps * float(np.finfo(np.float64).eps)
    assert error <= bound, f"{what}: error {error:.3g} of the sum of absolute terms, allowed {bound:.3g}"


def assert_pivot_rounding(got: object, truth: object, spread: object, dtype: object) -> None:
    """A median that was rounded to `dtype`; `spread` is the mean of the absolute values."""
    error = scaled_error(got, truth, spread)
    bound = PIVOT_ULPS * float(np.finfo(np.dtype(dtype)).eps) + PIVOT_TERMS * float(np.finfo(np.float64).eps)
    assert error <= bound, f"pivot: error {error:.3g} of the mean absolute value, allowed {bound:.3g}"


def assert_same_bits(got: object, want: object, what: str = "value") -> None:
    """Equal to the last bit, shape and dtype included; NaN equals NaN of the same bits."""
    g, w = np.asarray(got), np.asarray(want)
    assert (g.dtype, g.shape) == (w.dtype, w.shape), f"{what}: {g.dtype} {g.shape} against {w.dtype} {w.shape}"
    same = g.tobytes() == w.tobytes()
    assert same, f"{what}: differs in the last bits, largest difference {np.abs(g - w).max():.3g}"


def assert_same_dicts(got: dict, want: dict, what: str = "state") -> None:
    assert got.keys() == want.keys(), f"{what}: keys differ: {sorted(got.keys() ^ want.keys())}"
    for key in want:
        if isinstance(want[key], str):
            assert got[key] == want[key], f"{what}.{key}"
        else:
            assert_same_bits(got[key], want[key], f"{what}.{key}")


def rounded_once(precision: str, order: int, rows: int) -> float:
    """What a sum over rows of products of `order` values may lose, as a share of the sum of the absolute terms.

    Each value is rounded once, two low halves never meet, and the rest is float32: x - pivot, a product, and sums.
    """
    values = (1.0 + ROUNDING[precision]) ** order - 1.0
    return values + LEFT_OUT[precision] + (2 * order + rows) * FLOAT32_STEP


def assert_rounded_once(got: object, truth: object, scale: object, bound: float, what: str) -> None:
    error = scaled_error(got, truth, scale)
    assert error <= bound, f"{what}: error {error:.3g} of the sum of absolute terms, allowed {bound:.3g}"

"""Sums over labels of a row: of one tile in the number of its logits, and joined with those of others in float64.

Of a model a tuple: the largest logit m, the lowest place that has it, whether something is not finite, the logit of the
target, sum e^(z - m), sum e^(z - m) z, and what else is weighted by e^(z - m). Of the difference of two models another:
number of labels, mean and the square about it as Chan, Golub and LeVeque (1983) merge them, sum and maximum of sizes.
A row without labels so far has the largest logit -LARGEST and sums of 0, so that nothing becomes NaN.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .tile_values import exp_below

LARGEST = tl.constexpr(1.7976931348623157e308)
_LARGEST_FLOAT32 = tl.constexpr(3.4028234663852886e38)
# beyond every place
_NOWHERE = tl.constexpr(2**31 - 1)


@triton.jit
def above(z):  # [BLOCK_N, BLOCK_V]
    """Return the largest logit of each row, the logits less it, 0 for -inf, their powers of e, and which are -inf."""
    least: tl.constexpr = LARGEST if z.dtype == tl.float64 else _LARGEST_FLOAT32
    m = tl.maximum(tl.max(z, axis=1), -least)
    a = z - m[:, None]
    # also where finite logits are that far apart
    gone = a == float("-inf")
    e = tl.where(gone, 0.0, exp_below(a))
    return m, tl.where(gone, 0.0, a), e, gone


@triton.jit
def place_of(z, m, place):
    """Return the lowest place of the largest logit of each row, the first where all are -inf."""
    found = tl.min(tl.where(z == m[:, None], place[None, :], _NOWHERE), axis=1)
    return tl.where(found == _NOWHERE, 0, found).to(tl.float64)


@triton.jit
def wide(value, m, total):
    """Return a sum of e^(z - m) (value - m) as that of e^(z - m) value, given the sum of the first factor."""
    return value.to(tl.float64) + m.to(tl.float64) * total.to(tl.float64)


@triton.jit
def any_of(flags):
    """Return 1 for each row in which one is true."""
    return tl.max(flags.to(tl.int32), axis=1).to(tl.float64)


@triton.jit
def join_tops(m, top, m_other, top_other):
    """Return the larger logit and its place, and what sums about either are multiplied by; the others come later."""
    most = tl.maximum(m, m_other)
    return most, tl.where(m_other > m, top_other, top), exp_below(m - most), exp_below(m_other - most)


@triton.jit
def target_of(z, goal, place, inside):  # [BLOCK_N, BLOCK_V], [BLOCK_N], [BLOCK_V], [BLOCK_V]
    """Return the logit of the target of each row, NaN if it is at none of these places."""
    hit = (goal[:, None] == place[None, :]) & inside[None, :]
    logit = tl.sum(tl.where(hit, z, 0.0), axis=1).to(tl.float64)
    return tl.where(any_of(hit) > 0, logit, float("nan"))


@triton.jit
def join_targets(target, other):
    """Return the logit of a target, NaN where neither has one."""
    return tl.where(other == other, other, target)


@triton.jit
def join_squares(count, mean, square, count_other, mean_other, square_other):
    """Return the number of labels, their mean, and the sum of squares about it."""
    labels = count + count_other
    step = mean_other - mean
    share = tl.where(labels > 0, count_other / tl.maximum(labels, 1.0), 0.0)
    return labels, mean + step * share, square + square_other + step * step * (count * share)


@triton.jit
def squares_of(delta, counted, most, labels):  # [BLOCK_N, BLOCK_V], [BLOCK_N, BLOCK_V], [BLOCK_N], [BLOCK_N]
    """Return the mean of those that count, and the sum of squares about it; the others are 0."""
    some = tl.maximum(labels, 1.0)
    middle = (tl.sum(delta, axis=1).to(tl.float64) / some).to(delta.dtype)
    unit = unit_of(most)
    # in units of a power of 2, of which squares neither overflow nor vanish
    off = tl.where(counted, delta - middle[:, None], 0.0) * (1.0 / unit)[:, None]
    unit = unit.to(tl.float64)
    # the mean was rounded: what the sum about it leaves puts it and the square right
    left = tl.sum(off, axis=1).to(tl.float64) / some
    square = tl.sum(off * off, axis=1).to(tl.float64) - left * left * labels
    return middle.to(tl.float64) + left * unit, square * (unit * unit)


@triton.jit
def unit_of(most):
    """Return the power of 2 of the largest size of each row, one that has an inverse."""
    if most.dtype == tl.float64:
        unit = (most.to(tl.int64, bitcast=True) & 0x7FF0000000000000).to(tl.float64, bitcast=True)
        unit = tl.minimum(tl.maximum(unit, 4.450147717014403e-308), 4.49423283715579e307)
    else:
        unit = (most.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
        unit = tl.minimum(tl.maximum(unit, 2.3509887016445750e-38), 8.507059173023462e37)
    return unit


@triton.jit
def load_fields(ptr, stride_field, mask, COUNT: tl.constexpr):
    """Return numbers of rows, each field behind the one before it."""
    values = ()
    for field in tl.static_range(COUNT):
        values += (tl.load(ptr + field * stride_field, mask=mask),)  # type: ignore[assignment]
    return values


@triton.jit
def store_fields(ptr, stride_field, values, mask, COUNT: tl.constexpr):
    """Write numbers of rows, each field behind the one before it."""
    for field in tl.static_range(COUNT):
        tl.store(ptr + field * stride_field, values[field], mask=mask)

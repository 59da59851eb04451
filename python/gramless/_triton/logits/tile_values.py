"""Logits of tiles, and the sums of a row of a tile over its labels.

z = softcap(raw + bias) / temperature, -inf for labels that cannot be. Exponentials and sums over a row of a tile are in
the number of z, float32 or float64; what several tiles give is joined in float64 (`_logit_sums`). Of KL, only what
differs from the larger logits is summed: E_p delta and the difference of the log normalisers are about the same shift.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..gram.kernel_functions import exp2_less

_LOG2_E = tl.constexpr(1.4426950408889634)

# 1 / ((k + 1) (2 k + 1)), of the series of what mixing two probabilities takes from their entropy
_TERMS = 14
_SERIES = tl.constexpr(tuple(1.0 / ((k + 1) * (2 * k + 1)) for k in range(_TERMS + 1)))
_LAST = tl.constexpr(_TERMS)
# numerator and denominator of tanh(x) / x in squares of x, to 1e-17 below 1/2
_TANH = tl.constexpr((34459425.0, 4729725.0, 135135.0, 990.0, 1.0))
_TANH_UNDER = tl.constexpr((34459425.0, 16216200.0, 945945.0, 13860.0, 45.0))


@triton.jit
def number(bits):
    """Return the float64 of these bits: a float that is an argument of a kernel would be rounded to float32."""
    return tl.cast(bits, tl.int64).to(tl.float64, bitcast=True)


@triton.jit
def exp_below(a):
    """Return e^a for a <= 0."""
    return exp2_less(a * _LOG2_E, 0)


@triton.jit
def logits_of(raw, bias, inside, cap, scale, CAPPED: tl.constexpr, GIVEN: tl.constexpr):
    """Return z, -inf where a label cannot be or is outside, and where it is not finite, with 0 for it.

    A label that a bias masks is -inf, whatever logit is given; products of weights must be finite all the same.
    """
    masked = bias == float("-inf")
    # true of no NaN and no infinity
    fit = tl.abs(raw) < float("inf")
    if GIVEN:
        absent = raw == float("-inf")
        masked = masked | absent
        fit = fit | absent
    value = raw + bias
    if CAPPED:
        value = tanh(value / cap) * cap
    value = value * scale
    odd = inside & ~(fit & (masked | (tl.abs(value) < float("inf"))))
    z = tl.where(inside & ~masked, value, float("-inf"))
    return tl.where(odd, 0.0, z), odd


@triton.jit
def tanh(x):
    """Return tanh(x), with all digits near 0."""
    size = tl.abs(x)
    square = tl.minimum(size, 1.0)
    square = square * square
    over = square * 0.0 + _TANH[4]
    under = square * 0.0 + _TANH_UNDER[4]
    for k in tl.static_range(4):
        over = over * square + _TANH[3 - k]
        under = under * square + _TANH_UNDER[3 - k]
    e = exp_below(-2.0 * size)
    far = (1.0 - e) / (1.0 + e)
    found = tl.where(size < 0.5, size * (over / under), far)
    return tl.where(x < 0, -found, found)


@triton.jit
def read_logits(head, chunk, place, inside, KIND: tl.constexpr, CAPPED: tl.constexpr, GIVEN: tl.constexpr):
    """Return logits of rows and of labels at some places, [BLOCK_N, BLOCK_V], as `logits_of`.

    Those that are given lie where their row and label say, products in the chunk, which has room for a whole tile more.

    Parameters
    ----------
    head : tuple
        Logits or products and their strides, biases of the labels that count, bits of the cap.
    chunk : tuple
        Labels that count, rows as `row_places` has them, the first place of the chunk, bits of the scale.
    """
    z_ptr, stride_zn, stride_zv, b_ptr, cap_bits = head
    labels_ptr, local, source, first_label, scale_bits = chunk
    if GIVEN:
        column = place.to(tl.int64)
        if labels_ptr is not None:
            column = tl.load(labels_ptr + place, mask=inside, other=0)
        raw = tl.load(
            z_ptr + (source[:, None] * stride_zn + column[None, :] * stride_zv), mask=inside[None, :], other=0.0
        )
    else:
        raw = tl.load(z_ptr + (local[:, None] * stride_zn + (place - first_label)[None, :]))
    bias = tl.zeros_like(place).to(KIND)
    if b_ptr is not None:
        bias = tl.load(b_ptr + place)
    cap = number(cap_bits).to(KIND)
    scale = number(scale_bits).to(KIND)
    return logits_of(raw.to(KIND), bias[None, :], inside[None, :], cap, scale, CAPPED, GIVEN)


@triton.jit
def row_places(rows_ptr, first_row, rows, BLOCK_N: tl.constexpr):
    """Return numbers in the chunk of the rows of this program, where in an array they lie, and which there are."""
    offs_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    local = tl.minimum(offs_n, rows - 1).to(tl.int64)
    source = first_row + local
    if rows_ptr is not None:
        source = tl.load(rows_ptr + source)
    return local, source, offs_n < rows


@triton.jit
def label_at(labels_ptr, place, mask):
    """Return the label at a place among those that count."""
    label = place.to(tl.int64)
    if labels_ptr is not None:
        label = tl.load(labels_ptr + label, mask=mask, other=0)
    return label


@triton.jit
def divergence_terms(z1, z2, lse_p, lse_q):  # [BLOCK_N, BLOCK_V], float64 [BLOCK_N]
    """Return what each label adds to 4 JS and 2 TV, given log normalisers over all labels."""
    # the shifts are rounded, which leaves their differences exact; what rounding took goes off afterwards
    shift1, shift2 = lse_p.to(z1.dtype), lse_q.to(z1.dtype)
    left1, left2 = lse_p - shift1.to(tl.float64), lse_q - shift2.to(tl.float64)
    a, b = z1 - shift1[:, None], z2 - shift2[:, None]
    top = tl.maximum(a - left1.to(z1.dtype)[:, None], b - left2.to(z1.dtype)[:, None])
    gap = tl.abs((a - b) - (left1 - left2).to(z1.dtype)[:, None])
    # a label that cannot be in either model has probability 0 in both
    none = top == float("-inf")
    less = tl.where(none, 0.0, tl.where(gap == float("inf"), -1.0, exp2_less(gap * -_LOG2_E, 1)))
    most = tl.where(none, 0.0, exp_below(tl.minimum(top, 0.0)))
    # of the larger probability: the other one is (1 + less) times it, both together are `both` times it
    both = less + 2.0
    lost = entropy_lost(-less / both, (less + 1.0) * 2.0 / both, 2.0 / both)
    return most * both * lost, most * -less


@triton.jit
def entropy_lost(x, below, above):
    """Return (1 - x) ln(1 - x) + (1 + x) ln(1 + x) for 0 <= x <= 1, given 1 - x and 1 + x with all their digits."""
    square = x * x
    series = square * 0.0 + _SERIES[_LAST]
    for k in tl.static_range(_LAST):
        series = series * square + _SERIES[_LAST - 1 - k]
    logs = tl.where(below > 0, below * tl.log(tl.where(below > 0, below, 1.0)), 0.0) + above * tl.log(above)
    return tl.where(x < 0.3, series * square, logs)

"""Bandwidths by rule: two order statistics of the squared distances of each layer, exact, where these are.

The bits of numbers that are not negative are in their order: digits of 8 bits are fixed one after the other, the
highest first, by a histogram of the values that agree so far.
Cost: reads the m values of a layer 5 times, those of float64 9 times, from the cache where they fit it; no extra bytes.
Numerics: the middle values are those of a sort; roots and means are float64. NaN is above all, and its row is refused.
Rejected: a sort, which moves every value several times and takes as many bytes again.
"""

from __future__ import annotations

import triton
import triton.language as tl

# values that a program takes at a time
BLOCK = 4096
RULES = {"median": False, "kornblith": True}
_DIGIT = tl.constexpr(8)
_VALUES = tl.constexpr(256)


@triton.jit
def _bits(values_ptr, start, m, BLOCK: tl.constexpr):
    """Values as whole numbers of the same order, and which of them there are."""
    offs = (start + tl.arange(0, BLOCK)).to(tl.int64)
    # there is room behind the last value, so that a load takes four together
    value = tl.load(values_ptr + offs, mask=offs // 4 * 4 < m, other=0.0)
    if value.dtype == tl.float64:
        bits = value.to(tl.int64, bitcast=True)
    else:
        bits = value.to(tl.int32, bitcast=True)
    return bits, offs < m


@triton.jit(do_not_specialize=["m", "low", "high"])
def _width_kernel(
    values_ptr,
    widths_ptr,
    lacking_ptr,
    scale_ptr,
    stride,
    m,
    low,
    high,
    OF_SQUARES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    layer = tl.program_id(0)
    kind: tl.constexpr = values_ptr.dtype.element_ty
    size: tl.constexpr = kind.primitive_bitwidth
    values_ptr += layer.to(tl.int64) * stride
    zero = tl.program_id(1)
    prefix = (zero.to(tl.int64) if size == 64 else zero).to(tl.int64 if size == 64 else tl.int32)
    # below 0 are the zeros of the diagonal
    rank = tl.maximum(low, 0)
    for step in tl.static_range(size // _DIGIT):
        shift = size - _DIGIT * (step + 1)
        counts = tl.zeros((_VALUES,), dtype=tl.int64)
        for start in range(0, m, BLOCK):
            bits, mask = _bits(values_ptr, start, m, BLOCK)
            if step > 0:
                mask = mask & ((bits >> (shift + _DIGIT)) == prefix)
            digits = ((bits >> shift) & (_VALUES - 1)).to(tl.int32)
            counts += tl.histogram(digits, _VALUES, mask=mask).to(tl.int64)
        # all values that are smaller are passed
        passed = tl.cumsum(counts, axis=0) <= rank
        digit = tl.sum(passed.to(tl.int32), axis=0)
        rank -= tl.sum(tl.where(passed, counts, 0), axis=0)
        prefix = prefix * _VALUES + digit
    first = prefix.to(kind, bitcast=True)
    # the next one is the same again, or the least that is larger
    none: tl.constexpr = 2 ** (size - 1) - 1
    upto = tl.zeros((BLOCK,), dtype=tl.int64)
    least = tl.zeros((BLOCK,), dtype=prefix.dtype) + none
    largest = tl.zeros((BLOCK,), dtype=prefix.dtype)
    for start in range(0, m, BLOCK):
        bits, mask = _bits(values_ptr, start, m, BLOCK)
        upto += (mask & (bits <= prefix)).to(tl.int64)
        least = tl.minimum(least, tl.where(mask & (bits > prefix), bits, none))
        largest = tl.maximum(largest, tl.where(mask, bits, 0))
    repeated = (tl.sum(upto, axis=0) > high) | (low == high)
    second = tl.where(repeated, prefix, tl.min(least, axis=0)).to(kind, bitcast=True)
    first = tl.where(low < 0, 0.0, first.to(tl.float64))
    second = tl.where(high < 0, 0.0, second.to(tl.float64))
    if OF_SQUARES:
        typical = tl.sqrt((first + second) / 2)
    else:
        typical = (tl.sqrt(first) + tl.sqrt(second)) / 2
    # all rows equal: a constant kernel, whatever the width
    lacking = (typical == 0) & (tl.max(largest, axis=0) > 0)
    tl.store(lacking_ptr + layer, lacking.to(tl.float64))
    tl.store(widths_ptr + layer, tl.where(typical == 0, 1.0, tl.load(scale_ptr) * typical))


def places(m: int, rule: str) -> tuple[int, int]:
    """Return where among the sorted squared distances of m rows the two middle ones are; below 0 are zeros."""
    if rule == "median":
        count = m * (m - 1) // 2
        return (count - 1) // 2, count // 2
    # of m^2 squares m are the zeros of the diagonal, all others come twice
    first, second = ((index - m) // 2 for index in ((m * m - 1) // 2, m * m // 2))
    return first, second

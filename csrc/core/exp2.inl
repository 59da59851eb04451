// The exponential of vectors for one instruction set level.
//
// numerics: 2^t = 2^k 2^r for whole k and |r| <= 1 / 2; of 2^r - 1 the largest relative error is 1.3e-7 in float and
// 3e-16 in double, rounding included.
#pragma once

#include "core/simd.hpp"

namespace gramless::GRAMLESS_LEVEL {

template <class T>
struct ExpTable;

// A sum with kRound is rounded to a whole number, which it leaves in the lowest bits with the bias of exponents.
// kLowest is the lowest power of two that is no subnormal number.
template <>
struct ExpTable<float> {
    using Bits = std::uint32_t;
    static constexpr int kMantissa = 23, kTerms = 6;
    static constexpr float kLowest = -126.0f, kRound = 0x1.8p23f + 127;
    // of all polynomials of this degree without a constant term, that of the least relative error of 2^r - 1
    static constexpr float kTerm[kTerms + 1] = {
        0, 0x1.62e43p-1f, 0x1.ebfbdep-3f, 0x1.c6af6ep-5f, 0x1.3b2bap-7f, 0x1.5f07b4p-10f, 0x1.4308fap-13f};
};

constexpr double kLn2 = 0.693147180559945309417;

// ln(2)^k / k!
constexpr double exp2_term(int k) {
    return k == 0 ? 1 : exp2_term(k - 1) * kLn2 / k;
}

template <>
struct ExpTable<double> {
    using Bits = std::uint64_t;
    static constexpr int kMantissa = 52, kTerms = 13;
    static constexpr double kLowest = -1022.0, kRound = 0x1.8p52 + 1023;
    static constexpr double kTerm[kTerms + 1] = {0,
                                                 exp2_term(1),
                                                 exp2_term(2),
                                                 exp2_term(3),
                                                 exp2_term(4),
                                                 exp2_term(5),
                                                 exp2_term(6),
                                                 exp2_term(7),
                                                 exp2_term(8),
                                                 exp2_term(9),
                                                 exp2_term(10),
                                                 exp2_term(11),
                                                 exp2_term(12),
                                                 exp2_term(13)};
};

// 2^t - offset for t <= 0 and offset 0 or 1, in the latter case with all digits near t = 0; NaN stays NaN
template <class T, int N>
inline Vector<T, N> exp2_less(Vector<T, N> t, T offset) {
    using Table = ExpTable<T>;
    using Bits = Vector<typename Table::Bits, N>;
    t = t < Table::kLowest ? broadcast<T, N>(Table::kLowest) : t;
    const auto shifted = t + Table::kRound;
    const auto r = t - (shifted - Table::kRound);
    auto series = broadcast<T, N>(Table::kTerm[Table::kTerms]);
#pragma GCC unroll 16
    for (int term = Table::kTerms - 1; term > 0; --term)
        series = series * r + Table::kTerm[term];
    const auto power = (Vector<T, N>)((Bits)shifted << Table::kMantissa);
    return power * (series * r) + (power - offset);
}

}  // namespace gramless::GRAMLESS_LEVEL

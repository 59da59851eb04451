// The logarithm of vectors for one instruction set level.
//
// numerics: x = 2^k m with m from sqrt(1/2) to sqrt(2), ln m by the series of s = (m - 1) / (m + 1); the largest error
// is 2 roundings of the result, or of 1 near x = 1.
#pragma once

#include "core/simd.hpp"

namespace gramless::GRAMLESS_LEVEL {

constexpr double kLog2E = 1.44269504088896340736;

template <class T>
struct LogTable;

// kLeast: the bits of sqrt(1/2)
template <>
struct LogTable<float> {
    using Bits = std::int32_t;
    static constexpr int kMantissa = 23, kTerms = 5;
    static constexpr Bits kLeast = 0x3f3504f3;
};

template <>
struct LogTable<double> {
    using Bits = std::int64_t;
    static constexpr int kMantissa = 52, kTerms = 11;
    static constexpr Bits kLeast = 0x3fe6a09e667f3bcd;
};

// log2 x of x > 0 that are no subnormal numbers
template <class T, int N>
inline Vector<T, N> log2_of(Vector<T, N> x) {
    using Table = LogTable<T>;
    using Bits = Vector<typename Table::Bits, N>;
    const Bits exponents = ((Bits)x - Table::kLeast) >> Table::kMantissa;
    const auto m = (Vector<T, N>)((Bits)x - (exponents << Table::kMantissa));
    const auto s = (m - T(1)) / (m + T(1)), square = s * s;
    auto series = broadcast<T, N>(T(1) / T(2 * Table::kTerms + 1));
#pragma GCC unroll 16
    for (int k = Table::kTerms - 1; k >= 0; --k)
        series = series * square + T(1) / T(2 * k + 1);
    return __builtin_convertvector(exponents, Vector<T, N>) + s * series * static_cast<T>(2 * kLog2E);
}

}  // namespace gramless::GRAMLESS_LEVEL

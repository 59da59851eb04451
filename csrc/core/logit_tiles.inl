// The epilogue of tiles of logits for one instruction set level.
//
// numerics: exponentials and sums over one row of a tile in T, beyond in fp64. E_p delta and the difference of the log
// normalisers are taken about the same shift m1 - m2, so that their difference, KL, keeps its digits. Squares are those
// of deviations scaled by a power of two, which keeps them within the range of T.
#pragma once

#include <cstring>

#include "core/exp2.inl"
#include "core/log2.inl"
#include "core/logit_tiles.hpp"
#include "core/panels.inl"

namespace gramless::GRAMLESS_LEVEL {

template <class T>
constexpr T kInfinity = static_cast<T>(__builtin_inff());

template <class T>
constexpr T kLargest = static_cast<T>(sizeof(T) == 4 ? 3.40282346638528859812e+38 : 1.79769313486231570815e+308);

template <class T, int N>
inline Vector<T, N> larger(Vector<T, N> a, Vector<T, N> b) {
    return a > b ? a : b;
}

template <class T, int N>
inline Vector<T, N> magnitude(Vector<T, N> a) {
    return a < T(0) ? -a : a;
}

// e^a for a <= 0
template <class T, int N>
inline Vector<T, N> exp_below(Vector<T, N> a) {
    return exp2_less<T, N>(a * static_cast<T>(kLog2E), T(0));
}

template <class S, class T>
bool widen_as(const ArrayView& source, std::int64_t row, std::int64_t col, const std::int64_t* index,
              std::int64_t count, T* out) {
    constexpr int kLanes = Shape<T>::kLanes;
    // z - z is 0 for every finite z; -inf counts as 0
    Vector<T, kLanes> odd{};
    T rest = 0;
    std::int64_t j = 0;
    if (!index && source.col_stride == kSourceSize<S>)
        for (; j + kLanes <= count; j += kLanes) {
            const auto z = Widen<S, T, kLanes>::from(source.at(row, col + j));
            store<T, kLanes>(out + j, z);
            odd += z == -kInfinity<T> ? Vector<T, kLanes>{} : z - z;
        }
    for (; j < count; ++j) {
        const T z = element<S, T>(source, row, index ? index[j] : col + j);
        out[j] = z;
        rest += z == -kInfinity<T> ? T(0) : z - z;
    }
    return sum_lanes<T, kLanes>(odd) + rest == T(0);
}

template <class T>
bool widen(const ArrayView& source, std::int64_t row, std::int64_t col, const std::int64_t* index, std::int64_t count,
           T* out) {
    switch (source.dtype) {
        case DType::kF16:
            return widen_as<Half, T>(source, row, col, index, count, out);
        case DType::kBF16:
            return widen_as<BFloat16, T>(source, row, col, index, count, out);
        case DType::kF32:
            return widen_as<float, T>(source, row, col, index, count, out);
        case DType::kF64:
            return widen_as<double, T>(source, row, col, index, count, out);
    }
    return true;
}

// visit(Count<lanes>(), column) for whole vectors, then for what is left one by one
template <class T, class Visit>
inline void each_column(std::int64_t cols, const Visit& visit) {
    constexpr int kLanes = Shape<T>::kLanes;
    std::int64_t j = 0;
    for (; j + kLanes <= cols; j += kLanes)
        visit(Count<kLanes>(), j);
    if constexpr (kLanes > 1)
        for (; j < cols; ++j)
            visit(Count<1>(), j);
}

template <class T>
void finish_logits(const LogitFinish<T>& finish, T* logits, std::int64_t stride, std::int64_t rows, std::int64_t cols) {
    for (std::int64_t i = 0; i < rows; ++i) {
        T* const row = logits + i * stride;
        each_column<T>(cols, [&](auto lanes, std::int64_t j) {
            constexpr int kN = decltype(lanes)::value;
            auto z = load<T, kN>(row + j);
            if (finish.poisoned) z += z - z;
            if (finish.bias) z += load<T, kN>(finish.bias + j);
            if (finish.cap > 0) {
                // tanh x = (1 - e^(-2 x)) / (1 + e^(-2 x)) for x >= 0
                const auto less =
                    exp2_less<T, kN>(magnitude<T, kN>(z) * static_cast<T>(-2 * kLog2E) / finish.cap, T(1));
                const auto tanh = less / (less + T(2)) * finish.cap;
                const auto capped = z < T(0) ? tanh : -tanh;
                // a label that cannot be stays one
                z = z == -kInfinity<T> ? z : capped;
            }
            store<T, kN>(row + j, z * finish.scale);
        });
    }
}

// Sums over the columns of one row: as many in vectors as in the rest that is no whole vector.
template <class T, int kCount>
struct RowSums {
    static constexpr int kLanes = Shape<T>::kLanes;
    Vector<T, kLanes> vectors[kCount] = {};
    Vector<T, 1> rest[kCount] = {};

    template <int kN>
    Vector<T, kN>& at(int which) {
        if constexpr (kN == kLanes)
            return vectors[which];
        else
            return rest[which];
    }

    double total(int which) const {
        const double sum = static_cast<double>(sum_lanes<T, kLanes>(vectors[which]));
        return kLanes == 1 ? sum : sum + static_cast<double>(rest[which][0]);
    }

    T most(int which) const {
        const T found = largest_lane<T, kLanes>(vectors[which]);
        return rest[which][0] > found ? rest[which][0] : found;
    }
};

// where the largest element of a row is, given the largest of each lane; the lowest place among equals
template <class T>
inline std::int64_t place_of_largest(const T* row, std::int64_t cols, T value,
                                     Vector<T, Shape<T>::kLanes> largest_of_lanes) {
    constexpr int kLanes = Shape<T>::kLanes;
    const std::int64_t whole = cols / kLanes * kLanes;
    std::int64_t found = cols;
    for (std::int64_t lane = 0; lane < kLanes; ++lane)
        if (largest_of_lanes[lane] == value)
            for (std::int64_t j = lane; j < whole && j < found; j += kLanes)
                if (row[j] == value) found = j;
    for (std::int64_t j = whole; j < found; ++j)
        if (row[j] == value) found = j;
    // only NaN, which equals nothing
    return found < cols ? found : 0;
}

template <class T, bool kMasked>
void sums_of(const LogitRows<T>& z, std::int64_t rows, std::int64_t cols, std::int64_t first, const LogitSums& out) {
    for (std::int64_t i = 0; i < rows; ++i) {
        const T* const row = z.data + i * z.stride;
        RowSums<T, 1> most;
        most.vectors[0] = broadcast<T, Shape<T>::kLanes>(-kLargest<T>);
        most.rest[0] = broadcast<T, 1>(-kLargest<T>);
        each_column<T>(cols, [&](auto lanes, std::int64_t j) {
            constexpr int kN = decltype(lanes)::value;
            auto& m = most.template at<kN>(0);
            m = larger<T, kN>(load<T, kN>(row + j), m);
        });
        const T m = most.most(0);
        RowSums<T, 4> sums;
        each_column<T>(cols, [&](auto lanes, std::int64_t j) {
            constexpr int kN = decltype(lanes)::value;
            const auto value = load<T, kN>(row + j);
            auto a = value - m;
            auto e = exp_below<T, kN>(a);
            if constexpr (kMasked) {
                // not of a, which overflows where finite logits are far apart
                sums.template at<kN>(3) += value == -kInfinity<T> ? broadcast<T, kN>(T(1)) : Vector<T, kN>{};
                e = a == -kInfinity<T> ? Vector<T, kN>{} : e;
                a = a == -kInfinity<T> ? Vector<T, kN>{} : a;
            }
            sums.template at<kN>(0) += e;
            sums.template at<kN>(1) += e * a;
            sums.template at<kN>(2) += e * e;
        });
        out.largest[i] = static_cast<double>(m);
        out.sum[i] = sums.total(0);
        out.weighted[i] = sums.total(1) + static_cast<double>(m) * sums.total(0);
        out.squares[i] = sums.total(2);
        out.counted[i] = static_cast<double>(cols) - sums.total(3);
        out.top[i] = first + place_of_largest(row, cols, m, most.vectors[0]);
    }
}

template <class T>
void logit_sums(const LogitRows<T>& z, std::int64_t rows, std::int64_t cols, std::int64_t first, const LogitSums& out) {
    if (z.masked)
        sums_of<T, true>(z, rows, cols, first, out);
    else
        sums_of<T, false>(z, rows, cols, first, out);
}

// the largest power of two that is at most a, where both it and its inverse are in the range of T
template <class T>
inline double power_of_two(T a) {
    constexpr double kMost = sizeof(T) == 4 ? 0x1p126 : 0x1p1000;
    const double value = static_cast<double>(a);
    double found = value < kMost ? value : kMost;
    found = found > 1 / kMost ? found : 1 / kMost;
    std::uint64_t bits;
    std::memcpy(&bits, &found, sizeof bits);
    // the exponent alone
    bits &= std::uint64_t{0x7ff} << 52;
    std::memcpy(&found, &bits, sizeof bits);
    return found;
}

// `value` where z1 or z2 is above -inf, else 0
template <class T, int kN, bool kMasked>
inline Vector<T, kN> counted(Vector<T, kN> z1, Vector<T, kN> z2, Vector<T, kN> value) {
    if constexpr (kMasked) return larger<T, kN>(z1, z2) == -kInfinity<T> ? Vector<T, kN>{} : value;
    return value;
}

template <class T, bool kMasked>
void pair_sums_of(const LogitRows<T>& p, const LogitRows<T>& q, std::int64_t rows, std::int64_t cols,
                  std::int64_t first, const LogitPairSums& out) {
    constexpr int kLanes = Shape<T>::kLanes;
    for (std::int64_t i = 0; i < rows; ++i) {
        const T *const z1 = p.data + i * p.stride, *const z2 = q.data + i * q.stride;
        RowSums<T, 3> most;
        RowSums<T, 3> plain;
        for (int model = 0; model < 2; ++model) {
            most.vectors[model] = broadcast<T, kLanes>(-kLargest<T>);
            most.rest[model] = broadcast<T, 1>(-kLargest<T>);
        }
        each_column<T>(cols, [&](auto lanes, std::int64_t j) {
            constexpr int kN = decltype(lanes)::value;
            const auto a = load<T, kN>(z1 + j), b = load<T, kN>(z2 + j);
            const auto delta = counted<T, kN, kMasked>(a, b, a - b), size = magnitude<T, kN>(delta);
            most.template at<kN>(0) = larger<T, kN>(a, most.template at<kN>(0));
            most.template at<kN>(1) = larger<T, kN>(b, most.template at<kN>(1));
            most.template at<kN>(2) = larger<T, kN>(size, most.template at<kN>(2));
            plain.template at<kN>(0) += delta;
            plain.template at<kN>(1) += size;
            if constexpr (kMasked) plain.template at<kN>(2) += counted<T, kN, kMasked>(a, b, broadcast<T, kN>(T(1)));
        });
        const T m1 = most.most(0), m2 = most.most(1);
        const double labels = kMasked ? plain.total(2) : static_cast<double>(cols), some = labels > 0 ? labels : 1;
        const T middle = static_cast<T>(plain.total(0) / some), most_delta = most.most(2);
        const double unit = power_of_two<T>(most_delta);
        const T scale = static_cast<T>(1 / unit), shift = middle * scale;
        enum { kSum1, kWeighted1, kDelta1, kSum2, kWeighted2, kDelta2, kOff, kSquare, kCount };
        RowSums<T, kCount> sums;
        each_column<T>(cols, [&](auto lanes, std::int64_t j) {
            constexpr int kN = decltype(lanes)::value;
            const auto x = load<T, kN>(z1 + j), y = load<T, kN>(z2 + j);
            auto a = x - m1, b = y - m2;
            auto e1 = exp_below<T, kN>(a), e2 = exp_below<T, kN>(b);
            const auto off = counted<T, kN, kMasked>(x, y, (x - y) * scale - shift);
            auto delta1 = a - b, delta2 = delta1;
            if constexpr (kMasked) {
                const Vector<T, kN> none{};
                delta1 = a == -kInfinity<T> ? none : delta1;
                delta2 = b == -kInfinity<T> ? none : delta2;
                e1 = a == -kInfinity<T> ? none : e1;
                e2 = b == -kInfinity<T> ? none : e2;
                a = a == -kInfinity<T> ? none : a;
                b = b == -kInfinity<T> ? none : b;
            }
            sums.template at<kN>(kSum1) += e1;
            sums.template at<kN>(kWeighted1) += e1 * a;
            sums.template at<kN>(kDelta1) += e1 * delta1;
            sums.template at<kN>(kSum2) += e2;
            sums.template at<kN>(kWeighted2) += e2 * b;
            sums.template at<kN>(kDelta2) += e2 * delta2;
            sums.template at<kN>(kOff) += off;
            sums.template at<kN>(kSquare) += off * off;
        });
        // rounded to T, it would not cancel with the difference of the log normalisers
        const double about = static_cast<double>(m1) - static_cast<double>(m2);
        const bool endless = kMasked && most_delta == kInfinity<T>;
        out.p.largest[i] = static_cast<double>(m1);
        out.q.largest[i] = static_cast<double>(m2);
        out.p.sum[i] = sums.total(kSum1);
        out.q.sum[i] = sums.total(kSum2);
        out.p.weighted[i] = sums.total(kWeighted1) + static_cast<double>(m1) * sums.total(kSum1);
        out.q.weighted[i] = sums.total(kWeighted2) + static_cast<double>(m2) * sums.total(kSum2);
        out.delta_p[i] = sums.total(kDelta1) + about * sums.total(kSum1);
        out.delta_q[i] = sums.total(kDelta2) + about * sums.total(kSum2);
        // the mean was rounded to T: what the sum about it leaves puts it and the square right
        const double left = sums.total(kOff) / some;
        out.mean[i] = endless ? kInfinity<double> : static_cast<double>(middle) + left * unit;
        out.square[i] = endless ? kInfinity<double> : (sums.total(kSquare) - left * left * labels) * unit * unit;
        out.abs[i] = endless ? kInfinity<double> : plain.total(1);
        out.most[i] = static_cast<double>(most_delta);
        out.counted[i] = labels;
        out.p.top[i] = first + place_of_largest(z1, cols, m1, most.vectors[0]);
        out.q.top[i] = first + place_of_largest(z2, cols, m2, most.vectors[1]);
    }
}

template <class T>
void logit_pair_sums(const LogitRows<T>& p, const LogitRows<T>& q, std::int64_t rows, std::int64_t cols,
                     std::int64_t first, const LogitPairSums& out) {
    if (p.masked || q.masked)
        pair_sums_of<T, true>(p, q, rows, cols, first, out);
    else
        pair_sums_of<T, false>(p, q, rows, cols, first, out);
}

// (1 - x) ln(1 - x) + (1 + x) ln(1 + x) for 0 <= x <= 1, given 1 - x and 1 + x with all their digits
template <class T, int kN>
inline Vector<T, kN> entropy_lost(Vector<T, kN> x, Vector<T, kN> below, Vector<T, kN> above) {
    // x^2 sum x^(2 k) / ((k + 1) (2 k + 1)), where the logarithms would cancel
    constexpr int kTerms = sizeof(T) == 4 ? 6 : 14;
    const auto square = x * x;
    auto series = broadcast<T, kN>(T(1) / T((kTerms + 1) * (2 * kTerms + 1)));
#pragma GCC unroll 16
    for (int k = kTerms - 1; k >= 0; --k)
        series = series * square + T(1) / T((k + 1) * (2 * k + 1));
    const auto least = broadcast<T, kN>(kLargest<T> > T(1e300) ? T(1e-300) : T(1e-37));
    const auto logs = below * log2_of<T, kN>(larger<T, kN>(below, least)) + above * log2_of<T, kN>(above);
    return x < T(0.3) ? series * square : logs * static_cast<T>(kLn2);
}

template <class T>
void logit_divergences(const LogitRows<T>& p, const LogitRows<T>& q, const double* lse_p, const double* lse_q,
                       std::int64_t rows, std::int64_t cols, double* js, double* tv) {
    for (std::int64_t i = 0; i < rows; ++i) {
        const T *const z1 = p.data + i * p.stride, *const z2 = q.data + i * q.stride;
        // the shifts are rounded, which leaves their differences exact; what rounding took goes off afterwards
        const T shift1 = static_cast<T>(lse_p[i]), shift2 = static_cast<T>(lse_q[i]);
        const double left1 = lse_p[i] - static_cast<double>(shift1), left2 = lse_q[i] - static_cast<double>(shift2);
        const T rest1 = static_cast<T>(left1), rest2 = static_cast<T>(left2), left = static_cast<T>(left1 - left2);
        RowSums<T, 2> sums;
        each_column<T>(cols, [&](auto lanes, std::int64_t j) {
            constexpr int kN = decltype(lanes)::value;
            const auto a = load<T, kN>(z1 + j) - shift1, b = load<T, kN>(z2 + j) - shift2;
            const auto top = larger<T, kN>(a - rest1, b - rest2);
            const auto gap = magnitude<T, kN>((a - b) - left);
            auto less = exp2_less<T, kN>(gap * static_cast<T>(-kLog2E), T(1));
            auto most = exp2_less<T, kN>((top < T(0) ? top : Vector<T, kN>{}) * static_cast<T>(kLog2E), T(0));
            // -inf in both is probability 0 in both
            most = top == -kInfinity<T> ? Vector<T, kN>{} : most;
            less = top == -kInfinity<T> ? Vector<T, kN>{} : less;
            // of the larger probability: the other one is (1 + less) times it, both together are `both` times it
            const auto both = less + T(2);
            const auto x = -less / both;
            sums.template at<kN>(0) += most * both * entropy_lost<T, kN>(x, (less + T(1)) * T(2) / both, T(2) / both);
            sums.template at<kN>(1) += most * -less;
        });
        js[i] = sums.total(0) / 4;
        tv[i] = sums.total(1) / 2;
    }
}

template <class T>
constexpr LogitOps<T> kLogitOps = {widen<T>, finish_logits<T>, logit_sums<T>, logit_pair_sums<T>, logit_divergences<T>};

}  // namespace gramless::GRAMLESS_LEVEL

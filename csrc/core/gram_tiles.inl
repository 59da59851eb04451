// The epilogue of Gram tiles for one instruction set level: kernel functions on vectors, and the sums over a tile.
//
// numerics: k in T; sums of unbounded kernels in fp64, of others over kGramRun values in T, and of these in fp64.
#pragma once

#include "core/exp2.inl"
#include "core/gram_tiles.hpp"
#include "core/panels.inl"

namespace gramless::GRAMLESS_LEVEL {

template <class T, int N>
inline Vector<T, N> root(Vector<T, N> x) {
    T lanes[N];
    store<T, N>(lanes, x);
    for (int lane = 0; lane < N; ++lane)
        lanes[lane] = sizeof(T) == 4 ? static_cast<T>(__builtin_sqrtf(static_cast<float>(lanes[lane])))
                                     : static_cast<T>(__builtin_sqrt(static_cast<double>(lanes[lane])));
    return load<T, N>(lanes);
}

// k of one row of the tile and its columns from `first` on
template <class T, class Function>
inline void each_vector(const T* dots, const T* norms_j, std::int64_t first, std::int64_t cols, T* out,
                        const Function& function) {
    constexpr int kLanes = Shape<T>::kLanes;
    for (std::int64_t j = first; j < cols; j += kLanes)
        store<T, kLanes>(out + j, function(load<T, kLanes>(dots + j), load<T, kLanes>(norms_j + j)));
}

template <class T>
inline void kernel_row(const GramSide<T>& side, std::int64_t i, std::int64_t first, std::int64_t cols, T* out) {
    using V = Vector<T, Shape<T>::kLanes>;
    constexpr int kLanes = Shape<T>::kLanes;
    const GramKernel<T> k = side.kernel;
    const T* const dots = side.dots + i * side.stride;
    const T norm = side.norms_i[i];
    const auto fill = [&](const auto& function) { each_vector(dots, side.norms_j, first, cols, out, function); };
    // rounding may leave a distance below zero
    const auto square = [&](V dot, V other) {
        const V d = (norm + other) - dot * T(2);
        return d < T(0) ? V{} : d;
    };
    switch (k.function) {
        case GramFunction::kLinear:
        case GramFunction::kCosine:
            return fill([](V dot, V) { return dot; });
        case GramFunction::kRbf:
            return fill([&](V dot, V other) {
                // the square times the factor, in two multiply-adds
                const V t = other * -k.factor + (dot * (2 * k.factor) - norm * k.factor);
                return exp2_less<T, kLanes>(t > T(0) ? V{} : t, k.offset);
            });
        case GramFunction::kLaplacian:
            return fill([&](V dot, V other) {
                return exp2_less<T, kLanes>(root<T, kLanes>(square(dot, other)) * -k.factor, k.offset);
            });
        case GramFunction::kPolynomial:
            return fill([&](V dot, V other) {
                const V base = dot * k.factor + k.coef0;
                V power = base;
                for (int d = 1; d < k.degree; ++d)
                    power *= base;
                const V value = (power - norm) - (other - k.landmark);
                const V least = (power < T(0) ? -power : power) * k.noise;
                // rows that do not differ give 0, and not what rounding makes of it
                return (value < T(0) ? -value : value) <= least ? V{} : value;
            });
        case GramFunction::kDistance:
            return fill([&](V dot, V other) { return root<T, kLanes>(square(dot, other)); });
    }
}

// one side of a tile while it is reduced, with sums of type S
template <class T, class S>
struct GramRow {
    static constexpr int kLanes = Shape<T>::kLanes;
    alignas(64) T values[kGramTile];
    alignas(64) S columns[kGramTile] = {};

    // kernel values of row i, zero outside [begin, cols)
    void fill(const GramSide<T>& side, std::int64_t i, std::int64_t begin, std::int64_t cols) {
        const std::int64_t first = begin / kLanes * kLanes;
        kernel_row(side, i, first, cols, values);
        for (std::int64_t j = first; j < begin; ++j)
            values[j] = 0;
        for (std::int64_t j = cols; j % kLanes; ++j)
            values[j] = 0;
        if (side.values)
            for (std::int64_t j = begin; j < cols; ++j)
                side.values[i][j] = values[j];
    }

    Vector<S, kLanes> add(std::int64_t j) {
        const auto wide = __builtin_convertvector((load<T, kLanes>(values + j)), Vector<S, kLanes>);
        store<S, kLanes>(columns + j, load<S, kLanes>(columns + j) + wide);
        return wide;
    }

    // column sums of T hold their digits over kGramRun rows only
    void flush(double* sums, std::int64_t cols) {
        for (std::int64_t j = 0; j < cols; ++j) {
            sums[j] += static_cast<double>(columns[j]);
            columns[j] = 0;
        }
    }
};

// Values of bounded kernels that a sum of type T adds up. Centring takes out what they have in common, for a Laplacian
// kernel of 8 features 65 of 66 parts of the squares, but not the rounding of the sums: over whole rows of a tile that
// is far more than the rounding of the values, and the more the fewer lanes there are.
constexpr std::int64_t kGramRun = 8;

template <class T, class S>
GramTileSums reduce_in(const GramSide<T>& x, const GramSide<T>* y, std::int64_t rows, std::int64_t cols,
                       bool diagonal) {
    constexpr int kLanes = Shape<T>::kLanes;
    using V = Vector<S, kLanes>;
    using Wide = Vector<double, kLanes>;
    GramRow<T, S> k, l;
    GramTileSums total;
    for (std::int64_t j = 0; j < cols; ++j) {
        x.column_sums[j] = 0;
        if (y) y->column_sums[j] = 0;
    }
    for (std::int64_t i = 0; i < rows; ++i) {
        const std::int64_t begin = diagonal ? i + 1 : 0;
        k.fill(x, i, begin, cols);
        if (y) l.fill(*y, i, begin, cols);
        Wide sum_k{}, sum_l{}, xx{}, yy{}, xy{};
        for (std::int64_t j = begin / kLanes * kLanes; j < cols;) {
            const std::int64_t end = j + kGramRun * kLanes < cols ? j + kGramRun * kLanes : cols;
            V run_k{}, run_l{}, run_xx{}, run_yy{}, run_xy{};
            for (; j < end; j += kLanes) {
                const V kv = k.add(j);
                run_k += kv;
                run_xx += kv * kv;
                if (!y) continue;
                const V lv = l.add(j);
                run_l += lv;
                run_yy += lv * lv;
                run_xy += kv * lv;
            }
            sum_k += __builtin_convertvector(run_k, Wide);
            xx += __builtin_convertvector(run_xx, Wide);
            if (!y) continue;
            sum_l += __builtin_convertvector(run_l, Wide);
            yy += __builtin_convertvector(run_yy, Wide);
            xy += __builtin_convertvector(run_xy, Wide);
        }
        x.row_sums[i] = sum_lanes<double, kLanes>(sum_k);
        total.xx += sum_lanes<double, kLanes>(xx);
        if (y) {
            y->row_sums[i] = sum_lanes<double, kLanes>(sum_l);
            total.yy += sum_lanes<double, kLanes>(yy);
            total.xy += sum_lanes<double, kLanes>(xy);
        }
        if ((i + 1) % kGramRun == 0 || i + 1 == rows) {
            k.flush(x.column_sums, cols);
            if (y) l.flush(y->column_sums, cols);
        }
    }
    return total;
}

// One row far longer than the others has kernel values that drown theirs in a sum of type T, and U-centring takes them
// out again; those of bounded kernels cannot.
template <class T>
GramTileSums reduce(const GramSide<T>& x, const GramSide<T>* y, std::int64_t rows, std::int64_t cols, bool diagonal) {
    const GramFunction function = x.kernel.function;
    const bool bounded =
        function == GramFunction::kRbf || function == GramFunction::kLaplacian || function == GramFunction::kCosine;
    return (bounded ? reduce_in<T, T> : reduce_in<T, double>)(x, y, rows, cols, diagonal);
}

template <class T>
constexpr GramOps<T> kGramOps = {reduce<T>};

}  // namespace gramless::GRAMLESS_LEVEL

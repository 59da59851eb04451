// The tile kernels of one instruction set level. Each level compiles this text once, in its own namespace and with its
// own flags; nothing from the standard library may come in here, or code of a high level could leak into the baseline.
//
// cost: product 2 m n k flops; pack one read and one write per element; numerics: sums within a chunk in T, beyond in
// fp64. why not BLAS: a threaded BLAS owns its threads and settings, cannot subtract a pivot while packing, cannot
// return fp64 sums of fp32 tiles, and is 26 MB to install.

#pragma once

#include "core/panels.inl"

namespace gramless::GRAMLESS_LEVEL {

// rows of a micro-tile for each cache line that is asked for ahead of its use
constexpr std::int64_t kRowsPerLine = 4;

// The next lines for a micro-tile over these rows; what is at hand if there are none. The end of a span is rounded up:
// to ask for what is not there is harmless.
inline const char* take(Ahead& ahead, std::int64_t rows, const void* at_hand) {
    const std::int64_t bytes = (rows + kRowsPerLine - 1) / kRowsPerLine * 64;
    for (Ahead::Span& span : ahead.spans)
        if (span.bytes > 0) {
            const char* const from = static_cast<const char*>(span.from);
            span.from = from + bytes;
            span.bytes -= bytes;
            return from;
        }
    return static_cast<const char*>(at_hand);
}

// what becomes of the sums of a chunk
template <class T>
struct AddInDouble {
    using Out = double;
    template <int N>
    static void put(double* to, Vector<T, N> sums) {
        add_to_double<N>(to, sums);
    }
};

template <class T>
struct Store {
    using Out = T;
    template <int N>
    static void put(T* to, Vector<T, N> sums) {
        store<T, N>(to, sums);
    }
};

template <class T>
struct Add {
    using Out = T;
    template <int N>
    static void put(T* to, Vector<T, N> sums) {
        store<T, N>(to, load<T, N>(to) + sums);
    }
};

// kRows rows by kVectors vectors, held in registers over the whole chunk; every loop over registers is unrolled, since
// one that is not would send them all through the stack
template <class T, int kRows, int kVectors, class Result>
inline void micro_tile(const T* a, const T* b, std::int64_t rows, typename Result::Out* c, std::int64_t c_stride,
                       const char* ahead) {
    constexpr int kLanes = Shape<T>::kLanes;
    Vector<T, kLanes> acc[kRows][kVectors];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v)
            acc[r][v] = Vector<T, kLanes>{};
    for (std::int64_t begin = 0; begin < rows; begin += kRowsPerLine) {
        // into the second level: the first is full of what is in use
        __builtin_prefetch(ahead, 0, 2);
        ahead += 64;
        // the rows of c at the end, when what is in use will not push them out again
        if (const std::int64_t row = (rows - 1 - begin) / kRowsPerLine; row < kRows)
            for (int j = 0; j < kVectors * kLanes; j += 64 / static_cast<int>(sizeof(*c)))
                __builtin_prefetch(c + row * c_stride + j, 1);
        const std::int64_t end = begin + kRowsPerLine < rows ? begin + kRowsPerLine : rows;
        for (std::int64_t k = begin; k < end; ++k) {
            Vector<T, kLanes> b_row[kVectors];
#pragma GCC unroll 8
            for (int v = 0; v < kVectors; ++v)
                b_row[v] = load<T, kLanes>(b + k * kWidth<T> + v * kLanes);
#pragma GCC unroll 16
            for (int r = 0; r < kRows; ++r) {
                const auto a_lane = broadcast<T, kLanes>(a[k * kWidth<T> + r]);
#pragma GCC unroll 8
                for (int v = 0; v < kVectors; ++v)
                    acc[r][v] += a_lane * b_row[v];
            }
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v)
            Result::template put<kLanes>(c + r * c_stride + v * kLanes, acc[r][v]);
}

// rows of a micro-tile of so many vectors: one vector alone needs more of them to keep the multipliers busy, as long as
// they stay on one side of the diagonal
template <class T, int kVectors>
constexpr int kTileRows =
    kVectors == 1 && Shape<T>::kLanes % (2 * Shape<T>::kRows) == 0 ? 2 * Shape<T>::kRows : Shape<T>::kRows;

template <class T, class Result>
void tile_product(const Panels<T>& a, const Panels<T>& b, typename Result::Out* c, std::int64_t c_stride,
                  bool upper_only, Ahead& ahead) {
    constexpr std::int64_t kW = kWidth<T>;
    constexpr int kLanes = Shape<T>::kLanes;
    for (std::int64_t j = 0; j < panel_count(b); ++j) {
        const int vectors = vectors_in(b, j);
        for (std::int64_t i = 0; i < a.features;) {
            const std::int64_t below = upper_only && i > j * kW ? (i - j * kW) / kLanes : 0;
            if (below >= vectors) break;
            const std::int64_t skip = below * kLanes;
            with_count<Shape<T>::kVectors>(vectors - static_cast<int>(below), [&](auto count) {
                constexpr int kRows = kTileRows<T, count.value>;
                micro_tile<T, kRows, count.value, Result>(panel(a, i / kW) + i % kW, panel(b, j) + skip, b.rows,
                                                          c + i * c_stride + j * kW + skip, c_stride,
                                                          take(ahead, b.rows, panel(b, j)));
                i += kRows;
            });
        }
    }
}

template <class T>
void product(const Panels<T>& a, const Panels<T>& b, double* c, std::int64_t c_stride, bool upper_only, Ahead& ahead) {
    tile_product<T, AddInDouble<T>>(a, b, c, c_stride, upper_only, ahead);
}

template <class T>
void product_in_type(const Panels<T>& a, const Panels<T>& b, T* c, std::int64_t c_stride, bool upper_only, bool first,
                     Ahead& ahead) {
    if (first)
        tile_product<T, Store<T>>(a, b, c, c_stride, upper_only, ahead);
    else
        tile_product<T, Add<T>>(a, b, c, c_stride, upper_only, ahead);
}

// partial sums of squares of one row, lane by lane
template <class T>
inline Vector<T, Shape<T>::kLanes> row_squares(const Panels<T>& panels, std::int64_t k) {
    constexpr int kLanes = Shape<T>::kLanes;
    Vector<T, kLanes> acc[Shape<T>::kVectors] = {};
    for (std::int64_t j = 0; j < panel_count(panels); ++j) {
        const T* row = panel(panels, j) + k * kWidth<T>;
        with_count<Shape<T>::kVectors>(vectors_in(panels, j), [&](auto count) {
#pragma GCC unroll 8
            for (int v = 0; v < count.value; ++v) {
                const auto d = load<T, kLanes>(row + v * kLanes);
                acc[v] += d * d;
            }
        });
    }
#pragma GCC unroll 8
    for (int v = 1; v < Shape<T>::kVectors; ++v)
        acc[0] += acc[v];
    return acc[0];
}

// as many rows at a time as a vector has lanes: their lanes are added up by a transpose
template <class T>
void norms(const Panels<T>& panels, T* squared) {
    constexpr int kLanes = Shape<T>::kLanes;
    for (std::int64_t first = 0; first < panels.rows; first += kLanes) {
        const int count = panels.rows - first < kLanes ? static_cast<int>(panels.rows - first) : kLanes;
        Vector<T, kLanes> rows[kLanes] = {};
        for (int k = 0; k < count; ++k)
            rows[k] = row_squares(panels, first + k);
        transpose<T, kLanes>(rows);
        for (int half = kLanes / 2; half > 0; half /= 2)
            for (int lane = 0; lane < half; ++lane)
                rows[lane] += rows[lane + half];
        for (int k = 0; k < count; ++k)
            squared[first + k] += rows[0][k];
    }
}

template <class T>
NormSums norm_sums(const T* a, const T* b, std::int64_t rows) {
    constexpr int kLanes = Shape<double>::kLanes;
    using V = Vector<double, kLanes>;
    V total[2] = {}, largest[2] = {}, products[3] = {};
    for (std::int64_t k = 0; k < rows; k += kLanes) {
        const V both[2] = {Widen<T, double, kLanes>::from(a + k), Widen<T, double, kLanes>::from(b + k)};
        for (int s = 0; s < 2; ++s) {
            total[s] += both[s];
            largest[s] = both[s] > largest[s] ? both[s] : largest[s];
            products[s] += both[s] * both[s];
        }
        products[2] += both[0] * both[1];
    }
    NormSums sums{};
    for (int s = 0; s < 2; ++s) {
        sums.total[s] = sum_lanes<double, kLanes>(total[s]);
        for (int lane = 0; lane < kLanes; ++lane)
            sums.largest[s] = largest[s][lane] > sums.largest[s] ? largest[s][lane] : sums.largest[s];
    }
    for (int s = 0; s < 3; ++s)
        sums.products[s] = sum_lanes<double, kLanes>(products[s]);
    return sums;
}

// squared norms of the columns, in fp64; over kFlushRows rows in T
template <class T>
void sample_norms(const Panels<T>& panels, double* squared) {
    constexpr int kLanes = Shape<T>::kLanes;
    for (std::int64_t j = 0; j < panel_count(panels); ++j)
        with_count<Shape<T>::kVectors>(vectors_in(panels, j), [&](auto count) {
            for (std::int64_t begin = 0; begin < panels.rows; begin += kFlushRows) {
                const std::int64_t end = begin + kFlushRows < panels.rows ? begin + kFlushRows : panels.rows;
                Vector<T, kLanes> acc[count.value] = {};
                for (std::int64_t k = begin; k < end; ++k)
#pragma GCC unroll 8
                    for (int v = 0; v < count.value; ++v) {
                        const auto d = load<T, kLanes>(panel(panels, j) + k * kWidth<T> + v * kLanes);
                        acc[v] += d * d;
                    }
#pragma GCC unroll 8
                for (int v = 0; v < count.value; ++v)
                    add_to_double<kLanes>(squared + j * kWidth<T> + v * kLanes, acc[v]);
            }
        });
}

// column sums of one panel
template <class T, int kVectors, bool kSelf, bool kCross>
void panel_sums(const T* data, std::int64_t rows, const T* own_squared, const T* other_squared, const ColumnSums& out,
                std::int64_t first) {
    constexpr int kLanes = Shape<T>::kLanes;
    Vector<T, kLanes> sum[kVectors] = {}, own[kVectors] = {}, other[kVectors] = {}, cubes[kVectors] = {},
                      fourths[kVectors] = {};
    for (std::int64_t k = 0; k < rows; ++k) {
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) {
            const auto d = load<T, kLanes>(data + k * kWidth<T> + v * kLanes);
            if constexpr (kSelf) {
                const auto square = d * d;
                sum[v] += d;
                own[v] += own_squared[k] * d;
                cubes[v] += square * d;
                fourths[v] += square * square;
            }
            if constexpr (kCross) other[v] += other_squared[k] * d;
        }
    }
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
        const std::int64_t at = first + v * kLanes;
        if constexpr (kSelf) {
            add_to_double<kLanes>(out.sum + at, sum[v]);
            add_to_double<kLanes>(out.weighted_self + at, own[v]);
            add_to_double<kLanes>(out.cubes + at, cubes[v]);
            add_to_double<kLanes>(out.fourths + at, fourths[v]);
        }
        if constexpr (kCross) add_to_double<kLanes>(out.weighted_cross + at, other[v]);
    }
}

template <class T, bool kSelf, bool kCross>
void column_sums_of(const Panels<T>& panels, const T* own_squared, const T* other_squared, const ColumnSums& out) {
    for (std::int64_t j = 0; j < panel_count(panels); ++j)
        with_count<Shape<T>::kVectors>(vectors_in(panels, j), [&](auto count) {
            panel_sums<T, count.value, kSelf, kCross>(panel(panels, j), panels.rows, own_squared, other_squared, out,
                                                      j * kWidth<T>);
        });
}

template <class T>
void column_sums(const Panels<T>& panels, const T* own_squared, const T* other_squared, const ColumnSums& out) {
    if (out.sum && out.weighted_cross)
        column_sums_of<T, true, true>(panels, own_squared, other_squared, out);
    else if (out.sum)
        column_sums_of<T, true, false>(panels, own_squared, other_squared, out);
    else if (out.weighted_cross)
        column_sums_of<T, false, true>(panels, own_squared, other_squared, out);
}

// to[i] += from[i]; false if a sum is not finite. x - x is 0 for every finite x, and NaN for the others.
inline bool add_row(const double* from, double* to, std::int64_t count) {
    constexpr int kLanes = Shape<double>::kLanes;
    Vector<double, kLanes> odd{};
    std::int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
        const auto sum = load<double, kLanes>(to + i) + load<double, kLanes>(from + i);
        store<double, kLanes>(to + i, sum);
        odd += sum - sum;
    }
    double rest = sum_lanes<double, kLanes>(odd);
    for (; i < count; ++i) {
        to[i] += from[i];
        rest += to[i] - to[i];
    }
    return rest == 0;
}

// c[i, j] += a[i, j], from the diagonal on if upper_only; the rows of c are far apart, and not in any cache
inline bool add_tile(const double* a, std::int64_t a_stride, std::int64_t rows, std::int64_t cols, bool upper_only,
                     double* c, std::int64_t c_stride) {
    constexpr std::int64_t kAhead = 4;
    bool finite = true;
    for (std::int64_t r = 0; r < rows; ++r) {
        const std::int64_t first = upper_only ? r : 0;
        if (r + kAhead < rows)
            for (std::int64_t j = first; j < cols; j += 8)
                __builtin_prefetch(c + (r + kAhead) * c_stride + j, 1);
        finite &= add_row(a + r * a_stride + first, c + r * c_stride + first, cols - first);
    }
    return finite;
}

}  // namespace gramless::GRAMLESS_LEVEL

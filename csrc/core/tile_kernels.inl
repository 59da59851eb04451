// The tile kernels of one instruction set level. Each level compiles this text once, in its own namespace and with its
// own flags; nothing from the standard library may come in here, or code of a high level could leak into the baseline.
//
// cost: product 2 m n k flops; pack one read and one write per element; numerics: sums within a chunk in T, beyond in
// fp64. why not BLAS: a threaded BLAS owns its threads and settings, cannot subtract a pivot while packing, cannot
// return fp64 sums of fp32 tiles, and is 26 MB to install.

#include "core/simd.hpp"
#include "core/tile_kernels.hpp"

namespace gramless::GRAMLESS_LEVEL {

// kLanes lanes, kVectors vectors per panel row, kRows rows of the micro-tile; kRows divides the panel width
template <class T>
struct Shape;

template <>
struct Shape<float> {
    static constexpr int kLanes = GRAMLESS_F32_LANES, kVectors = GRAMLESS_F32_VECTORS, kRows = GRAMLESS_F32_ROWS;
};

template <>
struct Shape<double> {
    static constexpr int kLanes = GRAMLESS_F64_LANES, kVectors = GRAMLESS_F64_VECTORS, kRows = GRAMLESS_F64_ROWS;
};

template <class T>
constexpr int kWidth = Shape<T>::kLanes * Shape<T>::kVectors;

template <class T>
T* panel(const Panels<T>& panels, std::int64_t index) {
    return panels.data + index * panel_stride<T>(kWidth<T>);
}

template <class T>
std::int64_t panel_count(const Panels<T>& panels) {
    return (panels.features + kWidth<T> - 1) / kWidth<T>;
}

// vectors of a panel that hold features; the last panel may have fewer than the others
template <class T>
int vectors_in(const Panels<T>& panels, std::int64_t index) {
    const std::int64_t left = panels.features - index * kWidth<T>;
    return left >= kWidth<T> ? Shape<T>::kVectors : static_cast<int>((left + Shape<T>::kLanes - 1) / Shape<T>::kLanes);
}

template <int N>
struct Count {
    static constexpr int value = N;
};

// calls run(Count<count>()) for 1 <= count <= kMost, so that loops over vectors unroll into registers
template <int kMost, class Run>
inline void with_count(int count, const Run& run) {
    if constexpr (kMost > 1) {
        if (count < kMost) return with_count<kMost - 1>(count, run);
    }
    run(Count<kMost>());
}

// rows come from main memory, and hardware prefetchers stop at the end of each row's piece
constexpr std::int64_t kRowsAhead = 8;

template <class S>
constexpr std::int64_t kSourceSize = sizeof(S);

// one row of one panel from contiguous source elements
template <class S, class T>
inline void pack_row(const unsigned char* source, int vectors, const T* pivot, T* out) {
    constexpr int kLanes = Shape<T>::kLanes;
    for (int v = 0; v < vectors; ++v) {
        const auto x = Widen<S, T, kLanes>::from(source + v * kLanes * kSourceSize<S>);
        store<T, kLanes>(out + v * kLanes, x - load<T, kLanes>(pivot + v * kLanes));
    }
}

template <class S, class T>
void pack_contiguous(const ArrayView& source, std::int64_t row, std::int64_t col, const T* pivot,
                     const Panels<T>& panels) {
    constexpr std::int64_t kW = kWidth<T>;
    const std::int64_t whole = panels.features / kW, rest = panels.features % kW;
    for (std::int64_t k = 0; k < panels.rows; ++k) {
        const unsigned char* from = source.at(row + k, col);
        // a prefetch past the end of the array is harmless
        const unsigned char* ahead = source.at(row + k + kRowsAhead, col);
        for (std::int64_t byte = 0; byte < panels.features * kSourceSize<S>; byte += 64)
            __builtin_prefetch(ahead + byte);
        for (std::int64_t j = 0; j < whole; ++j)
            pack_row<S, T>(from + j * kW * kSourceSize<S>, Shape<T>::kVectors, pivot + j * kW,
                           panel(panels, j) + k * kW);
        if (rest % Shape<T>::kLanes == 0) {
            pack_row<S, T>(from + whole * kW * kSourceSize<S>, static_cast<int>(rest / Shape<T>::kLanes),
                           pivot + whole * kW, panel(panels, whole) + k * kW);
        } else {
            // the last columns go through a zeroed row, so that nothing beyond the array is read
            unsigned char tail[kW * kSourceSize<S>] = {};
            __builtin_memcpy(tail, from + whole * kW * kSourceSize<S>,
                             static_cast<unsigned long>(rest * kSourceSize<S>));
            pack_row<S, T>(tail, vectors_in(panels, whole), pivot + whole * kW, panel(panels, whole) + k * kW);
        }
    }
}

template <class S, class T>
T element(const ArrayView& source, std::int64_t row, std::int64_t col) {
    return Widen<S, T, 1>::from(source.at(row, col))[0];
}

template <class S, class T>
void pack_elements(const ArrayView& source, std::int64_t row, std::int64_t col, const T* pivot, std::int64_t first_k,
                   std::int64_t first_col, std::int64_t last_col, const Panels<T>& panels) {
    constexpr std::int64_t kW = kWidth<T>;
    for (std::int64_t j = first_col; j < last_col; ++j) {
        T* out = panel(panels, j / kW) + j % kW;
        for (std::int64_t k = first_k; k < panels.rows; ++k)
            out[k * kW] = j < panels.features ? element<S, T>(source, row + k, col + j) - pivot[j] : T(0);
    }
}

// source contiguous along rows (Fortran order): square blocks are transposed in registers
template <class S, class T>
void pack_transposed(const ArrayView& source, std::int64_t row, std::int64_t col, const T* pivot,
                     const Panels<T>& panels) {
    constexpr std::int64_t kW = kWidth<T>;
    constexpr int kLanes = Shape<T>::kLanes;
    const std::int64_t whole_cols = panels.features / kLanes * kLanes;
    const std::int64_t padded_cols = (panels.features + kLanes - 1) / kLanes * kLanes;
    const std::int64_t whole_rows = panels.rows / kLanes * kLanes;
    for (std::int64_t j = 0; j < whole_cols; j += kLanes) {
        T* out = panel(panels, j / kW) + j % kW;
        const auto shift = load<T, kLanes>(pivot + j);
        for (std::int64_t k = 0; k < whole_rows; k += kLanes) {
            Vector<T, kLanes> block[kLanes];
            for (int lane = 0; lane < kLanes; ++lane)
                block[lane] = Widen<S, T, kLanes>::from(source.at(row + k, col + j + lane));
            transpose<T, kLanes>(block);
            for (int lane = 0; lane < kLanes; ++lane)
                store<T, kLanes>(out + (k + lane) * kW, block[lane] - shift);
        }
    }
    pack_elements<S, T>(source, row, col, pivot, whole_rows, 0, whole_cols, panels);
    pack_elements<S, T>(source, row, col, pivot, 0, whole_cols, padded_cols, panels);
}

template <class S, class T>
void pack_from(const ArrayView& source, std::int64_t row, std::int64_t col, const T* pivot, const Panels<T>& panels) {
    constexpr std::int64_t kLanes = Shape<T>::kLanes;
    if (source.col_stride == kSourceSize<S> || source.cols == 1)
        pack_contiguous<S, T>(source, row, col, pivot, panels);
    else if (source.row_stride == kSourceSize<S>)
        pack_transposed<S, T>(source, row, col, pivot, panels);
    else
        pack_elements<S, T>(source, row, col, pivot, 0, 0, (panels.features + kLanes - 1) / kLanes * kLanes, panels);
}

template <class T>
void pack(const ArrayView& source, std::int64_t row, std::int64_t col, const T* pivot, const Panels<T>& panels) {
    switch (source.dtype) {
        case DType::kF16:
            return pack_from<Half, T>(source, row, col, pivot, panels);
        case DType::kBF16:
            return pack_from<BFloat16, T>(source, row, col, pivot, panels);
        case DType::kF32:
            return pack_from<float, T>(source, row, col, pivot, panels);
        case DType::kF64:
            return pack_from<double, T>(source, row, col, pivot, panels);
    }
}

// rows of a micro-tile for each cache line that is asked for ahead of its use
constexpr std::int64_t kRowsPerLine = 6;

// the cache lines of panels that come next, handed out a few to a micro-tile
template <class T>
class Ahead {
  public:
    explicit Ahead(const Panels<T>& panels)
        : from_(reinterpret_cast<const char*>(panels.data + panels.ahead)),
          left_(panels.ahead ? panel_count(panels) * panel_stride<T>(kWidth<T>) * std::int64_t{sizeof(T)} : 0) {}

    bool done() const { return left_ <= 0; }

    const char* take(std::int64_t rows) {
        const char* const taken = from_;
        const std::int64_t bytes = (rows + kRowsPerLine - 1) / kRowsPerLine * 64;
        from_ += bytes;
        left_ -= bytes;
        return taken;
    }

  private:
    const char* from_;
    std::int64_t left_;
};

// kRows rows by kVectors vectors, held in registers over the whole chunk; every loop over registers is unrolled, since
// one that is not would send them all through the stack
template <class T, int kVectors>
inline void micro_tile(const T* a, const T* b, std::int64_t rows, double* c, std::int64_t c_stride, const char* ahead) {
    constexpr int kLanes = Shape<T>::kLanes, kRows = Shape<T>::kRows;
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
            add_to_double<kLanes>(c + r * c_stride + v * kLanes, acc[r][v]);
}

template <class T>
void product(const Panels<T>& a, const Panels<T>& b, double* c, std::int64_t c_stride, bool upper_only) {
    constexpr std::int64_t kW = kWidth<T>;
    constexpr int kLanes = Shape<T>::kLanes, kRows = Shape<T>::kRows;
    Ahead<T> of_a(a), of_b(b);
    for (std::int64_t j = 0; j < panel_count(b); ++j) {
        const int vectors = vectors_in(b, j);
        for (std::int64_t i = 0; i < a.features; i += kRows) {
            const std::int64_t below = upper_only && i > j * kW ? (i - j * kW) / kLanes : 0;
            if (below >= vectors) break;
            const std::int64_t skip = below * kLanes;
            with_count<Shape<T>::kVectors>(vectors - static_cast<int>(below), [&](auto count) {
                micro_tile<T, count.value>(panel(a, i / kW) + i % kW, panel(b, j) + skip, b.rows,
                                           c + i * c_stride + j * kW + skip, c_stride,
                                           (of_a.done() ? of_b : of_a).take(b.rows));
            });
        }
    }
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

template <class T>
constexpr TileOps<T> kOps = {kWidth<T>, pack<T>, product<T>, norms<T>, column_sums<T>};

extern const TileKernels kTileKernels;
const TileKernels kTileKernels = {GRAMLESS_LEVEL_NAME, kOps<float>, kOps<double>, add_tile};

}  // namespace gramless::GRAMLESS_LEVEL

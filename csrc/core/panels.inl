// How arrays are packed into panels, for one instruction set level: the shape of its panels, and every source dtype and
// layout. Part of tile_kernels.inl.

#pragma once

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

// rows over which sums of squares or of kernel values keep their digits in T
constexpr std::int64_t kFlushRows = 32;

// rows come from main memory, and hardware prefetchers stop at the end of each row's piece
constexpr std::int64_t kRowsAhead = 8;

template <class S>
constexpr std::int64_t kSourceSize = sizeof(S);

// what is subtracted from row k, column j: one number per column, or one per row
template <class T>
struct ByColumn {
    const T* pivot;
    template <int N>
    Vector<T, N> at(std::int64_t, std::int64_t j) const {
        return load<T, N>(pivot + j);
    }
};

template <class T>
struct ByRow {
    const T* pivot;
    template <int N>
    Vector<T, N> at(std::int64_t k, std::int64_t) const {
        return broadcast<T, N>(pivot[k]);
    }
};

// row k of one panel, whose first column is j, from contiguous source elements
template <class S, class T, class Shift>
inline void pack_row(const unsigned char* source, int vectors, const Shift& shift, std::int64_t k, std::int64_t j,
                     T* out) {
    constexpr int kLanes = Shape<T>::kLanes;
    for (int v = 0; v < vectors; ++v) {
        const auto x = Widen<S, T, kLanes>::from(source + v * kLanes * kSourceSize<S>);
        store<T, kLanes>(out + v * kLanes, x - shift.template at<kLanes>(k, j + v * kLanes));
    }
}

template <class S, class T, class Shift>
void pack_contiguous(const ArrayView& source, std::int64_t row, std::int64_t col, const Shift& shift,
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
            pack_row<S, T>(from + j * kW * kSourceSize<S>, Shape<T>::kVectors, shift, k, j * kW,
                           panel(panels, j) + k * kW);
        if (rest % Shape<T>::kLanes == 0) {
            pack_row<S, T>(from + whole * kW * kSourceSize<S>, static_cast<int>(rest / Shape<T>::kLanes), shift, k,
                           whole * kW, panel(panels, whole) + k * kW);
        } else {
            // the last columns go through a zeroed row, so that nothing beyond the array is read
            unsigned char tail[kW * kSourceSize<S>] = {};
            __builtin_memcpy(tail, from + whole * kW * kSourceSize<S>,
                             static_cast<unsigned long>(rest * kSourceSize<S>));
            pack_row<S, T>(tail, vectors_in(panels, whole), shift, k, whole * kW, panel(panels, whole) + k * kW);
        }
    }
}

template <class S, class T>
T element(const ArrayView& source, std::int64_t row, std::int64_t col) {
    return Widen<S, T, 1>::from(source.at(row, col))[0];
}

template <class S, class T, class Shift>
void pack_elements(const ArrayView& source, std::int64_t row, std::int64_t col, const Shift& shift,
                   std::int64_t first_k, std::int64_t first_col, std::int64_t last_col, const Panels<T>& panels) {
    constexpr std::int64_t kW = kWidth<T>;
    for (std::int64_t j = first_col; j < last_col; ++j) {
        T* out = panel(panels, j / kW) + j % kW;
        for (std::int64_t k = first_k; k < panels.rows; ++k)
            out[k * kW] =
                j < panels.features ? element<S, T>(source, row + k, col + j) - shift.template at<1>(k, j)[0] : T(0);
    }
}

// a square block, transposed in registers: vectors beyond the last column are zero
template <class S, class T, bool kWhole, class Shift>
inline void pack_block(const ArrayView& source, std::int64_t row, std::int64_t col, int columns, const Shift& shift,
                       std::int64_t k, std::int64_t j, T* out) {
    constexpr int kLanes = Shape<T>::kLanes;
    Vector<T, kLanes> block[kLanes] = {};
    for (int lane = 0; lane < kLanes; ++lane)
        if (kWhole || lane < columns) block[lane] = Widen<S, T, kLanes>::from(source.at(row + k, col + j + lane));
    transpose<T, kLanes>(block);
    for (int lane = 0; lane < kLanes; ++lane)
        store<T, kLanes>(out + (k + lane) * kWidth<T>, block[lane] - shift.template at<kLanes>(k + lane, j));
}

// source contiguous along rows (Fortran order)
template <class S, class T, class Shift>
void pack_transposed(const ArrayView& source, std::int64_t row, std::int64_t col, const Shift& shift,
                     const Panels<T>& panels) {
    constexpr std::int64_t kW = kWidth<T>;
    constexpr int kLanes = Shape<T>::kLanes;
    const std::int64_t whole_rows = panels.rows / kLanes * kLanes;
    for (std::int64_t j = 0; j < panels.features; j += kLanes) {
        T* out = panel(panels, j / kW) + j % kW;
        const std::int64_t columns = panels.features - j;
        for (std::int64_t k = 0; k < whole_rows; k += kLanes)
            if (columns >= kLanes)
                pack_block<S, T, true>(source, row, col, kLanes, shift, k, j, out);
            else
                pack_block<S, T, false>(source, row, col, static_cast<int>(columns), shift, k, j, out);
    }
    pack_elements<S, T>(source, row, col, shift, whole_rows, 0, (panels.features + kLanes - 1) / kLanes * kLanes,
                        panels);
}

template <class S, class T, class Shift>
void pack_from(const ArrayView& source, std::int64_t row, std::int64_t col, const Shift& shift,
               const Panels<T>& panels) {
    constexpr std::int64_t kLanes = Shape<T>::kLanes;
    if (source.col_stride == kSourceSize<S> || source.cols == 1)
        pack_contiguous<S, T>(source, row, col, shift, panels);
    else if (source.row_stride == kSourceSize<S>)
        pack_transposed<S, T>(source, row, col, shift, panels);
    else
        pack_elements<S, T>(source, row, col, shift, 0, 0, (panels.features + kLanes - 1) / kLanes * kLanes, panels);
}

template <class T, class Shift>
void pack_shifted(const ArrayView& source, std::int64_t row, std::int64_t col, const Shift& shift,
                  const Panels<T>& panels) {
    switch (source.dtype) {
        case DType::kF16:
            return pack_from<Half, T>(source, row, col, shift, panels);
        case DType::kBF16:
            return pack_from<BFloat16, T>(source, row, col, shift, panels);
        case DType::kF32:
            return pack_from<float, T>(source, row, col, shift, panels);
        case DType::kF64:
            return pack_from<double, T>(source, row, col, shift, panels);
    }
}

template <class T>
void pack(const ArrayView& source, std::int64_t row, std::int64_t col, const T* pivot, const Panels<T>& panels) {
    pack_shifted<T>(source, row, col, ByColumn<T>{pivot}, panels);
}

// the other way round: the columns of the panels are rows of the source, and their rows its columns
template <class T>
void pack_samples(const ArrayView& source, std::int64_t row, std::int64_t col, const T* pivot,
                  const Panels<T>& panels) {
    const ArrayView turned{source.data, source.dtype, source.cols, source.rows, source.col_stride, source.row_stride};
    pack_shifted<T>(turned, col, row, ByRow<T>{pivot}, panels);
}

}  // namespace gramless::GRAMLESS_LEVEL

// What the moments kernel computes from, a chunk of packed rows, and the memory that a worker computes in.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "core/aligned_buffer.hpp"
#include "core/tile_kernels.hpp"
#include "kernels/moments.hpp"

namespace gramless {

// A row far longer than the others of its chunk leaves rounding errors of its own size in every float32 sum, and the
// unbiased estimator takes its square out again. Such rows, as attention sinks have them, are summed in fp64, one by
// one; where there are more of them, they are what the sums are about.
inline constexpr double kGiantSquared = 256;
// rows of a chunk that are summed so, at most
inline constexpr std::int64_t kMostGiants = 16;

inline bool is_finite(double value) {
    return std::fabs(value) <= std::numeric_limits<double>::max();
}

template <class T>
struct Giant {
    std::int64_t row;       // within its chunk
    std::vector<T> values;  // of all panels, one after the other
};

// the squared norm above which a row of a chunk is a giant
template <class T>
double giant_limit(const T* squared, std::int64_t rows) {
    T sorted[kChunkRows] = {};
    std::copy_n(squared, rows, sorted);
    std::nth_element(sorted, sorted + rows / 2, sorted + rows);
    return kGiantSquared * static_cast<double>(sorted[rows / 2]);
}

// the same, infinite where the total and the largest of the squared norms tell that there is no giant
template <class T>
double giants_above(const T* squared, std::int64_t rows, double total, double largest) {
    constexpr double kNone = std::numeric_limits<double>::infinity();
    // without giants the longest row is no giant: seldom anything else needs a median
    if (!(largest * static_cast<double>(rows) > 8 * total)) return kNone;
    const T ordinary = static_cast<T>(largest / kGiantSquared);
    const auto is_long = [&](T length) { return length >= ordinary; };
    return 2 * std::count_if(squared, squared + rows, is_long) > rows ? kNone : giant_limit(squared, rows);
}

// rows of both arrays in panels, x before y
template <class T>
struct Chunk {
    T* panels;
    std::int64_t row, rows;
    std::vector<Giant<T>> giants{};
};

// column sums of one array
struct ColumnScratch {
    AlignedBuffer<double> values;
    std::int64_t padded = 0;

    explicit ColumnScratch(std::int64_t width) : values(5 * width), padded(width) {}

    ColumnSums pointers(bool self, bool cross) {
        double* base = values.data();
        return {self ? base : nullptr, self ? base + padded : nullptr, cross ? base + 2 * padded : nullptr,
                self ? base + 3 * padded : nullptr, self ? base + 4 * padded : nullptr};
    }
};

template <class T>
struct Scratch {
    AlignedBuffer<T> packed;  // a chunk of this worker's own, where chunks are not shared
    AlignedBuffer<T> squared[2];
    AlignedBuffer<double> tile;
    std::vector<ColumnScratch> columns;
    double norms[3] = {};  // |d|^4, |e|^4, |d|^2 |e|^2

    void clear_sums() {
        for (ColumnScratch& of_array : columns)
            of_array.values.zero();
        for (double& norm : norms)
            norm = 0;
    }

    void add_norms(double a, double b) {
        norms[0] += a * a;
        norms[1] += b * b;
        norms[2] += a * b;
    }
};

}  // namespace gramless

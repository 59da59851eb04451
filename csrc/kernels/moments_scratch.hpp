// What the moments kernel computes from, a chunk of packed rows, and the memory that a worker computes in.
#pragma once

#include <cstdint>
#include <vector>

#include "core/aligned_buffer.hpp"
#include "core/tile_kernels.hpp"
#include "kernels/moments.hpp"

namespace gramless {

// rows of a chunk that are summed one by one, at most
inline constexpr std::int64_t kMostGiants = 16;

// two blocks whose product is one task
struct Tile {
    std::size_t i = 0, j = 0;
};

struct Segment {
    const ArrayView* source;
    std::int64_t first_panel;
    SelfSums* self;
};

template <class T>
struct Giant {
    std::int64_t row;       // within its chunk
    std::vector<T> values;  // of all panels, one after the other
};

// rows of both arrays in panels, x before y
template <class T>
struct Chunk {
    T* panels;
    std::int64_t row, rows;
    std::int64_t ahead = 0;  // elements to the next chunk's panels
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

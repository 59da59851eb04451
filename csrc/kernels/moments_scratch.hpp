// What the moments kernel computes in one task, and the memory that a worker computes it in.
#pragma once

#include <cstdint>
#include <vector>

#include "core/aligned_buffer.hpp"
#include "core/tile_kernels.hpp"
#include "kernels/moments.hpp"

namespace gramless {

// rows of a chunk that are summed one by one, at most
inline constexpr std::int64_t kMostGiants = 16;

struct Output {
    enum Kind { kTile, kRowSums, kWhole } kind;  // kWhole: the only block, tile and row sums from one packing
    std::size_t i = 0, j = 0;
};

struct Segment {
    const ArrayView* source;
    std::int64_t panels;
    SelfSums* self;
};

// column sums of one array over one slab
struct ColumnScratch {
    AlignedBuffer<double> values;
    std::int64_t padded = 0;

    explicit ColumnScratch(std::int64_t width) : values(5 * width), padded(width) {}

    ColumnSums from(std::int64_t feature, bool self, bool cross) {
        double* base = values.data() + feature;
        return {self ? base : nullptr, self ? base + padded : nullptr, cross ? base + 2 * padded : nullptr,
                self ? base + 3 * padded : nullptr, self ? base + 4 * padded : nullptr};
    }
};

template <class T>
struct Scratch {
    AlignedBuffer<T> pack_i, pack_j, row_i, row_j, squared[2];
    AlignedBuffer<double> tile;
    std::vector<ColumnScratch> columns;
    double norms[3] = {};  // |d|^4, |e|^4, |d|^2 |e|^2
    std::int64_t giants[kMostGiants];
    std::int64_t giant_count = 0;
};

}  // namespace gramless

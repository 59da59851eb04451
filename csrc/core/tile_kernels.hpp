// The inner loops of every kernel as a table of plain functions, one table per instruction set level.
//
// A panel holds `width` features of a chunk of rows as [row][width], so that both sides of a product
// S = D^T E read their features from the same packed form: the tile product needs no second layout.
#pragma once

#include <cstdint>

#include "core/array_view.hpp"
#include "core/gram_tiles.hpp"
#include "core/logit_tiles.hpp"

namespace gramless {

// rows per packed chunk: the span over which a product is summed in its own type before it goes to fp64
inline constexpr std::int64_t kChunkRows = 256;

// elements from one panel to the next: a cache line more than the panel, or all panels would fall into the same cache
// sets
template <class T>
constexpr std::int64_t panel_stride(std::int64_t width) {
    return kChunkRows * width + 64 / static_cast<std::int64_t>(sizeof(T));
}

// packed features of one chunk: panel j holds features j * width on and starts at data + j * panel_stride(width)
template <class T>
struct Panels {
    T* data;
    std::int64_t features;
    std::int64_t rows;
};

// Memory that is wanted after a product, which asks for its cache lines while it runs, and takes them off here.
struct Ahead {
    struct Span {
        const void* from;
        std::int64_t bytes;
    };
    Span spans[2];
};

// column sums of one array over a chunk, in fp64; null pointers are left alone
struct ColumnSums {
    double* sum;             // sum d
    double* weighted_self;   // sum |d|^2 d
    double* weighted_cross;  // sum |e|^2 d
    double* cubes;           // sum d^3
    double* fourths;         // sum d^4
};

// of the squared norms a, b of the rows of two arrays
struct NormSums {
    double total[2], largest[2];
    double products[3];  // a . a, b . b, a . b
};

template <class T>
struct TileOps {
    std::int64_t width;
    // panels.features columns from col on of panels.rows rows from row on, less their pivot, zero up to a whole vector
    void (*pack)(const ArrayView& source, std::int64_t row, std::int64_t col, const T* pivot, const Panels<T>& panels);
    // c[i, j] += sum_k a[k, i] b[k, j], padded to whole micro-tiles; upper_only leaves out vectors below the diagonal
    void (*product)(const Panels<T>& a, const Panels<T>& b, double* c, std::int64_t c_stride, bool upper_only,
                    Ahead& ahead);
    // squared[k] += the squared norm of row k over these panels
    void (*norms)(const Panels<T>& panels, T* squared);
    // of whole vectors of rows, the last of which is padded with zeros
    NormSums (*norm_sums)(const T* a, const T* b, std::int64_t rows);
    void (*column_sums)(const Panels<T>& panels, const T* own_squared, const T* other_squared, const ColumnSums& out);
    // turned: the columns of the panels are rows of the source from row on, their rows its columns from col on; the
    // pivot holds a number for each of these
    void (*pack_samples)(const ArrayView& source, std::int64_t row, std::int64_t col, const T* pivot,
                         const Panels<T>& panels);
    // product, but in T: c = or c += sum_k a[k, i] b[k, j]
    void (*product_in_type)(const Panels<T>& a, const Panels<T>& b, T* c, std::int64_t c_stride, bool upper_only,
                            bool first, Ahead& ahead);
    // squared[j] += the squared norm of column j
    void (*sample_norms)(const Panels<T>& panels, double* squared);
};

struct TileKernels {
    const char* level;
    TileOps<float> f32;
    TileOps<double> f64;
    // c[i, j] += a[i, j] for j >= (upper_only ? i : 0); false if a sum is not finite
    bool (*add_tile)(const double* a, std::int64_t a_stride, std::int64_t rows, std::int64_t cols, bool upper_only,
                     double* c, std::int64_t c_stride);
    GramOps<float> gram_f32;
    GramOps<double> gram_f64;
    LogitOps<float> logit_f32;
    LogitOps<double> logit_f64;
    LogitMerge logit_merge;
};

template <class T>
const TileOps<T>& tile_ops(const TileKernels& kernels) {
    if constexpr (sizeof(T) == 4)
        return kernels.f32;
    else
        return kernels.f64;
}

template <class T>
const GramOps<T>& gram_ops(const TileKernels& kernels) {
    if constexpr (sizeof(T) == 4)
        return kernels.gram_f32;
    else
        return kernels.gram_f64;
}

template <class T>
const LogitOps<T>& logit_ops(const TileKernels& kernels) {
    if constexpr (sizeof(T) == 4)
        return kernels.logit_f32;
    else
        return kernels.logit_f64;
}

}  // namespace gramless

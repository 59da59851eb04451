#include "core/array_scans.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/aligned_buffer.hpp"
#include "core/isa.hpp"

namespace gramless {
namespace {

constexpr std::int64_t kPivotRows = 64;

// visit(panel of doubles, first column, columns, panel width) for the panels of a chunk of rows
template <class Visit>
void each_panel(const ArrayView& source, std::int64_t row, std::int64_t rows, const Visit& visit) {
    const TileOps<double>& ops = tile_ops<double>(tile_kernels());
    AlignedBuffer<double> packed(panel_stride<double>(ops.width)), no_pivot(ops.width);
    no_pivot.zero();
    packed.zero();
    for (std::int64_t col = 0; col < source.cols; col += ops.width) {
        const std::int64_t cols = std::min(ops.width, source.cols - col);
        ops.pack(source, row, col, no_pivot.data(), {packed.data(), cols, rows});
        visit(packed, col, cols, ops.width);
    }
}

}  // namespace

void default_pivot(const ArrayView& source, double* pivot) {
    const std::int64_t rows = std::min(source.rows, kPivotRows);
    each_panel(source, 0, rows,
               [&](AlignedBuffer<double>& panel, std::int64_t col, std::int64_t cols, std::int64_t width) {
                   for (std::int64_t j = 0; j < cols; ++j) {
                       double sum = 0;
                       for (std::int64_t k = 0; k < rows; ++k)
                           sum += panel[k * width + j];
                       const double mean = sum / static_cast<double>(rows);
                       const bool wide = source.dtype == DType::kF64;
                       pivot[col + j] = wide ? mean : static_cast<double>(static_cast<float>(mean));
                   }
               });
}

std::int64_t first_non_finite_chunk(const ArrayView& source) {
    for (std::int64_t row = 0; row < source.rows; row += kChunkRows) {
        const std::int64_t rows = std::min(kChunkRows, source.rows - row);
        bool finite = true;
        each_panel(source, row, rows,
                   [&](AlignedBuffer<double>& panel, std::int64_t, std::int64_t cols, std::int64_t width) {
                       for (std::int64_t k = 0; k < rows; ++k)
                           for (std::int64_t j = 0; j < cols; ++j)
                               finite &= std::fabs(panel[k * width + j]) <= std::numeric_limits<double>::max();
                   });
        if (!finite) return row;
    }
    return -1;
}

}  // namespace gramless

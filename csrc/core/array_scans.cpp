#include "core/array_scans.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <vector>

#include "core/aligned_buffer.hpp"
#include "core/isa.hpp"

namespace gramless {
namespace {

constexpr std::int64_t kPivotRows = 64, kSampledRows = 7;
// squared lengths of rows above which their fourth powers overflow float32, and squares of features below which they
// underflow, with room for rows that are longer or shorter than those of the sample
constexpr double kMostSpread = 1e16, kLeastSquare = 1e-16;

// the smaller of each two values to a, the larger one to b
void order(double* a, double* b, std::int64_t count) {
    for (std::int64_t j = 0; j < count; ++j) {
        const double smaller = std::min(a[j], b[j]), larger = std::max(a[j], b[j]);
        a[j] = smaller;
        b[j] = larger;
    }
}

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

// up to 7 rows, evenly spaced
ArrayView spaced_rows(const ArrayView& source) {
    ArrayView sample = source;
    sample.rows = std::min(source.rows, kSampledRows);
    sample.row_stride *= std::max<std::int64_t>(1, source.rows / kSampledRows);
    return sample;
}

// Of up to 64 rows, rounded to float32 unless the array is float64. A mean would follow a single row that is far longer
// than the others, as attention sinks are.
void column_medians(const ArrayView& sample, double* medians) {
    each_panel(sample, 0, sample.rows,
               [&](AlignedBuffer<double>& panel, std::int64_t col, std::int64_t cols, std::int64_t width) {
                   // the order of NaN is not defined
                   std::vector<double> poison(static_cast<std::size_t>(width));
                   for (std::int64_t k = 0; k < sample.rows; ++k)
                       for (std::int64_t j = 0; j < width; ++j)
                           if (const double value = panel[k * width + j]; value != value)
                               poison[static_cast<std::size_t>(j)] = value;
                   // all columns side by side: a sort whose steps do not depend on the values
                   for (std::int64_t last = sample.rows - 1; last > 0; --last)
                       for (std::int64_t k = 0; k < last; ++k)
                           order(panel.data() + k * width, panel.data() + (k + 1) * width, width);
                   const double* const low = panel.data() + (sample.rows - 1) / 2 * width;
                   const double* const high = panel.data() + sample.rows / 2 * width;
                   for (std::int64_t j = 0; j < cols; ++j)
                       medians[col + j] = rounded(sample, (low[j] + high[j]) / 2 + poison[static_cast<std::size_t>(j)]);
               });
}

}  // namespace

double rounded(const ArrayView& source, double value) {
    return source.dtype == DType::kF64 ? value : static_cast<double>(static_cast<float>(value));
}

void default_pivot(const ArrayView& source, double* pivot) {
    ArrayView sample = source;
    sample.rows = std::min(source.rows, kPivotRows);
    column_medians(sample, pivot);
}

void sampled_centre(const ArrayView& source, double* centre) {
    column_medians(spaced_rows(source), centre);
}

double sampled_spread(const ArrayView& source, const double* centre) {
    const ArrayView sample = spaced_rows(source);
    std::vector<double> squared(static_cast<std::size_t>(sample.rows));
    each_panel(sample, 0, sample.rows,
               [&](AlignedBuffer<double>& panel, std::int64_t col, std::int64_t cols, std::int64_t width) {
                   for (std::int64_t k = 0; k < sample.rows; ++k)
                       for (std::int64_t j = 0; j < cols; ++j) {
                           const double d = panel[k * width + j] - centre[col + j];
                           squared[static_cast<std::size_t>(k)] += d * d;
                       }
               });
    std::sort(squared.begin(), squared.end());
    return (squared[(squared.size() - 1) / 2] + squared[squared.size() / 2]) / 2;
}

bool needs_double(double spread, std::int64_t features) {
    return spread > kMostSpread || (spread > 0 && spread < kLeastSquare * static_cast<double>(features));
}

void refuse_non_finite(const std::string& function, const std::string& name, const ArrayView& source) {
    if (const std::int64_t row = first_non_finite_chunk(source); row >= 0) refuse_chunk(function, name, source, row);
}

void refuse_chunk(const std::string& function, const std::string& name, const ArrayView& source, std::int64_t row) {
    const std::int64_t first = row / kChunkRows * kChunkRows, last = std::min(first + kChunkRows, source.rows) - 1;
    throw std::invalid_argument(function + ": " + name + " has non-finite values in rows " + std::to_string(first) +
                                ".." + std::to_string(last));
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

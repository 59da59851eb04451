// Rows of one array as the columns of panels, and the products of two such sets.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "core/aligned_buffer.hpp"
#include "core/array_view.hpp"
#include "core/feature_blocks.hpp"
#include "core/isa.hpp"
#include "core/tile_kernels.hpp"

namespace gramless {

// panels of a block of rows: chunk by chunk of features, within a chunk panel by panel
template <class T>
class RowPanels {
  public:
    // rows of the source, or those that an index names, less a centre; of a block of up to so many
    RowPanels(const ArrayView& source, const T* centre, std::int64_t most_rows, const std::int64_t* index = nullptr)
        : source_(source),
          centre_(centre),
          index_(index),
          ops_(tile_ops<T>(tile_kernels())),
          stride_(panel_stride<T>(ops_.width)),
          most_panels_(ceil_div(most_rows, ops_.width)),
          chunks_(ceil_div(source.cols, kChunkRows)),
          rows_(most_rows) {}

    // of the memory that they lie in
    std::int64_t elements() const { return chunks_ * most_panels_ * stride_; }
    void set_memory(T* data) { data_ = data; }

    static std::int64_t bytes(std::int64_t rows, std::int64_t features) {
        const std::int64_t width = tile_ops<T>(tile_kernels()).width;
        return ceil_div(rows, width) * ceil_div(features, kChunkRows) * panel_stride<T>(width) *
               std::int64_t{sizeof(T)};
    }

    void point_at(std::int64_t first, std::int64_t rows) {
        first_ = first;
        rows_ = rows;
    }

    std::int64_t first() const { return first_; }
    std::int64_t rows() const { return rows_; }
    std::int64_t width() const { return ops_.width; }
    std::int64_t chunks() const { return chunks_; }
    std::int64_t panels() const { return ceil_div(rows_, ops_.width); }

    // one panel over all features
    void pack(std::int64_t panel) {
        const std::int64_t row = first_ + panel * ops_.width;
        each_chunk(panel, [&](const Panels<T>& to, std::int64_t col) {
            if (!index_) return ops_.pack_samples(source_, row, col, centre_ + col, to);
            std::vector<unsigned char> gathered;
            ops_.pack_samples(gather(row, to.features, col, to.rows, gathered), 0, 0, centre_ + col, to);
        });
    }

    // Whether a packed panel is finite. Squares may overflow where the rows do not: then it is not, either.
    bool finite(std::int64_t panel) {
        std::vector<double> squared(static_cast<std::size_t>(ops_.width));
        each_chunk(panel, [&](const Panels<T>& of, std::int64_t) { ops_.sample_norms(of, squared.data()); });
        return std::all_of(squared.begin(), squared.end(), [](double square) { return std::isfinite(square); });
    }

    // rows from `begin` on, which starts a panel
    Panels<T> part(std::int64_t chunk, std::int64_t begin, std::int64_t count) {
        const std::int64_t left = source_.cols - chunk * kChunkRows;
        return {at(chunk, begin / ops_.width), count, std::min(kChunkRows, left)};
    }

    // the memory of such a part; none after the last chunk
    Ahead::Span span(std::int64_t chunk, std::int64_t begin, std::int64_t count) {
        if (chunk == chunks_) return {nullptr, 0};
        return {at(chunk, begin / ops_.width), ceil_div(count, ops_.width) * stride_ * std::int64_t{sizeof(T)}};
    }

  protected:
    const TileOps<T>& ops() const { return ops_; }

    // visit(panel of a chunk of features, first of these)
    template <class Visit>
    void each_chunk(std::int64_t panel, const Visit& visit) {
        const std::int64_t count = std::min(ops_.width, rows_ - panel * ops_.width);
        for (std::int64_t chunk = 0; chunk < chunks_; ++chunk) {
            const std::int64_t col = chunk * kChunkRows;
            visit(Panels<T>{at(chunk, panel), count, std::min(kChunkRows, source_.cols - col)}, col);
        }
    }

  private:
    T* at(std::int64_t chunk, std::int64_t panel) { return data_ + (chunk * most_panels_ + panel) * stride_; }

    // a copy of the features [col, col + cols) of the rows that the index has from `row` on
    ArrayView gather(std::int64_t row, std::int64_t rows, std::int64_t col, std::int64_t cols,
                     std::vector<unsigned char>& copy) const {
        const std::int64_t item = item_size(source_.dtype);
        copy.resize(static_cast<std::size_t>(rows * cols * item));
        unsigned char* to = copy.data();
        for (std::int64_t k = 0; k < rows; ++k) {
            const std::int64_t from = index_[row + k];
            const std::int64_t piece = source_.col_stride == item ? cols : 1;
            for (std::int64_t j = 0; j < cols; j += piece, to += piece * item)
                std::memcpy(to, source_.at(from, col + j), static_cast<std::size_t>(piece * item));
        }
        return {copy.data(), source_.dtype, rows, cols, cols * item, item};
    }

    const ArrayView source_;
    const T* centre_;
    const std::int64_t* index_;
    const TileOps<T>& ops_;
    T* data_ = nullptr;
    std::int64_t stride_, most_panels_, chunks_, first_ = 0, rows_ = 0;
};

// dot products of a tile, chunk by chunk of features
template <class T>
void multiply_tile(RowPanels<T>& i, std::int64_t begin_i, std::int64_t rows, RowPanels<T>& j, std::int64_t begin_j,
                   std::int64_t cols, bool diagonal, T* dots, std::int64_t stride) {
    const TileOps<T>& ops = tile_ops<T>(tile_kernels());
    for (std::int64_t chunk = 0; chunk < i.chunks(); ++chunk) {
        Ahead ahead{{i.span(chunk + 1, begin_i, rows), j.span(chunk + 1, begin_j, cols)}};
        ops.product_in_type(i.part(chunk, begin_i, rows), j.part(chunk, begin_j, cols), dots, stride, diagonal,
                            chunk == 0, ahead);
    }
}

}  // namespace gramless

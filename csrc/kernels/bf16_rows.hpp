// Rows of one bfloat16 array as blocks of a bfloat16 unit.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/aligned_buffer.hpp"
#include "core/array_view.hpp"
#include "core/bf16_tiles.hpp"
#include "core/feature_blocks.hpp"

namespace gramless {

class Bf16Rows {
  public:
    // rows of the source, or those that an index names; up to so many at a time, an even number of blocks of them
    Bf16Rows(const ArrayView& source, const std::int64_t* index, std::int64_t most_rows)
        : source_(source), index_(index), memory_(blocks_of(most_rows) * bf16_block(source.cols)) {}

    // whether a unit can read the array
    static bool takes(const ArrayView& source) {
        return source.dtype == DType::kBF16 && (source.col_stride == item_size(DType::kBF16) || source.cols == 1);
    }

    void point_at(std::int64_t first, std::int64_t rows) {
        first_ = first;
        rows_ = rows;
    }

    std::int64_t blocks() const { return blocks_of(rows_); }
    const std::uint16_t* block(std::int64_t index) { return memory_.data() + index * bf16_block(source_.cols); }

    using Pack = bool (*)(const unsigned char* const*, std::int64_t, std::int64_t, std::uint16_t*);

    // false if an element is not finite
    bool pack(std::int64_t block, Pack pack) {
        const std::int64_t begin = block * kBf16Rows;
        const std::int64_t count = std::clamp<std::int64_t>(rows_ - begin, 0, kBf16Rows);
        const unsigned char* rows[kBf16Rows];
        for (std::int64_t r = 0; r < count; ++r) {
            const std::int64_t row = first_ + begin + r;
            rows[r] = source_.at(index_ ? index_[row] : row, 0);
        }
        return pack(rows, count, source_.cols, memory_.data() + block * bf16_block(source_.cols));
    }

  private:
    static std::int64_t blocks_of(std::int64_t rows) { return 2 * ceil_div(rows, 2 * kBf16Rows); }

    const ArrayView source_;
    const std::int64_t* index_;
    AlignedBuffer<std::uint16_t> memory_;
    std::int64_t first_ = 0, rows_ = 0;
};

}  // namespace gramless

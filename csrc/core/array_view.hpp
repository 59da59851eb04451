// A strided view of the caller's memory: two dimensions, byte strides, four element types. Never owns, never copies.
#pragma once

#include <cstdint>

namespace gramless {

enum class DType : std::uint8_t { kF16, kBF16, kF32, kF64 };

constexpr std::int64_t item_size(DType dtype) {
    return dtype == DType::kF64 ? 8 : dtype == DType::kF32 ? 4 : 2;
}

struct ArrayView {
    const unsigned char* data = nullptr;
    DType dtype = DType::kF32;
    std::int64_t rows = 0;
    std::int64_t cols = 0;
    std::int64_t row_stride = 0;  // bytes, any sign, zero for broadcast rows
    std::int64_t col_stride = 0;

    const unsigned char* at(std::int64_t row, std::int64_t col) const {
        return data + row * row_stride + col * col_stride;
    }
};

}  // namespace gramless

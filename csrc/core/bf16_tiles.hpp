// Products of bfloat16 tiles on units that take bfloat16 in and add up in fp32: exact products, sums in fp32.
//
// A block holds 16 rows of an array, 32 features at a time: on the left as [row][feature], on the right as
// [pair of features][row][feature of the pair]. What is missing of either is zero.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace gramless {

inline constexpr std::int64_t kBf16Rows = 16, kBf16Features = 32;

// elements of a block of rows with so many features
constexpr std::int64_t bf16_block(std::int64_t features) {
    return (features + kBf16Features - 1) / kBf16Features * kBf16Rows * kBf16Features;
}

struct Bf16Ops {
    const char* name;
    // one block of up to 16 rows, each contiguous; false if an element is not finite
    bool (*pack_left)(const unsigned char* const* rows, std::int64_t count, std::int64_t features, std::uint16_t* out);
    bool (*pack_right)(const unsigned char* const* rows, std::int64_t count, std::int64_t features, std::uint16_t* out);
    // c = left right^T of even numbers of blocks
    void (*product)(const std::uint16_t* left, std::int64_t left_blocks, const std::uint16_t* right,
                    std::int64_t right_blocks, std::int64_t features, float* c, std::int64_t c_stride);
};

// the unit in use, null if there is none, or an instruction set level below the best is in use
const Bf16Ops* bf16_ops();

// names of the usable ones, best first
std::vector<std::string> bf16_units();

// "none" for none; throws std::invalid_argument for an unknown name
void set_bf16_unit(const std::string& name);

}  // namespace gramless

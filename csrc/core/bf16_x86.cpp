// The bfloat16 units of x86: tiles (AMX), and dot products of pairs in vectors (AVX512_BF16). Compiled with the flags
// of both; nothing from the standard library may come in here, as in level.cpp.
//
// numerics: both flush subnormal numbers to zero, which no logit can tell.
#include <immintrin.h>

#include "core/bf16_tiles.hpp"
#include "core/simd.hpp"

namespace gramless::bf16_x86 {
namespace {

using Pairs = Vector<std::uint32_t, 16>;

constexpr std::int64_t kTile = kBf16Rows * kBf16Features;

// 32 features of a row from feature k on
inline Pairs features_of(const unsigned char* row, std::int64_t k, std::int64_t features) {
    if (!row) return Pairs{};
    if (k + kBf16Features <= features) return load<std::uint32_t, 16>(row + 2 * k);
    std::uint16_t tail[kBf16Features] = {};
    __builtin_memcpy(tail, row + 2 * k, static_cast<unsigned long>(2 * (features - k)));
    return load<std::uint32_t, 16>(tail);
}

template <bool kTurned>
bool pack(const unsigned char* const* rows, std::int64_t count, std::int64_t features, std::uint16_t* out) {
    Pairs odd{};
    for (std::int64_t k = 0; k < features; k += kBf16Features, out += kTile) {
        Pairs block[kBf16Rows];
        for (int r = 0; r < kBf16Rows; ++r) {
            block[r] = features_of(r < count ? rows[r] : nullptr, k, features);
            // an exponent of ones, in either half
            odd |= (Pairs)((block[r] & 0x7f800000u) == 0x7f800000u) | (Pairs)((block[r] & 0x7f80u) == 0x7f80u);
        }
        if (kTurned) transpose<std::uint32_t, 16>(block);
        for (int r = 0; r < kBf16Rows; ++r)
            store<std::uint32_t, 16>(out + r * kBf16Features, block[r]);
    }
    return fold_lanes<std::uint32_t, 16>(odd, [](auto a, auto b) { return a | b; }) == 0;
}

// features over which the right blocks of one column of tiles stay in the first cache
constexpr std::int64_t kDepth = 512;

struct TileConfig {
    std::uint8_t palette, start, reserved[14];
    std::uint16_t row_bytes[16];
    std::uint8_t rows[16];
};

constexpr TileConfig whole_tiles() {
    TileConfig config{};
    config.palette = 1;
    for (int tile = 0; tile < 8; ++tile) {
        config.row_bytes[tile] = 64;
        config.rows[tile] = kBf16Rows;
    }
    return config;
}

// a constant: some compilers take only the first 8 bytes of a configuration as read, and may leave out the others
constexpr TileConfig kWholeTiles = whole_tiles();

// four tiles of c at a time, in registers 0 to 3
void amx_product(const std::uint16_t* left, std::int64_t left_blocks, const std::uint16_t* right,
                 std::int64_t right_blocks, std::int64_t features, float* c, std::int64_t c_stride) {
    _tile_loadconfig(&kWholeTiles);
    const std::int64_t block = bf16_block(features), steps = block / kTile, row_bytes = 4 * c_stride;
    for (std::int64_t first = 0; first < steps; first += kDepth / kBf16Features) {
        const std::int64_t last = first + kDepth / kBf16Features < steps ? first + kDepth / kBf16Features : steps;
        for (std::int64_t j = 0; j < right_blocks; j += 2)
            for (std::int64_t i = 0; i < left_blocks; i += 2) {
                float* const out = c + (i * c_stride + j) * kBf16Rows;
                float* const below = out + kBf16Rows * c_stride;
                if (first == 0) {
                    _tile_zero(0);
                    _tile_zero(1);
                    _tile_zero(2);
                    _tile_zero(3);
                } else {
                    _tile_loadd(0, out, row_bytes);
                    _tile_loadd(1, out + kBf16Rows, row_bytes);
                    _tile_loadd(2, below, row_bytes);
                    _tile_loadd(3, below + kBf16Rows, row_bytes);
                }
                const std::uint16_t *const a = left + i * block, *const b = right + j * block;
                for (std::int64_t k = first; k < last; ++k) {
                    _tile_loadd(4, a + k * kTile, 64);
                    _tile_loadd(5, a + block + k * kTile, 64);
                    _tile_loadd(6, b + k * kTile, 64);
                    _tile_loadd(7, b + block + k * kTile, 64);
                    _tile_dpbf16ps(0, 4, 6);
                    _tile_dpbf16ps(1, 4, 7);
                    _tile_dpbf16ps(2, 5, 6);
                    _tile_dpbf16ps(3, 5, 7);
                }
                _tile_stored(0, out, row_bytes);
                _tile_stored(1, out + kBf16Rows, row_bytes);
                _tile_stored(2, below, row_bytes);
                _tile_stored(3, below + kBf16Rows, row_bytes);
            }
    }
    _tile_release();
}

// 8 rows by 2 vectors at a time
void vector_product(const std::uint16_t* left, std::int64_t left_blocks, const std::uint16_t* right,
                    std::int64_t right_blocks, std::int64_t features, float* c, std::int64_t c_stride) {
    constexpr int kRows = 8;
    const std::int64_t block = bf16_block(features), steps = block / kTile;
    for (std::int64_t j = 0; j < right_blocks; j += 2)
        for (std::int64_t i = 0; i < left_blocks * kBf16Rows; i += kRows) {
            const std::uint16_t* const a = left + i / kBf16Rows * block + i % kBf16Rows * kBf16Features;
            const std::uint16_t* const b = right + j * block;
            __m512 sums[kRows][2];
#pragma GCC unroll 8
            for (int r = 0; r < kRows; ++r)
                sums[r][0] = sums[r][1] = _mm512_setzero_ps();
            for (std::int64_t k = 0; k < steps; ++k)
                for (int pair = 0; pair < kBf16Features / 2; ++pair) {
                    const std::int64_t at = k * kTile + pair * kBf16Features;
                    const __m512bh b0 = (__m512bh)_mm512_loadu_si512(b + at);
                    const __m512bh b1 = (__m512bh)_mm512_loadu_si512(b + block + at);
#pragma GCC unroll 8
                    for (int r = 0; r < kRows; ++r) {
                        std::int32_t both;
                        __builtin_memcpy(&both, a + k * kTile + r * kBf16Features + 2 * pair, 4);
                        const __m512bh row = (__m512bh)_mm512_set1_epi32(both);
                        sums[r][0] = _mm512_dpbf16_ps(sums[r][0], row, b0);
                        sums[r][1] = _mm512_dpbf16_ps(sums[r][1], row, b1);
                    }
                }
#pragma GCC unroll 8
            for (int r = 0; r < kRows; ++r) {
                float* const out = c + (i + r) * c_stride + j * kBf16Rows;
                _mm512_storeu_ps(out, sums[r][0]);
                _mm512_storeu_ps(out + kBf16Rows, sums[r][1]);
            }
        }
}

}  // namespace

extern const Bf16Ops kTiles, kVectors;
const Bf16Ops kTiles = {"amx", pack<false>, pack<true>, amx_product};
const Bf16Ops kVectors = {"avx512_bf16", pack<false>, pack<true>, vector_product};

}  // namespace gramless::bf16_x86

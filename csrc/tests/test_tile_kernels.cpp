// Every level's tile kernels against plain loops, on small integers, so that equality is exact.
#include <cmath>
#include <cstring>

#include <string>
#include <vector>

#include "check.hpp"
#include "core/aligned_buffer.hpp"
#include "core/isa.hpp"

using namespace gramless;

namespace {

std::uint16_t to_half(double value) {
    // exact for the small integers used here
    if (value == 0) return 0;
    int exponent = 0;
    const double fraction = std::frexp(std::fabs(value), &exponent);
    const auto mantissa = static_cast<std::uint16_t>(fraction * 2048) & 0x3ffu;
    return static_cast<std::uint16_t>((value < 0 ? 0x8000u : 0u) | static_cast<unsigned>(exponent + 14) << 10 |
                                      mantissa);
}

std::uint16_t to_bfloat16(double value) {
    const auto single = static_cast<float>(value);
    std::uint32_t bits = 0;
    std::memcpy(&bits, &single, 4);
    return static_cast<std::uint16_t>(bits >> 16);
}

void write(unsigned char* at, DType dtype, double value) {
    const std::uint16_t half = dtype == DType::kF16 ? to_half(value) : to_bfloat16(value);
    const auto single = static_cast<float>(value);
    if (dtype == DType::kF64) std::memcpy(at, &value, 8);
    if (dtype == DType::kF32) std::memcpy(at, &single, 4);
    if (item_size(dtype) == 2) std::memcpy(at, &half, 2);
}

enum class Layout { kRows, kColumns, kStrided };

// heap memory of the exact size, so that a sanitizer sees any read beyond it
struct Matrix {
    std::vector<unsigned char> bytes;
    std::vector<double> values;
    ArrayView view;

    Matrix(std::int64_t rows, std::int64_t cols, DType dtype, Layout layout, std::uint64_t seed) {
        const std::int64_t size = item_size(dtype);
        const std::int64_t gap = layout == Layout::kStrided ? 2 : 1;
        const std::int64_t row_stride = layout == Layout::kColumns ? size : cols * gap * size;
        const std::int64_t col_stride = layout == Layout::kColumns ? rows * size : gap * size;
        bytes.resize(static_cast<std::size_t>((rows - 1) * row_stride + (cols - 1) * col_stride + size));
        view = {bytes.data(), dtype, rows, cols, row_stride, col_stride};
        SmallIntegers integers(seed);
        for (std::int64_t r = 0; r < rows; ++r)
            for (std::int64_t c = 0; c < cols; ++c) {
                values.push_back(integers.next());
                write(bytes.data() + r * row_stride + c * col_stride, dtype, values.back());
            }
    }

    double at(std::int64_t r, std::int64_t c) const { return values[static_cast<std::size_t>(r * view.cols + c)]; }
};

template <class T>
struct Packed {
    AlignedBuffer<T> data;
    Panels<T> panels;

    Packed(const TileOps<T>& ops, const Matrix& m, const AlignedBuffer<T>& pivot)
        : data((m.view.cols + ops.width - 1) / ops.width * panel_stride<T>(ops.width)),
          panels{data.data(), m.view.cols, m.view.rows} {
        ops.pack(m.view, 0, 0, const_cast<AlignedBuffer<T>&>(pivot).data(), panels);
    }

    T at(const TileOps<T>& ops, std::int64_t r, std::int64_t c) {
        return data[c / ops.width * panel_stride<T>(ops.width) + r * ops.width + c % ops.width];
    }
};

template <class T>
AlignedBuffer<T> constant_pivot(const TileOps<T>& ops, std::int64_t cols, int value) {
    AlignedBuffer<T> pivot((cols + ops.width) / ops.width * ops.width + ops.width);
    pivot.zero();
    for (std::int64_t c = 0; c < cols; ++c)
        pivot[c] = static_cast<T>(value);
    return pivot;
}

template <class T>
void test_pack_and_product(std::int64_t rows, std::int64_t p, std::int64_t q, DType dtype, Layout layout) {
    const TileOps<T>& ops = tile_ops<T>(tile_kernels());
    const Matrix x(rows, p, dtype, layout, 1), y(rows, q, dtype, layout, 2);
    Packed<T> a(ops, x, constant_pivot(ops, p, 2)), b(ops, y, constant_pivot(ops, q, -1));
    for (std::int64_t r = 0; r < rows; ++r)
        for (std::int64_t c = 0; c < p; ++c)
            CHECK(a.at(ops, r, c) == x.at(r, c) - 2);

    const std::int64_t stride = q + 2 * ops.width;
    AlignedBuffer<double> c((p + 2 * ops.width) * stride), upper((p + 2 * ops.width) * (p + 2 * ops.width));
    c.zero();
    upper.zero();
    Ahead ahead{{{b.data.data(), 3000}, {a.data.data(), 64}}};
    ops.product(a.panels, b.panels, c.data(), stride, false, ahead);
    ops.product(a.panels, b.panels, c.data(), stride, false, ahead);
    ops.product(a.panels, a.panels, upper.data(), p + 2 * ops.width, true, ahead);
    for (std::int64_t i = 0; i < p; ++i) {
        for (std::int64_t j = 0; j < q; ++j) {
            double sum = 0;
            for (std::int64_t k = 0; k < rows; ++k)
                sum += (x.at(k, i) - 2) * (y.at(k, j) + 1);
            CHECK(c[i * stride + j] == 2 * sum);
        }
        for (std::int64_t j = i; j < p; ++j) {
            double sum = 0;
            for (std::int64_t k = 0; k < rows; ++k)
                sum += (x.at(k, i) - 2) * (x.at(k, j) - 2);
            CHECK(upper[i * (p + 2 * ops.width) + j] == sum);
        }
    }
}

template <class T>
void test_sums(std::int64_t rows, std::int64_t p) {
    const TileOps<T>& ops = tile_ops<T>(tile_kernels());
    const Matrix x(rows, p, DType::kF32, Layout::kRows, 3);
    Packed<T> a(ops, x, constant_pivot(ops, p, 1));
    AlignedBuffer<T> own(rows), other(rows);
    own.zero();
    ops.norms(a.panels, own.data());
    for (std::int64_t k = 0; k < rows; ++k) {
        other[k] = static_cast<T>(k % 5);
        double square = 0;
        for (std::int64_t c = 0; c < p; ++c)
            square += (x.at(k, c) - 1) * (x.at(k, c) - 1);
        CHECK(own[k] == square);
    }
    const std::int64_t padded = p + 2 * ops.width;
    AlignedBuffer<double> sums(5 * padded);
    sums.zero();
    double* base = sums.data();
    ops.column_sums(a.panels, own.data(), other.data(),
                    {base, base + padded, base + 2 * padded, base + 3 * padded, base + 4 * padded});
    for (std::int64_t c = 0; c < p; ++c) {
        double expected[5] = {};
        for (std::int64_t k = 0; k < rows; ++k) {
            const double d = x.at(k, c) - 1;
            const double terms[5] = {d, own[k] * d, other[k] * d, d * d * d, d * d * d * d};
            for (int t = 0; t < 5; ++t)
                expected[t] += terms[t];
        }
        for (int t = 0; t < 5; ++t)
            CHECK(sums[t * padded + c] == expected[t]);
    }
}

// subnormals, infinities, NaN and signed zero of float16 and bfloat16 reach the panel unchanged
void test_special_halves() {
    const TileOps<float>& ops = tile_ops<float>(tile_kernels());
    const std::uint16_t halves[] = {0x0001, 0x83ff, 0x7c00, 0xfc00, 0x7e00, 0x8000, 0x7bff, 0x3c00};
    const double expected[] = {0x1p-24, -0x1.ff8p-15, INFINITY, -INFINITY, NAN, -0.0, 65504, 1};
    AlignedBuffer<float> packed(8 * panel_stride<float>(ops.width)), zero(8 + ops.width);
    zero.zero();
    ops.pack({reinterpret_cast<const unsigned char*>(halves), DType::kF16, 1, 8, 16, 2}, 0, 0, zero.data(),
             {packed.data(), 8, 1});
    for (int i = 0; i < 8; ++i) {
        const std::int64_t at = i / ops.width * panel_stride<float>(ops.width) + i % ops.width;
        CHECK(std::isnan(expected[i]) ? std::isnan(packed[at]) : packed[at] == expected[i]);
    }
}

}  // namespace

int main() {
    at_each_level([] {
        for (const std::int64_t width : {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 47, 48, 49, 63, 64, 65, 97})
            for (const DType dtype : {DType::kF16, DType::kBF16, DType::kF32, DType::kF64})
                for (const Layout layout : {Layout::kRows, Layout::kColumns, Layout::kStrided})
                    for (const std::int64_t rows : {1, 17, 35}) {
                        test_pack_and_product<float>(rows, width, 98 - width, dtype, layout);
                        test_pack_and_product<double>(rows, width, 98 - width, dtype, layout);
                    }
        for (const std::int64_t width : {1, 5, 16, 47, 48, 50, 129}) {
            test_sums<float>(19, width);
            test_sums<double>(kChunkRows, width);
        }
        test_special_halves();
    });
    bool refused = false;
    try {
        set_isa_level("abacus");
    } catch (const std::exception& error) {
        refused = std::string(error.what()).find("got 'abacus'") != std::string::npos;
    }
    CHECK(refused);
    return 0;
}

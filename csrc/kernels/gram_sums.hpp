// Interface of the gram_sums kernel to its binding and to the C++ tests.
#pragma once

#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "core/array_view.hpp"
#include "core/gram_tiles.hpp"

namespace gramless {

// up to so many rows are computed in fp64
inline constexpr std::int64_t kGramRowsInDouble = 1024;

// rows of a block of rows that is packed at a time: a function of the widths alone
std::int64_t gram_block_rows(std::int64_t p, std::int64_t q);

// a kernel function of rows, before it is fitted to an array
struct GramFamily {
    GramFunction function = GramFunction::kLinear;
    int degree = 3;
    double coef0 = 1;
};

// what the sums of one array go to, all zero on entry; `bandwidths` entries of rows of length n
struct GramTarget {
    double* offsets;   // (s,) out
    double* squares;   // (s,) sum of k^2 over i != j
    double* rows;      // (s, n) sum of k over j != i
    double* diagonal;  // (s, n) k_ii, for the blocks that were paired with themselves
};

struct GramSumsTask {
    ArrayView x, y;                // y.rows = 0: x alone
    ArrayView sample_x, sample_y;  // rows that centre and offset are taken from; rows = 0: sampled of x and y
    GramFamily family;
    std::vector<double> bandwidths_x{1}, bandwidths_y{1};  // of equal length; ignored by families without one
    std::int64_t block_rows = 0;
    std::vector<std::pair<std::int64_t, std::int64_t>> pairs;  // of blocks, first <= second
    bool check_finite = true;
    GramTarget of_x{}, of_y{};
    double* products = nullptr;  // (s,) sum of k l over i != j
    std::function<void()> poll;
};

// throws std::invalid_argument for non-finite input, rows of norm zero (cosine) and overflow, if check_finite
void compute_gram_sums(GramSumsTask& task);

// most bytes beyond the result that compute_gram_sums holds, twice that where float32 cannot hold the data
std::int64_t gram_scratch_bytes(const GramSumsTask& task);

// one layer of a batch, and where its kernel values go
struct GramLayer {
    ArrayView rows, others;  // others.rows = 0: above the diagonal of the rows with themselves
    double bandwidth = 1;
    const double* pivot = nullptr;  // (p,), for the linear kernel; null: the sampled centre
    void* values;                   // float or double; (n (n - 1) / 2) or (n m)
    double* row_sums;               // (n,)
    double* column_sums;            // (m,), unless above the diagonal
    double square = 0;              // out
    double offset = 0;              // out
};

struct GramValuesTask {
    std::vector<GramLayer> layers;
    GramFamily family;
    bool in_double = false;
    bool check_finite = true;
    std::function<void()> poll;
};

void compute_gram_values(GramValuesTask& task);

struct GramProductsTask {
    ArrayView values;      // (l, m), float or double
    const double* pivots;  // (l,), subtracted from the values of each layer
    std::int64_t split;    // the first so many layers are paired with the others; l: all of them with each other
    double* products;      // (split, l - split) or (l, l), all zero on entry
    double* squares;       // (l,), the products of each layer with itself, all zero on entry
    std::function<void()> poll;
};

void compute_gram_products(GramProductsTask& task);

}  // namespace gramless

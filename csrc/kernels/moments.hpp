// Interface of the moments kernel to its binding and to the C++ tests.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "core/array_view.hpp"

namespace gramless {

// features of one output tile: its fp64 sums and two packed chunks stay in the caches of one core
inline constexpr std::int64_t kBlockWidth = 288;
// where there is more than one tile, a band of rows is packed for all of them: no more rows and no more bytes than
// these, but at least kMinBandRows
inline constexpr std::int64_t kMaxBandRows = 4096, kMinBandRows = 1024;
inline constexpr std::int64_t kBandBytes = std::int64_t{32} << 20;

// where the sums of one array go, all zero on entry; d = row - pivot
struct SelfSums {
    double* pivot;     // (p,) in: the wanted pivot; out: the one used, rounded to float32 unless x or y is float64
    double* sum;       // (p,) sum d
    double* second;    // (p, p) sum d d^T
    double* weighted;  // (p,) sum |d|^2 d
    double* cubes;     // (p,)
    double* fourths;   // (p,)
    double norms;      // sum |d|^4
};

// where the sums of a pair go, all zero on entry; d and e are the two rows less their pivots
struct CrossSums {
    double* second;      // (p, q) sum d e^T
    double* weighted_x;  // (p,) sum |e|^2 d
    double* weighted_y;  // (q,) sum |d|^2 e
    double norms;        // sum |d|^2 |e|^2
};

struct MomentsTask {
    ArrayView x, y;  // y.rows = 0: x alone
    bool self_terms = true;
    bool check_finite = true;
    SelfSums self_x{}, self_y{};
    CrossSums cross{};
    std::function<void()> poll;  // may throw to interrupt
};

// throws std::invalid_argument for non-finite input and for sums that overflow, if check_finite
void compute_moments(MomentsTask& task);

// Most bytes beyond the sums that compute_moments holds, twice that where float32 cannot hold the powers of the data.
// Of task only the shapes, dtypes and self_terms are read.
std::int64_t moments_scratch_bytes(MomentsTask& task);

}  // namespace gramless

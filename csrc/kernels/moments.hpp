// Interface of the moments kernel to its binding and to the C++ tests.
#pragma once

#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

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

// One of many layers over the same rows. Partners of a layer of x are all layers of y, and the other way round; without
// y, those of x: for its second moments the later ones, for its weighted sums all, itself among them.
struct MomentLayer {
    ArrayView rows;
    SelfSums self{};
    double* second = nullptr;    // (p, features of all partners) sum d e^T, of layers of x alone
    double* weighted = nullptr;  // (p, partners) sum |e|^2 d
};

struct LayerMomentsTask {
    std::vector<MomentLayer> layers;  // of x, then of y
    std::size_t split = 0;            // layers of x; all of them without y
    bool check_finite = true;
    double* norms = nullptr;  // (layers of x, partners) sum |d|^2 |e|^2
    std::function<void()> poll;

    // the first partner for weighted sums, and their number
    std::pair<std::size_t, std::size_t> partners(std::size_t layer) const {
        if (split == layers.size()) return {0, split};
        return layer < split ? std::pair(split, layers.size() - split) : std::pair(std::size_t{0}, split);
    }

    // where the second moments with layer b start in a row of those of layer a, and the length of the row
    std::int64_t partner_offset(std::size_t a, std::size_t b) const {
        std::int64_t offset = 0;
        for (std::size_t k = split == layers.size() ? a + 1 : split; k < b; ++k)
            offset += layers[k].rows.cols;
        return offset;
    }
    std::int64_t partner_features(std::size_t a) const { return partner_offset(a, layers.size()); }
};

// layer `layer` of all has a fault
struct LayerFault : std::invalid_argument {
    LayerFault(std::size_t at, const std::string& reason) : std::invalid_argument(reason), layer(at) {}
    std::size_t layer;
};

// throws LayerFault where compute_moments throws std::invalid_argument
void compute_layer_moments(LayerMomentsTask& task);

// as moments_scratch_bytes
std::int64_t layer_moments_scratch_bytes(const LayerMomentsTask& task);

// throws std::invalid_argument for non-finite input and for sums that overflow, if check_finite
void compute_moments(MomentsTask& task);

// Most bytes beyond the sums that compute_moments holds, twice that where float32 cannot hold the powers of the data.
// Of task only the shapes, dtypes and self_terms are read.
std::int64_t moments_scratch_bytes(MomentsTask& task);

}  // namespace gramless

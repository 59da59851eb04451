// What becomes of a finished tile of logits: online sums of exponentials, one set for each row.
#pragma once

#include <cstdint>

#include "core/array_view.hpp"

namespace gramless {

// most rows and columns of a tile of logits; a multiple of every level's panel width
inline constexpr std::int64_t kLogitTile = 288;

// what makes logits of dot products: z = cap tanh((dot + bias) / cap) scale
template <class T>
struct LogitFinish {
    const T* bias;  // per column; null: none
    T scale;        // 1 / temperature
    T cap;          // 0: none
    bool poisoned;  // infinite products come from infinite arrays, and become NaN
};

// rows of logits
template <class T>
struct LogitRows {
    const T* data;
    std::int64_t stride;
    // z = -inf, of a label that cannot be, has probability 0 whatever else it is multiplied by
    bool masked;
};

// per row, of each model
struct ModelSums {
    double* largest;   // m = max z
    double* sum;       // sum e^(z - m)
    double* weighted;  // sum e^(z - m) z
    std::int64_t* top;
};

// per row, of one model alone
struct LogitSums : ModelSums {
    double* squares;  // sum e^(2 (z - m))
    double* counted;  // labels with z > -inf
};

// per row, of two models, with delta = z1 - z2
struct LogitPairSums {
    ModelSums p, q;
    double* delta_p;  // sum e^(z1 - m1) delta
    double* delta_q;  // sum e^(z2 - m2) delta
    double* mean;     // of delta
    double* square;   // sum (delta - mean)^2
    double* abs;      // sum |delta|
    double* most;     // max |delta|
    double* counted;  // labels that are not -inf in both; all sums of delta are over these
};

template <class T>
struct LogitOps {
    // `count` elements of a row from `col` on, or those at the columns of an index; false if one is NaN or +inf
    bool (*widen)(const ArrayView& source, std::int64_t row, std::int64_t col, const std::int64_t* index,
                  std::int64_t count, T* out);
    void (*finish)(const LogitFinish<T>& finish, T* logits, std::int64_t stride, std::int64_t rows, std::int64_t cols);
    // sums of each row over its columns; `top` counts from `first`
    void (*sums)(const LogitRows<T>& z, std::int64_t rows, std::int64_t cols, std::int64_t first, const LogitSums& out);
    void (*pair_sums)(const LogitRows<T>& p, const LogitRows<T>& q, std::int64_t rows, std::int64_t cols,
                      std::int64_t first, const LogitPairSums& out);
    // js and tv of each row over its columns, for normalised log probabilities z - lse
    void (*divergences)(const LogitRows<T>& p, const LogitRows<T>& q, const double* lse_p, const double* lse_q,
                        std::int64_t rows, std::int64_t cols, double* js, double* tv);
};

// to += from, for other columns of the same rows; arrays are padded to whole vectors
struct LogitMerge {
    void (*sums)(const LogitSums& from, const LogitSums& to, std::int64_t rows);
    void (*pair_sums)(const LogitPairSums& from, const LogitPairSums& to, std::int64_t rows);
};

}  // namespace gramless

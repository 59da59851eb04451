// What becomes of a finished tile of dot products u_i . v_j: kernel values, and their sums.
#pragma once

#include <cstdint>

namespace gramless {

// most rows and columns of a tile; a multiple of every level's panel width
inline constexpr std::int64_t kGramTile = 288;

enum class GramFunction : std::uint8_t { kLinear, kRbf, kLaplacian, kPolynomial, kCosine, kDistance };

template <class T>
struct GramKernel {
    GramFunction function;
    T factor;  // rbf log2(e) / (2 s^2), laplacian log2(e) / s, polynomial 1 / p
    T coef0;
    int degree;
    T offset;    // rbf and laplacian: what is subtracted from k
    T landmark;  // polynomial: k of the landmark with itself
    T noise;     // polynomial: how much of k may be rounding
};

// one tile of one array, for one bandwidth
template <class T>
struct GramSide {
    const T* dots;
    std::int64_t stride;
    const T* norms_i;  // squared norms of its rows, and of its columns; for polynomial, their k with the landmark
    const T* norms_j;
    GramKernel<T> kernel;
    double* row_sums;  // overwritten
    double* column_sums;
    T* const* values;  // per row, where its kernel values go; null: nowhere
};

struct GramTileSums {
    double xx = 0, yy = 0, xy = 0;
};

template <class T>
struct GramOps {
    // sums over the tile, of a diagonal one over what is above the diagonal; y may be null
    GramTileSums (*reduce)(const GramSide<T>& x, const GramSide<T>* y, std::int64_t rows, std::int64_t cols,
                           bool diagonal);
};

}  // namespace gramless

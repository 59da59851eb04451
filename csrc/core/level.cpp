// Compiled once per instruction set level: CMake defines the level's namespace, its name and its register shape.
#include "core/gram_tiles.inl"
#include "core/logit_merge.inl"
#include "core/logit_tiles.inl"
#include "core/tile_kernels.inl"

namespace gramless::GRAMLESS_LEVEL {

template <class T>
constexpr TileOps<T> kOps = {kWidth<T>,      pack<T>,         product<T>,         norms<T>,       norm_sums<T>,
                             column_sums<T>, pack_samples<T>, product_in_type<T>, sample_norms<T>};

extern const TileKernels kTileKernels;
const TileKernels kTileKernels = {GRAMLESS_LEVEL_NAME, kOps<float>,      kOps<double>,      add_tile,   kGramOps<float>,
                                  kGramOps<double>,    kLogitOps<float>, kLogitOps<double>, kLogitMerge};

}  // namespace gramless::GRAMLESS_LEVEL

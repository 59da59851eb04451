// How the moments kernel cuts its work: arrays into panels, panels into blocks, pairs of blocks into tiles, rows into
// bands. No sum depends on the cut.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/feature_blocks.hpp"
#include "core/isa.hpp"
#include "core/thread_pool.hpp"
#include "core/tile_kernels.hpp"
#include "kernels/moments.hpp"

namespace gramless {

// tiles narrower than this many panels are not worth a thread of their own
inline constexpr std::int64_t kLeastPanels = 2;
inline constexpr std::int64_t kTilesPerThread = 8;
inline constexpr std::int64_t kFirstCacheBytes = 24 << 10;

struct Segment {
    const ArrayView* source;
    std::int64_t first_panel;
    SelfSums* self;
};

// two blocks whose product is one task
struct Tile {
    std::size_t i = 0, j = 0;
};

template <class T>
struct MomentsPlan {
    const TileOps<T>& ops;
    const std::int64_t stride;  // from panel to panel
    const bool pair;
    const int threads;
    std::vector<Segment> segments;
    std::int64_t panels = 0;  // of both arrays
    std::vector<Block> blocks;
    std::vector<Tile> tiles;
    std::int64_t tile_panels = 0;
    std::int64_t band_chunks = 0;
    std::int64_t rows_at_once = 0;  // whose norms are taken while they are in the first cache

    explicit MomentsPlan(MomentsTask& task)
        : ops(tile_ops<T>(tile_kernels())),
          stride(panel_stride<T>(ops.width)),
          pair(task.y.rows > 0),
          threads(threads_for(static_cast<double>(task.x.rows) * static_cast<double>(task.x.cols + task.y.cols) *
                              static_cast<double>(task.x.cols + task.y.cols))) {
        add(task.x, task.self_x);
        if (pair) add(task.y, task.self_y);
        cut(task.self_terms);
        const std::int64_t wanted =
            std::clamp(kBandBytes / chunk_bytes(), kMinBandRows / kChunkRows, kMaxBandRows / kChunkRows);
        band_chunks = std::min(wanted, ceil_div(task.x.rows, kChunkRows));
        const std::int64_t row_bytes = panels * ops.width * std::int64_t{sizeof(T)};
        rows_at_once = std::clamp<std::int64_t>(kFirstCacheBytes / row_bytes / 16 * 16, 32, kChunkRows);
    }

    // of all panels over kChunkRows rows
    std::int64_t chunk_bytes() const { return panels * stride * std::int64_t{sizeof(T)}; }

    // one cache line more than the width: rows a power of two apart would all fall into the same cache sets
    std::int64_t tile_stride(std::int64_t wide) const { return wide * ops.width + 8; }

    std::int64_t panel_of(const Run& run) const {
        return segments[static_cast<std::size_t>(run.segment)].first_panel + run.first / ops.width;
    }

    std::int64_t scratch_bytes() const {
        const std::int64_t item = sizeof(T), wide = panels * ops.width;
        const std::int64_t tile = 8 * tile_panels * ops.width * tile_stride(tile_panels);
        const std::int64_t of_worker = tile + 5 * 8 * wide + 2 * kChunkRows * item;
        return wide * item + threads * of_worker + (tiles.size() == 1 ? threads : band_chunks) * chunk_bytes();
    }

  private:
    void add(const ArrayView& source, SelfSums& self) {
        segments.push_back({&source, panels, &self});
        panels += ceil_div(source.cols, ops.width);
    }

    // blocks that a core's cache holds, and enough tiles to keep every thread busy
    void cut(bool self_terms) {
        std::vector<std::int64_t> features;
        for (const Segment& segment : segments)
            features.push_back(segment.source->cols);
        for (std::int64_t most = std::max<std::int64_t>(1, kBlockWidth / ops.width); most > 0; --most) {
            blocks = cut_blocks(features, ops.width, most, self_terms || !pair);
            list_tiles(self_terms);
            tile_panels = std::min(most, panels);
            const auto count = static_cast<std::int64_t>(tiles.size());
            if (count == 1 || most <= kLeastPanels || count >= kTilesPerThread * threads) return;
        }
    }

    // the half tiles of the diagonal come last, where they fill the gaps between threads
    void list_tiles(bool self_terms) {
        tiles.clear();
        for (std::size_t i = 0; i < blocks.size(); ++i)
            for (std::size_t j = i + 1; j < blocks.size(); ++j)
                if (self_terms || blocks[i].runs[0].segment != blocks[j].runs[0].segment) tiles.push_back({i, j});
        for (std::size_t i = 0; i < blocks.size() && self_terms; ++i)
            tiles.push_back({i, i});
    }
};

}  // namespace gramless

// How moments of many layers are cut: layers into panels, neighbouring narrow layers into blocks, pairs of blocks into
// tiles. Part of moments.cpp.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "core/feature_blocks.hpp"
#include "core/isa.hpp"
#include "core/thread_pool.hpp"
#include "core/tile_kernels.hpp"
#include "kernels/moments.hpp"
#include "kernels/moments_plan.hpp"

namespace gramless {

// one layer of a pass; its place among the segments is that in the panels
struct LayerSegment {
    std::size_t layer;  // of the task
    int side;           // 0 is x, 1 is y
    std::int64_t features, first_panel, panels;
};

// the squared row norms of the layers of one side as panels: one column for each of the segments from `first` on
struct NormSegment {
    std::int64_t first = 0, count = 0;
    std::int64_t first_panel = 0, panels = 0;            // in the type of the products
    std::int64_t first_wide_panel = 0, wide_panels = 0;  // in fp64
};

// two blocks whose product is one task
struct LayerTile {
    std::size_t i, j;
};

template <class T>
struct LayerPlan {
    const TileOps<T>& ops;
    const TileOps<double>& wide;
    const std::int64_t stride, norm_stride;  // from panel to panel
    const std::int64_t rows;
    std::vector<LayerSegment> segments;
    int sides = 1;
    NormSegment norms[2];
    std::int64_t panels = 0, norm_panels = 0;  // of a chunk
    int threads = 1;
    std::vector<Block> blocks;
    std::vector<LayerTile> tiles;
    std::int64_t tile_panels = 0, band_chunks = 0;

    LayerPlan(const LayerMomentsTask& task, std::vector<std::size_t> members, const std::vector<bool>& is_wide,
              bool alone)
        : ops(tile_ops<T>(tile_kernels())),
          wide(tile_ops<double>(tile_kernels())),
          stride(panel_stride<T>(ops.width)),
          norm_stride(panel_stride<double>(wide.width)),
          rows(task.layers[0].rows.rows),
          sides(task.split < task.layers.size() ? 2 : 1),
          alone_(alone) {
        std::int64_t features = 0;
        for (const std::size_t layer : members) {
            const int side = sides == 2 && layer >= task.split ? 1 : 0;
            const std::int64_t p = task.layers[layer].rows.cols, count_of = ceil_div(p, ops.width);
            segments.push_back({layer, side, p, panels, count_of});
            wide_.push_back(is_wide[layer]);
            panels += count_of;
            features += p;
            ++norms[side].count;
        }
        norms[1].first = norms[0].count;
        for (NormSegment& segment : norms) {
            segment.first_panel = panels;
            segment.panels = ceil_div(segment.count, ops.width);
            panels += segment.panels;
            segment.first_wide_panel = norm_panels;
            segment.wide_panels = ceil_div(segment.count, wide.width);
            norm_panels += segment.wide_panels;
        }
        threads =
            threads_for(static_cast<double>(rows) * static_cast<double>(features) * static_cast<double>(features));
        const std::int64_t chunk_bytes = panels * stride * std::int64_t{sizeof(T)};
        const std::int64_t most =
            std::clamp(kBandBytes / chunk_bytes, kMinBandRows / kChunkRows, kMaxBandRows / kChunkRows);
        band_chunks = std::min(most, ceil_div(rows, kChunkRows));
        cut();
    }

    std::int64_t count() const { return static_cast<std::int64_t>(segments.size()); }

    // features of all layers, padded
    std::int64_t width() const { return norms[0].first_panel * ops.width; }

    std::int64_t tile_stride(std::int64_t wide_panels) const { return wide_panels * ops.width + 8; }

    bool is_norms(const Run& run) const { return run.segment >= count(); }
    int norm_side(const Run& run) const { return run.segment - static_cast<int>(count()); }

    std::int64_t panel_of(const Run& run) const {
        const std::int64_t first = is_norms(run) ? norms[norm_side(run)].first_panel
                                                 : segments[static_cast<std::size_t>(run.segment)].first_panel;
        return first + run.first / ops.width;
    }

    // whether this pass has a pair of segments
    bool wanted(std::int64_t a, std::int64_t b) const {
        return !alone_ || wide_[static_cast<std::size_t>(a)] || wide_[static_cast<std::size_t>(b)];
    }

    bool wanted(const LayerTile& tile, const Run& i, const Run& j) const {
        // single layers are left out where results are added
        if (is_norms(j)) return true;
        if (!wanted(i.segment, j.segment)) return false;
        if (i.segment == j.segment) return tile.i != tile.j || i.first <= j.first;
        return side_of(i) != side_of(j) || (sides == 1 && i.segment < j.segment);
    }

    // layers of x whose norms one task multiplies
    std::int64_t norm_rows() const { return 4 * wide.width; }
    std::int64_t norm_tasks() const { return ceil_div(norms[0].count, norm_rows()); }

    std::int64_t scratch_bytes() const {
        const std::int64_t item = sizeof(T), padded = panels * ops.width;
        const std::int64_t of_worker =
            8 * (tile_panels * ops.width * tile_stride(tile_panels) + norm_rows() * norm_panels * wide.width);
        const std::int64_t of_chunk = panels * stride * item + 8 * norm_panels * norm_stride +
                                      count() * (kChunkRows * item + 8) + 8 * 4 * width();
        return padded * item + threads * of_worker + band_chunks * of_chunk;
    }

  private:
    int side_of(const Run& run) const { return segments[static_cast<std::size_t>(run.segment)].side; }

    // blocks that a core's cache holds, and enough tiles to keep every thread busy
    void cut() {
        for (std::int64_t most = std::max<std::int64_t>(1, kBlockWidth / ops.width); most > 0; --most) {
            cut_blocks(most);
            list_tiles();
            if (most <= kLeastPanels || static_cast<std::int64_t>(tiles.size()) >= kTilesPerThread * threads) break;
        }
        for (const Block& block : blocks)
            tile_panels = std::max(tile_panels, block.panels);
    }

    // a layer that is wider than a block is cut into equal pieces; others share a block with their neighbours
    void cut_blocks(std::int64_t most) {
        blocks.clear();
        const auto append = [&](int segment, std::int64_t of_segment, std::int64_t features, bool fresh) {
            const std::int64_t pieces = ceil_div(of_segment, most);
            for (std::int64_t piece = 0; piece < pieces; ++piece) {
                if (fresh || pieces > 1 || blocks.back().panels + of_segment > most) blocks.emplace_back();
                blocks.back().append(segment, of_segment * piece / pieces, of_segment * (piece + 1) / pieces, ops.width,
                                     features);
            }
        };
        int side = -1;
        for (std::size_t s = 0; s < segments.size(); ++s) {
            append(static_cast<int>(s), segments[s].panels, segments[s].features, segments[s].side != side);
            side = segments[s].side;
        }
        of_layers_ = blocks.size();
        for (int s = 0; s < sides; ++s)
            append(static_cast<int>(count()) + s, norms[s].panels, norms[s].count, true);
    }

    // the tiles of single layers come last, where they fill the gaps between threads
    void list_tiles() {
        tiles.clear();
        std::vector<LayerTile> of_layers;
        for (std::size_t i = 0; i < of_layers_; ++i)
            for (std::size_t j = i; j < of_layers_; ++j) {
                const Run &first = blocks[i].runs.back(), &second = blocks[j].runs.front();
                const bool across = side_of(first) != side_of(second) || (sides == 1 && i != j);
                if (across)
                    tiles.push_back({i, j});
                else if (i == j || first.segment == second.segment)
                    of_layers.push_back({i, j});
            }
        for (std::size_t i = 0; i < of_layers_; ++i)
            for (std::size_t j = of_layers_; j < blocks.size(); ++j)
                if (sides == 1 || norm_side(blocks[j].runs[0]) != side_of(blocks[i].runs[0])) tiles.push_back({i, j});
        tiles.insert(tiles.end(), of_layers.begin(), of_layers.end());
    }

    const bool alone_;
    std::vector<bool> wide_;
    std::size_t of_layers_ = 0;
};

}  // namespace gramless

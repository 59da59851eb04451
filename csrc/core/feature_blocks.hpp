// How the features of one array, or of a pair, are cut into blocks that fit a core's caches.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/array_view.hpp"

namespace gramless {

inline std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
    return (a + b - 1) / b;
}

// consecutive features of one array within a block
struct Run {
    int segment;  // 0 is x, 1 is y
    std::int64_t first, count;
    std::int64_t panel;  // where the run starts in its block
};

// features that are packed together: a piece of x, a piece of y, or, when both are narrow, all of x and y
struct Block {
    std::vector<Run> runs;
    std::int64_t panels = 0;

    // panels [begin, end) of an array with `features` features
    void append(int segment, std::int64_t begin, std::int64_t end, std::int64_t width, std::int64_t features) {
        runs.push_back({segment, begin * width, std::min(end * width, features) - begin * width, panels});
        panels += end - begin;
    }
};

// blocks of at most `most` panels each; one block of everything if that fits and `together` allows it
inline std::vector<Block> cut_blocks(const std::vector<std::int64_t>& features, std::int64_t width, std::int64_t most,
                                     bool together) {
    std::int64_t all = 0;
    for (const std::int64_t count : features)
        all += ceil_div(count, width);
    std::vector<Block> blocks;
    const bool whole = together && all <= most;
    if (whole) blocks.emplace_back();
    for (std::size_t s = 0; s < features.size(); ++s) {
        const std::int64_t panels = ceil_div(features[s], width);
        const std::int64_t pieces = whole ? 1 : ceil_div(panels, most);
        for (std::int64_t piece = 0; piece < pieces; ++piece) {
            if (!whole) blocks.emplace_back();
            blocks.back().append(static_cast<int>(s), panels * piece / pieces, panels * (piece + 1) / pieces, width,
                                 features[s]);
        }
    }
    return blocks;
}

}  // namespace gramless

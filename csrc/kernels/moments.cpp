// contract: one pass over x (n, p) and y (n, q) returns the shifted moments of SelfSums and CrossSums.
// formula: with d, e the rows of x, y less their pivots, sums of d d^T, d e^T, e e^T; defined by reference.moments.
// cost: n (p^2 + q^2 + 2 p q) flops, symmetric parts at half; x and y are read once. Per thread a tile of kBlockWidth^2
//       doubles; narrow arrays: and a packed chunk (kChunkRows rows); wide ones: a band of packed rows for all threads.
// numerics: fp16, bf16, fp32 are shifted and multiplied in fp32, fp64 in fp64; a chunk of 256 rows is summed in that
//       type, chunks in fp64, slabs or bands in order. NaN and inf raise, or reach the sums they belong to. n >= 1.
// why not: raw sums with the mean taken out afterwards; at mean / std = 100 their fp32 result has no correct digit.
#include "kernels/moments.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <vector>

#include "core/aligned_buffer.hpp"
#include "core/array_scans.hpp"
#include "core/feature_blocks.hpp"
#include "core/isa.hpp"
#include "core/ordered_loop.hpp"
#include "kernels/moments_scratch.hpp"

namespace gramless {
namespace {

// tiles narrower than this many panels are not worth a thread of their own
constexpr std::int64_t kLeastPanels = 2;
constexpr std::int64_t kTilesPerThread = 8;

bool is_finite(double value) {
    return std::fabs(value) <= std::numeric_limits<double>::max();
}

template <class T>
class Moments {
  public:
    explicit Moments(MomentsTask& task)
        : task_(task), ops_(tile_ops<T>(tile_kernels())), stride_(panel_stride<T>(ops_.width)), pair_(task.y.rows > 0) {
        add_segment(task.x, task.self_x);
        if (pair_) add_segment(task.y, task.self_y);
        std::vector<std::int64_t> features;
        for (const Segment& segment : segments_)
            features.push_back(segment.source->cols);
        cut(features);
        scratch_.resize(static_cast<std::size_t>(num_threads()));
    }

    void run() {
        if (tiles_.size() == 1)
            run_whole();
        else
            run_bands();
    }

    std::int64_t scratch_bytes() const {
        const std::int64_t workers = num_threads(), item = sizeof(T), wide = panels_ * ops_.width;
        const std::int64_t packed = panels_ * stride_ * item;
        const std::int64_t tile = 8 * tile_panels_ * ops_.width * tile_stride(tile_panels_);
        const std::int64_t of_worker = tile + 5 * 8 * wide + 2 * kChunkRows * item;
        return wide * item + workers * of_worker + (tiles_.size() == 1 ? workers : band_chunks()) * packed;
    }

  private:
    void add_segment(const ArrayView& source, SelfSums& self) {
        const std::int64_t panels = ceil_div(source.cols, ops_.width);
        segments_.push_back({&source, panels_, &self});
        panels_ += panels;
        AlignedBuffer<T> pivot(panels * ops_.width);
        pivot.zero();
        for (std::int64_t j = 0; j < source.cols; ++j) {
            pivot[j] = static_cast<T>(self.pivot[j]);
            self.pivot[j] = static_cast<double>(pivot[j]);
        }
        pivots_.push_back(std::move(pivot));
    }

    // blocks that a core's cache holds, and enough tiles to keep every thread busy; no sum depends on the cut
    void cut(const std::vector<std::int64_t>& features) {
        for (std::int64_t most = std::max<std::int64_t>(1, kBlockWidth / ops_.width); most > 0; --most) {
            blocks_ = cut_blocks(features, ops_.width, most, task_.self_terms || !pair_);
            tiles_ = list_tiles();
            tile_panels_ = std::min(most, panels_);
            const auto count = static_cast<std::int64_t>(tiles_.size());
            if (count == 1 || most <= kLeastPanels || count >= kTilesPerThread * num_threads()) return;
        }
    }

    // narrow arrays: every task packs a chunk and multiplies it while it is in the cache
    void run_whole() {
        ordered_loop(
            task_.x.rows, slab_rows(task_.x.rows),
            [&](const Slab& slab, int worker) {
                Scratch<T>& mine = scratch(worker);
                if (!mine.packed) mine.packed = AlignedBuffer<T>(panels_ * stride_);
                mine.clear_sums();
                mine.tile.zero();
                for (std::int64_t row = slab.begin; row < slab.end; row += kChunkRows) {
                    Chunk<T> chunk{mine.packed.data(), row, std::min(kChunkRows, slab.end - row)};
                    pack_and_sum(chunk, mine);
                    multiply(tiles_[0], chunk, mine);
                }
            },
            [&](const Slab& slab, int worker) {
                add_row_sums(scratch(worker));
                add_tile(tiles_[0], slab.last, scratch(worker));
            },
            task_.poll);
    }

    // wide arrays: a band of rows is packed once for all tiles
    void run_bands() {
        const std::int64_t height = band_chunks() * kChunkRows;
        AlignedBuffer<T> packed(band_chunks() * panels_ * stride_);
        std::vector<Chunk<T>> chunks;
        for (std::int64_t first = 0; first < task_.x.rows; first += height) {
            const std::int64_t rows = std::min(height, task_.x.rows - first);
            chunks.clear();
            for (std::int64_t row = 0; row < rows; row += kChunkRows)
                chunks.push_back({packed.data() + row / kChunkRows * panels_ * stride_, first + row,
                                  std::min(kChunkRows, rows - row), row + kChunkRows < rows ? panels_ * stride_ : 0});
            ordered_loop(
                rows, kChunkRows,
                [&](const Slab& slab, int worker) {
                    scratch(worker).clear_sums();
                    pack_and_sum(chunks[static_cast<std::size_t>(slab.begin / kChunkRows)], scratch(worker));
                },
                [&](const Slab&, int worker) { add_row_sums(scratch(worker)); }, task_.poll);
            parallel_for(
                static_cast<std::int64_t>(tiles_.size()),
                [&](std::int64_t index, int worker) {
                    const Tile& tile = tiles_[static_cast<std::size_t>(index)];
                    Scratch<T>& mine = scratch(worker);
                    mine.tile.zero();
                    for (const Chunk<T>& chunk : chunks)
                        multiply(tile, chunk, mine);
                    add_tile(tile, first + rows == task_.x.rows, mine);
                },
                task_.poll);
        }
    }

    std::int64_t band_chunks() const {
        const auto chunk = panels_ * stride_ * std::int64_t{sizeof(T)};
        const std::int64_t wanted =
            std::clamp(kBandBytes / chunk, kMinBandRows / kChunkRows, kMaxBandRows / kChunkRows);
        return std::min(wanted, ceil_div(task_.x.rows, kChunkRows));
    }

    // the half tiles of the diagonal come last, where they fill the gaps between threads
    std::vector<Tile> list_tiles() const {
        std::vector<Tile> tiles;
        for (std::size_t i = 0; i < blocks_.size(); ++i)
            for (std::size_t j = i + 1; j < blocks_.size(); ++j)
                if (task_.self_terms || blocks_[i].runs[0].segment != blocks_[j].runs[0].segment)
                    tiles.push_back({i, j});
        for (std::size_t i = 0; i < blocks_.size() && task_.self_terms; ++i)
            tiles.push_back({i, i});
        return tiles;
    }

    // one cache line more than the width: rows a power of two apart would all fall into the same cache sets
    std::int64_t tile_stride(std::int64_t panels) const { return panels * ops_.width + 8; }

    // scratch is made on a worker's first task, so that idle threads cost nothing
    Scratch<T>& scratch(int worker) {
        Scratch<T>& mine = scratch_[static_cast<std::size_t>(worker)];
        if (mine.tile) return mine;
        mine.tile = AlignedBuffer<double>(tile_panels_ * ops_.width * tile_stride(tile_panels_));
        for (AlignedBuffer<T>& squared : mine.squared)
            squared = AlignedBuffer<T>(kChunkRows);
        for (const Segment& segment : segments_)
            mine.columns.emplace_back(ceil_div(segment.source->cols, ops_.width) * ops_.width);
        return mine;
    }

    std::int64_t panel_of(const Run& run) const {
        return segments_[static_cast<std::size_t>(run.segment)].first_panel + run.first / ops_.width;
    }

    Panels<T> panels_of(const Run& run, const Chunk<T>& chunk) const {
        return {chunk.panels + panel_of(run) * stride_, run.count, chunk.rows, chunk.ahead};
    }

    Run all_of(int segment) const { return {segment, 0, segments_[static_cast<std::size_t>(segment)].source->cols, 0}; }

    template <class Visit>
    void each_segment(const Visit& visit) const {
        for (std::size_t s = 0; s < segments_.size(); ++s)
            visit(all_of(static_cast<int>(s)));
    }

    // fills the chunk's panels and adds its row sums to the worker's; giants are summed apart, and zero in the panels
    void pack_and_sum(Chunk<T>& chunk, Scratch<T>& mine) {
        for (AlignedBuffer<T>& squared : mine.squared)
            squared.zero();
        each_segment([&](const Run& all) {
            const auto s = static_cast<std::size_t>(all.segment);
            const Panels<T> panels = panels_of(all, chunk);
            ops_.pack(*segments_[s].source, chunk.row, 0, pivots_[s].data(), panels);
            ops_.norms(panels, mine.squared[s].data());
        });
        if (task_.check_finite)
            for (std::int64_t k = 0; k < chunk.rows; ++k)
                if (!is_finite(static_cast<double>(mine.squared[0][k]) + static_cast<double>(mine.squared[1][k])))
                    report_non_finite();
        find_giants(chunk, mine);
        for (const Giant<T>& giant : chunk.giants)
            sum_giant(giant, mine);
        for (std::int64_t k = 0; k < chunk.rows; ++k)
            mine.add_norms(static_cast<double>(mine.squared[0][k]), static_cast<double>(mine.squared[1][k]));
        each_segment([&](const Run& all) {
            ops_.column_sums(panels_of(all, chunk), mine.squared[all.segment].data(),
                             mine.squared[1 - all.segment].data(), sums_of(all.segment, mine));
        });
    }

    // takes the rows that are giants in either array out of the chunk; fp64 products have digits to spare
    void find_giants(Chunk<T>& chunk, Scratch<T>& mine) {
        if constexpr (sizeof(T) == sizeof(double)) return;
        for (AlignedBuffer<T>& squared : mine.squared) {
            const double limit = giant_limit(squared.data(), chunk.rows);
            const auto giant = [&](std::int64_t k) { return static_cast<double>(squared[k]) > limit; };
            auto count = static_cast<std::int64_t>(chunk.giants.size());
            for (std::int64_t k = 0; k < chunk.rows; ++k)
                count += giant(k);
            for (std::int64_t k = 0; k < chunk.rows && count <= kMostGiants; ++k)
                if (giant(k)) take_giant(chunk, k);
        }
    }

    void take_giant(Chunk<T>& chunk, std::int64_t k) {
        for (const Giant<T>& known : chunk.giants)
            if (known.row == k) return;
        Giant<T> giant{k, std::vector<T>(static_cast<std::size_t>(panels_ * ops_.width))};
        for (std::int64_t panel = 0; panel < panels_; ++panel) {
            T* const row = chunk.panels + panel * stride_ + k * ops_.width;
            std::copy_n(row, ops_.width, giant.values.data() + panel * ops_.width);
            std::fill_n(row, ops_.width, T(0));
        }
        chunk.giants.push_back(std::move(giant));
    }

    const T* values_of(const Run& run, const Giant<T>& giant) const {
        return giant.values.data() + panel_of(run) * ops_.width;
    }

    // the row sums of one row, in fp64
    void sum_giant(const Giant<T>& giant, Scratch<T>& mine) {
        double squared[2] = {};
        each_segment([&](const Run& all) {
            for (std::int64_t j = 0; j < all.count; ++j) {
                const double d = static_cast<double>(values_of(all, giant)[j]);
                squared[all.segment] += d * d;
            }
        });
        mine.add_norms(squared[0], squared[1]);
        each_segment([&](const Run& all) {
            const ColumnSums out = sums_of(all.segment, mine);
            for (std::int64_t j = 0; j < all.count; ++j) {
                const double d = static_cast<double>(values_of(all, giant)[j]);
                if (pair_) out.weighted_cross[j] += squared[1 - all.segment] * d;
                if (!task_.self_terms) continue;
                out.sum[j] += d;
                out.weighted_self[j] += squared[all.segment] * d;
                out.cubes[j] += d * d * d;
                out.fourths[j] += d * d * d * d;
            }
        });
        for (AlignedBuffer<T>& of_rows : mine.squared)
            of_rows[giant.row] = 0;
    }

    ColumnSums sums_of(int segment, Scratch<T>& mine) const {
        return mine.columns[static_cast<std::size_t>(segment)].pointers(task_.self_terms, pair_);
    }

    template <class Visit>
    void each_part(const Tile& tile, Scratch<T>& mine, const Visit& visit) const {
        const Block& block_j = blocks_[tile.j];
        const std::int64_t stride = tile_stride(block_j.panels);
        for (const Run& i : blocks_[tile.i].runs)
            for (const Run& j : block_j.runs)
                if (tile.i != tile.j || i.panel <= j.panel)
                    visit(i, j, mine.tile.data() + (i.panel * stride + j.panel) * ops_.width, stride);
    }

    void multiply(const Tile& tile, const Chunk<T>& chunk, Scratch<T>& mine) {
        each_part(tile, mine, [&](const Run& i, const Run& j, double* out, std::int64_t stride) {
            const bool upper_only = tile.i == tile.j && i.panel == j.panel;
            ops_.product(panels_of(i, chunk), panels_of(j, chunk), out, stride, upper_only);
            for (const Giant<T>& giant : chunk.giants)
                multiply_giant(giant, i, j, out, stride);
        });
    }

    void multiply_giant(const Giant<T>& giant, const Run& i, const Run& j, double* out, std::int64_t stride) const {
        const T *const d = values_of(i, giant), *const e = values_of(j, giant);
        for (std::int64_t r = 0; r < i.count; ++r)
            for (std::int64_t c = 0; c < j.count; ++c)
                out[r * stride + c] += static_cast<double>(d[r]) * static_cast<double>(e[c]);
    }

    void add_row_sums(Scratch<T>& mine) {
        for (std::size_t s = 0; s < segments_.size(); ++s) {
            SelfSums& self = *segments_[s].self;
            double* weighted_cross = !pair_ ? nullptr : s == 0 ? task_.cross.weighted_x : task_.cross.weighted_y;
            const ColumnSums from = mine.columns[s].pointers(task_.self_terms, pair_);
            for (std::int64_t j = 0; j < segments_[s].source->cols; ++j) {
                if (pair_) weighted_cross[j] += from.weighted_cross[j];
                if (!task_.self_terms) continue;
                self.sum[j] += from.sum[j];
                self.weighted[j] += from.weighted_self[j];
                self.cubes[j] += from.cubes[j];
                self.fourths[j] += from.fourths[j];
            }
            self.norms += mine.norms[s];
            if (task_.check_finite && !is_finite(self.norms)) report_non_finite();
        }
        task_.cross.norms += mine.norms[2];
    }

    void add_tile(const Tile& tile, bool last, Scratch<T>& mine) {
        each_part(tile, mine, [&](const Run& i, const Run& j, const double* from, std::int64_t stride) {
            add_part(i, j, from, stride, tile.i == tile.j, last);
        });
    }

    void add_part(const Run& i, const Run& j, const double* from, std::int64_t from_stride, bool diagonal, bool last) {
        const bool symmetric = i.segment == j.segment;
        const bool upper_only = symmetric && diagonal;
        double* const target =
            symmetric ? segments_[static_cast<std::size_t>(i.segment)].self->second : task_.cross.second;
        const std::int64_t stride = segments_[static_cast<std::size_t>(j.segment)].source->cols;
        const bool finite = tile_kernels().add_tile(from, from_stride, i.count, j.count, upper_only,
                                                    target + i.first * stride + j.first, stride);
        if (!finite && task_.check_finite) report_non_finite();
        if (symmetric && last)
            for (std::int64_t r = 0; r < i.count; ++r)
                for (std::int64_t c = upper_only ? r + 1 : 0; c < j.count; ++c)
                    target[(j.first + c) * stride + i.first + r] = target[(i.first + r) * stride + j.first + c];
    }

    // the sums only tell that something is wrong; the data are read again to say what and where
    [[noreturn]] void report_non_finite() {
        for (std::size_t s = 0; s < segments_.size(); ++s) {
            const ArrayView& source = *segments_[s].source;
            const std::int64_t row = first_non_finite_chunk(source);
            if (row < 0) continue;
            const std::int64_t last = std::min(row + kChunkRows, source.rows) - 1;
            throw std::invalid_argument(std::string("moments: ") + (s == 0 ? "x" : "y") +
                                        " has non-finite values in rows " + std::to_string(row) + ".." +
                                        std::to_string(last));
        }
        throw std::invalid_argument(sizeof(T) == 4
                                        ? "moments: sums overflow float32; scale the data down or pass float64"
                                        : "moments: sums overflow float64; scale the data down");
    }

    MomentsTask& task_;
    const TileOps<T>& ops_;
    const std::int64_t stride_;  // from panel to panel
    const bool pair_;
    std::vector<Segment> segments_;
    std::vector<AlignedBuffer<T>> pivots_;
    std::int64_t panels_ = 0;  // of both arrays
    std::vector<Block> blocks_;
    std::vector<Tile> tiles_;
    std::int64_t tile_panels_ = 0;
    std::vector<Scratch<T>> scratch_;
};

bool in_double(const MomentsTask& task) {
    return task.x.dtype == DType::kF64 || (task.y.rows > 0 && task.y.dtype == DType::kF64);
}

}  // namespace

void compute_moments(MomentsTask& task) {
    if (in_double(task))
        Moments<double>(task).run();
    else
        Moments<float>(task).run();
}

std::int64_t moments_scratch_bytes(MomentsTask& task) {
    return in_double(task) ? Moments<double>(task).scratch_bytes() : Moments<float>(task).scratch_bytes();
}

}  // namespace gramless

// Moments of many layers over the same rows: every layer is packed once for all its pairs. Part of moments.cpp.
//
// A band of rows is packed as panels of all layers, and as panels of their squared row norms, one column for each.
// Products of the first with each other are second moments, products of both are the sums of weighted rows.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "core/aligned_buffer.hpp"
#include "core/isa.hpp"
#include "core/thread_pool.hpp"
#include "kernels/layer_plan.hpp"
#include "kernels/moments.hpp"
#include "kernels/moments_scratch.hpp"

namespace gramless {

// a row far longer than the others of its chunk, of one layer, which is zero in the panels
template <class T>
struct LayerGiant {
    int segment;
    std::int64_t row;  // within its chunk
    std::vector<T> values;
};

// the packed rows of all layers
template <class T>
struct LayerChunk {
    T* panels;
    double* norms;  // squared row norms in fp64, in panels: those of giants too
    std::int64_t row, rows;
    std::vector<std::vector<LayerGiant<T>>> giants;  // of each segment
};

template <class T>
class LayerMoments {
  public:
    // `alone` leaves out pairs of layers that are not wide: another pass has them
    LayerMoments(LayerMomentsTask& task, std::vector<std::size_t> members, const std::vector<bool>& wide, bool alone)
        : task_(task), plan_(task, std::move(members), wide, alone) {
        for (const LayerSegment& segment : plan_.segments) {
            pivots_.emplace_back(segment.panels * ops_.width);
            pivots_.back().zero();
            for (std::int64_t j = 0; j < segment.features; ++j)
                pivots_.back()[j] = static_cast<T>(task_.layers[segment.layer].self.pivot[j]);
        }
        scratch_.resize(static_cast<std::size_t>(plan_.threads));
    }

    void run() {
        const std::int64_t chunks = plan_.band_chunks;
        panels_ = AlignedBuffer<T>(chunks * plan_.panels * plan_.stride);
        norms_ = AlignedBuffer<double>(chunks * plan_.norm_panels * plan_.norm_stride);
        squared_ = AlignedBuffer<T>(chunks * plan_.count() * kChunkRows);
        columns_ = AlignedBuffer<double>(chunks * kColumnSums * plan_.width());
        totals_ = AlignedBuffer<double>(chunks * plan_.count());
        for (std::int64_t first = 0; first < plan_.rows; first += chunks * kChunkRows) {
            pack_band(first, std::min(chunks * kChunkRows, plan_.rows - first));
            add_row_sums();
            const bool last = first + chunks * kChunkRows >= plan_.rows;
            const auto tiles = static_cast<std::int64_t>(plan_.tiles.size());
            parallel_for(
                tiles + plan_.norm_tasks(), plan_.threads,
                [&](std::int64_t index, int worker) {
                    LayerScratch& mine = scratch_[static_cast<std::size_t>(worker)];
                    if (index < tiles)
                        multiply(plan_.tiles[static_cast<std::size_t>(index)], last, mine);
                    else
                        multiply_norms((index - tiles) * plan_.norm_rows(), mine);
                },
                task_.poll);
        }
    }

  private:
    // of d, |d|^2 d, d^3 and d^4
    static constexpr std::int64_t kColumnSums = 4;

    struct LayerScratch {
        AlignedBuffer<double> tile, norms;
    };

    // every layer of every chunk by itself, then the panels of norms
    void pack_band(std::int64_t first, std::int64_t rows) {
        chunks_.clear();
        for (std::int64_t row = 0; row < rows; row += kChunkRows) {
            const std::int64_t index = row / kChunkRows;
            chunks_.push_back({panels_.data() + index * plan_.panels * plan_.stride,
                               norms_.data() + index * plan_.norm_panels * plan_.norm_stride, first + row,
                               std::min(kChunkRows, rows - row),
                               std::vector<std::vector<LayerGiant<T>>>(plan_.segments.size())});
        }
        columns_.zero();
        totals_.zero();
        squared_.zero();
        const auto count = static_cast<std::int64_t>(chunks_.size());
        parallel_for(
            count * plan_.count(), plan_.threads,
            [&](std::int64_t index, int) { pack_layer(index / plan_.count(), index % plan_.count()); }, task_.poll);
        parallel_for(count, plan_.threads, [&](std::int64_t index, int) { pack_norms(index); }, task_.poll);
    }

    void pack_layer(std::int64_t index, std::int64_t at) {
        LayerChunk<T>& chunk = chunks_[static_cast<std::size_t>(index)];
        const LayerSegment& segment = plan_.segments[static_cast<std::size_t>(at)];
        T* const squared = squares_of(index, at);
        const std::int64_t row_bytes = segment.panels * ops_.width * std::int64_t{sizeof(T)};
        const std::int64_t at_once = std::clamp<std::int64_t>(kFirstCacheBytes / row_bytes / 16 * 16, 32, kChunkRows);
        for (std::int64_t k = 0; k < chunk.rows; k += at_once) {
            const Panels<T> part{panels_of(segment, chunk).data + k * ops_.width, segment.features,
                                 std::min(at_once, chunk.rows - k)};
            ops_.pack(task_.layers[segment.layer].rows, chunk.row + k, 0, pivots_[static_cast<std::size_t>(at)].data(),
                      part);
            ops_.norms(part, squared + k);
        }
        NormSums sums = ops_.norm_sums(squared, squared, chunk.rows);
        if (task_.check_finite && !is_finite(sums.total[0])) report_fault(segment.layer);
        ColumnSums columns = columns_of(index, segment);
        // fp64 products have digits to spare
        if constexpr (sizeof(T) == sizeof(float)) {
            const double limit = giants_above(squared, chunk.rows, sums.total[0], sums.largest[0]);
            const std::int64_t giants = std::count_if(squared, squared + chunk.rows,
                                                      [&](T length) { return static_cast<double>(length) > limit; });
            for (std::int64_t k = 0; k < chunk.rows && giants > 0 && giants <= kMostGiants; ++k)
                if (static_cast<double>(squared[k]) > limit) take_giant(index, at, k, columns);
            if (giants > 0) sums = ops_.norm_sums(squared, squared, chunk.rows);
        }
        totals_[index * plan_.count() + at] += sums.products[0];
        ops_.column_sums(panels_of(segment, chunk), squared, nullptr, columns);
    }

    // out of the panels; its column sums are in fp64
    void take_giant(std::int64_t index, std::int64_t at, std::int64_t k, const ColumnSums& columns) {
        LayerChunk<T>& chunk = chunks_[static_cast<std::size_t>(index)];
        const LayerSegment& segment = plan_.segments[static_cast<std::size_t>(at)];
        LayerGiant<T> giant{static_cast<int>(at), k,
                            std::vector<T>(static_cast<std::size_t>(segment.panels * ops_.width))};
        for (std::int64_t panel = 0; panel < segment.panels; ++panel) {
            T* const row = chunk.panels + (segment.first_panel + panel) * plan_.stride + k * ops_.width;
            std::copy_n(row, ops_.width, giant.values.data() + panel * ops_.width);
            std::fill_n(row, ops_.width, T(0));
        }
        giant.values.resize(static_cast<std::size_t>(segment.features));
        const double squared = squared_norm(giant);
        for (std::int64_t j = 0; j < segment.features; ++j) {
            const double d = static_cast<double>(giant.values[static_cast<std::size_t>(j)]);
            columns.sum[j] += d;
            columns.weighted_self[j] += squared * d;
            columns.cubes[j] += d * d * d;
            columns.fourths[j] += d * d * d * d;
        }
        totals_[index * plan_.count() + at] += squared * squared;
        squares_of(index, at)[k] = 0;
        chunk.giants[static_cast<std::size_t>(at)].push_back(std::move(giant));
    }

    static double squared_norm(const LayerGiant<T>& giant) {
        double total = 0;
        for (const T value : giant.values)
            total += static_cast<double>(value) * static_cast<double>(value);
        return total;
    }

    // the norms of all layers side by side, as features of a layer are: in T for products with rows, in fp64 for norms
    void pack_norms(std::int64_t index) {
        LayerChunk<T>& chunk = chunks_[static_cast<std::size_t>(index)];
        for (int side = 0; side < plan_.sides; ++side) {
            const NormSegment& segment = plan_.norms[side];
            std::fill_n(chunk.panels + segment.first_panel * plan_.stride, segment.panels * plan_.stride, T(0));
            std::fill_n(chunk.norms + segment.first_wide_panel * plan_.norm_stride,
                        segment.wide_panels * plan_.norm_stride, 0.0);
            for (std::int64_t c = 0; c < segment.count; ++c) {
                const std::int64_t at = segment.first + c;
                const T* const squared = squares_of(index, at);
                T* const to = chunk.panels + (segment.first_panel + c / ops_.width) * plan_.stride + c % ops_.width;
                for (std::int64_t k = 0; k < chunk.rows; ++k) {
                    to[k * ops_.width] = squared[k];
                    norm_of(chunk, at, k) = static_cast<double>(squared[k]);
                }
                for (const LayerGiant<T>& giant : chunk.giants[static_cast<std::size_t>(at)])
                    norm_of(chunk, at, giant.row) = squared_norm(giant);
            }
        }
    }

    double& norm_of(const LayerChunk<T>& chunk, std::int64_t at, std::int64_t row) const {
        const NormSegment& segment = plan_.norms[plan_.segments[static_cast<std::size_t>(at)].side];
        const std::int64_t c = at - segment.first, width = plan_.wide.width;
        return chunk.norms[(segment.first_wide_panel + c / width) * plan_.norm_stride + row * width + c % width];
    }

    T* squares_of(std::int64_t index, std::int64_t at) {
        return squared_.data() + (index * plan_.count() + at) * kChunkRows;
    }

    Panels<T> panels_of(const LayerSegment& segment, const LayerChunk<T>& chunk) const {
        return {chunk.panels + segment.first_panel * plan_.stride, segment.features, chunk.rows};
    }

    Panels<T> panels_of(const Run& run, const LayerChunk<T>& chunk) const {
        return {chunk.panels + plan_.panel_of(run) * plan_.stride, run.count, chunk.rows};
    }

    ColumnSums columns_of(std::int64_t index, const LayerSegment& segment) {
        double* const base = columns_.data() + index * kColumnSums * plan_.width() + segment.first_panel * ops_.width;
        return {base, base + plan_.width(), nullptr, base + 2 * plan_.width(), base + 3 * plan_.width()};
    }

    // chunk by chunk, so that no sum depends on the threads
    void add_row_sums() {
        for (std::int64_t at = 0; at < plan_.count(); ++at) {
            const LayerSegment& segment = plan_.segments[static_cast<std::size_t>(at)];
            if (!plan_.wanted(at, at)) continue;
            SelfSums& self = task_.layers[segment.layer].self;
            bool finite = true;
            for (std::size_t index = 0; index < chunks_.size(); ++index) {
                const ColumnSums from = columns_of(static_cast<std::int64_t>(index), segment);
                for (std::int64_t j = 0; j < segment.features; ++j) {
                    self.sum[j] += from.sum[j];
                    self.weighted[j] += from.weighted_self[j];
                    self.cubes[j] += from.cubes[j];
                    self.fourths[j] += from.fourths[j];
                    finite &= is_finite(self.weighted[j]);
                }
                self.norms += totals_[static_cast<std::int64_t>(index) * plan_.count() + at];
            }
            if (task_.check_finite && !(finite && is_finite(self.norms))) report_fault(segment.layer);
        }
    }

    // calls visit(i, j, where their product goes) for the runs of a tile that are wanted
    template <class Visit>
    void each_part(const LayerTile& tile, double* out, const Visit& visit) const {
        const Block &block_i = plan_.blocks[tile.i], &block_j = plan_.blocks[tile.j];
        const std::int64_t stride = plan_.tile_stride(block_j.panels);
        for (const Run& i : block_i.runs)
            for (const Run& j : block_j.runs)
                if (plan_.wanted(tile, i, j)) visit(i, j, out + (i.panel * stride + j.panel) * ops_.width, stride);
    }

    void multiply(const LayerTile& tile, bool last, LayerScratch& mine) {
        if (!mine.tile)
            mine.tile = AlignedBuffer<double>(plan_.tile_panels * ops_.width * plan_.tile_stride(plan_.tile_panels));
        const Block &block_i = plan_.blocks[tile.i], &block_j = plan_.blocks[tile.j];
        std::fill_n(mine.tile.data(), block_i.panels * ops_.width * plan_.tile_stride(block_j.panels), 0.0);
        for (std::size_t k = 0; k < chunks_.size(); ++k) {
            Ahead ahead = k + 1 < chunks_.size() ? panels_in(tile, chunks_[k + 1]) : Ahead{};
            each_part(tile, mine.tile.data(), [&](const Run& i, const Run& j, double* out, std::int64_t stride) {
                const bool upper_only = i.segment == j.segment && i.first == j.first;
                ops_.product(panels_of(i, chunks_[k]), panels_of(j, chunks_[k]), out, stride, upper_only, ahead);
                add_giants(chunks_[k], i, j, out, stride);
            });
        }
        each_part(tile, mine.tile.data(), [&](const Run& i, const Run& j, const double* from, std::int64_t stride) {
            if (plan_.is_norms(j))
                add_weighted(i, j, from, stride);
            else
                add_second(i, j, from, stride, last);
        });
    }

    // the panels that a tile takes of a chunk
    Ahead panels_in(const LayerTile& tile, const LayerChunk<T>& chunk) const {
        const auto span = [&](const Block& block) {
            return Ahead::Span{chunk.panels + plan_.panel_of(block.runs[0]) * plan_.stride,
                               block.panels * plan_.stride * std::int64_t{sizeof(T)}};
        };
        return {{span(plan_.blocks[tile.i]), tile.i == tile.j ? Ahead::Span{} : span(plan_.blocks[tile.j])}};
    }

    // what the panels lack: rows that are giants in one of the two layers, or in the layers of the norms
    void add_giants(const LayerChunk<T>& chunk, const Run& i, const Run& j, double* out, std::int64_t stride) const {
        if constexpr (sizeof(T) == sizeof(double)) return;
        const auto& own = chunk.giants[static_cast<std::size_t>(i.segment)];
        const auto add = [&](std::int64_t row, std::int64_t first, std::int64_t last) {
            const std::vector<double> d = row_of(chunk, i, row), e = row_of(chunk, j, row);
            for (std::int64_t r = 0; r < i.count; ++r)
                for (std::int64_t c = first; c < last; ++c)
                    out[r * stride + c] += d[static_cast<std::size_t>(r)] * e[static_cast<std::size_t>(c)];
        };
        for (const LayerGiant<T>& giant : own)
            add(giant.row, 0, j.count);
        const auto is_own = [&](std::int64_t row) {
            return std::any_of(own.begin(), own.end(), [&](const LayerGiant<T>& giant) { return giant.row == row; });
        };
        const bool norms = plan_.is_norms(j);
        const std::int64_t first = norms ? plan_.norms[plan_.norm_side(j)].first + j.first : j.segment;
        for (std::int64_t at = first; at < first + (norms ? j.count : 1); ++at)
            for (const LayerGiant<T>& giant : chunk.giants[static_cast<std::size_t>(at)])
                if (!is_own(giant.row)) add(giant.row, norms ? at - first : 0, norms ? at - first + 1 : j.count);
    }

    // one row of a run in fp64, whether it is a giant or not; or the norms of that row
    std::vector<double> row_of(const LayerChunk<T>& chunk, const Run& run, std::int64_t row) const {
        std::vector<double> values(static_cast<std::size_t>(run.count));
        const T* from = chunk.panels + plan_.panel_of(run) * plan_.stride + row * ops_.width;
        std::int64_t step = plan_.stride;
        if (plan_.is_norms(run)) {
            for (std::int64_t c = 0; c < run.count; ++c)
                values[static_cast<std::size_t>(c)] =
                    norm_of(chunk, plan_.norms[plan_.norm_side(run)].first + run.first + c, row);
            return values;
        }
        for (const LayerGiant<T>& giant : chunk.giants[static_cast<std::size_t>(run.segment)])
            if (giant.row == row) {
                from = giant.values.data() + run.first;
                step = ops_.width;
            }
        for (std::int64_t c = 0; c < run.count; ++c)
            values[static_cast<std::size_t>(c)] = static_cast<double>(from[c / ops_.width * step + c % ops_.width]);
        return values;
    }

    void add_second(const Run& i, const Run& j, const double* from, std::int64_t from_stride, bool last) {
        const LayerSegment& a = plan_.segments[static_cast<std::size_t>(i.segment)];
        const LayerSegment& b = plan_.segments[static_cast<std::size_t>(j.segment)];
        const bool own = i.segment == j.segment, upper_only = own && i.first == j.first;
        const std::int64_t stride = own ? a.features : task_.partner_features(a.layer);
        double* const target = own ? task_.layers[a.layer].self.second
                                   : task_.layers[a.layer].second + task_.partner_offset(a.layer, b.layer);
        const bool finite = tile_kernels().add_tile(from, from_stride, i.count, j.count, upper_only,
                                                    target + i.first * stride + j.first, stride);
        // by Cauchy-Schwarz the sums of pairs are finite where those of both layers are
        if (!own) return;
        if (!finite && task_.check_finite) report_fault(a.layer);
        if (!last) return;
        for (std::int64_t r = 0; r < i.count; ++r)
            for (std::int64_t c = upper_only ? r + 1 : 0; c < j.count; ++c)
                target[(j.first + c) * stride + i.first + r] = target[(i.first + r) * stride + j.first + c];
    }

    void add_weighted(const Run& i, const Run& j, const double* from, std::int64_t from_stride) {
        const std::int64_t first = plan_.norms[plan_.norm_side(j)].first + j.first;
        const std::size_t layer = plan_.segments[static_cast<std::size_t>(i.segment)].layer;
        const auto [begin, partners] = task_.partners(layer);
        const auto stride = static_cast<std::int64_t>(partners);
        for (std::int64_t c = 0; c < j.count; ++c) {
            if (!plan_.wanted(i.segment, first + c)) continue;
            double* const target =
                task_.layers[layer].weighted + (plan_.segments[static_cast<std::size_t>(first + c)].layer - begin);
            for (std::int64_t r = 0; r < i.count; ++r)
                target[(i.first + r) * stride] += from[r * from_stride + c];
        }
    }

    // norms of some layers of x with those of all their partners
    void multiply_norms(std::int64_t first, LayerScratch& mine) {
        const NormSegment &x = plan_.norms[0], &y = plan_.norms[plan_.sides - 1];
        const std::int64_t width = plan_.wide.width, rows = std::min(plan_.norm_rows(), x.count - first);
        const std::int64_t stride = y.wide_panels * width;
        if (!mine.norms) mine.norms = AlignedBuffer<double>(plan_.norm_rows() * stride);
        mine.norms.zero();
        Ahead nothing{};
        for (const LayerChunk<T>& chunk : chunks_) {
            const auto panels = [&](std::int64_t panel, std::int64_t count) {
                return Panels<double>{chunk.norms + panel * plan_.norm_stride, count, chunk.rows};
            };
            plan_.wide.product(panels(x.first_wide_panel + first / width, rows), panels(y.first_wide_panel, y.count),
                               mine.norms.data(), stride, false, nothing);
        }
        for (std::int64_t r = 0; r < rows; ++r)
            for (std::int64_t c = 0; c < y.count; ++c) {
                if (!plan_.wanted(x.first + first + r, y.first + c)) continue;
                const std::size_t a = plan_.segments[static_cast<std::size_t>(x.first + first + r)].layer;
                const std::size_t b = plan_.segments[static_cast<std::size_t>(y.first + c)].layer;
                const auto [begin, count] = task_.partners(a);
                task_.norms[a * count + b - begin] += mine.norms[r * stride + c];
            }
    }

    // the sums only tell that something is wrong; the data are read again to say what and where
    [[noreturn]] void report_fault(std::size_t layer) const {
        for (std::size_t at = 0; at < task_.layers.size(); ++at) {
            const ArrayView& rows = task_.layers[at].rows;
            if (const std::int64_t row = first_non_finite_chunk(rows); row >= 0)
                throw LayerFault(at, "has non-finite values in rows " + std::to_string(row) + ".." +
                                         std::to_string(std::min(row + kChunkRows, rows.rows) - 1));
        }
        throw LayerFault(layer, sizeof(T) == sizeof(float)
                                    ? "has sums that overflow float32; scale it down or pass float64"
                                    : "has sums that overflow float64; scale it down");
    }

    LayerMomentsTask& task_;
    const LayerPlan<T> plan_;
    const TileOps<T>& ops_ = plan_.ops;
    std::vector<AlignedBuffer<T>> pivots_;
    std::vector<LayerScratch> scratch_;
    std::vector<LayerChunk<T>> chunks_;
    AlignedBuffer<T> panels_, squared_;
    AlignedBuffer<double> norms_, columns_, totals_;
};

}  // namespace gramless

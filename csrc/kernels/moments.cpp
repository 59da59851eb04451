// contract: one pass over x (n, p) and y (n, q) returns the shifted moments of SelfSums and CrossSums; one over many
//           layers those of each and of their pairs, each layer packed once (layer_moments.hpp).
// formula: with d, e the rows of x, y less their pivots, sums of d d^T, d e^T, e e^T; defined by reference.moments.
// cost: n (p^2 + q^2 + 2 p q) flops, symmetric parts at half; x and y are read once. Per thread a tile of kBlockWidth^2
//       doubles; narrow arrays: and a packed chunk (kChunkRows rows); wide ones: a band of packed rows for all threads.
// numerics: fp16, bf16, fp32 are shifted and multiplied in fp32; fp64, up to 64 rows, and rows whose fourth powers are
//           beyond fp32 in fp64. A chunk of 256 rows is summed in that type, chunks in fp64, slabs or bands in order.
//           NaN and inf raise, or reach the sums they belong to. n >= 1.
// why not: raw sums with the mean taken out afterwards; at mean / std = 100 their fp32 result has no correct digit.
#include "kernels/moments.hpp"

#include <algorithm>
#include <iterator>
#include <numeric>
#include <stdexcept>
#include <vector>

#include "core/aligned_buffer.hpp"
#include "core/array_scans.hpp"
#include "core/feature_blocks.hpp"
#include "core/isa.hpp"
#include "core/ordered_loop.hpp"
#include "kernels/layer_moments.hpp"
#include "kernels/moments_plan.hpp"
#include "kernels/moments_scratch.hpp"

namespace gramless {
namespace {

constexpr std::int64_t kRowsInDouble = 64;

template <class T>
class Moments {
  public:
    explicit Moments(MomentsTask& task) : task_(task), plan_(task) {
        for (const Segment& segment : plan_.segments) {
            pivots_.emplace_back(ceil_div(segment.source->cols, ops_.width) * ops_.width);
            pivots_.back().zero();
            for (std::int64_t j = 0; j < segment.source->cols; ++j)
                pivots_.back()[j] = static_cast<T>(segment.self->pivot[j]);
        }
        scratch_.resize(static_cast<std::size_t>(plan_.threads));
    }

    void run() {
        if (plan_.tiles.size() == 1)
            run_whole();
        else
            run_bands();
    }

  private:
    // narrow arrays: every task packs a chunk and multiplies it while it is in the cache
    void run_whole() {
        ordered_loop(
            task_.x.rows, slab_rows(task_.x.rows), plan_.threads,
            [&](const Slab& slab, int worker) {
                Scratch<T>& mine = scratch(worker);
                if (!mine.packed) mine.packed = AlignedBuffer<T>(plan_.panels * plan_.stride);
                mine.clear_sums();
                mine.tile.zero();
                for (std::int64_t row = slab.begin; row < slab.end; row += kChunkRows) {
                    Chunk<T> chunk{mine.packed.data(), row, std::min(kChunkRows, slab.end - row)};
                    pack_and_sum(chunk, mine);
                    multiply(plan_.tiles[0], chunk, mine, Ahead{});
                }
            },
            [&](const Slab& slab, int worker) {
                add_row_sums(scratch(worker));
                add_tile(plan_.tiles[0], slab.last, scratch(worker));
            },
            task_.poll);
    }

    // wide arrays: a band of rows is packed once for all tiles
    void run_bands() {
        const std::int64_t height = plan_.band_chunks * kChunkRows;
        AlignedBuffer<T> packed(plan_.band_chunks * plan_.panels * plan_.stride);
        std::vector<Chunk<T>> chunks;
        for (std::int64_t first = 0; first < task_.x.rows; first += height) {
            const std::int64_t rows = std::min(height, task_.x.rows - first);
            chunks.clear();
            for (std::int64_t row = 0; row < rows; row += kChunkRows)
                chunks.push_back({packed.data() + row / kChunkRows * plan_.panels * plan_.stride, first + row,
                                  std::min(kChunkRows, rows - row)});
            ordered_loop(
                rows, kChunkRows, plan_.threads,
                [&](const Slab& slab, int worker) {
                    scratch(worker).clear_sums();
                    pack_and_sum(chunks[static_cast<std::size_t>(slab.begin / kChunkRows)], scratch(worker));
                },
                [&](const Slab&, int worker) { add_row_sums(scratch(worker)); }, task_.poll);
            parallel_for(
                static_cast<std::int64_t>(plan_.tiles.size()), plan_.threads,
                [&](std::int64_t index, int worker) {
                    const Tile& tile = plan_.tiles[static_cast<std::size_t>(index)];
                    Scratch<T>& mine = scratch(worker);
                    mine.tile.zero();
                    for (std::size_t k = 0; k < chunks.size(); ++k)
                        multiply(tile, chunks[k], mine,
                                 k + 1 < chunks.size() ? panels_in(tile, chunks[k + 1]) : Ahead{});
                    add_tile(tile, first + rows == task_.x.rows, mine);
                },
                task_.poll);
        }
    }

    // scratch is made on a worker's first task, so that idle threads cost nothing
    Scratch<T>& scratch(int worker) {
        Scratch<T>& mine = scratch_[static_cast<std::size_t>(worker)];
        if (mine.tile) return mine;
        mine.tile = AlignedBuffer<double>(plan_.tile_panels * ops_.width * plan_.tile_stride(plan_.tile_panels));
        for (AlignedBuffer<T>& squared : mine.squared)
            squared = AlignedBuffer<T>(kChunkRows);
        for (const Segment& segment : plan_.segments)
            mine.columns.emplace_back(ceil_div(segment.source->cols, ops_.width) * ops_.width);
        return mine;
    }

    Panels<T> panels_of(const Run& run, const Chunk<T>& chunk) const {
        return {chunk.panels + plan_.panel_of(run) * plan_.stride, run.count, chunk.rows};
    }

    // the panels that a tile takes of a chunk
    Ahead panels_in(const Tile& tile, const Chunk<T>& chunk) const {
        const auto span = [&](const Block& block) {
            return Ahead::Span{chunk.panels + plan_.panel_of(block.runs[0]) * plan_.stride,
                               block.panels * plan_.stride * std::int64_t{sizeof(T)}};
        };
        return {{span(plan_.blocks[tile.i]), tile.i == tile.j ? Ahead::Span{} : span(plan_.blocks[tile.j])}};
    }

    Run all_of(int segment) const {
        return {segment, 0, plan_.segments[static_cast<std::size_t>(segment)].source->cols, 0};
    }

    template <class Visit>
    void each_segment(const Visit& visit) const {
        for (std::size_t s = 0; s < plan_.segments.size(); ++s)
            visit(all_of(static_cast<int>(s)));
    }

    // fills the chunk's panels and adds its row sums to the worker's; giants are summed apart, and zero in the panels
    void pack_and_sum(Chunk<T>& chunk, Scratch<T>& mine) {
        for (AlignedBuffer<T>& squared : mine.squared)
            squared.zero();
        for (std::int64_t k = 0; k < chunk.rows; k += plan_.rows_at_once)
            each_segment([&](const Run& all) {
                const auto s = static_cast<std::size_t>(all.segment);
                Panels<T> panels = panels_of(all, chunk);
                panels.data += k * ops_.width;
                panels.rows = std::min(plan_.rows_at_once, chunk.rows - k);
                ops_.pack(*plan_.segments[s].source, chunk.row + k, 0, pivots_[s].data(), panels);
                ops_.norms(panels, mine.squared[s].data() + k);
            });
        const auto norm_sums = [&] {
            return ops_.norm_sums(mine.squared[0].data(), mine.squared[1].data(), chunk.rows);
        };
        NormSums sums = norm_sums();
        if (task_.check_finite && !is_finite(sums.total[0] + sums.total[1])) report_non_finite();
        if (find_giants(chunk, sums, mine)) {
            for (const Giant<T>& giant : chunk.giants)
                sum_giant(giant, mine);
            sums = norm_sums();
        }
        for (std::size_t s = 0; s < 3; ++s)
            mine.norms[s] += sums.products[s];
        each_segment([&](const Run& all) {
            ops_.column_sums(panels_of(all, chunk), mine.squared[all.segment].data(),
                             mine.squared[1 - all.segment].data(), sums_of(all.segment, mine));
        });
    }

    // takes the rows that are giants in either array out of the chunk; fp64 products have digits to spare
    bool find_giants(Chunk<T>& chunk, const NormSums& sums, Scratch<T>& mine) {
        if constexpr (sizeof(T) == sizeof(double)) return false;
        for (std::size_t s = 0; s < 2; ++s) {
            const T* const squared = mine.squared[s].data();
            const double limit = giants_above(squared, chunk.rows, sums.total[s], sums.largest[s]);
            const auto giant = [&](std::int64_t k) { return static_cast<double>(squared[k]) > limit; };
            auto count = static_cast<std::int64_t>(chunk.giants.size());
            for (std::int64_t k = 0; k < chunk.rows; ++k)
                count += giant(k);
            for (std::int64_t k = 0; k < chunk.rows && count <= kMostGiants; ++k)
                if (giant(k)) take_giant(chunk, k);
        }
        return !chunk.giants.empty();
    }

    void take_giant(Chunk<T>& chunk, std::int64_t k) {
        for (const Giant<T>& known : chunk.giants)
            if (known.row == k) return;
        Giant<T> giant{k, std::vector<T>(static_cast<std::size_t>(plan_.panels * ops_.width))};
        for (std::int64_t panel = 0; panel < plan_.panels; ++panel) {
            T* const row = chunk.panels + panel * plan_.stride + k * ops_.width;
            std::copy_n(row, ops_.width, giant.values.data() + panel * ops_.width);
            std::fill_n(row, ops_.width, T(0));
        }
        chunk.giants.push_back(std::move(giant));
    }

    const T* values_of(const Run& run, const Giant<T>& giant) const {
        return giant.values.data() + plan_.panel_of(run) * ops_.width;
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
                if (plan_.pair) out.weighted_cross[j] += squared[1 - all.segment] * d;
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
        return mine.columns[static_cast<std::size_t>(segment)].pointers(task_.self_terms, plan_.pair);
    }

    template <class Visit>
    void each_part(const Tile& tile, Scratch<T>& mine, const Visit& visit) const {
        const Block& block_j = plan_.blocks[tile.j];
        const std::int64_t stride = plan_.tile_stride(block_j.panels);
        for (const Run& i : plan_.blocks[tile.i].runs)
            for (const Run& j : block_j.runs)
                if (tile.i != tile.j || i.panel <= j.panel)
                    visit(i, j, mine.tile.data() + (i.panel * stride + j.panel) * ops_.width, stride);
    }

    void multiply(const Tile& tile, const Chunk<T>& chunk, Scratch<T>& mine, Ahead ahead) {
        each_part(tile, mine, [&](const Run& i, const Run& j, double* out, std::int64_t stride) {
            const bool upper_only = tile.i == tile.j && i.panel == j.panel;
            ops_.product(panels_of(i, chunk), panels_of(j, chunk), out, stride, upper_only, ahead);
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
        for (std::size_t s = 0; s < plan_.segments.size(); ++s) {
            SelfSums& self = *plan_.segments[s].self;
            double* weighted_cross = !plan_.pair ? nullptr : s == 0 ? task_.cross.weighted_x : task_.cross.weighted_y;
            const ColumnSums from = mine.columns[s].pointers(task_.self_terms, plan_.pair);
            bool finite = true;
            for (std::int64_t j = 0; j < plan_.segments[s].source->cols; ++j) {
                if (plan_.pair) {
                    weighted_cross[j] += from.weighted_cross[j];
                    finite &= is_finite(weighted_cross[j]);
                }
                if (!task_.self_terms) continue;
                self.sum[j] += from.sum[j];
                self.weighted[j] += from.weighted_self[j];
                self.cubes[j] += from.cubes[j];
                self.fourths[j] += from.fourths[j];
                finite &= is_finite(self.weighted[j]);
            }
            self.norms += mine.norms[s];
            if (task_.check_finite && !(finite && is_finite(self.norms))) report_non_finite();
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
            symmetric ? plan_.segments[static_cast<std::size_t>(i.segment)].self->second : task_.cross.second;
        const std::int64_t stride = plan_.segments[static_cast<std::size_t>(j.segment)].source->cols;
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
        for (std::size_t s = 0; s < plan_.segments.size(); ++s)
            refuse_non_finite("moments", s == 0 ? "x" : "y", *plan_.segments[s].source);
        throw std::invalid_argument(sizeof(T) == 4
                                        ? "moments: sums overflow float32; scale the data down or pass float64"
                                        : "moments: sums overflow float64; scale the data down");
    }

    MomentsTask& task_;
    const MomentsPlan<T> plan_;
    const TileOps<T>& ops_ = plan_.ops;
    std::vector<AlignedBuffer<T>> pivots_;
    std::vector<Scratch<T>> scratch_;
};

// few rows, whose sums cost nothing and have few terms to hide rounding, and rows with powers that float32 cannot hold
bool in_double(const ArrayView& source, const SelfSums& self, bool sampled) {
    return source.rows <= kRowsInDouble || source.dtype == DType::kF64 ||
           (sampled && needs_double(sampled_spread(source, self.pivot), source.cols));
}

bool in_double(const MomentsTask& task, bool sampled) {
    return in_double(task.x, task.self_x, sampled) || (task.y.rows > 0 && in_double(task.y, task.self_y, sampled));
}

// what is in fp64 without a look at values if `sampled` is false
std::vector<bool> wide_layers(const LayerMomentsTask& task, bool sampled) {
    std::vector<bool> wide;
    for (const MomentLayer& layer : task.layers)
        wide.push_back(in_double(layer.rows, layer.self, sampled));
    return wide;
}

// calls pass(T(), its layers, whether it leaves out pairs that are not wide): pairs of layers that are not wide in
// fp32, all others in fp64, so that no result depends on what other layers there are
template <class Pass>
void each_pass(const std::vector<bool>& wide, const Pass& pass) {
    std::vector<std::size_t> all(wide.size()), narrow;
    std::iota(all.begin(), all.end(), std::size_t{0});
    std::copy_if(all.begin(), all.end(), std::back_inserter(narrow), [&](std::size_t layer) { return !wide[layer]; });
    if (!narrow.empty()) pass(float(), narrow, false);
    if (narrow.size() < all.size()) pass(double(), all, true);
}

void round_pivot(const ArrayView& source, double* pivot) {
    for (std::int64_t j = 0; j < source.cols; ++j)
        pivot[j] = static_cast<double>(static_cast<float>(pivot[j]));
}

}  // namespace

void compute_moments(MomentsTask& task) {
    const bool pair = task.y.rows > 0;
    if (task.x.dtype != DType::kF64 && !(pair && task.y.dtype == DType::kF64)) {
        round_pivot(task.x, task.self_x.pivot);
        if (pair) round_pivot(task.y, task.self_y.pivot);
    }
    in_double(task, true) ? Moments<double>(task).run() : Moments<float>(task).run();
}

void compute_layer_moments(LayerMomentsTask& task) {
    for (MomentLayer& layer : task.layers)
        if (layer.rows.dtype != DType::kF64) round_pivot(layer.rows, layer.self.pivot);
    const std::vector<bool> wide = wide_layers(task, true);
    each_pass(wide, [&](auto number, const std::vector<std::size_t>& layers, bool alone) {
        LayerMoments<decltype(number)>(task, layers, wide, alone).run();
    });
}

std::int64_t layer_moments_scratch_bytes(const LayerMomentsTask& task) {
    const std::vector<bool> wide = wide_layers(task, false);
    std::int64_t most = 0;
    each_pass(wide, [&](auto number, const std::vector<std::size_t>& layers, bool alone) {
        most = std::max(most, LayerPlan<decltype(number)>(task, layers, wide, alone).scratch_bytes());
    });
    return most;
}

std::int64_t moments_scratch_bytes(MomentsTask& task) {
    return in_double(task, false) ? MomentsPlan<double>(task).scratch_bytes()
                                  : MomentsPlan<float>(task).scratch_bytes();
}

}  // namespace gramless

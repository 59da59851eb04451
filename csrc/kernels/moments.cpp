// contract: one pass over x (n, p) and y (n, q) returns the shifted moments of SelfSums and CrossSums.
// formula: with d, e the rows of x, y less their pivots, sums of d d^T, d e^T, e e^T; defined by reference.moments.
// cost: n (p^2 + q^2 + 2 p q) flops, symmetric parts at half; x, y are read once for each tile that they are part of.
//       Per thread one tile (kBlockWidth^2 doubles) and two packed chunks (kChunkRows x kBlockWidth), giants twice.
// numerics: fp16, bf16, fp32 are shifted and multiplied in fp32, fp64 in fp64; a chunk of 256 rows is summed in that
//       type, chunks in fp64, slabs in order. NaN and inf raise, or reach the sums they belong to. n >= 1.
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

// A row far longer than the others of its chunk leaves rounding errors of its own size in every float32 sum, and the
// unbiased estimator takes its square out again. Such rows, as attention sinks have them, are summed in fp64, one by
// one; where there are more of them, they are what the sums are about.
constexpr double kGiantSquared = 256;

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
        const std::int64_t most = std::max<std::int64_t>(1, kBlockWidth / ops_.width);
        blocks_ = cut_blocks(features, ops_.width, most, task_.self_terms || !pair_);
        for (const Block& block : blocks_)
            most_panels_ = std::max(most_panels_, block.panels);
        list_outputs();
        scratch_.resize(static_cast<std::size_t>(num_threads()));
    }

    void run() {
        ordered_loop(
            task_.x.rows, static_cast<std::int64_t>(outputs_.size()),
            [this](std::int64_t output, const Slab& slab, int worker) {
                compute(outputs_[static_cast<std::size_t>(output)], slab, scratch(worker));
            },
            [this](std::int64_t output, const Slab& slab, int worker) {
                add(outputs_[static_cast<std::size_t>(output)], slab, scratch(worker));
            },
            task_.poll);
    }

  private:
    void add_segment(const ArrayView& source, SelfSums& self) {
        const std::int64_t panels = ceil_div(source.cols, ops_.width);
        segments_.push_back({&source, panels, &self});
        AlignedBuffer<T> pivot(panels * ops_.width);
        pivot.zero();
        for (std::int64_t j = 0; j < source.cols; ++j) {
            pivot[j] = static_cast<T>(self.pivot[j]);
            self.pivot[j] = static_cast<double>(pivot[j]);
        }
        pivots_.push_back(std::move(pivot));
    }

    void list_outputs() {
        if (blocks_.size() == 1) {
            outputs_.push_back({Output::kWhole});
            return;
        }
        outputs_.push_back({Output::kRowSums});
        for (std::size_t i = 0; i < blocks_.size(); ++i)
            for (std::size_t j = i; j < blocks_.size(); ++j)
                if (task_.self_terms || blocks_[i].runs[0].segment != blocks_[j].runs[0].segment)
                    outputs_.push_back({Output::kTile, i, j});
    }

    // one cache line more than the width: rows a power of two apart would all fall into the same cache sets
    std::int64_t tile_stride(std::int64_t panels) const { return panels * ops_.width + 8; }

    // scratch is made on a worker's first task, so that idle threads cost nothing
    Scratch<T>& scratch(int worker) {
        Scratch<T>& mine = scratch_[static_cast<std::size_t>(worker)];
        if (mine.pack_i) return mine;
        mine.pack_i = AlignedBuffer<T>(most_panels_ * stride_);
        if (blocks_.size() > 1) mine.pack_j = AlignedBuffer<T>(most_panels_ * stride_);
        mine.tile = AlignedBuffer<double>(most_panels_ * ops_.width * tile_stride(most_panels_));
        for (AlignedBuffer<T>& squared : mine.squared)
            squared = AlignedBuffer<T>(kChunkRows);
        for (const Segment& segment : segments_)
            mine.columns.emplace_back(segment.panels * ops_.width);
        return mine;
    }

    void pack(const Block& block, std::int64_t row, std::int64_t rows, AlignedBuffer<T>& into) {
        for (const Run& run : block.runs) {
            const auto s = static_cast<std::size_t>(run.segment);
            ops_.pack(*segments_[s].source, row, run.first, pivots_[s].data() + run.first,
                      {into.data() + run.panel * stride_, run.count, rows});
        }
    }

    Panels<T> panels_of(const Run& run, AlignedBuffer<T>& packed, std::int64_t rows) const {
        return {packed.data() + run.panel * stride_, run.count, rows};
    }

    void compute(const Output& output, const Slab& slab, Scratch<T>& mine) {
        if (output.kind != Output::kRowSums) mine.tile.zero();
        if (output.kind != Output::kTile) {
            for (ColumnScratch& columns : mine.columns)
                columns.values.zero();
            for (double& norm : mine.norms)
                norm = 0;
        }
        for (std::int64_t row = slab.begin; row < slab.end; row += kChunkRows) {
            const std::int64_t rows = std::min(kChunkRows, slab.end - row);
            if (output.kind != Output::kTile) sum_rows(row, rows, mine);
            if (output.kind == Output::kRowSums) continue;
            multiply(output, row, rows, mine);
        }
    }

    void multiply(const Output& output, std::int64_t row, std::int64_t rows, Scratch<T>& mine) {
        const Block& block_i = blocks_[output.i];
        const Block& block_j = blocks_[output.j];
        const bool same = output.i == output.j;
        AlignedBuffer<T>& packed_j = same ? mine.pack_i : mine.pack_j;
        if (!same) pack(block_j, row, rows, mine.pack_j);
        // the row sums have just packed the only block, and found its giants
        if (output.kind == Output::kTile) {
            pack(block_i, row, rows, mine.pack_i);
            mine.giant_count = 0;
            clear_squared(mine);
            for (const Run& run : block_i.runs)
                ops_.norms(panels_of(run, mine.pack_i, rows), mine.squared[0].data());
            if (!same)
                for (const Run& run : block_j.runs)
                    ops_.norms(panels_of(run, mine.pack_j, rows), mine.squared[1].data());
            find_giants(rows, mine);
        }
        for (std::int64_t g = 0; g < mine.giant_count; ++g)
            multiply_giant(output, row, mine.giants[g], mine);
        for (const Run& i : block_i.runs)
            for (const Run& j : block_j.runs)
                if (!same || i.panel <= j.panel)
                    ops_.product(panels_of(i, mine.pack_i, rows), panels_of(j, packed_j, rows),
                                 tile_at(output, i, j, mine), tile_stride(block_j.panels), same && i.panel == j.panel);
    }

    static void clear_squared(Scratch<T>& mine) {
        for (AlignedBuffer<T>& squared : mine.squared)
            squared.zero();
    }

    // appends the rows that are giants in either array; fp64 products have digits to spare
    void find_giants(std::int64_t rows, Scratch<T>& mine) {
        if constexpr (sizeof(T) == sizeof(double)) return;
        for (AlignedBuffer<T>& squared : mine.squared) {
            double total = 0, largest = 0;
            for (std::int64_t k = 0; k < rows; ++k) {
                total += static_cast<double>(squared[k]);
                largest = std::max(largest, static_cast<double>(squared[k]));
            }
            // the mean settles most chunks, without a median
            if (!(largest * static_cast<double>(rows) > 8 * total)) continue;
            T sorted[kChunkRows] = {};
            std::copy_n(squared.data(), rows, sorted);
            std::nth_element(sorted, sorted + rows / 2, sorted + rows);
            const double limit = kGiantSquared * static_cast<double>(sorted[rows / 2]);
            const auto giant = [&](std::int64_t k) { return static_cast<double>(squared[k]) > limit; };
            std::int64_t count = mine.giant_count;
            for (std::int64_t k = 0; k < rows; ++k)
                count += giant(k);
            for (std::int64_t k = 0; k < rows && count <= kMostGiants; ++k)
                if (giant(k)) add_giant(k, mine);
        }
    }

    static void add_giant(std::int64_t k, Scratch<T>& mine) {
        std::int64_t* const end = mine.giants + mine.giant_count;
        if (std::find(mine.giants, end, k) == end) mine.giants[mine.giant_count++] = k;
    }

    // one row in the layout of the panels
    AlignedBuffer<T>& pack_row(const Block& block, std::int64_t row, AlignedBuffer<T>& into) {
        if (!into) into = AlignedBuffer<T>(most_panels_ * stride_);
        pack(block, row, 1, into);
        return into;
    }

    void zero_row(const Run& run, std::int64_t k, AlignedBuffer<T>& packed) {
        for (std::int64_t panel = 0; panel < ceil_div(run.count, ops_.width); ++panel)
            std::fill_n(packed.data() + (run.panel + panel) * stride_ + k * ops_.width, ops_.width, T(0));
    }

    void multiply_giant(const Output& output, std::int64_t row, std::int64_t k, Scratch<T>& mine) {
        const Block& block_i = blocks_[output.i];
        const Block& block_j = blocks_[output.j];
        AlignedBuffer<T>& d = pack_row(block_i, row + k, mine.row_i);
        AlignedBuffer<T>& e = pack_row(block_j, row + k, mine.row_j);
        for (const Run& i : block_i.runs) {
            zero_row(i, k, mine.pack_i);
            for (const Run& j : block_j.runs)
                for (std::int64_t r = 0; r < i.count; ++r) {
                    double* target = tile_at(output, i, j, mine) + r * tile_stride(block_j.panels);
                    const double d_r = static_cast<double>(feature(i, r, d));
                    for (std::int64_t c = 0; c < j.count; ++c)
                        target[c] += d_r * static_cast<double>(feature(j, c, e));
                }
        }
    }

    T feature(const Run& run, std::int64_t index, AlignedBuffer<T>& row) const {
        return row[(run.panel + index / ops_.width) * stride_ + index % ops_.width];
    }

    // the column sums of one row, in fp64
    void sum_giant(std::int64_t row, Scratch<T>& mine) {
        double squared[2] = {};
        const auto each = [&](const auto& visit) {
            for (const Block& block : blocks_) {
                AlignedBuffer<T>& packed = pack_row(block, row, mine.row_i);
                for (const Run& run : block.runs)
                    for (std::int64_t j = 0; j < run.count; ++j)
                        visit(run, j, static_cast<double>(feature(run, j, packed)));
            }
        };
        each([&](const Run& run, std::int64_t, double d) { squared[run.segment] += d * d; });
        add_norms(squared[0], squared[1], mine);
        each([&](const Run& run, std::int64_t j, double d) {
            const ColumnSums out = sums_of(run, mine);
            if (pair_) out.weighted_cross[j] += squared[1 - run.segment] * d;
            if (!task_.self_terms) return;
            out.sum[j] += d;
            out.weighted_self[j] += squared[run.segment] * d;
            out.cubes[j] += d * d * d;
            out.fourths[j] += d * d * d * d;
        });
    }

    ColumnSums sums_of(const Run& run, Scratch<T>& mine) const {
        return mine.columns[static_cast<std::size_t>(run.segment)].from(run.first, task_.self_terms, pair_);
    }

    static void add_norms(double a, double b, Scratch<T>& mine) {
        mine.norms[0] += a * a;
        mine.norms[1] += b * b;
        mine.norms[2] += a * b;
    }

    double* tile_at(const Output& output, const Run& i, const Run& j, Scratch<T>& mine) const {
        return mine.tile.data() + (i.panel * tile_stride(blocks_[output.j].panels) + j.panel) * ops_.width;
    }

    template <class Visit>
    void each_run(std::int64_t row, std::int64_t rows, Scratch<T>& mine, bool packed, const Visit& visit) {
        for (const Block& block : blocks_) {
            if (!packed) pack(block, row, rows, mine.pack_i);
            for (const Run& run : block.runs)
                visit(run, panels_of(run, mine.pack_i, rows));
        }
    }

    void sum_rows(std::int64_t row, std::int64_t rows, Scratch<T>& mine) {
        clear_squared(mine);
        each_run(row, rows, mine, false, [&](const Run& run, const Panels<T>& panels) {
            ops_.norms(panels, mine.squared[run.segment].data());
        });
        if (task_.check_finite)
            for (std::int64_t k = 0; k < rows; ++k)
                if (!is_finite(static_cast<double>(mine.squared[0][k]) + static_cast<double>(mine.squared[1][k])))
                    report_non_finite();
        mine.giant_count = 0;
        find_giants(rows, mine);
        for (std::int64_t g = 0; g < mine.giant_count; ++g) {
            sum_giant(row + mine.giants[g], mine);
            mine.squared[0][mine.giants[g]] = mine.squared[1][mine.giants[g]] = 0;
        }
        for (std::int64_t k = 0; k < rows; ++k)
            add_norms(static_cast<double>(mine.squared[0][k]), static_cast<double>(mine.squared[1][k]), mine);
        each_run(row, rows, mine, blocks_.size() == 1, [&](const Run& run, const Panels<T>& panels) {
            for (std::int64_t g = 0; g < mine.giant_count; ++g)
                zero_row(run, mine.giants[g], mine.pack_i);
            ops_.column_sums(panels, mine.squared[run.segment].data(), mine.squared[1 - run.segment].data(),
                             sums_of(run, mine));
        });
    }

    void add(const Output& output, const Slab& slab, Scratch<T>& mine) {
        if (output.kind != Output::kTile) add_row_sums(mine);
        if (output.kind == Output::kRowSums) return;
        for (const Run& i : blocks_[output.i].runs)
            for (const Run& j : blocks_[output.j].runs)
                if (output.i != output.j || i.panel <= j.panel) add_tile(output, i, j, slab.last, mine);
    }

    void add_row_sums(Scratch<T>& mine) {
        for (std::size_t s = 0; s < segments_.size(); ++s) {
            SelfSums& self = *segments_[s].self;
            double* weighted_cross = !pair_ ? nullptr : s == 0 ? task_.cross.weighted_x : task_.cross.weighted_y;
            const ColumnSums from = mine.columns[s].from(0, task_.self_terms, pair_);
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

    void add_tile(const Output& output, const Run& i, const Run& j, bool last_slab, Scratch<T>& mine) {
        const bool symmetric = i.segment == j.segment;
        const bool upper_only = symmetric && output.i == output.j;
        double* const target =
            symmetric ? segments_[static_cast<std::size_t>(i.segment)].self->second : task_.cross.second;
        const std::int64_t stride = segments_[static_cast<std::size_t>(j.segment)].source->cols;
        const std::int64_t across = tile_stride(blocks_[output.j].panels);
        const double* tile = tile_at(output, i, j, mine);
        bool overflow = false;
        for (std::int64_t r = 0; r < i.count; ++r) {
            double* row = target + (i.first + r) * stride + j.first;
            for (std::int64_t c = upper_only ? r : 0; c < j.count; ++c) {
                row[c] += tile[r * across + c];
                overflow |= !is_finite(row[c]);
            }
        }
        if (overflow && task_.check_finite) report_non_finite();
        if (symmetric && last_slab)
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
    std::vector<Block> blocks_;
    std::vector<Output> outputs_;
    std::int64_t most_panels_ = 0;
    std::vector<Scratch<T>> scratch_;
};

}  // namespace

void compute_moments(MomentsTask& task) {
    if (task.x.dtype == DType::kF64 || (task.y.rows > 0 && task.y.dtype == DType::kF64))
        Moments<double>(task).run();
    else
        Moments<float>(task).run();
}

}  // namespace gramless

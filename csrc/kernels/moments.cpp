// contract: one pass over x (n, p) and y (n, q) returns the shifted second moments and norm-weighted sums of SelfSums,
// CrossSums. formula: d = x - pivot_x, e = y - pivot_y; S = sum d d^T, d e^T, e e^T; defined by reference.moments.
// cost: n (p^2 + q^2 + 2 p q) flops, the symmetric parts at half; each row read once per tile of kBlockPanels panels;
//       extra bytes per thread: one tile (kBlockWidth^2 doubles) and two packed chunks (kChunkRows x kBlockWidth each).
// numerics: fp16, bf16, fp32 are shifted and multiplied in fp32, fp64 in fp64; a chunk of 256 rows is summed in that
// type,
//       chunks in fp64, slabs in order. NaN and inf raise, or reach the sums they belong to. n = 0 never gets here.
// why not: raw sums with the mean taken out afterwards; at mean / std = 100 their fp32 result has no correct digit.
#include "kernels/moments.hpp"

#include <cmath>
#include <limits>
#include <stdexcept>
#include <vector>

#include "core/aligned_buffer.hpp"
#include "core/isa.hpp"
#include "core/ordered_loop.hpp"

namespace gramless {
namespace {

// L2-sized: 512 features by 256 rows is 512 KiB packed in fp32
constexpr std::int64_t kBlockWidth = 384;
constexpr std::int64_t kPivotRows = 64;

std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
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
};

struct Output {
    enum Kind { kTile, kRowSums, kWhole } kind;  // kWhole: the only block, tile and row sums from one packing
    std::size_t i = 0, j = 0;
};

struct Segment {
    const ArrayView* source;
    std::int64_t panels;
    SelfSums* self;
};

// column sums of one array over one slab
struct ColumnScratch {
    AlignedBuffer<double> values;
    std::int64_t padded = 0;

    explicit ColumnScratch(std::int64_t width) : values(5 * width), padded(width) {}

    ColumnSums from(std::int64_t feature, bool self, bool cross) {
        double* base = values.data() + feature;
        return {self ? base : nullptr, self ? base + padded : nullptr, cross ? base + 2 * padded : nullptr,
                self ? base + 3 * padded : nullptr, self ? base + 4 * padded : nullptr};
    }
};

template <class T>
struct Scratch {
    AlignedBuffer<T> pack_i, pack_j, squared[2];
    AlignedBuffer<double> tile;
    std::vector<ColumnScratch> columns;
    double norms[3] = {};  // |d|^4, |e|^4, |d|^2 |e|^2
};

template <class T>
class Moments {
  public:
    explicit Moments(MomentsTask& task) : task_(task), ops_(tile_ops<T>(tile_kernels())), pair_(task.y.rows > 0) {
        add_segment(task.x, task.self_x);
        if (pair_) add_segment(task.y, task.self_y);
        cut_blocks();
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

    void cut_blocks() {
        const std::int64_t most = std::max<std::int64_t>(1, kBlockWidth / ops_.width);
        std::int64_t all = 0;
        for (const Segment& segment : segments_)
            all += segment.panels;
        if (all <= most && (task_.self_terms || !pair_)) {
            Block whole;
            for (std::size_t s = 0; s < segments_.size(); ++s)
                append_run(whole, s, 0, segments_[s].panels);
            blocks_.push_back(std::move(whole));
            return;
        }
        for (std::size_t s = 0; s < segments_.size(); ++s) {
            const std::int64_t panels = segments_[s].panels;
            const std::int64_t pieces = ceil_div(panels, most);
            for (std::int64_t piece = 0; piece < pieces; ++piece) {
                Block block;
                append_run(block, s, panels * piece / pieces, panels * (piece + 1) / pieces);
                blocks_.push_back(std::move(block));
            }
        }
    }

    void append_run(Block& block, std::size_t segment, std::int64_t begin_panel, std::int64_t end_panel) {
        const std::int64_t first = begin_panel * ops_.width;
        const std::int64_t last = std::min(end_panel * ops_.width, segments_[segment].source->cols);
        block.runs.push_back({static_cast<int>(segment), first, last - first, block.panels});
        block.panels += end_panel - begin_panel;
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
        std::int64_t panels = 0;
        for (const Block& block : blocks_)
            panels = std::max(panels, block.panels);
        const std::int64_t width = panels * ops_.width;
        mine.pack_i = AlignedBuffer<T>(width * kChunkRows);
        if (blocks_.size() > 1) mine.pack_j = AlignedBuffer<T>(width * kChunkRows);
        mine.tile = AlignedBuffer<double>(width * tile_stride(panels));
        for (AlignedBuffer<T>& squared : mine.squared)
            squared = AlignedBuffer<T>(kChunkRows);
        for (const Segment& segment : segments_)
            mine.columns.emplace_back(segment.panels * ops_.width);
        return mine;
    }

    void pack(const Block& block, std::int64_t row, std::int64_t rows, AlignedBuffer<T>& into) {
        const std::int64_t stride = kChunkRows * ops_.width;
        for (const Run& run : block.runs) {
            const auto s = static_cast<std::size_t>(run.segment);
            ops_.pack(*segments_[s].source, row, run.first, pivots_[s].data() + run.first,
                      {into.data() + run.panel * stride, run.count, rows});
        }
    }

    Panels<T> panels_of(const Run& run, AlignedBuffer<T>& packed, std::int64_t rows) const {
        return {packed.data() + run.panel * kChunkRows * ops_.width, run.count, rows};
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
        // the row sums have just packed the only block
        if (output.kind == Output::kTile) pack(block_i, row, rows, mine.pack_i);
        if (!same) pack(block_j, row, rows, mine.pack_j);
        AlignedBuffer<T>& packed_j = same ? mine.pack_i : mine.pack_j;
        for (const Run& i : block_i.runs)
            for (const Run& j : block_j.runs)
                if (!same || i.panel <= j.panel)
                    ops_.product(panels_of(i, mine.pack_i, rows), panels_of(j, packed_j, rows),
                                 tile_at(output, i, j, mine), tile_stride(block_j.panels), same && i.panel == j.panel);
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
        for (AlignedBuffer<T>& squared : mine.squared)
            squared.zero();
        each_run(row, rows, mine, false, [&](const Run& run, const Panels<T>& panels) {
            ops_.norms(panels, mine.squared[run.segment].data());
        });
        for (std::int64_t k = 0; k < rows; ++k) {
            const double a = static_cast<double>(mine.squared[0][k]), b = static_cast<double>(mine.squared[1][k]);
            if (task_.check_finite && !(a + b <= std::numeric_limits<double>::max())) report_non_finite();
            mine.norms[0] += a * a;
            mine.norms[1] += b * b;
            mine.norms[2] += a * b;
        }
        each_run(row, rows, mine, blocks_.size() == 1, [&](const Run& run, const Panels<T>& panels) {
            ops_.column_sums(
                panels, mine.squared[run.segment].data(), mine.squared[1 - run.segment].data(),
                mine.columns[static_cast<std::size_t>(run.segment)].from(run.first, task_.self_terms, pair_));
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
                overflow |= !(std::fabs(row[c]) <= std::numeric_limits<double>::max());
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
            AlignedBuffer<T> packed(kChunkRows * ops_.width), no_pivot(ops_.width);
            no_pivot.zero();
            for (std::int64_t row = 0; row < source.rows; row += kChunkRows) {
                const std::int64_t rows = std::min(kChunkRows, source.rows - row);
                for (std::int64_t col = 0; col < source.cols; col += ops_.width) {
                    packed.zero();
                    ops_.pack(source, row, col, no_pivot.data(),
                              {packed.data(), std::min(ops_.width, source.cols - col), rows});
                    for (std::int64_t k = 0; k < rows * ops_.width; ++k)
                        if (!(std::fabs(packed[k]) <= std::numeric_limits<T>::max()))
                            throw std::invalid_argument(std::string("moments: ") + (s == 0 ? "x" : "y") +
                                                        " has non-finite values in rows " + std::to_string(row) + ".." +
                                                        std::to_string(row + rows - 1));
                }
            }
        }
        throw std::invalid_argument(sizeof(T) == 4
                                        ? "moments: sums overflow float32; scale the data down or pass float64"
                                        : "moments: sums overflow float64; scale the data down");
    }

    MomentsTask& task_;
    const TileOps<T>& ops_;
    const bool pair_;
    std::vector<Segment> segments_;
    std::vector<AlignedBuffer<T>> pivots_;
    std::vector<Block> blocks_;
    std::vector<Output> outputs_;
    std::vector<Scratch<T>> scratch_;
};

}  // namespace

void default_pivot(const ArrayView& source, double* pivot) {
    const TileOps<double>& ops = tile_ops<double>(tile_kernels());
    const std::int64_t rows = std::min(source.rows, kPivotRows);
    AlignedBuffer<double> packed(kChunkRows * ops.width), zero(ops.width);
    zero.zero();
    for (std::int64_t col = 0; col < source.cols; col += ops.width) {
        const std::int64_t cols = std::min(ops.width, source.cols - col);
        ops.pack(source, 0, col, zero.data(), {packed.data(), cols, rows});
        for (std::int64_t j = 0; j < cols; ++j) {
            double sum = 0;
            for (std::int64_t k = 0; k < rows; ++k)
                sum += packed[k * ops.width + j];
            const double mean = sum / static_cast<double>(rows);
            pivot[col + j] = source.dtype == DType::kF64 ? mean : static_cast<double>(static_cast<float>(mean));
        }
    }
}

void compute_moments(MomentsTask& task) {
    if (task.x.dtype == DType::kF64 || (task.y.rows > 0 && task.y.dtype == DType::kF64))
        Moments<double>(task).run();
    else
        Moments<float>(task).run();
}

}  // namespace gramless

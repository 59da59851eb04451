// contract: sums over i != j of k_ij^2, l_ij^2, k_ij l_ij, row sums and diagonals, of the block pairs asked for; with
//           one pass for all bandwidths. Defined by reference.gram_sums.
// formula: k_ij from the dot product of rows i and j of x, less a centre, and their norms; l_ij likewise from y.
// cost: n^2 (p + q) flops, only tiles on and above the diagonal are computed; x and y are read n / block_rows times.
//       Two packed blocks of rows, per thread two tiles of kGramTile^2, O(n) row sums.
// numerics: tile products and kernel values in fp32, for fp64 input, up to 1024 rows, and rows whose powers leave the
//       range of fp32 in fp64, as polynomials always; sums in fp64, in a fixed order, of runs of a few values in fp32.
// why not: one full tile product per (i, j); the lower half is the mirror of the upper one.
#include "kernels/gram_sums.hpp"

#include <memory>

#include "core/thread_pool.hpp"
#include "kernels/gram_rows.hpp"
#include "kernels/gram_values.hpp"

namespace gramless {
namespace {

constexpr std::int64_t kBlockBytes = std::int64_t{8} << 20;
constexpr std::int64_t kLeastBlock = 3 * kGramTile, kMostBlock = 12 * kGramTile;

int threads_of(const GramSumsTask& task) {
    const double n = static_cast<double>(task.x.rows);
    return threads_for(n * n * static_cast<double>(task.x.cols + task.y.cols));
}

template <class T>
class GramSums {
  public:
    explicit GramSums(GramSumsTask& task) : task_(task), ops_(gram_ops<T>(tile_kernels())) {
        const std::int64_t rows = std::min(task.block_rows, task.x.rows);
        add_side(task.x, task.sample_x, task.bandwidths_x, task.of_x, rows);
        if (task.y.rows > 0) add_side(task.y, task.sample_y, task.bandwidths_y, task.of_y, rows);
        threads_ = threads_of(task);
        tile_ = tile_rows(rows, tile_ops<T>(tile_kernels()).width);
        most_tiles_ = ceil_div(rows, tile_);
        bandwidths_ = static_cast<std::int64_t>(task.bandwidths_x.size());
        sums_.resize(static_cast<std::size_t>(most_tiles_ * most_tiles_ * bandwidths_));
        scratch_.resize(static_cast<std::size_t>(threads_));
    }

    void run() {
        std::int64_t packed = -1;
        for (const auto& [i, j] : task_.pairs) {
            if (i != packed) pack(i, 0);
            packed = i;
            if (i != j) pack(j, 1);
            diagonal_ = i == j;
            const std::int64_t down = ceil_div(sides_[0].block[0].rows(), tile_);
            const std::int64_t across = ceil_div(right(sides_[0]).rows(), tile_);
            parallel_for(
                down * across, threads_,
                [&](std::int64_t index, int worker) {
                    const std::int64_t a = index / across, b = index % across;
                    if (!diagonal_ || a <= b) compute(a, b, scratch_[static_cast<std::size_t>(worker)]);
                },
                task_.poll);
            add(down, across);
        }
    }

  private:
    struct Side {
        const ArrayView& source;
        FittedKernel<T> kernel;
        GramTarget target;
        std::unique_ptr<RowMemory<T>[]> memory;
        PackedRows<T> block[2];
        // sums of each tile over its rows and over its columns: (bandwidth, tile down, tile across, row of the tile)
        std::vector<double> across, down;
    };

    void add_side(const ArrayView& source, const ArrayView& sample, const std::vector<double>& bandwidths,
                  const GramTarget& target, std::int64_t rows) {
        FittedKernel<T> kernel(sample.rows > 0 ? sample : source, task_.family, bandwidths, nullptr);
        for (std::size_t s = 0; s < bandwidths.size(); ++s)
            target.offsets[s] = static_cast<double>(kernel.per_bandwidth[s].offset);
        const T* centre = kernel.centre.data();
        auto memory = std::make_unique<RowMemory<T>[]>(2);
        const std::int64_t second = rows < source.rows ? rows : 0;
        PackedRows<T> left(source, centre, rows, memory[0]), right(source, centre, second, memory[1]);
        sides_.push_back({source, std::move(kernel), target, std::move(memory), {left, right}, {}, {}});
        const auto tiles = ceil_div(rows, tile_rows(rows, tile_ops<T>(tile_kernels()).width));
        const auto count = static_cast<std::size_t>(tiles * tiles * kGramTile) * bandwidths.size();
        sides_.back().across.resize(count);
        sides_.back().down.resize(count);
    }

    PackedRows<T>& right(Side& side) { return side.block[diagonal_ ? 0 : 1]; }

    void pack(std::int64_t index, int place) {
        const std::int64_t first = index * task_.block_rows;
        const std::int64_t rows = std::min(task_.block_rows, task_.x.rows - first);
        for (Side& side : sides_)
            side.block[place].point_at(first, rows);
        const std::int64_t panels = sides_[0].block[place].panels();
        parallel_for(
            panels * static_cast<std::int64_t>(sides_.size()), threads_,
            [&](std::int64_t at, int) {
                sides_[static_cast<std::size_t>(at / panels)].block[place].pack(
                    at % panels, sides_[static_cast<std::size_t>(at / panels)].kernel);
            },
            task_.poll);
        for (std::size_t s = 0; s < sides_.size() && task_.check_finite; ++s)
            check_norms("gram_sums", s == 0 ? "x" : "y", sides_[s].source, sides_[s].block[place],
                        task_.family.function);
    }

    std::int64_t slot(std::int64_t bandwidth, std::int64_t a, std::int64_t b) const {
        return (bandwidth * most_tiles_ + a) * most_tiles_ + b;
    }

    void compute(std::int64_t a, std::int64_t b, GramScratch<T>& mine) {
        const bool diagonal = diagonal_ && a == b;
        const std::int64_t begin_i = a * tile_, begin_j = b * tile_;
        const std::int64_t rows = std::min(tile_, sides_[0].block[0].rows() - begin_i);
        const std::int64_t cols = std::min(tile_, right(sides_[0]).rows() - begin_j);
        for (std::size_t s = 0; s < sides_.size(); ++s)
            multiply_tile(sides_[s].block[0], begin_i, rows, right(sides_[s]), begin_j, cols, diagonal, mine.tile(s),
                          kDotStride<T>);
        for (std::int64_t w = 0; w < bandwidths_; ++w) {
            GramSide<T> parts[2];
            for (std::size_t s = 0; s < sides_.size(); ++s) {
                Side& side = sides_[s];
                const std::int64_t at = slot(w, a, b) * kGramTile;
                parts[s] = {mine.tile(s),
                            kDotStride<T>,
                            side.block[0].norms(begin_i),
                            right(side).norms(begin_j),
                            side.kernel.per_bandwidth[static_cast<std::size_t>(w)],
                            side.across.data() + at,
                            side.down.data() + at,
                            nullptr};
            }
            sums_[static_cast<std::size_t>(slot(w, a, b))] =
                ops_.reduce(parts[0], sides_.size() > 1 ? &parts[1] : nullptr, rows, cols, diagonal);
        }
    }

    // the tiles of one block pair, in order; each counts for its mirror as well
    void add(std::int64_t down, std::int64_t across) {
        for (std::int64_t w = 0; w < bandwidths_; ++w)
            for_tiles(down, across, [&](std::int64_t a, std::int64_t b) {
                const GramTileSums& sums = sums_[static_cast<std::size_t>(slot(w, a, b))];
                task_.of_x.squares[w] += 2 * sums.xx;
                if (sides_.size() == 1) return;
                task_.of_y.squares[w] += 2 * sums.yy;
                task_.products[w] += 2 * sums.xy;
            });
        // every bandwidth of every side has sums of its own
        parallel_for(
            bandwidths_ * static_cast<std::int64_t>(sides_.size()), threads_,
            [&](std::int64_t index, int) {
                Side& side = sides_[static_cast<std::size_t>(index / bandwidths_)];
                const std::int64_t w = index % bandwidths_;
                for_tiles(down, across, [&](std::int64_t a, std::int64_t b) { add_rows(side, w, a, b); });
                if (diagonal_) add_diagonal(side, w);
            },
            task_.poll);
        for (std::int64_t w = 0; w < bandwidths_ && task_.check_finite; ++w)
            if (!std::isfinite(task_.of_x.squares[w]) || (sides_.size() > 1 && !std::isfinite(task_.of_y.squares[w])))
                throw std::invalid_argument("gram_sums: sums of kernel values overflow; scale the data down");
    }

    template <class Visit>
    void for_tiles(std::int64_t down, std::int64_t across, const Visit& visit) const {
        for (std::int64_t a = 0; a < down; ++a)
            for (std::int64_t b = diagonal_ ? a : 0; b < across; ++b)
                visit(a, b);
    }

    void add_rows(Side& side, std::int64_t w, std::int64_t a, std::int64_t b) {
        const double* const across = side.across.data() + slot(w, a, b) * kGramTile;
        const double* const down = side.down.data() + slot(w, a, b) * kGramTile;
        double* const rows = side.target.rows + w * task_.x.rows;
        PackedRows<T>& other = right(side);
        for (std::int64_t r = 0; r < std::min(tile_, side.block[0].rows() - a * tile_); ++r)
            rows[side.block[0].first() + a * tile_ + r] += across[r];
        for (std::int64_t c = 0; c < std::min(tile_, other.rows() - b * tile_); ++c)
            rows[other.first() + b * tile_ + c] += down[c];
    }

    void add_diagonal(Side& side, std::int64_t w) {
        for (std::int64_t r = 0; r < side.block[0].rows(); ++r)
            side.target.diagonal[w * task_.x.rows + side.block[0].first() + r] +=
                on_diagonal(side.kernel.per_bandwidth[static_cast<std::size_t>(w)], side.block[0].squared(r),
                            side.block[0].norm(r));
    }

    GramSumsTask& task_;
    const GramOps<T>& ops_;
    int threads_ = 1;
    std::vector<Side> sides_;
    std::int64_t tile_ = 0, most_tiles_ = 0, bandwidths_ = 0;
    bool diagonal_ = false;
    std::vector<GramTileSums> sums_;
    std::vector<GramScratch<T>> scratch_;
};

// few rows, whose sums cost little and have few terms to hide rounding, rows that float32 cannot hold the powers of,
// and polynomials, whose digits are behind the common part of the rows
bool in_double(const GramSumsTask& task, bool sampled) {
    const auto side = [&](const ArrayView& source) {
        if (source.dtype == DType::kF64 || !sampled) return source.dtype == DType::kF64;
        std::vector<double> centre(static_cast<std::size_t>(source.cols));
        if (is_shifted(task.family.function)) sampled_centre(source, centre.data());
        return needs_double(sampled_spread(source, centre.data()), source.cols);
    };
    return task.family.function == GramFunction::kPolynomial || task.x.rows <= kGramRowsInDouble || side(task.x) ||
           (task.y.rows > 0 && side(task.y));
}

template <class T>
std::int64_t scratch_bytes(const GramSumsTask& task) {
    const std::int64_t rows = std::min(task.block_rows, task.x.rows), sides = task.y.rows > 0 ? 2 : 1;
    const std::int64_t blocks = rows < task.x.rows ? 2 : 1;
    const std::int64_t tiles = ceil_div(rows, tile_rows(rows, tile_ops<T>(tile_kernels()).width));
    const auto bandwidths = static_cast<std::int64_t>(task.bandwidths_x.size());
    const std::int64_t dots = threads_of(task) * sides * kGramTile * kDotStride<T> * std::int64_t{sizeof(T)};
    const std::int64_t sums = 16 * sides * bandwidths * tiles * tiles * kGramTile;
    return blocks * (PackedRows<T>::bytes(rows, task.x.cols) + PackedRows<T>::bytes(rows, task.y.cols)) + dots + sums;
}

}  // namespace

std::int64_t gram_block_rows(std::int64_t p, std::int64_t q) {
    const std::int64_t wanted = kBlockBytes / (4 * (p + q)) / kGramTile * kGramTile;
    return std::clamp(wanted, kLeastBlock, kMostBlock);
}

void compute_gram_sums(GramSumsTask& task) {
    in_double(task, true) ? GramSums<double>(task).run() : GramSums<float>(task).run();
}

std::int64_t gram_scratch_bytes(const GramSumsTask& task) {
    return in_double(task, false) ? scratch_bytes<double>(task) : scratch_bytes<float>(task);
}

void compute_gram_values(GramValuesTask& task) {
    task.in_double ? layer_values<double>(task) : layer_values<float>(task);
}

void compute_gram_products(GramProductsTask& task) {
    task.values.dtype == DType::kF64 ? GramProducts<double>(task).run() : GramProducts<float>(task).run();
}

}  // namespace gramless

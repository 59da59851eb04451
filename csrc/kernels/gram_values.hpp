// Kernel values of many layers over one batch of rows, and their products. Part of gram_sums.cpp.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "core/ordered_loop.hpp"
#include "core/thread_pool.hpp"
#include "kernels/gram_rows.hpp"
#include "kernels/gram_sums.hpp"

namespace gramless {

template <class T>
struct GramScratch {
    AlignedBuffer<T> dots[2];

    T* tile(std::size_t side) {
        if (!dots[side]) dots[side] = AlignedBuffer<T>(kGramTile * kDotStride<T>);
        return dots[side].data();
    }
};

// the kernel values of one layer of a batch
template <class T>
class GramValues {
  public:
    struct Memory {
        RowMemory<T> left, right;
    };

    GramValues(const GramValuesTask& task, GramLayer& layer, std::size_t index, Memory& memory)
        : task_(task),
          layer_(layer),
          paired_(layer.others.rows > 0),
          kernel_(layer.rows, task.family, {layer.bandwidth}, layer.pivot),
          left_(layer.rows, kernel_.centre.data(), layer.rows.rows, memory.left),
          right_(layer.others, kernel_.centre.data(), layer.others.rows, memory.right),
          name_(std::to_string(index)) {}

    void run(std::vector<GramScratch<T>>& scratch) {
        const auto threads = static_cast<int>(scratch.size());
        pack(left_, layer_.rows, threads);
        if (paired_) pack(right_, layer_.others, threads);
        const std::int64_t m = right().rows();
        // the largest tiles: threads have layers of their own
        const std::int64_t width = tile_ops<T>(tile_kernels()).width;
        const std::int64_t tile = std::min(ceil_div(std::max(left_.rows(), m), width), kGramTile / width) * width;
        const std::int64_t down = ceil_div(left_.rows(), tile), across = ceil_div(m, tile);
        std::vector<double> of_rows(static_cast<std::size_t>(down * across * tile)), of_columns(of_rows.size());
        std::vector<GramTileSums> sums(static_cast<std::size_t>(down * across));
        parallel_for(
            down * across, threads,
            [&](std::int64_t index, int worker) {
                const std::int64_t a = index / across, b = index % across;
                if (!paired_ && a > b) return;
                GramScratch<T>& mine = scratch[static_cast<std::size_t>(worker)];
                sums[static_cast<std::size_t>(index)] = compute(a * tile, b * tile, tile, of_rows.data() + index * tile,
                                                                of_columns.data() + index * tile, mine);
            },
            task_.poll);
        double* const of_mirror = paired_ ? layer_.column_sums : layer_.row_sums;
        for (std::int64_t index = 0; index < down * across; ++index) {
            const std::int64_t a = index / across * tile, b = index % across * tile;
            for (std::int64_t r = a; r < std::min(a + tile, left_.rows()); ++r)
                layer_.row_sums[r] += of_rows[static_cast<std::size_t>(index * tile + r - a)];
            for (std::int64_t c = b; c < std::min(b + tile, m); ++c)
                of_mirror[c] += of_columns[static_cast<std::size_t>(index * tile + c - b)];
            layer_.square += (paired_ ? 1 : 2) * sums[static_cast<std::size_t>(index)].xx;
        }
        layer_.offset = static_cast<double>(kernel_.per_bandwidth[0].offset);
        if (task_.check_finite && !std::isfinite(layer_.square))
            throw std::invalid_argument("gram_values: kernel values of layer " + name_ + " overflow; scale it down");
    }

  private:
    PackedRows<T>& right() { return paired_ ? right_ : left_; }

    void pack(PackedRows<T>& packed, const ArrayView& source, int threads) {
        parallel_for(
            packed.panels(), threads, [&](std::int64_t panel, int) { packed.pack(panel, kernel_); }, task_.poll);
        if (task_.check_finite) check_norms("gram_values", "layer " + name_, source, packed, task_.family.function);
    }

    GramTileSums compute(std::int64_t i, std::int64_t j, std::int64_t tile, double* of_rows, double* of_columns,
                         GramScratch<T>& mine) {
        const bool diagonal = !paired_ && i == j;
        const std::int64_t rows = std::min(tile, left_.rows() - i), cols = std::min(tile, right().rows() - j);
        T* const dots = mine.tile(0);
        multiply_tile(left_, i, rows, right(), j, cols, diagonal, dots, kDotStride<T>);
        T* values[kGramTile];
        for (std::int64_t r = 0; r < rows; ++r)
            values[r] = static_cast<T*>(layer_.values) + place(i + r, j);
        const GramSide<T> side{dots,    kDotStride<T>, left_.norms(i), right().norms(j), kernel_.per_bandwidth[0],
                               of_rows, of_columns,    values};
        return gram_ops<T>(tile_kernels()).reduce(side, nullptr, rows, cols, diagonal);
    }

    // where the value of row i and column j lies
    std::int64_t place(std::int64_t i, std::int64_t j) {
        return paired_ ? i * right_.rows() + j : i * left_.rows() - i * (i + 1) / 2 + j - i - 1;
    }

    const GramValuesTask& task_;
    GramLayer& layer_;
    bool paired_;
    FittedKernel<T> kernel_;
    PackedRows<T> left_, right_;
    std::string name_;
};

// one layer after the other with all threads, or, where there are enough of them, every thread with a layer of its own
template <class T>
void layer_values(GramValuesTask& task) {
    const auto count = static_cast<std::int64_t>(task.layers.size());
    double operations = 0;
    for (const GramLayer& layer : task.layers)
        operations += static_cast<double>(layer.rows.rows) * static_cast<double>(layer.rows.rows + layer.others.rows) *
                      static_cast<double>(layer.rows.cols);
    const int threads = threads_for(operations);
    const auto workers = static_cast<std::size_t>(threads);
    std::vector<typename GramValues<T>::Memory> memory(workers);
    const auto one = [&](std::int64_t index, std::size_t worker, std::vector<GramScratch<T>>& mine) {
        const auto at = static_cast<std::size_t>(index);
        GramValues<T>(task, task.layers[at], at, memory[worker]).run(mine);
    };
    if (count < threads) {
        std::vector<GramScratch<T>> scratch(workers);
        for (std::int64_t index = 0; index < count; ++index)
            one(index, 0, scratch);
        return;
    }
    std::vector<std::vector<GramScratch<T>>> own(workers);
    for (auto& of_worker : own)
        of_worker.resize(1);
    parallel_for(
        count, threads,
        [&](std::int64_t index, int worker) {
            one(index, static_cast<std::size_t>(worker), own[static_cast<std::size_t>(worker)]);
        },
        task.poll);
}

// The products of the values of layers, a chunk of pairs of rows of all layers at a time.
template <class T>
class GramProducts {
  public:
    explicit GramProducts(GramProductsTask& task)
        : task_(task), ops_(tile_ops<T>(tile_kernels())), turned_{task.values.data,       task.values.dtype,
                                                                  task.values.cols,       task.values.rows,
                                                                  task.values.col_stride, task.values.row_stride} {
        const std::int64_t layers = task.values.rows;
        cut_[1] = task.split;
        cut_[2] = layers;
        sides_ = task.split < layers ? 2 : 1;
        for (int s = 0; s < sides_; ++s) {
            panels_[s] = ceil_div(count(s), ops_.width);
            pivots_[s].resize(static_cast<std::size_t>(panels_[s] * ops_.width));
            for (std::int64_t k = 0; k < count(s); ++k)
                pivots_[s][static_cast<std::size_t>(k)] = static_cast<T>(task.pivots[cut_[s] + k]);
        }
        threads_ = threads_for(static_cast<double>(task.values.cols) * static_cast<double>(layers * layers));
    }

    void run() {
        std::vector<Scratch> scratch(static_cast<std::size_t>(threads_));
        ordered_loop(
            task_.values.cols, slab_rows(task_.values.cols), threads_,
            [&](const Slab& slab, int worker) { compute(slab, scratch[static_cast<std::size_t>(worker)]); },
            [&](const Slab&, int worker) { add(scratch[static_cast<std::size_t>(worker)]); }, task_.poll);
        if (sides_ == 2) return;
        const std::int64_t layers = task_.split;
        for (std::int64_t i = 0; i < layers; ++i)
            for (std::int64_t j = 0; j < i; ++j)
                task_.products[i * layers + j] = task_.products[j * layers + i];
    }

  private:
    struct Scratch {
        AlignedBuffer<T> packed[2];
        AlignedBuffer<double> squares[2], products;
    };

    std::int64_t count(int side) const { return cut_[side + 1] - cut_[side]; }
    std::int64_t padded(int side) const { return panels_[side] * ops_.width; }

    void compute(const Slab& slab, Scratch& mine) const {
        const int last = sides_ - 1;
        if (!mine.products) {
            mine.products = AlignedBuffer<double>(padded(0) * padded(last));
            for (int s = 0; s < sides_; ++s) {
                mine.packed[s] = AlignedBuffer<T>(panels_[s] * panel_stride<T>(ops_.width));
                mine.squares[s] = AlignedBuffer<double>(padded(s));
            }
        }
        mine.products.zero();
        for (int s = 0; s < sides_; ++s)
            mine.squares[s].zero();
        Ahead nothing{};
        for (std::int64_t begin = slab.begin; begin < slab.end; begin += kChunkRows) {
            Panels<T> chunk[2];
            for (int s = 0; s < sides_; ++s) {
                chunk[s] = {mine.packed[s].data(), count(s), std::min(kChunkRows, slab.end - begin)};
                ops_.pack(turned_, begin, cut_[s], pivots_[s].data(), chunk[s]);
                ops_.sample_norms(chunk[s], mine.squares[s].data());
            }
            ops_.product(chunk[0], chunk[last], mine.products.data(), padded(last), last == 0, nothing);
        }
    }

    void add(Scratch& mine) const {
        const int last = sides_ - 1;
        tile_kernels().add_tile(mine.products.data(), padded(last), count(0), count(last), last == 0, task_.products,
                                count(last));
        for (int s = 0; s < sides_; ++s)
            for (std::int64_t k = 0; k < count(s); ++k)
                task_.squares[cut_[s] + k] += mine.squares[s][k];
    }

    GramProductsTask& task_;
    const TileOps<T>& ops_;
    const ArrayView turned_;
    std::int64_t cut_[3] = {}, panels_[2] = {};
    std::vector<T> pivots_[2];
    int sides_ = 1, threads_ = 1;
};

}  // namespace gramless

// The pass over tiles of logits that logsumexp and logit_pairs share: rows of hidden states against blocks of labels.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "core/array_scans.hpp"
#include "core/ordered_loop.hpp"
#include "kernels/bf16_rows.hpp"
#include "kernels/logit_choice.hpp"
#include "kernels/row_panels.hpp"

namespace gramless {

// one model during a pass
template <class T>
class LogitHead {
  public:
    // masked: tiles hold -inf
    LogitHead(const LogitModel& model, const LogitChoice& choice, const LogitCut& cut, std::size_t workers, bool masked)
        : model_(model),
          choice_(choice),
          cut_(cut),
          unit_(unit_of(model)),
          no_centre_(model.width()),
          hidden_(model.h, no_centre_.data(), cut.block_rows, choice.row_index()),
          workers_(workers),
          masked_(masked) {
        no_centre_.zero();
        if (model.given) return;
        if (unit_) {
            hidden_bf16_ = std::make_unique<Bf16Rows>(model.h, choice.row_index(), cut.block_rows);
            return;
        }
        hidden_memory_ = AlignedBuffer<T>(hidden_.elements());
        hidden_.set_memory(hidden_memory_.data());
    }

    void point_at(std::int64_t first, std::int64_t rows, int threads) {
        hidden_.point_at(first, rows);
        if (model_.given) return;
        if (unit_) hidden_bf16_->point_at(first, rows);
        std::atomic<bool> finite{true};
        parallel_for(
            unit_ ? hidden_bf16_->blocks() : hidden_.panels(), threads,
            [&](std::int64_t index, int) {
                if (!(unit_ ? hidden_bf16_->pack(index, unit_->pack_left) : pack(hidden_, index))) finite = false;
            },
            choice_.poll);
        hidden_finite_ = finite;
        if (!finite && choice_.check_finite) refuse_hidden(first, rows);
    }

    // false if they are not finite, and ought to be
    bool pack_labels(std::size_t worker, std::int64_t begin, std::int64_t count) {
        Worker& mine = workers_[worker];
        if (!mine.tile) mine.tile = AlignedBuffer<T>(kLogitTile * kStride);
        if (model_.bias && !mine.bias) mine.bias = AlignedBuffer<T>(cut_.block_labels);
        for (std::int64_t k = 0; k < count && model_.bias; ++k)
            mine.bias[k] = static_cast<T>(model_.bias[choice_.label_at(begin + k)]);
        if (model_.given) return true;
        mine.finite = unit_ ? pack_labels_bf16(mine, begin, count) : pack_labels_in_type(mine, begin, count);
        return mine.finite || !choice_.check_finite;
    }

    // logits of rows from `row` of the block on, for the labels that were packed
    LogitRows<T> tile(std::size_t worker, std::int64_t row, std::int64_t rows, std::int64_t begin, std::int64_t count) {
        Worker& mine = workers_[worker];
        T* const logits = mine.tile.data();
        if (model_.given)
            widen(row, rows, begin, count, logits);
        else
            multiply(mine, row, rows, count, logits);
        const LogitFinish<T> finish{model_.bias ? mine.bias.data() : nullptr, static_cast<T>(1 / choice_.temperature),
                                    cap(), !model_.given && !(hidden_finite_ && mine.finite)};
        if (finish.bias || finish.scale != 1 || finish.cap > 0 || finish.poisoned)
            ops_.finish(finish, logits, kStride, rows, count);
        return {logits, kStride, masked_};
    }

    // throws for the first of the labels that count and are not finite
    void refuse_labels() const {
        if (model_.given) return;
        for (std::int64_t k = 0; k < cut_.labels; ++k)
            refuse_row(model_.w, choice_.label_at(k), model_.w_name);
    }

    // throws for a row that none of the labels that count can be in
    void refuse_empty(std::int64_t row) const {
        if (!model_.given) return;
        const std::int64_t at = choice_.row_at(row);
        std::vector<double> values(static_cast<std::size_t>(cut_.labels));
        logit_ops<double>(tile_kernels()).widen(model_.h, at, 0, choice_.label_index(), cut_.labels, values.data());
        for (std::int64_t k = 0; k < cut_.labels; ++k) {
            const double bias = model_.bias ? model_.bias[choice_.label_at(k)] : 0;
            if (!std::isinf(values[static_cast<std::size_t>(k)]) && !std::isinf(bias)) return;
        }
        throw std::invalid_argument(std::string(choice_.function) + ": row " + std::to_string(at) + " of " +
                                    model_.h_name + " has no label that can be: all its logits are -inf");
    }

  private:
    // a cache line more than the tile, so that its rows do not all fall into the same cache sets
    static constexpr std::int64_t kStride = kLogitTile + 64 / static_cast<std::int64_t>(sizeof(T));

    struct Worker {
        AlignedBuffer<T> tile, bias, memory;
        std::unique_ptr<RowPanels<T>> panels;
        std::unique_ptr<Bf16Rows> blocks;
        bool finite = true;
    };

    // what multiplies bfloat16 without widening it; none for other types
    static const Bf16Ops* unit_of(const LogitModel& model) {
        const bool fits =
            std::is_same_v<T, float> && !model.given && Bf16Rows::takes(model.h) && Bf16Rows::takes(model.w);
        return fits ? bf16_ops() : nullptr;
    }

    // in the range of T; one that no logit comes near is none
    T cap() const { return model_.cap == 0 || model_.cap > 1e30 ? T(0) : static_cast<T>(std::max(model_.cap, 1e-30)); }

    bool pack(RowPanels<T>& panels, std::int64_t index) const {
        panels.pack(index);
        return panels.finite(index);
    }

    bool pack_labels_in_type(Worker& mine, std::int64_t begin, std::int64_t count) {
        if (!mine.panels) {
            mine.panels =
                std::make_unique<RowPanels<T>>(model_.w, no_centre_.data(), cut_.block_labels, choice_.label_index());
            mine.memory = AlignedBuffer<T>(mine.panels->elements());
            mine.panels->set_memory(mine.memory.data());
        }
        mine.panels->point_at(begin, count);
        bool finite = true;
        for (std::int64_t panel = 0; panel < mine.panels->panels(); ++panel)
            finite &= pack(*mine.panels, panel);
        return finite;
    }

    bool pack_labels_bf16(Worker& mine, std::int64_t begin, std::int64_t count) {
        if (!mine.blocks) mine.blocks = std::make_unique<Bf16Rows>(model_.w, choice_.label_index(), cut_.block_labels);
        mine.blocks->point_at(begin, count);
        bool finite = true;
        for (std::int64_t block = 0; block < mine.blocks->blocks(); ++block)
            finite &= mine.blocks->pack(block, unit_->pack_right);
        return finite;
    }

    void widen(std::int64_t row, std::int64_t rows, std::int64_t begin, std::int64_t count, T* logits) const {
        const std::int64_t* const index = choice_.all_labels ? nullptr : choice_.labels.data() + begin;
        for (std::int64_t r = 0; r < rows; ++r) {
            const std::int64_t from = choice_.row_at(hidden_.first() + row + r);
            const bool possible = ops_.widen(model_.h, from, begin, index, count, logits + r * kStride);
            if (!possible && choice_.check_finite) refuse_chunk(choice_.function, model_.h_name, model_.h, from);
        }
    }

    void refuse_hidden(std::int64_t first, std::int64_t rows) const {
        for (std::int64_t row = first; row < first + rows; ++row)
            refuse_row(model_.h, choice_.row_at(row), model_.h_name);
    }

    // throws if a row is not finite
    void refuse_row(const ArrayView& of, std::int64_t row, const char* name) const {
        const ArrayView one{of.at(row, 0), of.dtype, 1, of.cols, of.row_stride, of.col_stride};
        if (first_non_finite_chunk(one) >= 0) refuse_chunk(choice_.function, name, of, row);
    }

    // dot products of rows of the block with the labels that were packed
    void multiply(Worker& mine, std::int64_t row, std::int64_t rows, std::int64_t count, T* logits) {
        if constexpr (std::is_same_v<T, float>)
            if (unit_) {
                const std::int64_t blocks = 2 * ceil_div(rows, 2 * kBf16Rows);
                return unit_->product(hidden_bf16_->block(row / kBf16Rows), blocks, mine.blocks->block(0),
                                      mine.blocks->blocks(), model_.width(), logits, kStride);
            }
        multiply_tile(hidden_, row, rows, *mine.panels, 0, count, false, logits, kStride);
    }

    const LogitModel& model_;
    const LogitChoice& choice_;
    const LogitCut cut_;
    const LogitOps<T>& ops_ = logit_ops<T>(tile_kernels());
    const Bf16Ops* unit_;
    AlignedBuffer<T> no_centre_, hidden_memory_;
    RowPanels<T> hidden_;
    std::unique_ptr<Bf16Rows> hidden_bf16_;
    std::vector<Worker> workers_;
    const bool masked_;
    bool hidden_finite_ = true;
};

// One or two models over the same rows and labels.
template <class T>
class LogitPass {
  public:
    LogitPass(const std::vector<const LogitModel*>& models, const LogitChoice& choice, std::int64_t most_rows)
        : choice_(choice), places_(choice.target_places(*models[0])) {
        std::int64_t width = 0;
        for (const LogitModel* model : models)
            width += model->width();
        const std::int64_t rows = choice.rows_of(*models[0]), labels = choice.labels_of(*models[0]);
        cut_ = LogitCut::of<T>(rows, labels, width);
        cut_.block_rows = std::min(cut_.block_rows, most_rows);
        threads_ = threads_for(2.0 * static_cast<double>(rows) * static_cast<double>(labels) *
                               static_cast<double>(width + 16));
        const bool masked = std::any_of(models.begin(), models.end(), [&](const LogitModel* m) { return masks(*m); });
        heads_.reserve(models.size());
        for (const LogitModel* model : models)
            heads_.emplace_back(*model, choice, cut_, static_cast<std::size_t>(threads_), masked);
    }

    const LogitCut& cut() const { return cut_; }
    int threads() const { return threads_; }

    // visit(first row, rows) of blocks of rows, whose tiles are then at hand
    template <class Visit>
    void each_block(const Visit& visit) {
        for (std::int64_t first = 0; first < cut_.rows; first += cut_.block_rows) {
            const std::int64_t rows = std::min(cut_.block_rows, cut_.rows - first);
            for (LogitHead<T>& head : heads_)
                head.point_at(first, rows, threads_);
            visit(first, rows);
        }
    }

    // reduce(worker, row of the block, rows, slab of labels, logits of each model) of every tile, in any order; then
    // add(worker, slab) of every block of labels, in their order
    template <class Reduce, class Add>
    void each_tile(std::int64_t block_rows, const Reduce& reduce, const Add& add) {
        ordered_loop(
            cut_.labels, cut_.block_labels, threads_,
            [&](const Slab& slab, int index) {
                const auto worker = static_cast<std::size_t>(index);
                const std::int64_t count = slab.end - slab.begin;
                bool finite = true;
                for (LogitHead<T>& head : heads_)
                    finite &= head.pack_labels(worker, slab.begin, count);
                // in the order of the models and their labels, whoever found them first
                if (!finite)
                    for (const LogitHead<T>& head : heads_)
                        head.refuse_labels();
                const std::int64_t width = tile_ops<T>(tile_kernels()).width, step = kLogitTile / width * width;
                for (std::int64_t row = 0; row < block_rows; row += step) {
                    const std::int64_t rows = std::min(step, block_rows - row);
                    LogitRows<T> logits[2] = {};
                    for (std::size_t m = 0; m < heads_.size(); ++m)
                        logits[m] = heads_[m].tile(worker, row, rows, slab.begin, count);
                    reduce(worker, row, rows, slab, logits);
                }
            },
            [&](const Slab& slab, int worker) { add(static_cast<std::size_t>(worker), slab); }, choice_.poll);
    }

    // the target logits among those of a tile, whose rows are those from `at` on
    void take_targets(const LogitRows<T>& logits, std::int64_t at, std::int64_t rows, const Slab& slab,
                      double* out) const {
        for (std::int64_t r = 0; r < rows && !places_.empty(); ++r) {
            const std::int64_t place = places_[static_cast<std::size_t>(at + r)] - slab.begin;
            if (place >= 0 && place < slab.end - slab.begin)
                out[at + r] = static_cast<double>(logits.data[r * logits.stride + place]);
        }
    }

    // What is to blame for a row whose sums are not finite although its arrays are.
    [[noreturn]] void refuse(std::int64_t row) const {
        for (const LogitHead<T>& head : heads_)
            head.refuse_empty(row);
        throw std::invalid_argument(std::string(choice_.function) +
                                    ": logits overflow although the input is finite; scale it down");
    }

  private:
    // whether logits may be -inf
    static bool masks(const LogitModel& model) {
        bool found = model.given;
        for (std::int64_t k = 0; k < model.labels() && model.bias; ++k)
            found |= model.bias[k] == -std::numeric_limits<double>::infinity();
        return found;
    }

    const LogitChoice& choice_;
    const std::vector<std::int64_t> places_;  // of targets
    LogitCut cut_{};
    int threads_ = 1;
    std::vector<LogitHead<T>> heads_;
};

}  // namespace gramless

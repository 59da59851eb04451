// What logsumexp and logit_pairs are asked for, how they cut it, and where their sums lie.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

#include "core/aligned_buffer.hpp"
#include "core/array_view.hpp"
#include "core/feature_blocks.hpp"
#include "core/isa.hpp"
#include "core/logit_tiles.hpp"
#include "core/tile_kernels.hpp"

namespace gramless {

// where the logits of one model come from
struct LogitModel {
    ArrayView h;                   // (N, d), or without w the logits (N, V)
    ArrayView w;                   // (V, d)
    const double* bias = nullptr;  // (V,), -inf for labels that cannot be
    double cap = 0;                // z = cap tanh(z / cap); 0: none
    const char* h_name = "h";
    const char* w_name = "w";
    bool given = false;  // h holds the logits

    std::int64_t labels() const { return given ? h.cols : w.rows; }
    std::int64_t width() const { return given ? 0 : h.cols; }
};

// what is taken of them
struct LogitChoice {
    const char* function;
    std::vector<std::int64_t> labels, rows, targets;  // targets: one for each of the rows, or none
    bool all_labels = true, all_rows = true;
    double temperature = 1;
    bool check_finite = true;
    std::function<void()> poll;

    // how many of a model's count
    std::int64_t rows_of(const LogitModel& model) const {
        return all_rows ? model.h.rows : static_cast<std::int64_t>(rows.size());
    }
    std::int64_t labels_of(const LogitModel& model) const {
        return all_labels ? model.labels() : static_cast<std::int64_t>(labels.size());
    }

    // of the model's arrays, for one that counts
    std::int64_t row_at(std::int64_t place) const { return all_rows ? place : rows[static_cast<std::size_t>(place)]; }
    std::int64_t label_at(std::int64_t place) const {
        return all_labels ? place : labels[static_cast<std::size_t>(place)];
    }

    // of the model's arrays, for all that count; null: the same
    const std::int64_t* row_index() const { return all_rows ? nullptr : rows.data(); }
    const std::int64_t* label_index() const { return all_labels ? nullptr : labels.data(); }

    // the positions of targets among the labels that count, none if there are no targets
    std::vector<std::int64_t> target_places(const LogitModel& model) const {
        std::vector<std::int64_t> places = targets;
        if (places.empty() || all_labels) return places;
        std::vector<std::int64_t> place_of(static_cast<std::size_t>(model.labels()), -1);
        for (std::size_t k = 0; k < labels.size(); ++k)
            place_of[static_cast<std::size_t>(labels[k])] = static_cast<std::int64_t>(k);
        for (std::int64_t& place : places)
            place = place_of[static_cast<std::size_t>(place)];
        return places;
    }
};

// how rows and labels are cut: functions of the shapes alone
struct LogitCut {
    std::int64_t rows, labels;  // all of them
    std::int64_t block_rows, block_labels;

    template <class T>
    static LogitCut of(std::int64_t rows, std::int64_t labels, std::int64_t width) {
        // packed rows of both models, and of a block of labels, in bytes; blocks of labels that many threads share
        constexpr std::int64_t kRowBytes = std::int64_t{16} << 20, kLabelBytes = std::int64_t{4} << 20, kBlocks = 32;
        const std::int64_t panel = tile_ops<T>(tile_kernels()).width, most = kLogitTile / panel * panel;
        const std::int64_t bytes = std::max<std::int64_t>(1, width) * std::int64_t{sizeof(T)};
        const std::int64_t fitting = std::clamp(kLabelBytes / bytes / panel * panel, panel, most);
        const std::int64_t wanted = ceil_div(ceil_div(labels, kBlocks), panel) * panel;
        const std::int64_t block = std::clamp(kRowBytes / bytes / most * most, 2 * most, 16 * most);
        return {rows, labels, std::min(rows, block), std::min(fitting, wanted)};
    }
};

// memory of sums per row: one array for each of them, padded to whole vectors
class LogitMemory {
  public:
    LogitMemory() = default;
    LogitMemory(std::int64_t rows, std::int64_t arrays, std::int64_t tops)
        : rows_(ceil_div(rows, 8) * 8), numbers_(rows_ * arrays), tops_(rows_ * tops) {
        clear();
    }

    explicit operator bool() const { return rows_ > 0; }

    void clear() {
        numbers_.zero();
        tops_.zero();
    }

    double* numbers(std::int64_t index, std::int64_t row) { return numbers_.data() + index * rows_ + row; }
    std::int64_t* tops(std::int64_t index, std::int64_t row) { return tops_.data() + index * rows_ + row; }

    // of one model, from the row on: three arrays and a top, the first of each at these places
    ModelSums sums(std::int64_t place, std::int64_t top, std::int64_t row) {
        return {numbers(place, row), numbers(place + 1, row), numbers(place + 2, row), tops(top, row)};
    }

    // before any label: below every logit
    void start(std::int64_t place) { std::fill_n(numbers(place, 0), rows_, -std::numeric_limits<double>::max()); }

  private:
    std::int64_t rows_ = 0;
    AlignedBuffer<double> numbers_;
    AlignedBuffer<std::int64_t> tops_;
};

}  // namespace gramless

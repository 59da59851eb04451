// Binding of the logit_pairs kernel: arrays in, a flat dict of arrays out, the GIL released in between.
#include "kernels/logit_pairs.hpp"

#include <pybind11/stl.h>

#include <algorithm>
#include <vector>

#include "bindings/logits.hpp"
#include "core/thread_pool.hpp"
#include "kernels/bf16_rows.hpp"
#include "kernels/row_panels.hpp"

namespace py = pybind11;

namespace gramless {
namespace {

constexpr std::int64_t kWorkspace = std::int64_t{64} << 20;

bool in_double(const PythonModel& p, const PythonModel& q) {
    for (const PythonModel* of : {&p, &q})
        if (of->model.h.dtype == DType::kF64 || of->model.w.dtype == DType::kF64) return true;
    return false;
}

py::dict logit_pairs(const py::object& h1, const py::object& w1, const py::object& h2, const py::object& w2,
                     const Biases& b1, const Biases& b2, const Indices& labels, const Mask& mask,
                     const Indices& targets, double temperature, const std::optional<double>& softcap1,
                     const std::optional<double>& softcap2, bool divergences,
                     const std::optional<std::int64_t>& workspace, const std::string& nonfinite) {
    const PythonModel p = python_model("logit_pairs", "1", h1, w1, b1, softcap1);
    const PythonModel q = python_model("logit_pairs", "2", h2, w2, b2, softcap2);
    LogitPairsTask task;
    task.models[0] = p.model;
    task.models[1] = q.model;
    task.choice = python_choice("logit_pairs", p, &q, labels, mask, targets, temperature, nonfinite);
    task.in_double = in_double(p, q);
    task.divergences = divergences;
    task.workspace = workspace.value_or(kWorkspace);
    const std::int64_t n = task.choice.rows_of(p.model);
    py::dict result;
    result["labels"] = task.choice.labels_of(p.model);
    const char* const names[2] = {"_p", "_q"};
    for (int m = 0; m < 2; ++m) {
        task.out.lse[m] = add_missing(result, std::string("lse") + names[m], n);
        task.out.mean[m] = add_missing(result, std::string("mean") + names[m], n);
        task.out.delta[m] = add_missing(result, std::string("delta") + names[m], n);
        task.out.top[m] = add_array<std::int64_t>(result, std::string("top") + names[m], {n});
        task.out.top_logit[m] = add_missing(result, std::string("top_logit") + names[m], n);
        task.out.target[m] = add_missing(result, std::string("target") + names[m], n);
    }
    task.out.delta_mean = add_missing(result, "delta_mean", n);
    task.out.delta_square = add_missing(result, "delta_square", n);
    task.out.delta_abs = add_missing(result, "delta_abs", n);
    task.out.delta_max = add_missing(result, "delta_max", n);
    task.out.counted = add_missing(result, "counted", n);
    task.js = divergences ? add_zeros(result, "js", {n}) : add_missing(result, "js", n);
    task.tv = divergences ? add_zeros(result, "tv", {n}) : add_missing(result, "tv", n);
    const WithoutGil without_gil;
    compute_logit_pairs(task);
    return result;
}

py::dict logit_divergences(const py::object& h1, const py::object& w1, const py::object& h2, const py::object& w2,
                           py::array_t<double, py::array::c_style | py::array::forcecast> lse_p,
                           py::array_t<double, py::array::c_style | py::array::forcecast> lse_q, const Biases& b1,
                           const Biases& b2, const Indices& labels, const Mask& mask, double temperature,
                           const std::optional<double>& softcap1, const std::optional<double>& softcap2,
                           const std::string& nonfinite) {
    const PythonModel p = python_model("logit_divergences", "1", h1, w1, b1, softcap1);
    const PythonModel q = python_model("logit_divergences", "2", h2, w2, b2, softcap2);
    LogitPairsTask task;
    task.models[0] = p.model;
    task.models[1] = q.model;
    task.choice = python_choice("logit_divergences", p, &q, labels, mask, {}, temperature, nonfinite);
    task.in_double = in_double(p, q);
    const std::int64_t n = task.choice.rows_of(p.model);
    if (lse_p.size() != n || lse_q.size() != n)
        throw py::value_error("logit_divergences: expected lse_p and lse_q of " + std::to_string(n) + " rows");
    // they are only read
    task.out.lse[0] = const_cast<double*>(lse_p.data());
    task.out.lse[1] = const_cast<double*>(lse_q.data());
    py::dict result;
    task.js = add_zeros(result, "js", {n});
    task.tv = add_zeros(result, "tv", {n});
    const WithoutGil without_gil;
    compute_logit_divergences(task);
    return result;
}

// one of one or two models, for what a pass takes: labels are not multiplied where the width is 0, logits being given
struct Share {
    std::int64_t width;
    bool on_unit;  // multiplied in bfloat16

    template <class T>
    std::int64_t packed_bytes(std::int64_t rows) const {
        constexpr std::int64_t kItem = sizeof(std::uint16_t);
        if (width == 0) return 0;
        return on_unit ? kItem * 2 * ceil_div(rows, 2 * kBf16Rows) * bf16_block(width)
                       : RowPanels<T>::bytes(rows, width);
    }
};

std::int64_t block_rows(std::int64_t n, std::int64_t labels, std::int64_t width, bool float64) {
    return (float64 ? LogitCut::of<double>(n, labels, width) : LogitCut::of<float>(n, labels, width)).block_rows;
}

// packed rows and sums of a block of rows, and what each thread has: a block of labels, a tile of logits, and sums
template <class T>
std::int64_t scratch_bytes(std::int64_t n, std::int64_t labels, const std::vector<Share>& models,
                           std::int64_t most_rows) {
    // sums of a row, and tops, that the kernels have for one model and for two
    const std::int64_t sums = models.size() == 1 ? 6 : 15;
    constexpr std::int64_t kItem = sizeof(T), kTile = kItem * kLogitTile * kLogitTile + 64 * kLogitTile;
    std::int64_t width = 0;
    for (const Share& model : models)
        width += model.width;
    const LogitCut cut = LogitCut::of<T>(n, labels, width);
    const std::int64_t rows = std::min(cut.block_rows, most_rows);
    const double flops = 2.0 * static_cast<double>(n) * static_cast<double>(labels) * static_cast<double>(width + 16);
    // one block of labels is one task
    const std::int64_t threads = cut.labels > cut.block_labels ? threads_for(flops) : 1;
    std::int64_t once = 8 * sums * rows, each = once;
    for (const Share& model : models) {
        once += model.packed_bytes<T>(rows);
        each += model.packed_bytes<T>(cut.block_labels) + kItem * cut.block_labels + kTile;
    }
    return once + threads * each;
}

std::int64_t scratch(std::int64_t n, std::int64_t labels, const std::vector<std::int64_t>& widths, bool float64,
                     const std::vector<bool>& on_unit, const std::optional<std::int64_t>& most_rows) {
    if (widths.empty() || widths.size() > 2 || on_unit.size() != widths.size())
        throw py::value_error("logit_scratch_bytes: expected one or two models");
    std::vector<Share> models;
    for (std::size_t m = 0; m < widths.size(); ++m)
        models.push_back({widths[m], on_unit[m]});
    const std::int64_t most = most_rows.value_or(n);
    return float64 ? scratch_bytes<double>(n, labels, models, most) : scratch_bytes<float>(n, labels, models, most);
}

}  // namespace

void bind_logit_pairs(py::module_& module) {
    module.def("logit_pairs", &logit_pairs, py::arg("h1"), py::arg("w1"), py::arg("h2"), py::arg("w2"), py::kw_only(),
               py::arg("b1") = py::none(), py::arg("b2") = py::none(), py::arg("labels") = py::none(),
               py::arg("mask") = py::none(), py::arg("targets") = py::none(), py::arg("temperature") = 1.0,
               py::arg("softcap1") = py::none(), py::arg("softcap2") = py::none(), py::arg("divergences") = false,
               py::arg("workspace") = py::none(), py::arg("nonfinite") = "raise");
    module.def("logit_divergences", &logit_divergences, py::arg("h1"), py::arg("w1"), py::arg("h2"), py::arg("w2"),
               py::arg("lse_p"), py::arg("lse_q"), py::kw_only(), py::arg("b1") = py::none(),
               py::arg("b2") = py::none(), py::arg("labels") = py::none(), py::arg("mask") = py::none(),
               py::arg("temperature") = 1.0, py::arg("softcap1") = py::none(), py::arg("softcap2") = py::none(),
               py::arg("nonfinite") = "raise");
    module.attr("LOGIT_WORKSPACE") = kWorkspace;
    module.def("logit_block_rows", &block_rows, py::arg("n"), py::arg("labels"), py::arg("width"), py::kw_only(),
               py::arg("float64"));
    module.def("logit_scratch_bytes", &scratch, py::arg("n"), py::arg("labels"), py::arg("widths"), py::kw_only(),
               py::arg("float64"), py::arg("on_unit"), py::arg("most_rows") = py::none());
}

}  // namespace gramless

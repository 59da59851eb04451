// Binding of the logit_pairs kernel: arrays in, a flat dict of arrays out, the GIL released in between.
#include "kernels/logit_pairs.hpp"

#include <pybind11/stl.h>

#include "bindings/logits.hpp"

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
    const std::int64_t n = chosen_rows(task.choice, p.model);
    py::dict result;
    result["labels"] = chosen_labels(task.choice, p.model);
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
    const std::int64_t n = chosen_rows(task.choice, p.model);
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
}

}  // namespace gramless

// Binding of the logsumexp kernel: arrays in, a flat dict of arrays out, the GIL released in between.
#include "kernels/logsumexp.hpp"

#include <pybind11/stl.h>

#include "bindings/logits.hpp"

namespace py = pybind11;

namespace gramless {
namespace {

py::dict logsumexp(const py::object& h, const py::object& w, const Biases& b, const Indices& labels, const Mask& mask,
                   const Indices& targets, double temperature, const std::optional<double>& softcap,
                   const std::string& nonfinite) {
    const PythonModel model = python_model("logsumexp", "", h, w, b, softcap);
    LogsumexpTask task;
    task.model = model.model;
    task.choice = python_choice("logsumexp", model, nullptr, labels, mask, targets, temperature, nonfinite);
    task.in_double = model.model.h.dtype == DType::kF64 || model.model.w.dtype == DType::kF64;
    const std::int64_t n = task.choice.rows_of(task.model);
    py::dict result;
    result["labels"] = task.choice.labels_of(task.model);
    task.out.lse = add_missing(result, "lse", n);
    task.out.mean = add_missing(result, "mean", n);
    task.out.lse2 = add_missing(result, "lse2", n);
    task.out.top = add_array<std::int64_t>(result, "top", {n});
    task.out.top_logit = add_missing(result, "top_logit", n);
    task.out.target = add_missing(result, "target", n);
    task.out.counted = add_missing(result, "counted", n);
    const WithoutGil without_gil;
    compute_logsumexp(task);
    return result;
}

}  // namespace

void bind_logsumexp(py::module_& module) {
    module.def("logsumexp", &logsumexp, py::arg("h"), py::arg("w"), py::kw_only(), py::arg("b") = py::none(),
               py::arg("labels") = py::none(), py::arg("mask") = py::none(), py::arg("targets") = py::none(),
               py::arg("temperature") = 1.0, py::arg("softcap") = py::none(), py::arg("nonfinite") = "raise");
}

}  // namespace gramless

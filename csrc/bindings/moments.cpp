// Binding of the moments kernel: arrays in, a flat dict of float64 arrays out, the GIL released in between.
#include "kernels/moments.hpp"

#include <algorithm>
#include <string>
#include <vector>

#include "bindings/bindings.hpp"
#include "bindings/python_array.hpp"
#include "core/array_scans.hpp"

namespace py = pybind11;

namespace gramless {
namespace {

using Array = py::array_t<double, py::array::c_style>;

void fill_pivot(const ArrayView& source, const py::object& wanted, const char* argument, double* pivot) {
    if (wanted.is_none()) {
        default_pivot(source, pivot);
        return;
    }
    const Array given = Array::ensure(wanted);
    if (!given) throw py::error_already_set();
    if (given.ndim() != 1 || given.shape(0) != source.cols)
        throw py::value_error(std::string("moments: expected pivot_") + argument + " of length " +
                              std::to_string(source.cols));
    std::copy_n(given.data(), source.cols, pivot);
}

SelfSums self_sums(py::dict& result, const ArrayView& source, const std::string& name, double* pivot) {
    const std::string twice = name + name;
    const py::ssize_t p = source.cols;
    SelfSums sums{};
    sums.pivot = pivot;
    sums.sum = add_zeros(result, "sum_" + name, {p});
    sums.second = add_zeros(result, "s" + twice, {p, p});
    sums.weighted = add_zeros(result, "weighted_" + twice, {p});
    sums.cubes = add_zeros(result, "cubes_" + name, {p});
    sums.fourths = add_zeros(result, "fourths_" + name, {p});
    return sums;
}

py::dict moments(const py::object& x, const py::object& y, const py::object& pivot_x, const py::object& pivot_y,
                 bool self_terms, const std::string& nonfinite) {
    const auto [x_array, y_array] = python_pair(x, y, "moments");
    const bool pair = !y.is_none();
    if (!pair && !self_terms) throw py::value_error("moments: expected y when self_terms is False");

    py::dict result, kept;
    result["n"] = x_array.view.rows;
    MomentsTask task;
    task.x = x_array.view;
    task.y = y_array.view;
    task.self_terms = self_terms;
    task.check_finite = nonfinite == "raise";

    const auto pivots = [&](const ArrayView& source, const py::object& wanted, const std::string& name) {
        // with the cross terms alone the pivots are the caller's own, and are not returned
        double* pivot = add_zeros(self_terms ? result : kept, "pivot_" + name, {source.cols});
        fill_pivot(source, wanted, name.c_str(), pivot);
        return pivot;
    };
    task.self_x.pivot = pivots(task.x, pivot_x, "x");
    if (pair) task.self_y.pivot = pivots(task.y, pivot_y, "y");
    if (self_terms) {
        task.self_x = self_sums(result, task.x, "x", task.self_x.pivot);
        if (pair) task.self_y = self_sums(result, task.y, "y", task.self_y.pivot);
    }
    if (pair) {
        task.cross.second = add_zeros(result, "sxy", {task.x.cols, task.y.cols});
        task.cross.weighted_x = add_zeros(result, "weighted_xy", {task.x.cols});
        task.cross.weighted_y = add_zeros(result, "weighted_yx", {task.y.cols});
    }
    task.poll = poll_signals();
    {
        const WithoutGil without_gil;
        compute_moments(task);
    }
    if (self_terms) result["norms_xx"] = task.self_x.norms;
    if (self_terms && pair) result["norms_yy"] = task.self_y.norms;
    if (pair) result["norms_xy"] = task.cross.norms;
    return result;
}

std::int64_t scratch(std::int64_t n, std::int64_t p, std::int64_t q, bool float64, bool self_terms) {
    const DType dtype = float64 ? DType::kF64 : DType::kF32;
    MomentsTask task;
    task.x = {nullptr, dtype, n, p, 0, 0};
    task.y = {nullptr, dtype, q > 0 ? n : 0, q, 0, 0};
    task.self_terms = self_terms;
    return moments_scratch_bytes(task);
}

}  // namespace

void bind_moments(py::module_& module) {
    module.def("moments", &moments, py::arg("x"), py::arg("y") = py::none(), py::kw_only(),
               py::arg("pivot_x") = py::none(), py::arg("pivot_y") = py::none(), py::arg("self_terms") = true,
               py::arg("nonfinite") = "raise");
    module.def("moments_scratch_bytes", &scratch, py::arg("n"), py::arg("p"), py::arg("q"), py::kw_only(),
               py::arg("float64"), py::arg("self_terms"));
}

}  // namespace gramless

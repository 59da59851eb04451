// Binding of the moments kernel, of a pair and of layers: arrays in, flat dicts of float64 arrays out, the GIL
// released in between.
#include "kernels/moments.hpp"

#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
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

using Arrays = std::vector<py::object>;

// the sums of the layers of one side, one layer after the other
void side_sums(py::dict& result, LayerMomentsTask& task, std::size_t begin, std::size_t end, const std::string& name,
               const std::optional<Arrays>& pivots) {
    std::int64_t features = 0, squares = 0;
    for (std::size_t k = begin; k < end; ++k) {
        const std::int64_t p = task.layers[k].rows.cols;
        features += p;
        squares += p * p;
    }
    const std::string twice = name + name;
    SelfSums at{};
    at.pivot = add_zeros(result, "pivot_" + name, {features});
    at.sum = add_zeros(result, "sum_" + name, {features});
    at.second = add_zeros(result, "s" + twice, {squares});
    at.weighted = add_zeros(result, "weighted_" + twice, {features});
    at.cubes = add_zeros(result, "cubes_" + name, {features});
    at.fourths = add_zeros(result, "fourths_" + name, {features});
    for (std::size_t k = begin; k < end; ++k) {
        MomentLayer& layer = task.layers[k];
        const std::int64_t p = layer.rows.cols;
        fill_pivot(layer.rows, pivots ? (*pivots)[k - begin] : py::none(), name.c_str(), at.pivot);
        layer.self = at;
        for (double** moved : {&at.pivot, &at.sum, &at.weighted, &at.cubes, &at.fourths})
            *moved += p;
        at.second += p * p;
    }
}

py::dict layer_moments(const Arrays& xs, const std::optional<Arrays>& ys, const std::optional<Arrays>& pivots_x,
                       const std::optional<Arrays>& pivots_y, const std::string& nonfinite) {
    if (xs.empty() || (ys && ys->empty())) throw py::value_error("layer_moments: expected at least one layer");
    if ((pivots_x && pivots_x->size() != xs.size()) || (pivots_y && (!ys || pivots_y->size() != ys->size())))
        throw py::value_error("layer_moments: expected as many pivots as layers");
    std::vector<PythonArray> arrays;
    for (const py::object& x : xs)
        arrays.push_back(python_array(x, "layer_moments", "xs"));
    for (const py::object& y : ys.value_or(Arrays{}))
        arrays.push_back(python_array(y, "layer_moments", "ys"));
    LayerMomentsTask task;
    task.split = xs.size();
    task.check_finite = nonfinite == "raise";
    task.poll = poll_signals();
    std::int64_t features_x = 0, features_y = 0;
    for (std::size_t k = 0; k < arrays.size(); ++k) {
        const ArrayView& rows = arrays[k].view;
        if (rows.rows != arrays[0].view.rows || rows.rows == 0 || rows.cols == 0)
            throw py::value_error("layer_moments: expected layers of equal numbers of rows and not empty");
        task.layers.push_back({rows});
        (k < task.split ? features_x : features_y) += rows.cols;
    }
    py::dict result;
    result["n"] = arrays[0].view.rows;
    side_sums(result, task, 0, task.split, "x", pivots_x);
    if (ys) side_sums(result, task, task.split, arrays.size(), "y", pivots_y);

    const auto [first, partners] = task.partners(0);
    const auto of_x = static_cast<std::int64_t>(task.split), of_y = static_cast<std::int64_t>(partners);
    std::int64_t second = 0;
    for (std::size_t k = 0; k < task.split; ++k)
        second += task.layers[k].rows.cols * task.partner_features(k);
    double* to_second = add_zeros(result, "sxy", {second});
    double* weighted[2] = {add_zeros(result, "weighted_xy", {features_x, of_y}),
                           ys ? add_zeros(result, "weighted_yx", {features_y, of_x}) : nullptr};
    task.norms = add_zeros(result, "norms_xy", {of_x, of_y});
    for (std::size_t k = 0; k < arrays.size(); ++k) {
        MomentLayer& layer = task.layers[k];
        double*& to_weighted = weighted[k < task.split ? 0 : 1];
        layer.weighted = to_weighted;
        to_weighted += layer.rows.cols * static_cast<std::int64_t>(task.partners(k).second);
        if (k >= task.split) continue;
        layer.second = to_second;
        to_second += layer.rows.cols * task.partner_features(k);
    }
    try {
        const WithoutGil without_gil;
        compute_layer_moments(task);
    } catch (const LayerFault& fault) {
        const std::string reason = fault.what();
        py::object error = py::reinterpret_borrow<py::object>(PyExc_ValueError)(
            "layer_moments: layer " + std::to_string(fault.layer) + ": " + reason);
        error.attr("layer") = fault.layer;
        error.attr("reason") = reason;
        PyErr_SetObject(PyExc_ValueError, error.ptr());
        throw py::error_already_set();
    }
    for (const std::size_t side : {std::size_t{0}, std::size_t{1}}) {
        if (side == 1 && !ys) continue;
        const std::size_t begin = side == 0 ? 0 : task.split, end = side == 0 ? task.split : arrays.size();
        double* norms = add_zeros(result, side == 0 ? "norms_xx" : "norms_yy", {static_cast<py::ssize_t>(end - begin)});
        for (std::size_t k = begin; k < end; ++k)
            *norms++ = task.layers[k].self.norms;
    }
    return result;
}

std::int64_t layer_scratch(std::int64_t n, const std::vector<std::int64_t>& widths_x,
                           const std::vector<std::int64_t>& widths_y, const std::vector<bool>& float64) {
    LayerMomentsTask task;
    task.split = widths_x.size();
    for (const auto* widths : {&widths_x, &widths_y})
        for (const std::int64_t p : *widths) {
            const DType dtype = float64.at(task.layers.size()) ? DType::kF64 : DType::kF32;
            task.layers.push_back({{nullptr, dtype, n, p, 0, 0}});
        }
    return layer_moments_scratch_bytes(task);
}

}  // namespace

void bind_moments(py::module_& module) {
    module.def("moments", &moments, py::arg("x"), py::arg("y") = py::none(), py::kw_only(),
               py::arg("pivot_x") = py::none(), py::arg("pivot_y") = py::none(), py::arg("self_terms") = true,
               py::arg("nonfinite") = "raise");
    module.def("layer_moments", &layer_moments, py::arg("xs"), py::arg("ys") = py::none(), py::kw_only(),
               py::arg("pivots_x") = py::none(), py::arg("pivots_y") = py::none(), py::arg("nonfinite") = "raise");
    module.def("layer_moments_scratch_bytes", &layer_scratch, py::arg("n"), py::arg("widths_x"), py::arg("widths_y"),
               py::kw_only(), py::arg("float64"));
    module.def("moments_scratch_bytes", &scratch, py::arg("n"), py::arg("p"), py::arg("q"), py::kw_only(),
               py::arg("float64"), py::arg("self_terms"));
}

}  // namespace gramless

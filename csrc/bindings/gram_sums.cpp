// Binding of the gram_sums kernel: arrays in, a flat dict of arrays out, the GIL released in between.
#include "kernels/gram_sums.hpp"

#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "bindings/bindings.hpp"
#include "bindings/python_array.hpp"

namespace py = pybind11;

namespace gramless {
namespace {

using Widths = std::optional<std::vector<double>>;
using Pairs = py::array_t<std::int64_t, py::array::c_style | py::array::forcecast>;

GramFamily family(const std::string& kernel, int degree, double coef0) {
    const std::vector<std::pair<const char*, GramFunction>> known = {
        {"linear", GramFunction::kLinear},       {"rbf", GramFunction::kRbf},
        {"laplacian", GramFunction::kLaplacian}, {"polynomial", GramFunction::kPolynomial},
        {"cosine", GramFunction::kCosine},       {"distance", GramFunction::kDistance}};
    for (const auto& [name, function] : known)
        if (kernel == name) return {function, degree, coef0};
    throw py::value_error("gram_sums: unknown kernel '" + kernel + "'");
}

void check_widths(const GramFamily& of, const Widths& widths) {
    if (of.function != GramFunction::kRbf && of.function != GramFunction::kLaplacian) return;
    if (!widths || widths->empty()) throw py::value_error("gram_sums: expected a bandwidth for this kernel");
    for (const double width : *widths)
        if (!(width > 0)) throw py::value_error("gram_sums: expected bandwidths above 0");
}

std::vector<std::pair<std::int64_t, std::int64_t>> block_pairs(const std::optional<Pairs>& given, std::int64_t blocks) {
    std::vector<std::pair<std::int64_t, std::int64_t>> pairs;
    if (!given) {
        for (std::int64_t i = 0; i < blocks; ++i)
            for (std::int64_t j = i; j < blocks; ++j)
                pairs.emplace_back(i, j);
        return pairs;
    }
    if (given->ndim() != 2 || given->shape(1) != 2) throw py::value_error("gram_sums: expected pairs of shape (m, 2)");
    const auto view = given->unchecked<2>();
    for (py::ssize_t k = 0; k < view.shape(0); ++k) {
        if (view(k, 0) < 0 || view(k, 0) > view(k, 1) || view(k, 1) >= blocks)
            throw py::value_error("gram_sums: expected pairs (i, j) with 0 <= i <= j < " + std::to_string(blocks));
        pairs.emplace_back(view(k, 0), view(k, 1));
    }
    return pairs;
}

GramTarget target(py::dict& result, const std::string& name, std::int64_t bandwidths, std::int64_t n) {
    GramTarget to{};
    to.offsets = add_zeros(result, "offset_" + name, {bandwidths});
    to.diagonal = add_zeros(result, "diagonal_" + name, {bandwidths, n});
    to.rows = add_zeros(result, "rows_" + name, {bandwidths, n});
    to.squares = add_zeros(result, "sum_" + name + name, {bandwidths});
    return to;
}

// rows that stand for an array, none if the kernel shall take them
PythonArray sample(const py::object& rows, const char* name, const ArrayView& source) {
    if (rows.is_none()) return {};
    PythonArray found = python_array(rows, "gram_sums", name);
    if (found.view.rows == 0 || found.view.cols != source.cols || found.view.dtype != source.dtype)
        throw py::value_error(std::string("gram_sums: expected ") + name + " with features and dtype of its array");
    return found;
}

py::dict gram_sums(const py::object& x, const py::object& y, const std::string& kernel, const Widths& bandwidth_x,
                   const Widths& bandwidth_y, int degree, double coef0, std::optional<std::int64_t> block_rows,
                   const std::optional<Pairs>& pairs, const py::object& sample_x, const py::object& sample_y,
                   const std::string& nonfinite) {
    const auto [x_array, y_array] = python_pair(x, y, "gram_sums");
    const bool pair = !y.is_none();
    GramSumsTask task;
    task.x = x_array.view;
    task.y = y_array.view;
    const PythonArray of_x = sample(sample_x, "sample_x", task.x), of_y = sample(sample_y, "sample_y", task.y);
    task.sample_x = of_x.view;
    task.sample_y = of_y.view;
    task.family = family(kernel, degree, coef0);
    check_widths(task.family, bandwidth_x);
    if (pair) check_widths(task.family, bandwidth_y);
    if (bandwidth_x) task.bandwidths_x = *bandwidth_x;
    if (bandwidth_y) task.bandwidths_y = *bandwidth_y;
    if (pair && task.bandwidths_x.size() != task.bandwidths_y.size())
        throw py::value_error("gram_sums: expected as many bandwidths of x as of y");
    task.block_rows = block_rows.value_or(gram_block_rows(task.x.cols, task.y.cols));
    if (task.block_rows < 1) throw py::value_error("gram_sums: expected block_rows of at least 1");
    task.pairs = block_pairs(pairs, (task.x.rows + task.block_rows - 1) / task.block_rows);
    task.check_finite = nonfinite == "raise";
    task.poll = poll_signals();

    py::dict result;
    result["n"] = task.x.rows;
    const auto bandwidths = static_cast<std::int64_t>(task.bandwidths_x.size());
    task.of_x = target(result, "x", bandwidths, task.x.rows);
    if (pair) {
        task.of_y = target(result, "y", bandwidths, task.x.rows);
        task.products = add_zeros(result, "sum_xy", {bandwidths});
    }
    const WithoutGil without_gil;
    compute_gram_sums(task);
    return result;
}

py::dict gram_values(
    const std::vector<py::object>& layers, const std::optional<std::vector<py::object>>& others,
    const std::string& kernel, const Widths& bandwidths,
    const std::optional<std::vector<py::array_t<double, py::array::c_style | py::array::forcecast>>>& pivots,
    int degree, double coef0, const std::string& nonfinite) {
    GramValuesTask task;
    task.family = family(kernel, degree, coef0);
    task.check_finite = nonfinite == "raise";
    task.poll = poll_signals();
    check_widths(task.family, bandwidths);
    const auto count = layers.size();
    if (count == 0) throw py::value_error("gram_values: expected at least one layer");
    if ((others && others->size() != count) || (bandwidths && bandwidths->size() != count) ||
        (pivots && pivots->size() != count))
        throw py::value_error("gram_values: expected as many others, bandwidths and pivots as layers");
    std::vector<PythonArray> arrays;
    for (std::size_t k = 0; k < count; ++k) {
        const std::string name = std::to_string(k);
        arrays.push_back(python_array(layers[k], "gram_values", name.c_str()));
        arrays.push_back(others ? python_array((*others)[k], "gram_values", name.c_str()) : PythonArray{});
    }
    const std::int64_t n = arrays[0].view.rows, m = arrays[1].view.rows;
    for (std::size_t k = 0; k < count; ++k) {
        const ArrayView &rows = arrays[2 * k].view, &other = arrays[2 * k + 1].view;
        if (rows.rows != n || other.rows != m || rows.rows == 0 || rows.cols == 0 || (others && other.rows == 0))
            throw py::value_error("gram_values: expected layers of equal numbers of rows, at least one");
        if (others && other.cols != rows.cols)
            throw py::value_error("gram_values: expected the same features in others as in layers");
        if (pivots && ((*pivots)[k].ndim() != 1 || (*pivots)[k].shape(0) != rows.cols))
            throw py::value_error("gram_values: expected pivots of the widths of the layers");
        GramLayer layer{};
        layer.rows = rows;
        layer.others = other;
        layer.bandwidth = bandwidths ? (*bandwidths)[k] : 1;
        layer.pivot = pivots ? (*pivots)[k].data() : nullptr;
        task.layers.push_back(layer);
        task.in_double |= task.family.function == GramFunction::kPolynomial || rows.dtype == DType::kF64 ||
                          (others && other.dtype == DType::kF64);
    }

    py::dict result;
    const auto l = static_cast<std::int64_t>(count), size = others ? n * m : n * (n - 1) / 2;
    const auto place = [&](auto* values) {
        for (std::int64_t k = 0; k < l; ++k)
            task.layers[static_cast<std::size_t>(k)].values = values + k * size;
    };
    if (task.in_double)
        place(add_array<double>(result, "values", {l, size}));
    else
        place(add_array<float>(result, "values", {l, size}));
    double* const row_sums = add_zeros(result, "rows", {l, n});
    double* const column_sums = others ? add_zeros(result, "columns", {l, m}) : nullptr;
    for (std::int64_t k = 0; k < l; ++k) {
        task.layers[static_cast<std::size_t>(k)].row_sums = row_sums + k * n;
        task.layers[static_cast<std::size_t>(k)].column_sums = column_sums ? column_sums + k * m : nullptr;
    }
    {
        const WithoutGil without_gil;
        compute_gram_values(task);
    }
    double* const squares = add_zeros(result, "squares", {l});
    double* const offsets = add_zeros(result, "offsets", {l});
    for (std::int64_t k = 0; k < l; ++k) {
        squares[k] = task.layers[static_cast<std::size_t>(k)].square;
        offsets[k] = task.layers[static_cast<std::size_t>(k)].offset;
    }
    return result;
}

py::dict gram_products(const py::object& values,
                       const py::array_t<double, py::array::c_style | py::array::forcecast>& pivots,
                       std::int64_t split) {
    const PythonArray array = python_array(values, "gram_products", "values");
    const std::int64_t layers = array.view.rows;
    if (pivots.ndim() != 1 || pivots.shape(0) != layers)
        throw py::value_error("gram_products: expected a pivot for each layer");
    if (split < 1 || split > layers)
        throw py::value_error("gram_products: expected a split from 1 to " + std::to_string(layers));
    py::dict result;
    double* const products = add_zeros(result, "products", {split, split < layers ? layers - split : layers});
    GramProductsTask task{array.view,    pivots.data(), split, products, add_zeros(result, "squares", {layers}),
                          poll_signals()};
    const WithoutGil without_gil;
    compute_gram_products(task);
    return result;
}

std::int64_t scratch(std::int64_t n, std::int64_t p, std::int64_t q, bool float64, std::int64_t bandwidths) {
    const DType dtype = float64 ? DType::kF64 : DType::kF32;
    GramSumsTask task;
    task.x = {nullptr, dtype, n, p, 0, 0};
    task.y = {nullptr, dtype, q > 0 ? n : 0, q, 0, 0};
    task.bandwidths_x.assign(static_cast<std::size_t>(bandwidths), 1);
    task.block_rows = gram_block_rows(p, q);
    return gram_scratch_bytes(task);
}

}  // namespace

void bind_gram_sums(py::module_& module) {
    module.def("gram_sums", &gram_sums, py::arg("x"), py::arg("y") = py::none(), py::kw_only(),
               py::arg("kernel") = "linear", py::arg("bandwidth_x") = py::none(), py::arg("bandwidth_y") = py::none(),
               py::arg("degree") = 3, py::arg("coef0") = 1.0, py::arg("block_rows") = py::none(),
               py::arg("pairs") = py::none(), py::arg("sample_x") = py::none(), py::arg("sample_y") = py::none(),
               py::arg("nonfinite") = "raise");
    module.def("gram_values", &gram_values, py::arg("layers"), py::arg("others") = py::none(), py::kw_only(),
               py::arg("kernel") = "linear", py::arg("bandwidths") = py::none(), py::arg("pivots") = py::none(),
               py::arg("degree") = 3, py::arg("coef0") = 1.0, py::arg("nonfinite") = "raise");
    module.def("gram_products", &gram_products, py::arg("values"), py::arg("pivots"), py::arg("split"));
    module.attr("GRAM_ROWS_IN_FLOAT64") = kGramRowsInDouble;
    module.def("gram_block_rows", &gram_block_rows, py::arg("p"), py::arg("q"));
    module.def("gram_scratch_bytes", &scratch, py::arg("n"), py::arg("p"), py::arg("q"), py::kw_only(),
               py::arg("float64"), py::arg("bandwidths"));
}

}  // namespace gramless

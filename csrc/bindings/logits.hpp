// What the bindings of logsumexp and logit_pairs share: a model and a choice of Python arguments.
#pragma once

#include <pybind11/numpy.h>

#include <optional>
#include <string>

#include "bindings/bindings.hpp"
#include "bindings/python_array.hpp"
#include "kernels/logit_pass.hpp"

namespace gramless {

using Biases = std::optional<pybind11::array_t<double, pybind11::array::c_style | pybind11::array::forcecast>>;
using Indices = std::optional<pybind11::array_t<std::int64_t, pybind11::array::c_style | pybind11::array::forcecast>>;
using Mask = std::optional<pybind11::array_t<bool, pybind11::array::c_style | pybind11::array::forcecast>>;

// a model and the arrays that it points into
struct PythonModel {
    PythonArray h, w;
    Biases bias;
    LogitModel model;
};

// `number` is that of the model in the names of its arguments, empty if there is one model
PythonModel python_model(const char* function, const std::string& number, const pybind11::object& h,
                         const pybind11::object& w, const Biases& bias, const std::optional<double>& cap);

// labels of one or two models over them; labels that all models mask are left out
LogitChoice python_choice(const char* function, const PythonModel& p, const PythonModel* q, const Indices& labels,
                          const Mask& mask, const Indices& targets, double temperature, const std::string& nonfinite);

// a new array under this key, all NaN
double* add_missing(pybind11::dict& result, const std::string& key, std::int64_t rows);

}  // namespace gramless

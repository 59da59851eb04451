// Python objects as array views: NumPy arrays directly, anything else through DLPack. No copies; the view keeps its
// owner alive.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <memory>
#include <utility>

#include "core/array_view.hpp"

namespace gramless {

struct PythonArray {
    ArrayView view;
    std::shared_ptr<void> owner;
};

// throws TypeError or ValueError in the name of `function`, naming the argument
PythonArray python_array(const pybind11::object& object, const char* function, const char* argument);

// x, and y unless it is None; throws unless they have as many rows, and none is empty
std::pair<PythonArray, PythonArray> python_pair(const pybind11::object& x, const pybind11::object& y,
                                                const char* function);

}  // namespace gramless

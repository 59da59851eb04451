// One bind_<stem>() per kernel, each defined in bindings/<stem>.cpp.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

namespace gramless {

void bind_moments(pybind11::module_& module);

}  // namespace gramless

#include "bindings/bindings.hpp"

#include <algorithm>
#include <chrono>
#include <thread>

namespace py = pybind11;

namespace gramless {
namespace {

bool interpreter_ends() {
#if PY_VERSION_HEX >= 0x030D0000
    return Py_IsFinalizing() != 0;
#else
    return _Py_IsFinalizing() != 0;
#endif
}

// asking for the GIL now would unwind this thread through frames that cannot be unwound
void wait_for_the_end() {
    while (interpreter_ends())
        std::this_thread::sleep_for(std::chrono::seconds(1));
}

}  // namespace

WithoutGil::~WithoutGil() {
    wait_for_the_end();
    PyEval_RestoreThread(state_);
}

double* add_zeros(py::dict& result, const std::string& key, const std::vector<py::ssize_t>& shape) {
    double* const data = add_array<double>(result, key, shape);
    std::fill_n(data, result[py::str(key)].cast<py::array>().size(), 0.0);
    return data;
}

std::function<void()> poll_signals() {
    return [] {
        wait_for_the_end();
        const py::gil_scoped_acquire gil;
        if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    };
}

}  // namespace gramless

// One bind_<stem>() per kernel, each defined in bindings/<stem>.cpp, and what all of them share.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <functional>
#include <string>
#include <vector>

namespace gramless {

void bind_gram_sums(pybind11::module_& module);
void bind_logit_pairs(pybind11::module_& module);
void bind_logsumexp(pybind11::module_& module);
void bind_moments(pybind11::module_& module);

// Releases the GIL in its scope. pybind11's own guard ends the process if the interpreter shuts down meanwhile, as it
// does under a daemon thread; with this one the thread waits for the process to end.
class WithoutGil {
  public:
    WithoutGil() : state_(PyEval_SaveThread()) {}
    ~WithoutGil();
    WithoutGil(const WithoutGil&) = delete;
    WithoutGil& operator=(const WithoutGil&) = delete;

  private:
    PyThreadState* state_;
};

// a new array under this key: its elements, not set
template <class T>
T* add_array(pybind11::dict& result, const std::string& key, std::vector<pybind11::ssize_t> shape) {
    pybind11::array_t<T, pybind11::array::c_style> array(std::move(shape));
    result[pybind11::str(key)] = array;
    return array.mutable_data();
}

// the same, all zero
double* add_zeros(pybind11::dict& result, const std::string& key, const std::vector<pybind11::ssize_t>& shape);

// throws where a signal handler raises, as Ctrl-C does
std::function<void()> poll_signals();

}  // namespace gramless

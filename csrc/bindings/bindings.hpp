// One bind_<stem>() per kernel, each defined in bindings/<stem>.cpp, and what all of them share.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <functional>

namespace gramless {

void bind_gram_sums(pybind11::module_& module);
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

// throws where a signal handler raises, as Ctrl-C does
std::function<void()> poll_signals();

}  // namespace gramless

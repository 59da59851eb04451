#include <pybind11/stl.h>

#include "bindings/bindings.hpp"
#include "core/isa.hpp"
#include "core/thread_pool.hpp"

PYBIND11_MODULE(_core, module) {
    using namespace gramless;
    module.doc() = "The CPU kernels.";
    bind_gram_sums(module);
    bind_moments(module);
    module.def("get_num_threads", &num_threads);
    module.def("set_num_threads", &set_num_threads, pybind11::arg("count"));
    module.def("isa_levels", &isa_levels);
    module.def("isa_level", [] { return std::string(tile_kernels().level); });
    module.def("set_isa_level", &set_isa_level, pybind11::arg("name"));
}

#include <pybind11/stl.h>

#include "bindings/bindings.hpp"
#include "core/bf16_tiles.hpp"
#include "core/isa.hpp"
#include "core/thread_pool.hpp"

PYBIND11_MODULE(_core, module) {
    using namespace gramless;
    module.doc() = "The CPU kernels.";
    bind_gram_sums(module);
    bind_logit_pairs(module);
    bind_logsumexp(module);
    bind_moments(module);
    module.def("get_num_threads", &num_threads);
    module.def("set_num_threads", &set_num_threads, pybind11::arg("count"));
    module.def("isa_levels", &isa_levels);
    module.def("isa_level", [] { return std::string(tile_kernels().level); });
    module.def("set_isa_level", &set_isa_level, pybind11::arg("name"));
    module.def("bf16_units", &bf16_units);
    module.def("bf16_unit", [] { return std::string(bf16_ops() ? bf16_ops()->name : "none"); });
    module.def("set_bf16_unit", &set_bf16_unit, pybind11::arg("name"));
}

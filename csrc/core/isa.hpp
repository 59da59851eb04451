// Which instruction set levels this machine can run, and the one in use.
#pragma once

#include <string>
#include <vector>

#include "core/tile_kernels.hpp"

namespace gramless {

// levels usable on this machine, from the scalar oracle up to the best
std::vector<std::string> isa_levels();

// the level in use: the best one, unless GRAMLESS_ISA or set_isa_level named another
const TileKernels& tile_kernels();

// throws std::invalid_argument naming the usable levels
void set_isa_level(const std::string& name);

}  // namespace gramless

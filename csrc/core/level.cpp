// Compiled once per instruction set level: CMake defines the level's namespace, its name and its register shape.
#include "core/tile_kernels.inl"

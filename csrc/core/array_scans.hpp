// Plain scans of one array, of any type and strides.
#pragma once

#include <cstdint>

#include "core/array_view.hpp"

namespace gramless {

// mean of the first rows, rounded to float32 unless the array is float64; at least one row
void default_pivot(const ArrayView& source, double* pivot);

// first row of the first chunk that holds NaN or infinity, -1 if there is none
std::int64_t first_non_finite_chunk(const ArrayView& source);

}  // namespace gramless

// Plain scans of one array, of any type and strides.
#pragma once

#include <cstdint>
#include <string>

#include "core/array_view.hpp"

namespace gramless {

// to float32 unless the array is float64
double rounded(const ArrayView& source, double value);

// medians of the first 64 rows, feature by feature, rounded to float32 unless the array is float64; at least one row
void default_pivot(const ArrayView& source, double* pivot);

// medians of up to 7 rows, evenly spaced, rounded as default_pivot
void sampled_centre(const ArrayView& source, double* centre);

// median of the squared distances of up to 7 rows, evenly spaced, from the centre
double sampled_spread(const ArrayView& source, const double* centre);

// whether rows of such a spread have fourth powers that float32 cannot hold
bool needs_double(double spread, std::int64_t features);

// throws std::invalid_argument if there are non-finite values, naming the rows they are in
void refuse_non_finite(const std::string& function, const std::string& name, const ArrayView& source);

// throws std::invalid_argument naming the chunk of rows that this one is in
[[noreturn]] void refuse_chunk(const std::string& function, const std::string& name, const ArrayView& source,
                               std::int64_t row);

// first row of the first chunk that holds NaN or infinity, -1 if there is none
std::int64_t first_non_finite_chunk(const ArrayView& source);

}  // namespace gramless

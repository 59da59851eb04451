// Rows of one array as the columns of panels, and what the kernel functions need to know of them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/aligned_buffer.hpp"
#include "core/array_scans.hpp"
#include "core/feature_blocks.hpp"
#include "core/isa.hpp"
#include "core/tile_kernels.hpp"
#include "kernels/gram_sums.hpp"
#include "kernels/row_panels.hpp"

namespace gramless {

inline constexpr double kLog2E = 1.44269504088896340736;

inline bool is_shifted(GramFunction function) {
    return function != GramFunction::kPolynomial && function != GramFunction::kCosine;
}

// A kernel that is fitted to an array: where its rows are centred, and its parameters for each bandwidth.
template <class T>
struct FittedKernel {
    AlignedBuffer<T> centre;
    // What takes the common part off kernels that no shift of the rows leaves alone, with the digits that it costs:
    // cosine is the product of rows of length 1 less this one, polynomial k(u, v) - k(u, c) - k(c, v) + k(c, c). No
    // HSIC depends on it.
    std::vector<double> landmark;
    std::vector<GramKernel<T>> per_bandwidth;

    FittedKernel(const ArrayView& source, const GramFamily& family, const std::vector<double>& bandwidths,
                 const double* pivot)
        : centre(source.cols) {
        std::vector<double> sampled(static_cast<std::size_t>(source.cols));
        sampled_centre(source, sampled.data());
        if (!is_shifted(family.function)) {
            landmark = std::move(sampled);
            if (family.function == GramFunction::kCosine) shorten(source, landmark);
            sampled.assign(landmark.size(), 0);
        }
        const bool offset = family.function == GramFunction::kRbf || family.function == GramFunction::kLaplacian;
        const double spread = offset ? sampled_spread(source, sampled.data()) : 0;
        for (std::int64_t j = 0; j < source.cols; ++j)
            centre[j] = static_cast<T>(pivot ? pivot[j] : sampled[static_cast<std::size_t>(j)]);
        for (const double width : bandwidths) {
            per_bandwidth.push_back(fit(family, width, spread, source.cols));
            GramKernel<T>& kernel = per_bandwidth.back();
            if (family.function == GramFunction::kPolynomial)
                kernel.landmark = static_cast<T>(power(kernel, squared_length(landmark)));
        }
    }

    // polynomial, of a dot product
    static double power(const GramKernel<T>& kernel, double dot) {
        return std::pow(dot * static_cast<double>(kernel.factor) + static_cast<double>(kernel.coef0), kernel.degree);
    }

  private:
    static double squared_length(const std::vector<double>& values) {
        return std::inner_product(values.begin(), values.end(), values.begin(), 0.0);
    }

    // to length 1, or left at zero
    static void shorten(const ArrayView& source, std::vector<double>& landmark) {
        const double squared = squared_length(landmark);
        for (double& c : landmark)
            c = rounded(source, squared > 0 ? c / std::sqrt(squared) : 0);
    }

    // an infinite factor would make NaN of a distance of 0
    static T in_range(double factor) {
        return static_cast<T>(std::min(factor, static_cast<double>(std::numeric_limits<T>::max())));
    }

    // wide bandwidths: k is near 1, and its digits are in 1 - k
    static GramKernel<T> fit(const GramFamily& family, double width, double spread, std::int64_t features) {
        GramKernel<T> kernel{family.function, T(1), static_cast<T>(family.coef0), family.degree, T(0), T(0), T(0)};
        if (family.function == GramFunction::kRbf) {
            kernel.factor = in_range(kLog2E / (2 * width * width));
            kernel.offset = 2 * spread < 2 * width * width ? T(1) : T(0);
        } else if (family.function == GramFunction::kLaplacian) {
            kernel.factor = in_range(kLog2E / width);
            kernel.offset = 2 * spread < width * width ? T(1) : T(0);
        } else if (family.function == GramFunction::kPolynomial) {
            kernel.factor = static_cast<T>(1 / static_cast<double>(features));
            // of the dot product, of random signs, and of the factors
            const double roundings = family.degree * (4 + std::sqrt(static_cast<double>(features)));
            kernel.noise = static_cast<T>(roundings * static_cast<double>(std::numeric_limits<T>::epsilon()));
        }
        return kernel;
    }
};

// k(u, u) from the squared norm of a packed row, and for polynomial from what it has in place of a norm
template <class T>
double on_diagonal(const GramKernel<T>& kernel, double squared, T norm) {
    switch (kernel.function) {
        case GramFunction::kLinear:
        case GramFunction::kCosine:
            return squared;
        case GramFunction::kPolynomial:
            return FittedKernel<T>::power(kernel, squared) - 2 * static_cast<double>(norm) +
                   static_cast<double>(kernel.landmark);
        case GramFunction::kRbf:
        case GramFunction::kLaplacian:
            return 1 - static_cast<double>(kernel.offset);
        case GramFunction::kDistance:
            return 0;
    }
    return 0;
}

// what packed rows lie in; it grows, and is used again
template <class T>
struct RowMemory {
    AlignedBuffer<T> panels;
    AlignedBuffer<double> squared;  // norms
    AlignedBuffer<T> norms;         // as the kernel functions take them
    std::int64_t held = 0, rows = 0;

    void reserve(std::int64_t elements, std::int64_t most_rows) {
        if (elements > held) panels = AlignedBuffer<T>(held = elements);
        if (most_rows <= rows) return;
        rows = most_rows;
        squared = AlignedBuffer<double>(rows);
        norms = AlignedBuffer<T>(rows);
    }
};

// packed rows with their norms
template <class T>
class PackedRows : public RowPanels<T> {
  public:
    PackedRows(const ArrayView& source, const T* centre, std::int64_t most_rows, RowMemory<T>& memory)
        : RowPanels<T>(source, centre, most_rows), memory_(memory) {
        memory.reserve(this->elements(), this->panels() * this->width());
        this->set_memory(memory.panels.data());
    }

    static std::int64_t bytes(std::int64_t rows, std::int64_t features) {
        const std::int64_t width = tile_ops<T>(tile_kernels()).width, padded = ceil_div(rows, width) * width;
        return RowPanels<T>::bytes(rows, features) + (std::int64_t{sizeof(T)} + 8) * padded;
    }

    // one panel over all features, with the norms of its rows
    void pack(std::int64_t panel, const FittedKernel<T>& kernel) {
        const GramFunction function = kernel.per_bandwidth[0].function;
        const std::int64_t begin = panel * this->width();
        double* const squared = memory_.squared.data() + begin;
        RowPanels<T>::pack(panel);
        take_norms(panel, squared);
        if (function == GramFunction::kCosine) shorten(panel, kernel.landmark, squared);
        if (function == GramFunction::kPolynomial)
            take_powers(panel, kernel);
        else
            std::transform(squared, squared + this->width(), memory_.norms.data() + begin,
                           [](double norm) { return static_cast<T>(norm); });
    }

    const T* norms(std::int64_t begin) { return memory_.norms.data() + begin; }
    double squared(std::int64_t row) { return memory_.squared[row]; }
    T norm(std::int64_t row) { return memory_.norms[row]; }

  private:
    void take_norms(std::int64_t panel, double* squared) {
        std::fill_n(squared, this->width(), 0.0);
        this->each_chunk(panel, [&](const Panels<T>& of, std::int64_t) { this->ops().sample_norms(of, squared); });
    }

    // rows to length 1, less the landmark; -1 in place of the squared norm of a row that has no direction
    void shorten(std::int64_t panel, const std::vector<double>& landmark, double* squared) {
        const std::vector<double> of_rows(squared, squared + this->width());
        this->each_chunk(panel, [&](const Panels<T>& of, std::int64_t col) {
            for (std::int64_t k = 0; k < of.rows; ++k)
                for (std::int64_t j = 0; j < of.features; ++j) {
                    // in fp64: rounding to length 1 first would cost the digits of what is left
                    T& value = of.data[k * this->width() + j];
                    value =
                        static_cast<T>(static_cast<double>(value) / std::sqrt(of_rows[static_cast<std::size_t>(j)]) -
                                       landmark[static_cast<std::size_t>(col + k)]);
                }
        });
        take_norms(panel, squared);
        for (std::size_t j = 0; j < of_rows.size(); ++j)
            if (of_rows[j] == 0 || !std::isfinite(of_rows[j])) squared[j] = of_rows[j] == 0 ? -1 : of_rows[j];
    }

    // the polynomial kernel of rows with the landmark, in place of their norms
    void take_powers(std::int64_t panel, const FittedKernel<T>& kernel) {
        std::vector<double> dots(static_cast<std::size_t>(this->width()));
        this->each_chunk(panel, [&](const Panels<T>& of, std::int64_t col) {
            for (std::int64_t k = 0; k < of.rows; ++k)
                for (std::int64_t j = 0; j < of.features; ++j)
                    dots[static_cast<std::size_t>(j)] += kernel.landmark[static_cast<std::size_t>(col + k)] *
                                                         static_cast<double>(of.data[k * this->width() + j]);
        });
        std::transform(dots.begin(), dots.end(), memory_.norms.data() + panel * this->width(), [&](double dot) {
            return static_cast<T>(FittedKernel<T>::power(kernel.per_bandwidth[0], dot));
        });
    }

    RowMemory<T>& memory_;
};

// a cache line more than the tile, so that its rows do not all fall into the same cache sets
template <class T>
constexpr std::int64_t kDotStride = kGramTile + 64 / static_cast<std::int64_t>(sizeof(T));

// rows of a tile: many tiles for many threads, and none larger than a core's cache; a function of the rows alone
inline std::int64_t tile_rows(std::int64_t rows, std::int64_t width) {
    const std::int64_t wanted = ceil_div(ceil_div(rows, 4), width) * width;
    return std::min(wanted, kGramTile / width * width);
}

// throws for rows that a kernel cannot take: not finite, or of norm zero for cosine
template <class T>
void check_norms(const char* function, const std::string& name, const ArrayView& source, PackedRows<T>& packed,
                 GramFunction kernel) {
    for (std::int64_t k = 0; k < packed.rows(); ++k) {
        const double squared = packed.squared(k);
        if (!(std::fabs(squared) <= static_cast<double>(std::numeric_limits<T>::max()))) {
            refuse_non_finite(function, name, source);
            throw std::invalid_argument(std::string(function) + ": norms of the rows of " + name +
                                        " overflow; scale the data down");
        }
        if (kernel == GramFunction::kCosine && squared < 0)
            throw std::invalid_argument(std::string(function) + ": row " + std::to_string(packed.first() + k) + " of " +
                                        name + " is zero, and has no cosine");
    }
}

}  // namespace gramless

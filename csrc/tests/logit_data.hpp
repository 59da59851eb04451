// Models for the tests of logsumexp and logit_pairs, and their logits in long double.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "check.hpp"
#include "kernels/logit_pass.hpp"

namespace gramless {

// a model of small integers, whose logits are exact in every type, and a bias
template <class T>
struct LogitData {
    LogitData(std::int64_t n, std::int64_t v, std::int64_t d, std::uint64_t seed)
        : rows(n), labels(v), width(d), h(size(n * d)), w(size(v * d)), bias(size(v)) {
        SmallIntegers numbers(seed);
        for (T& value : h)
            value = static_cast<T>(numbers.next());
        for (T& value : w)
            value = static_cast<T>(numbers.next()) / 8;
        for (double& value : bias)
            value = static_cast<double>(numbers.next()) / 4;
    }

    LogitModel model() const {
        LogitModel made;
        made.h = view_of(h, rows, width);
        made.w = view_of(w, labels, width);
        made.bias = bias.data();
        made.cap = cap;
        return made;
    }

    // of a row that counts, for the labels that do
    std::vector<long double> logits(std::int64_t row, const LogitChoice& choice) const {
        const std::int64_t at = choice.all_rows ? row : choice.rows[size(row)];
        std::vector<long double> found;
        for (std::int64_t k = 0; k < (choice.all_labels ? labels : std::int64_t(choice.labels.size())); ++k) {
            const std::int64_t label = choice.all_labels ? k : choice.labels[size(k)];
            long double z = bias[size(label)];
            for (std::int64_t j = 0; j < width; ++j)
                z += static_cast<long double>(h[size(at * width + j)]) * w[size(label * width + j)];
            if (cap > 0) z = cap * std::tanh(z / cap);
            found.push_back(z / choice.temperature);
        }
        return found;
    }

    // what rounding makes of a logit of size 1
    double rounding() const { return 8 * static_cast<double>(std::numeric_limits<T>::epsilon()); }

    std::int64_t rows, labels, width;
    std::vector<T> h, w;
    std::vector<double> bias;
    double cap = 0;
};

struct LogitTruth {
    long double lse, lse2, mean, top_logit, size;
};

inline LogitTruth logit_truth(const std::vector<long double>& z) {
    const long double most = *std::max_element(z.begin(), z.end());
    long double sum = 0, squares = 0, weighted = 0, size = 0;
    for (const long double value : z) {
        sum += std::exp(value - most);
        squares += std::exp(2 * (value - most));
        weighted += std::exp(value - most) * value;
        if (std::isfinite(value)) size = std::max(size, std::fabs(value));
    }
    return {most + std::log(sum), 2 * most + std::log(squares), weighted / sum, most, size};
}

}  // namespace gramless

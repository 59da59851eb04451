// The moments kernel at every level and thread count, against plain loops on small integers: equality to the last bit.
#include "kernels/moments.hpp"

#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.hpp"
#include "core/thread_pool.hpp"

using namespace gramless;

namespace {

using Values = std::vector<double>;

struct Sums {
    Values pivot, sum, second, weighted, cubes, fourths;

    explicit Sums(std::int64_t p)
        : pivot(size(p), 1), sum(size(p)), second(size(p * p)), weighted(size(p)), cubes(size(p)), fourths(size(p)) {}

    SelfSums pointers() {
        return {pivot.data(), sum.data(), second.data(), weighted.data(), cubes.data(), fourths.data(), 0};
    }
};

struct Data {
    std::int64_t rows, cols;
    std::vector<float> values;

    Data(std::int64_t n, std::int64_t p, std::uint64_t seed) : rows(n), cols(p), values(size(n * p)) {
        SmallIntegers integers(seed);
        for (float& value : values)
            value = static_cast<float>(integers.next());
    }

    ArrayView view() const { return view_of(values, rows, cols); }

    double shifted(std::int64_t row, std::int64_t col) const { return values[size(row * cols + col)] - 1; }

    double norm(std::int64_t row) const {
        double total = 0;
        for (std::int64_t c = 0; c < cols; ++c)
            total += shifted(row, c) * shifted(row, c);
        return total;
    }
};

void check_self(const Data& x, const Sums& got, double norms) {
    Sums expected(x.cols);
    double expected_norms = 0;
    for (std::int64_t k = 0; k < x.rows; ++k) {
        const double a = x.norm(k);
        expected_norms += a * a;
        for (std::int64_t i = 0; i < x.cols; ++i) {
            const double d = x.shifted(k, i);
            expected.sum[size(i)] += d;
            expected.weighted[size(i)] += a * d;
            expected.cubes[size(i)] += d * d * d;
            expected.fourths[size(i)] += d * d * d * d;
            for (std::int64_t j = 0; j < x.cols; ++j)
                expected.second[size(i * x.cols + j)] += d * x.shifted(k, j);
        }
    }
    CHECK(norms == expected_norms);
    CHECK(got.sum == expected.sum && got.weighted == expected.weighted);
    CHECK(got.cubes == expected.cubes && got.fourths == expected.fourths);
    CHECK(got.second == expected.second);
}

void test_pair(std::int64_t n, std::int64_t p, std::int64_t q, bool self_terms) {
    const Data x(n, p, 1), y(n, q, 2);
    Sums of_x(p), of_y(q);
    Values second(size(p * q)), weighted_x(size(p)), weighted_y(size(q));
    MomentsTask task;
    task.x = x.view();
    task.y = y.view();
    task.self_terms = self_terms;
    task.self_x = of_x.pointers();
    task.self_y = of_y.pointers();
    task.cross = {second.data(), weighted_x.data(), weighted_y.data(), 0};
    compute_moments(task);
    if (self_terms) {
        check_self(x, of_x, task.self_x.norms);
        check_self(y, of_y, task.self_y.norms);
    }
    Values expected(size(p * q)), expected_x(size(p)), expected_y(size(q));
    double norms = 0;
    for (std::int64_t k = 0; k < n; ++k) {
        const double a = x.norm(k), b = y.norm(k);
        norms += a * b;
        for (std::int64_t i = 0; i < p; ++i) {
            expected_x[size(i)] += b * x.shifted(k, i);
            for (std::int64_t j = 0; j < q; ++j)
                expected[size(i * q + j)] += x.shifted(k, i) * y.shifted(k, j);
        }
        for (std::int64_t j = 0; j < q; ++j)
            expected_y[size(j)] += a * y.shifted(k, j);
    }
    CHECK(task.cross.norms == norms);
    CHECK(weighted_x == expected_x && weighted_y == expected_y && second == expected);
}

// sums of pairs of layers, as those of two arrays
void test_layers(std::int64_t n, const std::vector<std::int64_t>& of_x, const std::vector<std::int64_t>& of_y) {
    std::vector<Data> data;
    std::vector<Sums> sums;
    LayerMomentsTask task;
    task.split = of_x.size();
    for (const auto* widths : {&of_x, &of_y})
        for (const std::int64_t p : *widths) {
            data.emplace_back(n, p, data.size());
            sums.emplace_back(p);
        }
    for (const Data& layer : data)
        task.layers.push_back({layer.view()});
    std::vector<Values> second, weighted;
    for (std::size_t a = 0; a < data.size(); ++a) {
        second.emplace_back(size(data[a].cols * (a < task.split ? task.partner_features(a) : 0)));
        weighted.emplace_back(size(data[a].cols) * task.partners(a).second);
    }
    Values norms(of_x.size() * task.partners(0).second);
    for (std::size_t a = 0; a < data.size(); ++a) {
        task.layers[a].self = sums[a].pointers();
        task.layers[a].second = second[a].data();
        task.layers[a].weighted = weighted[a].data();
    }
    task.norms = norms.data();
    compute_layer_moments(task);
    for (std::size_t a = 0; a < data.size(); ++a) {
        check_self(data[a], sums[a], task.layers[a].self.norms);
        const auto [first, partners] = task.partners(a);
        for (std::size_t b = first; b < first + partners; ++b) {
            const Data &x = data[a], &y = data[b];
            double of_norms = 0;
            Values of_rows(size(x.cols)), products(size(x.cols * y.cols));
            for (std::int64_t k = 0; k < n; ++k) {
                of_norms += x.norm(k) * y.norm(k);
                for (std::int64_t i = 0; i < x.cols; ++i) {
                    of_rows[size(i)] += y.norm(k) * x.shifted(k, i);
                    for (std::int64_t j = 0; j < y.cols; ++j)
                        products[size(i * y.cols + j)] += x.shifted(k, i) * y.shifted(k, j);
                }
            }
            if (a < task.split) CHECK(norms[a * partners + b - first] == of_norms);
            const bool has_products = a < task.split && (!of_y.empty() || a < b);
            for (std::int64_t i = 0; i < x.cols; ++i) {
                CHECK(weighted[a][size(i) * partners + b - first] == of_rows[size(i)]);
                const std::int64_t at = i * task.partner_features(a) + task.partner_offset(a, b);
                for (std::int64_t j = 0; j < y.cols && has_products; ++j)
                    CHECK(second[a][size(at + j)] == products[size(i * y.cols + j)]);
            }
        }
    }
}

std::string error_of(const Data& x) {
    Sums sums(x.cols);
    MomentsTask task;
    task.x = x.view();
    task.self_x = sums.pointers();
    return refusal([&] { compute_moments(task); });
}

}  // namespace

int main() {
    at_each_level([] {
        for (const int threads : {1, 3}) {
            set_num_threads(threads);
            for (const bool self_terms : {true, false}) {
                test_pair(1, 1, 1, self_terms);
                test_pair(257, 49, 3, self_terms);
                test_pair(300, 17, 95, self_terms);
                test_pair(9001, 5, 6, self_terms);
            }
            test_layers(1, {1, 2}, {});
            test_layers(257, {3, 25, 1}, {});
            test_layers(300, {3, 25, 1}, {49, 2});
            test_layers(4200, {2}, {3, 1});
        }
    });
    // several blocks per array, once: the plain loops are slow
    set_num_threads(2);
    test_pair(40, 700, 431, true);
    test_pair(40, 700, 431, false);
    test_layers(40, {310, 2, 5}, {});
    test_layers(80, {2, 310}, {300, 7});

    Data broken(600, 50, 4);
    broken.values[size(300 * 50 + 7)] = std::numeric_limits<float>::quiet_NaN();
    CHECK(error_of(broken) == "moments: x has non-finite values in rows 256..511");
    Data large(600, 50, 5);
    large.values[0] = 1e30f;
    CHECK(error_of(large).find("overflow float32") != std::string::npos);
    shutdown_threads();
    return 0;
}

// The gram_sums kernel at every level: sums, block pairs, values and their products against plain loops, threads to the
// last bit.
#include "kernels/gram_sums.hpp"

#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "check.hpp"
#include "core/thread_pool.hpp"

using namespace gramless;

namespace {

using Values = std::vector<double>;

// values of type T, small integers, in an array of float or double
template <class T>
struct Data {
    std::int64_t rows, cols;
    std::vector<T> values;

    Data(std::int64_t n, std::int64_t p, std::uint64_t seed) : rows(n), cols(p), values(size(n * p)) {
        SmallIntegers integers(seed);
        for (T& value : values)
            value = static_cast<T>(integers.next());
    }

    ArrayView view() const { return view_of(values, rows, cols); }

    ArrayView slice(std::int64_t begin, std::int64_t end) const {
        ArrayView part = view();
        part.data += begin * part.row_stride;
        part.rows = end - begin;
        return part;
    }

    double square(std::int64_t i, std::int64_t j) const {
        double total = 0;
        for (std::int64_t c = 0; c < cols; ++c) {
            const double d =
                static_cast<double>(values[size(i * cols + c)]) - static_cast<double>(values[size(j * cols + c)]);
            total += d * d;
        }
        return total;
    }
};

struct Sums {
    Values offsets, squares, rows, diagonal;

    Sums(std::int64_t n, std::int64_t bandwidths)
        : offsets(size(bandwidths)), squares(size(bandwidths)), rows(size(n * bandwidths)), diagonal(rows.size()) {}

    GramTarget target() { return {offsets.data(), squares.data(), rows.data(), diagonal.data()}; }

    bool operator==(const Sums& other) const {
        return offsets == other.offsets && squares == other.squares && rows == other.rows && diagonal == other.diagonal;
    }
};

double rbf(double square, double width, double offset) {
    return std::exp(-square / (2 * width * width)) - offset;
}

bool near(double got, double want, double scale, double unit) {
    return std::fabs(got - want) <= 64 * unit * scale;
}

// narrow and wide bandwidths, in blocks of rows that do not divide the rows
template <class T>
void test_rbf(std::int64_t n, std::int64_t p, std::int64_t q) {
    const Data<T> x(n, p, 1), y(n, q, 2);
    const Values widths{1.5, 40};
    Sums of_x(n, 2), of_y(n, 2);
    Values products(2);
    GramSumsTask task;
    task.x = x.view();
    task.y = y.view();
    task.family.function = GramFunction::kRbf;
    task.bandwidths_x = task.bandwidths_y = widths;
    task.block_rows = n < 1000 ? 40 : 400;
    for (std::int64_t i = 0; i * task.block_rows < n; ++i)
        for (std::int64_t j = i; j * task.block_rows < n; ++j)
            task.pairs.emplace_back(i, j);
    task.of_x = of_x.target();
    task.of_y = of_y.target();
    task.products = products.data();
    compute_gram_sums(task);

    const double unit = std::numeric_limits<T>::epsilon();
    for (std::size_t w = 0; w < 2; ++w) {
        const double offset_x = of_x.offsets[w], offset_y = of_y.offsets[w];
        CHECK(w == 0 || n == 1 || (offset_x == 1 && offset_y == 1));
        double product = 0, square = 0;
        for (std::int64_t i = 0; i < n; ++i) {
            double row = 0;
            for (std::int64_t j = 0; j < n; ++j) {
                if (i == j) continue;
                const double k = rbf(x.square(i, j), widths[w], offset_x), l = rbf(y.square(i, j), widths[w], offset_y);
                row += k;
                square += k * k;
                product += k * l;
            }
            CHECK(near(of_x.rows[w * size(n) + size(i)], row, static_cast<double>(n), unit));
            CHECK(of_x.diagonal[w * size(n) + size(i)] == 1 - offset_x);
        }
        CHECK(near(of_x.squares[w], square, static_cast<double>(n * n), unit));
        CHECK(near(products[w], product, static_cast<double>(n * n), unit));
    }

    Sums again_x(n, 2), again_y(n, 2);
    Values again(2);
    const int before = num_threads();
    set_num_threads(before == 1 ? 3 : 1);
    task.of_x = again_x.target();
    task.of_y = again_y.target();
    task.products = again.data();
    compute_gram_sums(task);
    set_num_threads(before);
    CHECK(again == products && again_x == of_x && again_y == of_y);
}

// values above the diagonal and between two batches, and their sums
template <class T>
void test_values(std::int64_t n, std::int64_t m, std::int64_t p) {
    const Data<T> x(n + m, p, 3);
    const std::int64_t above = n * (n - 1) / 2;
    std::vector<T> values(size(above + 1)), between(size(n * m));
    Values rows(size(n)), rows_between(size(n)), columns(size(m));
    GramValuesTask task;
    task.family.function = GramFunction::kDistance;
    task.in_double = sizeof(T) == 8;
    GramLayer layer{};
    layer.rows = x.slice(0, n);
    layer.values = values.data();
    layer.row_sums = rows.data();
    task.layers = {layer};
    compute_gram_values(task);
    const double unit = std::numeric_limits<T>::epsilon(), scale = 10 * static_cast<double>(p);
    Values expected(size(n));
    std::size_t at = 0;
    for (std::int64_t i = 0; i < n; ++i)
        for (std::int64_t j = i + 1; j < n; ++j, ++at) {
            const double distance = std::sqrt(x.square(i, j));
            CHECK(std::fabs(static_cast<double>(values[at]) - distance) <= 64 * std::sqrt(unit) + 64 * unit * scale);
            expected[size(i)] += static_cast<double>(values[at]);
            expected[size(j)] += static_cast<double>(values[at]);
        }
    for (std::int64_t i = 0; i < n; ++i)
        CHECK(near(rows[size(i)], expected[size(i)], scale * static_cast<double>(n), unit));

    task.layers[0].others = x.slice(n, n + m);
    task.layers[0].values = between.data();
    task.layers[0].row_sums = rows_between.data();
    task.layers[0].column_sums = columns.data();
    compute_gram_values(task);
    Values by_column(size(m));
    for (std::int64_t i = 0; i < n; ++i)
        for (std::int64_t j = 0; j < m; ++j) {
            const double distance = std::sqrt(x.square(i, n + j)), got = static_cast<double>(between[size(i * m + j)]);
            CHECK(std::fabs(got - distance) <= 64 * std::sqrt(unit) + 64 * unit * scale);
            by_column[size(j)] += got;
        }
    for (std::int64_t j = 0; j < m; ++j)
        CHECK(near(columns[size(j)], by_column[size(j)], scale * static_cast<double>(n), unit));
}

// products of layers about their pivots, from rows of values and from columns of them: exact, since all are integers
template <class T>
void test_products(std::int64_t layers, std::int64_t m, std::int64_t split) {
    const Data<T> values(layers, m, 7), turned(m, layers, 7);
    const Data<double> pivots(1, layers, 8);
    const std::int64_t columns = split < layers ? layers - split : layers;
    const auto about = [&](const T* data, std::int64_t layer, std::int64_t from_layer, std::int64_t at,
                           std::int64_t from_value) {
        return static_cast<double>(data[layer * from_layer + at * from_value]) - pivots.values[size(layer)];
    };
    for (const bool by_column : {false, true}) {
        ArrayView view = values.view();
        if (by_column) {
            view = turned.view();
            std::swap(view.rows, view.cols);
            std::swap(view.row_stride, view.col_stride);
        }
        const T* const data = by_column ? turned.values.data() : values.values.data();
        const std::int64_t from_layer = by_column ? 1 : m, from_value = by_column ? layers : 1;
        Values expected(size(split * columns)), of_layers(size(layers));
        for (std::int64_t at = 0; at < m; ++at)
            for (std::int64_t a = 0; a < layers; ++a) {
                const double left = about(data, a, from_layer, at, from_value);
                of_layers[size(a)] += left * left;
                for (std::int64_t b = 0; a < split && b < columns; ++b)
                    expected[size(a * columns + b)] +=
                        left * about(data, layers - columns + b, from_layer, at, from_value);
            }
        const int before = num_threads();
        for (const int threads : {1, 3}) {
            set_num_threads(threads);
            Values products(expected.size()), squares(of_layers.size());
            GramProductsTask task{view, pivots.values.data(), split, products.data(), squares.data(), {}};
            compute_gram_products(task);
            CHECK(products == expected && squares == of_layers);
        }
        set_num_threads(before);
    }
}

std::string error_of(const Data<float>& x, GramFunction function) {
    Sums sums(x.rows, 1);
    GramSumsTask task;
    task.x = x.view();
    task.family.function = function;
    task.block_rows = x.rows;
    task.pairs = {{0, 0}};
    task.of_x = sums.target();
    return refusal([&] { compute_gram_sums(task); });
}

}  // namespace

int main() {
    at_each_level([] {
        set_num_threads(2);
        test_rbf<float>(1, 1, 1);
        test_rbf<float>(97, 17, 300);
        // more rows than are summed in fp64
        test_rbf<float>(1050, 5, 9);
        test_rbf<double>(97, 257, 3);
        test_values<float>(2, 1, 1);
        test_values<float>(70, 33, 19);
        test_values<double>(33, 70, 260);
        test_products<float>(1, 1, 1);
        test_products<float>(25, 300, 12);
        // several slabs, and threads
        test_products<float>(50, 9000, 50);
        test_products<double>(7, 700, 6);
        test_products<double>(49, 4100, 1);
    });
    Data<float> broken(600, 50, 4);
    broken.values[size(300 * 50 + 7)] = std::numeric_limits<float>::quiet_NaN();
    CHECK(error_of(broken, GramFunction::kRbf) == "gram_sums: x has non-finite values in rows 256..511");
    Data<float> zero(5, 3, 5);
    for (std::size_t c = 0; c < 3; ++c)
        zero.values[2 * 3 + c] = 0;
    CHECK(error_of(zero, GramFunction::kCosine) == "gram_sums: row 2 of x is zero, and has no cosine");
    Data<float> large(1100, 3, 6);
    large.values[3 * 5] = 1e30f;
    CHECK(error_of(large, GramFunction::kLinear).find("overflow") != std::string::npos);
    shutdown_threads();
    return 0;
}

// The logit_pairs kernel against a plain one in long double, at every level; and products of bfloat16 units.
#include "kernels/logit_pairs.hpp"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <vector>

#include "check.hpp"
#include "core/bf16_tiles.hpp"
#include "kernels/bf16_rows.hpp"
#include "logit_data.hpp"

namespace gramless {
namespace {

struct Result {
    explicit Result(std::int64_t n)
        : numbers(17, std::vector<double>(size(n))), tops(2, std::vector<std::int64_t>(size(n))) {}

    LogitPairsTarget target() {
        LogitPairsTarget out{};
        std::size_t next = 0;
        for (std::size_t m = 0; m < 2; ++m) {
            for (double** field : {&out.lse[m], &out.mean[m], &out.delta[m], &out.top_logit[m], &out.target[m]})
                *field = numbers[next++].data();
            out.top[m] = tops[m].data();
        }
        for (double** field : {&out.delta_mean, &out.delta_square, &out.delta_abs, &out.delta_max, &out.counted})
            *field = numbers[next++].data();
        return out;
    }

    double* js() { return numbers[15].data(); }
    double* tv() { return numbers[16].data(); }

    std::vector<std::vector<double>> numbers;
    std::vector<std::vector<std::int64_t>> tops;
};

struct PairTruth {
    long double delta_p = 0, delta_q = 0, mean = 0, square = 0, abs = 0, most = 0, js = 0, tv = 0;
};

PairTruth pair_truth(const std::vector<long double>& z1, const std::vector<long double>& z2) {
    const LogitTruth p = logit_truth(z1), q = logit_truth(z2);
    PairTruth truth;
    for (std::size_t j = 0; j < z1.size(); ++j) {
        const long double delta = z1[j] - z2[j], a = std::exp(z1[j] - p.lse), b = std::exp(z2[j] - q.lse);
        truth.delta_p += a * delta;
        truth.delta_q += b * delta;
        truth.mean += delta / static_cast<long double>(z1.size());
        truth.abs += std::fabs(delta);
        truth.most = std::max(truth.most, std::fabs(delta));
        truth.tv += std::fabs(a - b) / 2;
        truth.js += (a * std::log(2 * a / (a + b)) + b * std::log(2 * b / (a + b))) / 2;
    }
    for (std::size_t j = 0; j < z1.size(); ++j)
        truth.square += (z1[j] - z2[j] - truth.mean) * (z1[j] - z2[j] - truth.mean);
    return truth;
}

template <class T>
void test_rows(const LogitData<T>& p, const LogitData<T>& q, const LogitChoice& choice, std::int64_t workspace) {
    LogitPairsTask task;
    task.models[0] = p.model();
    task.models[1] = q.model();
    task.choice = choice;
    task.choice.function = "logit_pairs";
    task.in_double = sizeof(T) == 8;
    task.divergences = true;
    task.workspace = workspace;
    const std::int64_t n = choice.rows_of(task.models[0]);
    Result result(n);
    task.out = result.target();
    task.js = result.js();
    task.tv = result.tv();
    compute_logit_pairs(task);
    for (std::int64_t r = 0; r < n; ++r) {
        const std::vector<long double> z1 = p.logits(r, choice), z2 = q.logits(r, choice);
        const PairTruth truth = pair_truth(z1, z2);
        const LogitTruth of_p = logit_truth(z1), of_q = logit_truth(z2);
        const std::size_t at = size(r);
        const double scale = p.rounding() * (1 + static_cast<double>(of_p.size + of_q.size));
        const auto near = [&](double got, long double want, double by) {
            return std::fabs(got - static_cast<double>(want)) <= by * scale;
        };
        const double labels = static_cast<double>(z1.size());
        CHECK(near(task.out.lse[0][at], of_p.lse, 1) && near(task.out.lse[1][at], of_q.lse, 1));
        CHECK(near(task.out.delta[0][at], truth.delta_p, 4) && near(task.out.delta[1][at], truth.delta_q, 4));
        CHECK(near(task.out.delta_mean[at], truth.mean, 1) && near(task.out.delta_max[at], truth.most, 1));
        CHECK(near(task.out.delta_square[at], truth.square, labels * static_cast<double>(1 + truth.most)));
        CHECK(near(task.out.delta_abs[at], truth.abs, labels));
        CHECK(near(task.js[at], truth.js, 1) && near(task.tv[at], truth.tv, 1));
    }
}

template <class T>
void test_shapes() {
    for (const std::int64_t workspace : {std::int64_t{0}, std::int64_t{1} << 26}) {
        test_rows(LogitData<T>(1, 2, 1, 1), LogitData<T>(1, 2, 3, 2), {}, workspace);
        test_rows(LogitData<T>(70, 97, 5, 3), LogitData<T>(70, 97, 64, 4), {}, workspace);
        test_rows(LogitData<T>(300, 331, 9, 5), LogitData<T>(300, 331, 260, 6), {}, workspace);
        LogitChoice some;
        some.all_rows = some.all_labels = false;
        some.rows = {1, 2, 66};
        some.labels = {96, 1, 50, 20};
        some.temperature = 2;
        test_rows(LogitData<T>(70, 97, 5, 7), LogitData<T>(70, 97, 4, 8), some, workspace);
    }
}

// squares of deviations whose own range is too small for them
template <class T>
void test_range(T least, T most) {
    const std::int64_t rows = 3, labels = 331;
    SmallIntegers numbers(9);
    for (T size_of_logits = least; size_of_logits < most; size_of_logits *= T(32)) {
        std::vector<T> logits[2];
        LogitPairsTask task;
        for (std::size_t m = 0; m < 2; ++m) {
            for (std::int64_t k = 0; k < rows * labels; ++k)
                logits[m].push_back(static_cast<T>(numbers.next()) * size_of_logits);
            task.models[m].h = view_of(logits[m], rows, labels);
            task.models[m].given = true;
        }
        task.choice.function = "logit_pairs";
        task.in_double = sizeof(T) == 8;
        Result result(rows);
        task.out = result.target();
        compute_logit_pairs(task);
        for (std::int64_t r = 0; r < rows; ++r) {
            long double mean = 0, square = 0;
            const auto delta = [&](std::int64_t j) {
                const std::size_t at = size(r * labels + j);
                return static_cast<long double>(logits[0][at]) - static_cast<long double>(logits[1][at]);
            };
            for (std::int64_t j = 0; j < labels; ++j)
                mean += delta(j) / static_cast<long double>(labels);
            for (std::int64_t j = 0; j < labels; ++j)
                square += (delta(j) - mean) * (delta(j) - mean);
            const long double near = 32 * static_cast<long double>(std::numeric_limits<T>::epsilon());
            CHECK(std::fabs(task.out.delta_square[size(r)] - square) <= near * square);
        }
    }
}

// exact, since the numbers are small integers
void test_bf16(const std::string& unit) {
    set_bf16_unit(unit);
    const Bf16Ops* const ops = bf16_ops();
    for (const std::int64_t d : {1, 31, 32, 700}) {
        const std::int64_t rows = 45, labels = 70;
        SmallIntegers numbers(static_cast<std::uint64_t>(d));
        std::vector<std::uint16_t> values(size((rows + labels) * d));
        std::vector<float> exact(values.size());
        for (std::size_t k = 0; k < values.size(); ++k) {
            exact[k] = static_cast<float>(numbers.next());
            std::uint32_t bits;
            std::memcpy(&bits, &exact[k], 4);
            values[k] = static_cast<std::uint16_t>(bits >> 16);
        }
        const ArrayView all{
            reinterpret_cast<const unsigned char*>(values.data()), DType::kBF16, rows + labels, d, 2 * d, 2};
        Bf16Rows left(all, nullptr, rows), right(all, nullptr, labels);
        left.point_at(0, rows);
        right.point_at(rows, labels);
        for (std::int64_t block = 0; block < left.blocks(); ++block)
            left.pack(block, ops->pack_left);
        for (std::int64_t block = 0; block < right.blocks(); ++block)
            right.pack(block, ops->pack_right);
        const std::int64_t stride = right.blocks() * kBf16Rows;
        std::vector<float> c(size(left.blocks() * kBf16Rows * stride), -1.0f);
        ops->product(left.block(0), left.blocks(), right.block(0), right.blocks(), d, c.data(), stride);
        for (std::int64_t i = 0; i < rows; ++i)
            for (std::int64_t j = 0; j < labels; ++j) {
                float sum = 0;
                for (std::int64_t k = 0; k < d; ++k)
                    sum += exact[size(i * d + k)] * exact[size((rows + j) * d + k)];
                CHECK(c[size(i * stride + j)] == sum);
            }
    }
    std::printf("bfloat16 unit %s ok\n", unit.c_str());
}

}  // namespace
}  // namespace gramless

int main() {
    using namespace gramless;
    at_each_level([] {
        set_num_threads(2);
        test_shapes<float>();
        test_shapes<double>();
        test_range<float>(0x1p-140f, 0x1p115f);
        test_range<double>(0x1p-500, 0x1p495);
    });
    for (const std::string& unit : bf16_units())
        test_bf16(unit);
    shutdown_threads();
    return 0;
}

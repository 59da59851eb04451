// The logsumexp kernel against a plain one in long double, at every level, and what it refuses.
#include "kernels/logsumexp.hpp"

#include <cmath>
#include <limits>
#include <vector>

#include "check.hpp"
#include "logit_data.hpp"

namespace gramless {
namespace {

struct Result {
    explicit Result(std::int64_t n)
        : lse(size(n)), mean(lse), lse2(lse), top_logit(lse), target(lse), counted(lse), top(size(n)) {}

    LogsumexpTarget target_arrays() {
        return {lse.data(), mean.data(), lse2.data(), top_logit.data(), target.data(), counted.data(), top.data()};
    }

    std::vector<double> lse, mean, lse2, top_logit, target, counted;
    std::vector<std::int64_t> top;
};

template <class T>
void test_rows(const LogitData<T>& data, LogitChoice choice) {
    LogsumexpTask task;
    task.model = data.model();
    task.choice = std::move(choice);
    task.choice.function = "logsumexp";
    task.in_double = sizeof(T) == 8;
    const std::int64_t n = task.choice.rows_of(task.model);
    Result got(n);
    task.out = got.target_arrays();
    compute_logsumexp(task);
    for (std::int64_t r = 0; r < n; ++r) {
        const std::vector<long double> z = data.logits(r, task.choice);
        const LogitTruth truth = logit_truth(z);
        const double scale = data.rounding() * (1 + static_cast<double>(truth.size));
        CHECK(std::fabs(got.lse[size(r)] - static_cast<double>(truth.lse)) <= scale);
        CHECK(std::fabs(got.mean[size(r)] - static_cast<double>(truth.mean)) <= 4 * scale);
        CHECK(std::fabs(got.lse2[size(r)] - static_cast<double>(truth.lse2)) <= 4 * scale);
        CHECK(std::fabs(got.top_logit[size(r)] - static_cast<double>(truth.top_logit)) <= scale);
        if (!task.choice.targets.empty()) {
            const long double wanted = z[size(task.choice.target_places(task.model)[size(r)])];
            CHECK(std::fabs(got.target[size(r)] - static_cast<double>(wanted)) <= scale);
        }
    }
}

template <class T>
void test_shapes() {
    test_rows(LogitData<T>(1, 2, 1, 1), {});
    test_rows(LogitData<T>(7, 97, 5, 2), {});
    test_rows(LogitData<T>(300, 331, 260, 3), {});
    LogitChoice some;
    some.all_rows = some.all_labels = false;
    some.rows = {0, 2, 3, 9, 39};
    some.labels = {5, 3, 96, 50, 49, 0};
    some.targets = {3, 96, 0, 5, 5};
    some.temperature = 0.5;
    LogitData<T> capped(40, 97, 33, 4);
    capped.cap = 3;
    test_rows(capped, some);
}

// finite logits count, however far below the largest one they are
void test_far_apart() {
    const std::vector<float> z{3e38f, -3e38f, 0, -std::numeric_limits<float>::infinity()};
    LogsumexpTask task;
    task.model.h = view_of(z, 1, 4);
    task.model.given = true;
    task.choice.function = "logsumexp";
    Result got(1);
    task.out = got.target_arrays();
    compute_logsumexp(task);
    CHECK(got.counted[0] == 3 && got.lse[0] == static_cast<double>(z[0]) && got.top[0] == 0);
}

void test_refusals() {
    const auto error_of = [](const LogitData<float>& data) {
        LogsumexpTask task;
        task.model = data.model();
        task.choice.function = "logsumexp";
        Result result(data.rows);
        task.out = result.target_arrays();
        return refusal([&] { compute_logsumexp(task); });
    };
    LogitData<float> broken(300, 20, 4, 5);
    broken.h[size(270 * 4 + 1)] = std::numeric_limits<float>::quiet_NaN();
    CHECK(error_of(broken) == "logsumexp: h has non-finite values in rows 256..299");
    LogitData<float> weights(300, 20, 4, 6);
    weights.w[7] = std::numeric_limits<float>::infinity();
    CHECK(error_of(weights) == "logsumexp: w has non-finite values in rows 0..19");
    LogitData<float> large(3, 20, 4, 7);
    for (float& value : large.h)
        value *= 1e30f;
    for (float& value : large.w)
        value *= 1e30f;
    CHECK(error_of(large).find("overflow") != std::string::npos);
    // the row of the second label alone, which a bias masks
    const float gone = -std::numeric_limits<float>::infinity();
    const std::vector<float> z{0, 0, 0, gone, 0, 0};
    const std::vector<double> bias{0, static_cast<double>(gone), 0};
    LogsumexpTask task;
    task.model.h = view_of(z, 2, 3);
    task.model.given = true;
    task.model.bias = bias.data();
    task.choice.function = "logsumexp";
    task.choice.all_labels = false;
    task.choice.labels = {0, 1};
    Result result(2);
    task.out = result.target_arrays();
    CHECK(refusal([&] { compute_logsumexp(task); }) ==
          "logsumexp: row 1 of h has no label that can be: all its logits are -inf");
}

}  // namespace
}  // namespace gramless

int main() {
    using namespace gramless;
    at_each_level([] {
        set_num_threads(2);
        test_shapes<float>();
        test_shapes<double>();
        test_far_apart();
    });
    test_refusals();
    shutdown_threads();
    return 0;
}

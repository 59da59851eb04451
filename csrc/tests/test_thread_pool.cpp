// The pool: every task once, in scratch slots of its own, through errors, nesting, concurrent callers and fork().
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "check.hpp"
#include "core/ordered_loop.hpp"
#include "core/thread_pool.hpp"

using namespace gramless;

namespace {

void each_task_once(std::int64_t count) {
    std::vector<std::atomic<int>> done(static_cast<std::size_t>(count));
    std::vector<std::atomic<int>> in_slot(16);
    parallel_for(count, num_threads(), [&](std::int64_t index, int worker) {
        CHECK(worker >= 0 && worker < num_threads());
        CHECK(in_slot[static_cast<std::size_t>(worker)].fetch_add(1) == 0);
        done[static_cast<std::size_t>(index)].fetch_add(1);
        in_slot[static_cast<std::size_t>(worker)].fetch_sub(1);
    });
    for (const std::atomic<int>& times : done)
        CHECK(times.load() == 1);
}

void errors_stop_the_work() {
    std::atomic<int> begun{0};
    std::string message;
    try {
        parallel_for(1000000, num_threads(), [&](std::int64_t index, int) {
            begun.fetch_add(1);
            if (index == 3) throw std::runtime_error("three");
        });
    } catch (const std::runtime_error& error) {
        message = error.what();
    }
    CHECK(message == "three");
    CHECK(begun.load() < 1000000);
}

void nested_calls_run() {
    std::atomic<int> total{0};
    parallel_for(8, num_threads(), [&](std::int64_t, int) {
        parallel_for(5, num_threads(), [&](std::int64_t, int worker) {
            CHECK(worker == 0);
            total.fetch_add(1);
        });
    });
    CHECK(total.load() == 40);
}

void concurrent_callers() {
    std::vector<std::thread> callers;
    std::atomic<int> total{0};
    for (int caller = 0; caller < 4; ++caller)
        callers.emplace_back([&] {
            for (int repeat = 0; repeat < 50; ++repeat)
                parallel_for(20, num_threads(), [&](std::int64_t, int) { total.fetch_add(1); });
        });
    for (std::thread& caller : callers)
        caller.join();
    CHECK(total.load() == 4 * 50 * 20);
}

// sums in slab order, whatever the number of threads
void adds_in_order() {
    const std::int64_t rows = 20 * kMinSlabRows + 5, height = slab_rows(rows);
    std::vector<std::int64_t> scratch(16), seen;
    ordered_loop(
        rows, height, num_threads(),
        [&](const Slab& slab, int worker) { scratch[static_cast<std::size_t>(worker)] = slab.begin; },
        [&](const Slab& slab, int worker) {
            CHECK(scratch[static_cast<std::size_t>(worker)] == slab.begin);
            CHECK(slab.last == (slab.end == rows));
            seen.push_back(slab.begin);
        },
        {});
    CHECK(static_cast<std::int64_t>(seen.size()) == (rows + height - 1) / height);
    for (std::size_t i = 1; i < seen.size(); ++i)
        CHECK(seen[i - 1] < seen[i]);
}

// a call keeps the slots that it began with
void count_changes_meanwhile() {
    const int before = num_threads();
    std::atomic<bool> ended{false};
    std::thread other([&] {
        for (int count = 1; !ended.load(); count = count % 5 + 1)
            set_num_threads(count);
    });
    for (int call = 0; call < 200; ++call) {
        const int threads = num_threads();
        std::vector<std::atomic<int>> slots(static_cast<std::size_t>(threads));
        parallel_for(50, threads, [&](std::int64_t, int worker) {
            CHECK(worker < threads);
            slots[static_cast<std::size_t>(worker)].fetch_add(1);
        });
        int total = 0;
        for (const std::atomic<int>& slot : slots)
            total += slot.load();
        CHECK(total == 50);
    }
    ended.store(true);
    other.join();
    set_num_threads(before);
}

void interrupts() {
    bool interrupted = false;
    try {
        parallel_for(
            1 << 20, num_threads(),
            [](std::int64_t, int) { std::this_thread::sleep_for(std::chrono::milliseconds(1)); },
            [] { throw std::runtime_error("stop"); });
    } catch (const std::runtime_error&) {
        interrupted = true;
    }
    CHECK(interrupted);
}

void works_after_fork() {
    each_task_once(100);
    const pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        each_task_once(100);
        _exit(0);
    }
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

}  // namespace

int main(int argc, char** argv) {
    const bool with_fork = argc > 1 && std::string(argv[1]) == "--fork";
    for (const int threads : {1, 2, 7}) {
        set_num_threads(threads);
        for (const std::int64_t count : {0, 1, 2, 3, 1000})
            each_task_once(count);
        errors_stop_the_work();
        nested_calls_run();
        concurrent_callers();
        adds_in_order();
        count_changes_meanwhile();
        interrupts();
        if (with_fork) works_after_fork();
    }
    bool refused = false;
    try {
        set_num_threads(0);
    } catch (const std::invalid_argument&) {
        refused = true;
    }
    CHECK(refused);
    shutdown_threads();
    return 0;
}

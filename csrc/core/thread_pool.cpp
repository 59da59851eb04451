#include "core/thread_pool.hpp"

#include <pthread.h>
#if defined(__linux__)
#include <sched.h>
#endif

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

namespace gramless {
namespace {

constexpr int kMaxThreads = 1024;
constexpr int kSpins = 4000;
constexpr auto kPollInterval = std::chrono::milliseconds(50);

struct Job {
    const std::function<void(std::int64_t, int)>* task;
    std::int64_t count;
    std::atomic<std::int64_t> next{0};
    std::atomic<bool> stopped{false};
    std::atomic<bool> error_taken{false};
    std::exception_ptr error;

    void fail(std::exception_ptr failure) {
        if (!error_taken.exchange(true)) error = std::move(failure);
        stopped.store(true);
    }
};

thread_local Job* current_job = nullptr;
// kept from call to call, of which a kernel may make many short ones
thread_local std::chrono::steady_clock::time_point next_poll{};

void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

void run(Job& job, int worker, const std::function<void()>& poll) {
    Job* const outer = current_job;
    current_job = &job;
    while (!job.stopped.load()) {
        const std::int64_t index = job.next.fetch_add(1);
        if (index >= job.count) break;
        try {
            (*job.task)(index, worker);
            if (poll && std::chrono::steady_clock::now() >= next_poll) {
                poll();
                next_poll = std::chrono::steady_clock::now() + kPollInterval;
            }
        } catch (...) {
            job.fail(std::current_exception());
        }
    }
    current_job = outer;
}

class Pool {
  public:
    explicit Pool(int workers) {
        try {
            for (int worker = 1; worker <= workers; ++worker)
                threads_.emplace_back([this, worker] { serve(worker); });
        } catch (const std::system_error&) {
            // the system grants no more threads: work with those it gave
        }
    }

    ~Pool() {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            ending_ = true;
            generation_.fetch_add(1);
        }
        wake_.notify_all();
        for (std::thread& thread : threads_)
            thread.join();
    }

    int size() const { return static_cast<int>(threads_.size()) + 1; }

    void execute(Job& job, const std::function<void()>& poll) {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            job_ = &job;
            busy_.store(static_cast<int>(threads_.size()));
            generation_.fetch_add(1);
        }
        wake_.notify_all();
        run(job, 0, poll);
        for (int spin = 0; busy_.load() > 0 && spin < kSpins; ++spin)
            pause();
        std::unique_lock<std::mutex> lock(mutex_);
        done_.wait(lock, [this] { return busy_.load() == 0; });
    }

  private:
    void serve(int worker) {
        std::uint64_t seen = 0;
        while (true) {
            for (int spin = 0; generation_.load() == seen && spin < kSpins; ++spin)
                pause();
            Job* job = nullptr;
            {
                std::unique_lock<std::mutex> lock(mutex_);
                wake_.wait(lock, [&] { return generation_.load() != seen; });
                seen = generation_.load();
                if (ending_) return;
                job = job_;
            }
            run(*job, worker, {});
            std::lock_guard<std::mutex> lock(mutex_);
            if (busy_.fetch_sub(1) == 1) done_.notify_one();
        }
    }

    std::mutex mutex_;
    std::condition_variable wake_, done_;
    std::atomic<std::uint64_t> generation_{0};
    std::atomic<int> busy_{0};
    Job* job_ = nullptr;
    bool ending_ = false;
    std::vector<std::thread> threads_;
};

// everything that a forked child must not inherit; the child leaks its parent's copy and starts afresh
struct Shared {
    std::mutex mutex;
    std::unique_ptr<Pool> pool;
};

std::atomic<Shared*> shared{nullptr};
std::atomic<int> chosen_threads{0};

Shared& shared_state() {
    static const int registered = pthread_atfork(nullptr, nullptr, [] {
        shared.store(nullptr);
        current_job = nullptr;
    });
    static_cast<void>(registered);
    Shared* state = shared.load();
    if (!state) {
        auto fresh = std::make_unique<Shared>();
        if (shared.compare_exchange_strong(state, fresh.get())) state = fresh.release();
    }
    return *state;
}

// 0 without such a variable; what others set for their own ends may be odd, what is set for this library may not
int from_environment(const char* name, bool strict) {
    const char* const text = std::getenv(name);
    if (!text || !*text) return 0;
    char* end = nullptr;
    const long count = std::strtol(text, &end, 10);
    if (*end == 0 && count > 0) return static_cast<int>(std::min<long>(count, kMaxThreads));
    if (strict)
        throw std::invalid_argument(std::string(name) + ": expected a whole number of at least 1, got '" + text + "'");
    return 0;
}

// whole cores granted by the cgroup, rounded up; 0 without a limit
int cgroup_limit() {
    std::string quota;
    double period = 0;
    if (std::ifstream v2("/sys/fs/cgroup/cpu.max"); v2 >> quota >> period) {
        if (quota == "max") return 0;
    } else {
        std::ifstream v1_quota("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"),
            v1_period("/sys/fs/cgroup/cpu/cpu.cfs_period_us");
        if (!(v1_quota >> quota) || !(v1_period >> period)) return 0;
    }
    const double microseconds = std::atof(quota.c_str());
    if (microseconds <= 0 || period <= 0) return 0;
    return static_cast<int>(microseconds / period + 0.999);
}

int default_threads() {
    if (const int count = from_environment("GRAMLESS_NUM_THREADS", true); count > 0) return count;
    if (const int count = from_environment("OMP_NUM_THREADS", false); count > 0) return count;
    int count = static_cast<int>(std::thread::hardware_concurrency());
#if defined(__linux__)
    cpu_set_t cores;
    if (sched_getaffinity(0, sizeof(cores), &cores) == 0) count = CPU_COUNT(&cores);
#endif
    if (const int limit = cgroup_limit(); limit > 0) count = std::min(count, limit);
    return std::clamp(count, 1, kMaxThreads);
}

}  // namespace

int num_threads() {
    const int chosen = chosen_threads.load();
    return chosen > 0 ? chosen : default_threads();
}

void set_num_threads(int count) {
    if (count < 1 || count > kMaxThreads)
        throw std::invalid_argument("set_num_threads: expected a count from 1 to " + std::to_string(kMaxThreads) +
                                    ", got " + std::to_string(count));
    chosen_threads.store(count);
}

void shutdown_threads() {
    Shared& state = shared_state();
    std::lock_guard<std::mutex> lock(state.mutex);
    state.pool.reset();
}

bool parallel_stopped() {
    return current_job && current_job->stopped.load();
}

void parallel_for(std::int64_t count, int threads, const std::function<void(std::int64_t, int)>& task,
                  const std::function<void()>& poll) {
    Job job;
    job.task = &task;
    job.count = count;
    std::unique_lock<std::mutex> lock;
    const bool nested = current_job != nullptr;
    const int wanted = nested || count < 2 ? 1 : threads;
    if (wanted > 1) lock = std::unique_lock<std::mutex>(shared_state().mutex, std::try_to_lock);
    if (lock.owns_lock()) {
        std::unique_ptr<Pool>& pool = shared_state().pool;
        if (!pool || pool->size() != wanted) {
            pool.reset();
            pool = std::make_unique<Pool>(wanted - 1);
        }
        pool->execute(job, poll);
    } else {
        run(job, 0, poll);
    }
    if (job.error) std::rethrow_exception(job.error);
}

}  // namespace gramless

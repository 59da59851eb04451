// A small pool of threads that hands out numbered tasks in increasing order. No OpenMP: it survives fork(), so it works
// inside data loader workers, and it shares no runtime with torch. Nested or concurrent calls run on their own thread.
#pragma once

#include <cstdint>
#include <functional>

namespace gramless {

// GRAMLESS_NUM_THREADS or OMP_NUM_THREADS if set, else the cores that affinity and the cgroup quota leave this process
int num_threads();

// throws std::invalid_argument below 1
void set_num_threads(int count);

// threads worth waking for so many operations
inline int threads_for(double operations) {
    return operations < 4e6 ? 1 : num_threads();
}

// ends the workers; the next parallel_for makes new ones
void shutdown_threads();

// Runs task(index, worker) for index 0..count-1, each once, begun in increasing order; worker < threads is the caller's
// scratch slot. The caller reads num_threads() once and keeps it: others may change it meanwhile. The first exception
// stops further tasks and is rethrown. `poll` is called now and then on the calling thread between tasks and may throw
// to interrupt the work.
void parallel_for(std::int64_t count, int threads, const std::function<void(std::int64_t index, int worker)>& task,
                  const std::function<void()>& poll = {});

// inside a task: true once another task has failed, so that waiting for its result would never end
bool parallel_stopped();

}  // namespace gramless

// THE loop over the data: rows are cut into slabs, results into outputs, and every (slab, output) pair is one task. A
// task computes into its worker's scratch and then adds the scratch to the output in slab order. The sums are therefore
// the same to the last bit for any number of threads, and no partial result outlives its task.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

#include "core/thread_pool.hpp"
#include "core/tile_kernels.hpp"

namespace gramless {

inline constexpr std::int64_t kMinSlabRows = 16 * kChunkRows;
inline constexpr std::int64_t kMaxSlabRows = 256 * kChunkRows;
inline constexpr std::int64_t kWantedTasks = 32;

// a function of the shapes alone, never of the number of threads
inline std::int64_t slab_rows(std::int64_t rows, std::int64_t outputs) {
    const std::int64_t wanted = rows * outputs / kWantedTasks / kChunkRows * kChunkRows;
    return std::clamp(wanted, kMinSlabRows, kMaxSlabRows);
}

struct Slab {
    std::int64_t begin, end;
    bool last;
};

// compute(output, slab, worker) may run at any time; add(output, slab, worker) runs in slab order for each output
template <class Compute, class Add>
void ordered_loop(std::int64_t rows, std::int64_t outputs, const Compute& compute, const Add& add,
                  const std::function<void()>& poll) {
    const std::int64_t height = slab_rows(rows, outputs);
    const std::int64_t slabs = (rows + height - 1) / height;
    std::vector<std::atomic<std::int64_t>> turn(static_cast<std::size_t>(outputs));
    parallel_for(
        slabs * outputs,
        [&](std::int64_t task, int worker) {
            const std::int64_t index = task / outputs, output = task % outputs;
            const Slab slab{index * height, std::min(rows, (index + 1) * height), index + 1 == slabs};
            compute(output, slab, worker);
            // tasks begin in order, so whoever holds the turn is running and this wait ends
            std::atomic<std::int64_t>& next = turn[static_cast<std::size_t>(output)];
            while (next.load(std::memory_order_acquire) != index) {
                if (parallel_stopped()) return;
                std::this_thread::yield();
            }
            add(output, slab, worker);
            next.store(index + 1, std::memory_order_release);
        },
        poll);
}

}  // namespace gramless

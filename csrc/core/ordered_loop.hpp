// THE loop over the data: rows are cut into slabs, every slab is one task. A task computes into its worker's scratch
// and then adds the scratch to the result in slab order. The sums are therefore the same to the last bit for any number
// of threads, and no partial result outlives its task.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>

#include "core/thread_pool.hpp"
#include "core/tile_kernels.hpp"

namespace gramless {

inline constexpr std::int64_t kMinSlabRows = 16 * kChunkRows;
inline constexpr std::int64_t kMaxSlabRows = 256 * kChunkRows;
inline constexpr std::int64_t kWantedSlabs = 32;

// a function of the shapes alone, never of the number of threads
inline std::int64_t slab_rows(std::int64_t rows) {
    return std::clamp(rows / kWantedSlabs / kChunkRows * kChunkRows, kMinSlabRows, kMaxSlabRows);
}

struct Slab {
    std::int64_t begin, end;
    bool last;
};

// compute(slab, worker) may run at any time; add(slab, worker) runs in slab order
template <class Compute, class Add>
void ordered_loop(std::int64_t rows, std::int64_t height, int threads, const Compute& compute, const Add& add,
                  const std::function<void()>& poll) {
    const std::int64_t slabs = (rows + height - 1) / height;
    std::atomic<std::int64_t> turn{0};
    parallel_for(
        slabs, threads,
        [&](std::int64_t index, int worker) {
            const Slab slab{index * height, std::min(rows, (index + 1) * height), index + 1 == slabs};
            compute(slab, worker);
            // tasks begin in order, so whoever holds the turn is running and this wait ends
            while (turn.load(std::memory_order_acquire) != index) {
                if (parallel_stopped()) return;
                std::this_thread::yield();
            }
            add(slab, worker);
            turn.store(index + 1, std::memory_order_release);
        },
        poll);
}

}  // namespace gramless

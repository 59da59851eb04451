#include "core/isa.hpp"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace gramless {

namespace scalar {
extern const TileKernels kTileKernels;
}
namespace baseline {
extern const TileKernels kTileKernels;
}
#if defined(__x86_64__) && !defined(GRAMLESS_BASELINE_ONLY)
namespace x86_64_v3 {
extern const TileKernels kTileKernels;
}
namespace x86_64_v4 {
extern const TileKernels kTileKernels;
}
#endif

namespace {

struct Level {
    const TileKernels* kernels;
    bool usable;
};

std::vector<Level> all_levels() {
    std::vector<Level> levels{{&scalar::kTileKernels, true}, {&baseline::kTileKernels, true}};
#if defined(__x86_64__) && !defined(GRAMLESS_BASELINE_ONLY)
    __builtin_cpu_init();
    const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
                    __builtin_cpu_supports("bmi2");
    const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                    __builtin_cpu_supports("avx512vl");
    levels.push_back({&x86_64_v3::kTileKernels, v3});
    levels.push_back({&x86_64_v4::kTileKernels, v4});
#endif
    return levels;
}

const TileKernels& find(const std::string& name) {
    std::string usable;
    for (const Level& level : all_levels()) {
        if (!level.usable) continue;
        if (name == level.kernels->level) return *level.kernels;
        usable += (usable.empty() ? "" : ", ") + std::string(level.kernels->level);
    }
    throw std::invalid_argument("isa level: expected one of " + usable + ", got '" + name + "'");
}

const TileKernels& initial() {
    if (const char* forced = std::getenv("GRAMLESS_ISA"); forced && *forced) return find(forced);
    const TileKernels* best = nullptr;
    for (const Level& level : all_levels())
        if (level.usable) best = level.kernels;
    return *best;
}

std::atomic<const TileKernels*> in_use{nullptr};

}  // namespace

std::vector<std::string> isa_levels() {
    std::vector<std::string> names;
    for (const Level& level : all_levels())
        if (level.usable) names.emplace_back(level.kernels->level);
    return names;
}

const TileKernels& tile_kernels() {
    const TileKernels* kernels = in_use.load(std::memory_order_acquire);
    if (!kernels) {
        kernels = &initial();
        in_use.store(kernels, std::memory_order_release);
    }
    return *kernels;
}

void set_isa_level(const std::string& name) {
    in_use.store(&find(name), std::memory_order_release);
}

}  // namespace gramless

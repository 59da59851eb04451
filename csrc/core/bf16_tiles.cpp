#include "core/bf16_tiles.hpp"

#include <atomic>
#include <stdexcept>

#include "core/isa.hpp"

#if defined(GRAMLESS_BF16_X86)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace gramless {

#if defined(GRAMLESS_BF16_X86)
namespace bf16_x86 {
extern const Bf16Ops kTiles, kVectors;
}
#endif

namespace {

#if defined(GRAMLESS_BF16_X86)
// the system gives a process the registers of tiles when it asks for them
bool may_use_tiles() {
#if defined(__linux__)
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    return ::syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
    return false;
#endif
}

std::vector<const Bf16Ops*> find_usable() {
    std::vector<const Bf16Ops*> usable;
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    if (isa_levels().back() != "x86-64-v4" || !__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return usable;
    constexpr unsigned kTiles = 1u << 24 | 1u << 22, kVectors = 1u << 5;
    const bool tiles = (edx & kTiles) == kTiles;
    const bool vectors = __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax & kVectors);
    // the translation unit is compiled for both
    if (tiles && vectors && may_use_tiles()) usable.push_back(&bf16_x86::kTiles);
    if (vectors) usable.push_back(&bf16_x86::kVectors);
    return usable;
}
#else
std::vector<const Bf16Ops*> find_usable() {
    return {};
}
#endif

// vectors of pairs are twice as fast as fp32 on AMD, and slower than it on the one Intel machine that was measured
const Bf16Ops* preferred(const std::vector<const Bf16Ops*>& usable) {
    if (usable.empty()) return nullptr;
#if defined(GRAMLESS_BF16_X86)
    if (usable.front() == &bf16_x86::kVectors && !__builtin_cpu_is("amd")) return nullptr;
#endif
    return usable.front();
}

const std::vector<const Bf16Ops*>& usable() {
    static const std::vector<const Bf16Ops*> found = find_usable();
    return found;
}

std::atomic<const Bf16Ops*>& in_use() {
    static std::atomic<const Bf16Ops*> chosen{preferred(usable())};
    return chosen;
}

}  // namespace

const Bf16Ops* bf16_ops() {
    return isa_levels().back() == tile_kernels().level ? in_use().load(std::memory_order_acquire) : nullptr;
}

std::vector<std::string> bf16_units() {
    std::vector<std::string> names;
    for (const Bf16Ops* ops : usable())
        names.emplace_back(ops->name);
    return names;
}

void set_bf16_unit(const std::string& name) {
    const Bf16Ops* found = nullptr;
    for (const Bf16Ops* ops : usable())
        if (name == ops->name) found = ops;
    if (!found && name != "none") throw std::invalid_argument("bf16 unit: '" + name + "' is not one of this machine");
    in_use().store(found, std::memory_order_release);
}

}  // namespace gramless

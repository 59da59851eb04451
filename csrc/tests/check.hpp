// The little that these tests need: a check that says what failed and where, numbers that are the same everywhere and
// a view of them, what a refusal says, and a run at every level.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/array_view.hpp"
#include "core/isa.hpp"

#define CHECK(condition)                                                                 \
    do {                                                                                 \
        if (!(condition)) {                                                              \
            std::fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition); \
            std::exit(1);                                                                \
        }                                                                                \
    } while (false)

namespace gramless {

inline std::size_t size(std::int64_t count) {
    return static_cast<std::size_t>(count);
}

// small integers stored in floating point: their products and sums are exact, so results can be compared for equality
class SmallIntegers {
  public:
    explicit SmallIntegers(std::uint64_t seed) : state_(seed * 2654435761u + 1) {}

    int next() {
        state_ = state_ * 6364136223846793005u + 1442695040888963407u;
        return static_cast<int>(state_ >> 33) % 7 - 3;
    }

  private:
    std::uint64_t state_;
};

// (rows, cols), one row after the other
template <class T>
ArrayView view_of(const std::vector<T>& values, std::int64_t rows, std::int64_t cols) {
    const auto item = static_cast<std::int64_t>(sizeof(T));
    const auto* const data = reinterpret_cast<const unsigned char*>(values.data());
    return {data, item == 8 ? DType::kF64 : DType::kF32, rows, cols, cols * item, item};
}

// what a call that should refuse its input says
template <class Call>
std::string refusal(const Call& call) {
    try {
        call();
    } catch (const std::invalid_argument& error) {
        return error.what();
    }
    return "";
}

template <class Test>
void at_each_level(const Test& test) {
    for (const std::string& level : isa_levels()) {
        set_isa_level(level);
        test();
        std::printf("level %s ok\n", level.c_str());
    }
}

}  // namespace gramless

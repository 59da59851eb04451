// The little that these tests need: a check that says what failed and where, a generator that is the same everywhere,
// and what a refusal says.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>

#define CHECK(condition)                                                                 \
    do {                                                                                 \
        if (!(condition)) {                                                              \
            std::fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition); \
            std::exit(1);                                                                \
        }                                                                                \
    } while (false)

namespace gramless {

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

}  // namespace gramless

// Scratch memory on cache lines, zeroed on request.
#pragma once

#include <cstdint>
#include <cstring>
#include <new>
#include <utility>

namespace gramless {

template <class T>
class AlignedBuffer {
  public:
    AlignedBuffer() = default;
    explicit AlignedBuffer(std::int64_t count)
        : data_(static_cast<T*>(::operator new(static_cast<std::size_t>(count) * sizeof(T), kAlignment))),
          count_(count) {}
    AlignedBuffer(const AlignedBuffer&) = delete;
    AlignedBuffer& operator=(const AlignedBuffer&) = delete;
    AlignedBuffer(AlignedBuffer&& other) noexcept : data_(other.data_), count_(other.count_) { other.data_ = nullptr; }
    AlignedBuffer& operator=(AlignedBuffer&& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(count_, other.count_);
        return *this;
    }
    ~AlignedBuffer() { ::operator delete(data_, kAlignment); }

    T* data() { return data_; }
    T& operator[](std::int64_t index) { return data_[index]; }
    explicit operator bool() const { return data_ != nullptr; }
    void zero() { std::memset(data_, 0, static_cast<std::size_t>(count_) * sizeof(T)); }

  private:
    static constexpr std::align_val_t kAlignment{64};
    T* data_ = nullptr;
    std::int64_t count_ = 0;
};

}  // namespace gramless

// Scratch memory on cache lines, zeroed on request. Large buffers are mapped, so that they go back to the system when
// freed: in the heap they would lie between the results of successive calls and leave holes there.
#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <cstring>
#include <new>
#include <utility>

namespace gramless {

template <class T>
class AlignedBuffer {
  public:
    AlignedBuffer() = default;
    explicit AlignedBuffer(std::int64_t count) : bytes_(static_cast<std::size_t>(count) * sizeof(T)) {
        if (bytes_ < kMapped) {
            data_ = static_cast<T*>(::operator new(bytes_, kAlignment));
            return;
        }
        void* mapped = ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (mapped == MAP_FAILED) throw std::bad_alloc();
        data_ = static_cast<T*>(mapped);
#ifdef MADV_HUGEPAGE
        // a hint: packed panels are read along many pages at once
        ::madvise(mapped, bytes_, MADV_HUGEPAGE);
#endif
    }
    AlignedBuffer(const AlignedBuffer&) = delete;
    AlignedBuffer& operator=(const AlignedBuffer&) = delete;
    AlignedBuffer(AlignedBuffer&& other) noexcept { swap(other); }
    AlignedBuffer& operator=(AlignedBuffer&& other) noexcept {
        swap(other);
        return *this;
    }
    ~AlignedBuffer() {
        if (bytes_ < kMapped)
            ::operator delete(data_, kAlignment);
        else
            ::munmap(data_, bytes_);
    }

    T* data() { return data_; }
    T& operator[](std::int64_t index) { return data_[index]; }
    explicit operator bool() const { return data_ != nullptr; }
    void zero() { std::memset(data_, 0, bytes_); }

  private:
    void swap(AlignedBuffer& other) {
        std::swap(data_, other.data_);
        std::swap(bytes_, other.bytes_);
    }

    static constexpr std::align_val_t kAlignment{64};
    static constexpr std::size_t kMapped = std::size_t{1} << 19;
    T* data_ = nullptr;
    std::size_t bytes_ = 0;
};

}  // namespace gramless

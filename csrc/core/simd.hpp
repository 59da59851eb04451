// Vectors of N lanes in the compiler's vector extensions, so that one source serves every instruction set.
// Included only by translation units that are compiled per level, inside that level's own namespace.
#pragma once

#include <cstdint>

namespace gramless::GRAMLESS_LEVEL {

template <class T, int N>
struct VectorOf {
    typedef T type __attribute__((vector_size(N * sizeof(T))));
    typedef T unaligned __attribute__((vector_size(N * sizeof(T)), aligned(1), may_alias));
};

template <class T, int N>
using Vector = typename VectorOf<T, N>::type;

template <class T, int N>
inline Vector<T, N> load(const void* p) {
    return *static_cast<const typename VectorOf<T, N>::unaligned*>(p);
}

template <class T, int N>
inline void store(void* p, Vector<T, N> v) {
    *static_cast<typename VectorOf<T, N>::unaligned*>(p) = v;
}

// x - 0 is x for every x, signed zeros included, so this folds to one broadcast
template <class T, int N>
inline Vector<T, N> broadcast(T x) {
    return x - Vector<T, N>{};
}

template <int... I>
struct Lanes {};

template <int N, int... I>
struct MakeLanes : MakeLanes<N - 1, N - 1, I...> {};

template <int... I>
struct MakeLanes<0, I...> {
    using type = Lanes<I...>;
};

template <int First, class T, int N, int... I>
inline Vector<T, static_cast<int>(sizeof...(I))> part_of(Vector<T, N> v, Lanes<I...>) {
    return __builtin_shufflevector(v, v, (First + I)...);
}

// the lanes by an operation on vectors, the upper half onto the lower one until a single lane is left
template <class T, int N, class Operation>
inline T fold_lanes(Vector<T, N> v, const Operation& operation) {
    if constexpr (N == 1) {
        return v[0];
    } else {
        using Half = typename MakeLanes<N / 2>::type;
        return fold_lanes<T, N / 2>(operation(part_of<0, T, N>(v, Half{}), part_of<N / 2, T, N>(v, Half{})), operation);
    }
}

template <class T, int N>
inline T sum_lanes(Vector<T, N> v) {
    return fold_lanes<T, N>(v, [](auto a, auto b) { return a + b; });
}

template <class T, int N>
inline T largest_lane(Vector<T, N> v) {
    return fold_lanes<T, N>(v, [](auto a, auto b) { return a > b ? a : b; });
}

// Lanes first to first + count of v in fp64. The whole of v is converted, which GCC does half by half in two
// instructions each; it converts halves in six.
template <int First, int N, int... I>
inline Vector<double, static_cast<int>(sizeof...(I))> widen_part(Vector<float, N> v, Lanes<I...>) {
    const auto wide = __builtin_convertvector(v, Vector<double, N>);
    return __builtin_shufflevector(wide, wide, (First + I)...);
}

// destination[lane] += v[lane] in fp64
template <int N>
inline void add_to_double(double* destination, Vector<float, N> v) {
    if constexpr (N == 1) {
        *destination += v[0];
    } else {
        using Half = typename MakeLanes<N / 2>::type;
        const auto low = widen_part<0, N>(v, Half{});
        const auto high = widen_part<N / 2, N>(v, Half{});
        store<double, N / 2>(destination, load<double, N / 2>(destination) + low);
        store<double, N / 2>(destination + N / 2, load<double, N / 2>(destination + N / 2) + high);
    }
}

template <int N>
inline void add_to_double(double* destination, Vector<double, N> v) {
    store<double, N>(destination, load<double, N>(destination) + v);
}

struct Half {
    std::uint16_t bits;
};

struct BFloat16 {
    std::uint16_t bits;
};

// N values of type S, read from anywhere, as N lanes of T
template <class S, class T, int N>
struct Widen {
    static Vector<T, N> from(const void* p) { return __builtin_convertvector((load<S, N>(p)), Vector<T, N>); }
};

template <class T, int N>
struct Widen<BFloat16, T, N> {
    static Vector<T, N> from(const void* p) {
        auto bits = __builtin_convertvector((load<std::uint16_t, N>(p)), Vector<std::uint32_t, N>) << 16;
        return __builtin_convertvector((Vector<float, N>)bits, Vector<T, N>);
    }
};

template <class T, int N>
struct Widen<Half, T, N> {
    static Vector<T, N> from(const void* p) {
        using Bits = Vector<std::uint32_t, N>;
        const Bits half = __builtin_convertvector((load<std::uint16_t, N>(p)), Bits);
        // exponents move by a multiplication, which is exact and puts subnormals right as well
        const auto magnitude = (Vector<float, N>)((half & 0x7fffu) << 13) * 0x1p112f;
        const Bits not_finite = (Bits)((half & 0x7c00u) == 0x7c00u) & 0x7f800000u;
        const Bits bits = (Bits)magnitude | not_finite | ((half & 0x8000u) << 16);
        return __builtin_convertvector((Vector<float, N>)bits, Vector<T, N>);
    }
};

// blocks of `Step` lanes: the low result takes a's and b's even blocks in turn, the high one their odd blocks
template <int Step, class V, int... I>
inline void exchange(V& a, V& b, Lanes<I...>) {
    constexpr int kCount = sizeof...(I);
    const V low = __builtin_shufflevector(a, b, ((I & Step) ? kCount + I - Step : I)...);
    const V high = __builtin_shufflevector(a, b, ((I & Step) ? kCount + I : I + Step)...);
    a = low;
    b = high;
}

template <int N, int Step, class V>
inline void transpose_step(V (&rows)[N]) {
    if constexpr (Step < N) {
        for (int i = 0; i < N; ++i)
            if (!(i & Step)) exchange<Step>(rows[i], rows[i + Step], typename MakeLanes<N>::type{});
        transpose_step<N, 2 * Step>(rows);
    }
}

// N x N transpose in registers, log2(N) rounds of two-operand shuffles
template <class T, int N>
inline void transpose(Vector<T, N> (&rows)[N]) {
    transpose_step<N, 1>(rows);
}

}  // namespace gramless::GRAMLESS_LEVEL

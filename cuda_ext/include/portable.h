// Lets one function serve CPU and GPU. The real type F is either `float` (one sample, as in a GPU thread) or `Pack`
// from pack.h (as many samples as fit into a vector register). All mathematics in this folder is written over F and
// uses comparison masks with `select` instead of branches.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define S3D_HD static __host__ __device__ __forceinline__
#else
#define S3D_HD static inline __attribute__((always_inline))
#endif

// Each instruction set compiles the same files into its own namespace.
#ifndef S3D_VARIANT
#define S3D_VARIANT s3d
#endif

namespace S3D_VARIANT {

// Integer types that correspond to a real type.
template <class F>
struct Lanes;

template <>
struct Lanes<float> {
    using Int = int32_t;
    using UInt = uint32_t;
};

// A stored bfloat16: the upper half of a float.
struct BFloat16 {
    uint16_t bits;
};

// A stored IEEE half-precision float.
struct Half {
    uint16_t bits;
};

S3D_HD float from_bits(uint32_t bits) {
#if defined(__CUDA_ARCH__)
    return __uint_as_float(bits);
#else
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
#endif
}

S3D_HD uint32_t to_bits(float value) {
#if defined(__CUDA_ARCH__)
    return __float_as_uint(value);
#else
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
#endif
}

S3D_HD float read(const float* address) { return *address; }

S3D_HD float read(const BFloat16* address) { return from_bits(static_cast<uint32_t>(address->bits) << 16); }

S3D_HD float read(const Half* address) {
    const uint32_t bits = address->bits, rest = (bits & 0x7fffu) << 13, sign = (bits & 0x8000u) << 16;
    // The exponent biases differ by 112; infinity and NaN keep the largest exponent.
    if (rest >= 0x0f800000u) return from_bits(sign | 0x70000000u | rest);
    return from_bits(sign | to_bits(from_bits(rest) * from_bits(239u << 23)));
}

S3D_HD float to_float(int32_t value) { return static_cast<float>(value); }

S3D_HD int32_t to_int(float value) { return static_cast<int32_t>(value); }

S3D_HD uint32_t to_unsigned(int32_t value) { return static_cast<uint32_t>(value); }

S3D_HD int32_t to_signed(uint32_t value) { return static_cast<int32_t>(value); }

S3D_HD float square_root(float value) { return __builtin_sqrtf(value); }

S3D_HD float reciprocal(float value) { return 1.0f / value; }

S3D_HD float round_down(float value) { return __builtin_floorf(value); }

// a * b + c with a single rounding even where that is slow; for coordinates, whose fraction must be exact.
S3D_HD float fused_multiply_add(float a, float b, float c) { return __builtin_fmaf(a, b, c); }

S3D_HD bool any(bool mask) { return mask; }

S3D_HD uint32_t modulo(uint32_t value, uint32_t divisor) { return value < divisor ? value : value % divisor; }

// Subtracting zero is exact for every value and free.
template <class F>
S3D_HD F splat(float value) {
    return value - F{};
}

// a * b + c, with a single rounding where the processor has an FMA instruction.
template <class F>
S3D_HD F multiply_add(F a, F b, F c) {
    return a * b + c;
}

template <class Mask, class T>
S3D_HD T select(Mask mask, T one, T other) {
    return mask ? one : other;
}

template <class F>
S3D_HD F maximum(F a, F b) {
    return select(a > b, a, b);
}

// Propagates NaN.
template <class F>
S3D_HD F clamp(F value, float low, float high) {
    value = select(value < splat<F>(low), splat<F>(low), value);
    return select(value > splat<F>(high), splat<F>(high), value);
}

template <class F>
S3D_HD F absolute(F value) {
    return select(value < splat<F>(0.0f), -value, value);
}

// Clamps an index to [0, size - 1].
S3D_HD int32_t clamp_index(int32_t value, int32_t size) { return value < 0 ? 0 : value > size - 1 ? size - 1 : value; }

}  // namespace S3D_VARIANT

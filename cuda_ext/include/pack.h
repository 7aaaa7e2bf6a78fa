// `Pack` is a vector register of the CPU: 16, 8 or 4 floats, depending on the instruction set this file is compiled
// for. Arithmetic and comparisons come from the vector extension of GCC and Clang, which works on all processors; this
// file adds the conversions and functions that the mathematics in this folder needs. cpu/pack_memory.h and
// cpu/pack_lanes.h hold what only loops on the CPU need. On a GPU there is no such type, and this file only includes
// the scalar functions. Include it before the templates that use it: overloads on a vector type are only found at the
// point of definition.
#pragma once

#include "portable.h"

#if !defined(__CUDACC__)

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace S3D_VARIANT {

#if defined(__AVX512F__)
constexpr int WIDTH = 16;
#elif defined(__AVX2__)
constexpr int WIDTH = 8;
#else
constexpr int WIDTH = 4;
#endif

typedef float Pack __attribute__((vector_size(4 * WIDTH)));
typedef int32_t PackInt __attribute__((vector_size(4 * WIDTH)));
typedef uint32_t PackUInt __attribute__((vector_size(4 * WIDTH)));
typedef uint16_t PackUInt16 __attribute__((vector_size(2 * WIDTH)));

template <>
struct Lanes<Pack> {
    using Int = PackInt;
    using UInt = PackUInt;
};

S3D_HD Pack to_float(PackInt value) { return __builtin_convertvector(value, Pack); }

S3D_HD PackInt to_int(Pack value) { return __builtin_convertvector(value, PackInt); }

S3D_HD PackUInt to_unsigned(PackInt value) { return reinterpret_cast<PackUInt>(value); }

S3D_HD PackInt to_signed(PackUInt value) { return reinterpret_cast<PackInt>(value); }

S3D_HD Pack from_bits(PackUInt value) { return reinterpret_cast<Pack>(value); }

S3D_HD PackUInt to_bits(Pack value) { return reinterpret_cast<PackUInt>(value); }

S3D_HD bool any(PackInt mask) {
#if defined(__AVX512F__)
    return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif defined(__AVX2__)
    return !_mm256_testz_si256((__m256i)mask, (__m256i)mask);
#else
    int32_t found = 0;
    for (int lane = 0; lane < WIDTH; ++lane) found |= mask[lane];
    return found != 0;
#endif
}

S3D_HD Pack square_root(Pack value) {
#if defined(__AVX512F__)
    return (Pack)_mm512_sqrt_ps((__m512)value);
#elif defined(__AVX2__)
    return (Pack)_mm256_sqrt_ps((__m256)value);
#else
    for (int lane = 0; lane < WIDTH; ++lane) value[lane] = __builtin_sqrtf(value[lane]);
    return value;
#endif
}

// 1 / value, relative error below 2e-7.
S3D_HD Pack reciprocal(Pack value) {
#if defined(__AVX512F__)
    const Pack rough = (Pack)_mm512_rcp14_ps((__m512)value);
    return rough * (2.0f - value * rough);
#else
    return 1.0f / value;
#endif
}

S3D_HD Pack round_down(Pack value) {
#if defined(__AVX512F__)
    return (Pack)_mm512_roundscale_ps((__m512)value, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
#elif defined(__AVX2__)
    return (Pack)_mm256_floor_ps((__m256)value);
#else
    for (int lane = 0; lane < WIDTH; ++lane) value[lane] = __builtin_floorf(value[lane]);
    return value;
#endif
}

S3D_HD Pack fused_multiply_add(Pack a, Pack b, Pack c) {
#if defined(__AVX512F__)
    return (Pack)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
    return (Pack)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__FP_FAST_FMAF)
    for (int lane = 0; lane < WIDTH; ++lane) a[lane] = __builtin_fmaf(a[lane], b[lane], c[lane]);
    return a;
#else
    // The product of two floats is exact in double, so only the final rounding remains, as in an FMA instruction.
    for (int lane = 0; lane < WIDTH; ++lane) {
        a[lane] = static_cast<float>(static_cast<double>(a[lane]) * b[lane] + c[lane]);
    }
    return a;
#endif
}

#if defined(__AVX512F__)
// One instruction each. Min and max return the second operand if either is NaN.
S3D_HD Pack clamp(Pack value, float low, float high) {
    return (Pack)_mm512_min_ps(_mm512_set1_ps(high), _mm512_max_ps(_mm512_set1_ps(low), (__m512)value));
}

S3D_HD Pack scale_by_power_of_two(Pack value, Pack power) {
    return (Pack)_mm512_scalef_ps((__m512)value, (__m512)power);
}
#elif defined(__AVX2__)
S3D_HD Pack clamp(Pack value, float low, float high) {
    return (Pack)_mm256_min_ps(_mm256_set1_ps(high), _mm256_max_ps(_mm256_set1_ps(low), (__m256)value));
}
#endif

S3D_HD PackUInt modulo(PackUInt value, uint32_t divisor) {
    if (!any(value >= divisor)) return value;
    for (int lane = 0; lane < WIDTH; ++lane) value[lane] %= divisor;
    return value;
}

}  // namespace S3D_VARIANT

#endif

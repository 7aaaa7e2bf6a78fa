// `Pack` is a vector register of the CPU: 16, 8 or 4 floats, depending on the instruction set this file is compiled
// for. Arithmetic and comparisons come from the vector extension of GCC and Clang, which works on all processors. On a
// GPU there is no such type, and this file only includes the scalar functions. Include it before the templates that use
// it: overloads on a vector type are only found at the point of definition.
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

S3D_HD Pack load(const float* address) {
    Pack value;
    memcpy(&value, address, sizeof value);
    return value;
}

S3D_HD Pack load(const BFloat16* address) {
    PackUInt16 stored;
    memcpy(&stored, address, sizeof stored);
    return from_bits(__builtin_convertvector(stored, PackUInt) << 16);
}

S3D_HD void store(float* address, Pack value) { memcpy(address, &value, sizeof value); }

S3D_HD void store(uint32_t* address, PackUInt value) { memcpy(address, &value, sizeof value); }

S3D_HD void store(int32_t* address, PackInt value) { memcpy(address, &value, sizeof value); }

#if defined(__AVX2__) && !defined(__AVX512F__)
// Mask with all bits set in the first `count` lanes.
S3D_HD __m256i first_lanes_mask(int count) {
    alignas(64) static const int32_t bits[2 * WIDTH] = {-1, -1, -1, -1, -1, -1, -1, -1};
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bits + WIDTH - count));
}

// Loads the first 1 to 8 values in two or three reads and never reads beyond the last one.
S3D_HD __m128i load_uint16(const void* address, int count) {
    const char* from = static_cast<const char*>(address);
    if (count >= 4) {
        uint64_t first, last;
        memcpy(&first, from, 8);
        memcpy(&last, from + 2 * (count - 4), 8);
        // Shifts in two steps because a shift by all 64 bits (four values) is undefined.
        const uint64_t rest = last >> 1 >> (16 * (8 - count) - 1);
        return _mm_set_epi64x(static_cast<int64_t>(count == 8 ? last : rest), static_cast<int64_t>(first));
    }
    uint64_t value = 0;
    for (int i = 0; i < count; ++i) {
        uint16_t one;
        memcpy(&one, from + 2 * i, 2);
        value |= static_cast<uint64_t>(one) << (16 * i);
    }
    return _mm_cvtsi64_si128(static_cast<int64_t>(value));
}
#endif

// Loads the first `count` <= WIDTH values and zeros the other lanes; does not touch memory beyond them.
S3D_HD Pack load_masked(const float* address, int count) {
#if defined(__AVX512F__)
    return (Pack)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1u), address);
#elif defined(__AVX2__)
    return (Pack)_mm256_maskload_ps(address, first_lanes_mask(count));
#else
    float values[WIDTH] = {};
    for (int lane = 0; lane < count; ++lane) values[lane] = address[lane];
    return load(values);
#endif
}

S3D_HD Pack load_masked(const BFloat16* address, int count) {
#if defined(__AVX512F__)
    const __m256i stored = _mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << count) - 1u), address);
    return from_bits((PackUInt)_mm512_cvtepu16_epi32(stored) << 16);
#elif defined(__AVX2__)
    return from_bits((PackUInt)_mm256_cvtepu16_epi32(load_uint16(address, count)) << 16);
#else
    BFloat16 values[WIDTH] = {};
    for (int lane = 0; lane < count; ++lane) values[lane] = address[lane];
    return load(values);
#endif
}

// 2 * WIDTH consecutive values, split into those at even and at odd indices.
struct DeinterleavedPacks {
    Pack even, odd;
};

S3D_HD DeinterleavedPacks load_deinterleaved(const BFloat16* address) {
    PackUInt words;
    memcpy(&words, address, sizeof words);
    return {from_bits(words << 16), from_bits(words & 0xffff0000u)};
}

// 2 * WIDTH consecutive values in memory order.
struct ConsecutivePacks {
    Pack first, second;
};

S3D_HD ConsecutivePacks interleave(DeinterleavedPacks pair) {
#if defined(__AVX512F__)
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    return {(Pack)_mm512_permutex2var_ps((__m512)pair.even, low, (__m512)pair.odd),
            (Pack)_mm512_permutex2var_ps((__m512)pair.even, high, (__m512)pair.odd)};
#elif defined(__AVX2__)
    const __m256 low = _mm256_unpacklo_ps((__m256)pair.even, (__m256)pair.odd);
    const __m256 high = _mm256_unpackhi_ps((__m256)pair.even, (__m256)pair.odd);
    return {(Pack)_mm256_permute2f128_ps(low, high, 0x20), (Pack)_mm256_permute2f128_ps(low, high, 0x31)};
#else
    float values[2 * WIDTH];
    for (int lane = 0; lane < WIDTH; ++lane) {
        values[2 * lane] = pair.even[lane];
        values[2 * lane + 1] = pair.odd[lane];
    }
    return {load(values), load(values + WIDTH)};
#endif
}

// Whether `stream_store` can write rows of `channels` floats at `address`, `stride` floats apart, in whole cache lines.
S3D_HD bool can_stream_store(const float* address, int64_t stride, int channels) {
#if defined(__AVX2__)
    return reinterpret_cast<uintptr_t>(address) % 64 == 0 && stride % 16 == 0 && channels % 16 == 0;
#else
    (void)address, (void)stride, (void)channels;
    return false;
#endif
}

// Non-temporal store of a whole cache line (in one pack, or in two consecutive ones), which does not read the line
// first. Must be followed by `stream_fence`.
S3D_HD void stream_store(float* address, Pack value) {
#if defined(__AVX512F__)
    _mm512_stream_ps(address, (__m512)value);
#elif defined(__AVX2__)
    _mm256_stream_ps(address, (__m256)value);
#else
    store(address, value);
#endif
}

// Makes non-temporal stores visible to other threads.
S3D_HD void stream_fence() {
#if defined(__AVX2__)
    _mm_sfence();
#endif
}

S3D_HD void store_masked(float* address, Pack value, int count) {
#if defined(__AVX512F__)
    _mm512_mask_storeu_ps(address, static_cast<__mmask16>((1u << count) - 1u), (__m512)value);
#elif defined(__AVX2__)
    // Stores in parts because masked stores are slow on many processors.
    __m128 part = _mm256_castps256_ps128((__m256)value);
    if (count & 8) return store(address, value);
    if (count & 4) {
        _mm_storeu_ps(address, part);
        part = _mm256_extractf128_ps((__m256)value, 1);
        address += 4;
    }
    if (count & 2) {
        _mm_storel_pi(reinterpret_cast<__m64*>(address), part);
        part = _mm_movehl_ps(part, part);
        address += 2;
    }
    if (count & 1) _mm_store_ss(address, part);
#else
    for (int lane = 0; lane < count; ++lane) address[lane] = value[lane];
#endif
}

// Rounds to nearest, ties to even; NaN stays NaN.
S3D_HD void store_bf16(BFloat16* address, Pack value, int count) {
    const PackUInt bits = to_bits(value);
    const PackUInt rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const PackUInt chosen = select(value == value, rounded, PackUInt{} + 0x7fc0u);
    const PackUInt16 stored = __builtin_convertvector(chosen, PackUInt16);
    if (count == WIDTH) {
        memcpy(address, &stored, sizeof stored);
    } else {
        memcpy(address, &stored, sizeof(BFloat16) * count);
    }
}

// Gathers `address[index]` in the first `count` lanes and zeros the other lanes.
S3D_HD Pack gather(const float* address, PackInt index, int count) {
#if defined(__AVX512F__)
    const __mmask16 lanes = static_cast<__mmask16>((1u << count) - 1u);
    return (Pack)_mm512_mask_i32gather_ps(_mm512_setzero_ps(), lanes, (__m512i)index, address, 4);
#elif defined(__AVX2__)
    const __m256 lanes = _mm256_castsi256_ps(first_lanes_mask(count));
    return (Pack)_mm256_mask_i32gather_ps(_mm256_setzero_ps(), address, (__m256i)index, lanes, 4);
#else
    float values[WIDTH] = {};
    for (int lane = 0; lane < count; ++lane) values[lane] = address[index[lane]];
    return load(values);
#endif
}

// 0, 1, 2, ...
S3D_HD PackInt iota() {
    int32_t numbers[WIDTH];
    for (int lane = 0; lane < WIDTH; ++lane) numbers[lane] = lane;
    PackInt value;
    memcpy(&value, numbers, sizeof value);
    return value;
}

// Broadcasts one stored value to all lanes.
S3D_HD Pack load_broadcast(const float* address) {
#if defined(__AVX512F__)
    return (Pack)_mm512_set1_ps(*address);
#else
    return *address - Pack{};
#endif
}

// Like `load_masked`, with a plain load for a whole pack.
template <class T>
S3D_HD Pack load_partial(const T* address, int count) {
    return count == WIDTH ? load(address) : load_masked(address, count);
}

S3D_HD void store_partial(float* address, Pack value, int count) {
    if (count == WIDTH) {
        store(address, value);
    } else {
        store_masked(address, value, count);
    }
}

S3D_HD int count_lanes(int64_t first, int64_t end) {
    return end - first < WIDTH ? static_cast<int>(end - first) : WIDTH;
}

S3D_HD float sum_lanes(Pack value) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)value);
#elif defined(__AVX2__)
    const __m128 halves = _mm_add_ps(_mm256_castps256_ps128((__m256)value), _mm256_extractf128_ps((__m256)value, 1));
    const __m128 pairs = _mm_add_ps(halves, _mm_movehl_ps(halves, halves));
    return _mm_cvtss_f32(_mm_add_ss(pairs, _mm_movehdup_ps(pairs)));
#else
    float sum = 0.0f;
    for (int lane = 0; lane < WIDTH; ++lane) sum += value[lane];
    return sum;
#endif
}

struct SumPair {
    float first, second;
};

// Sums of the lanes of two packs, in fewer steps than two separate reductions.
S3D_HD SumPair sum_lanes(Pack one, Pack other) {
#if defined(__AVX512F__)
    const __m512 a = (__m512)one, b = (__m512)other;
    const __m256 halves_a = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    const __m256 halves_b = _mm256_add_ps(_mm512_castps512_ps256(b), _mm512_extractf32x8_ps(b, 1));
    const __m256 pairs = _mm256_hadd_ps(halves_a, halves_b);
    const __m256 fours = _mm256_hadd_ps(pairs, pairs);
    const __m128 sums = _mm_add_ps(_mm256_castps256_ps128(fours), _mm256_extractf128_ps(fours, 1));
    return {sums[0], sums[1]};
#elif defined(__AVX2__)
    const __m256 pairs = _mm256_hadd_ps((__m256)one, (__m256)other);
    const __m128 fours = _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1));
    const __m128 sums = _mm_hadd_ps(fours, fours);
    return {sums[0], sums[1]};
#else
    return {sum_lanes(one), sum_lanes(other)};
#endif
}

// Sums of the lanes of WIDTH packs, in order.
S3D_HD Pack sum_rows(const Pack (&rows)[WIDTH]) {
#if defined(__AVX512F__)
    __m512 four[4];
    for (int i = 0; i < 4; ++i) {
        const __m512 a = (__m512)rows[4 * i], b = (__m512)rows[4 * i + 1];
        const __m512 c = (__m512)rows[4 * i + 2], d = (__m512)rows[4 * i + 3];
        const __m512d ab = _mm512_castps_pd(_mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)));
        const __m512d cd = _mm512_castps_pd(_mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d)));
        four[i] =
            _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)), _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)));
    }
    const __m512 low =
        _mm512_add_ps(_mm512_shuffle_f32x4(four[0], four[1], 0x88), _mm512_shuffle_f32x4(four[0], four[1], 0xdd));
    const __m512 high =
        _mm512_add_ps(_mm512_shuffle_f32x4(four[2], four[3], 0x88), _mm512_shuffle_f32x4(four[2], four[3], 0xdd));
    return (Pack)_mm512_add_ps(_mm512_shuffle_f32x4(low, high, 0x88), _mm512_shuffle_f32x4(low, high, 0xdd));
#elif defined(__AVX2__)
    __m256 four[2];
    for (int i = 0; i < 2; ++i) {
        const __m256 ab = _mm256_hadd_ps((__m256)rows[4 * i], (__m256)rows[4 * i + 1]);
        const __m256 cd = _mm256_hadd_ps((__m256)rows[4 * i + 2], (__m256)rows[4 * i + 3]);
        four[i] = _mm256_hadd_ps(ab, cd);
    }
    return (Pack)_mm256_add_ps(_mm256_permute2f128_ps(four[0], four[1], 0x20),
                               _mm256_permute2f128_ps(four[0], four[1], 0x31));
#else
    Pack sums;
    for (int row = 0; row < WIDTH; ++row) sums[row] = sum_lanes(rows[row]);
    return sums;
#endif
}

// Shifts lanes by `step` (down if negative) within segments and fills with zeros. The segment length is a power of two.
S3D_HD Pack shift_lanes(Pack value, int step, int segment) {
    const PackInt address = (iota() & (segment - 1)) - step;
    const PackInt inside = (address >= 0) & (address < segment);
#if defined(__AVX512F__)
    const __mmask16 lanes = _mm512_movepi32_mask((__m512i)inside);
    return (Pack)_mm512_maskz_permutexvar_ps(lanes, (__m512i)(iota() - step), (__m512)value);
#elif defined(__AVX2__)
    const __m256 moved = _mm256_permutevar8x32_ps((__m256)value, (__m256i)(iota() - step));
    return (Pack)_mm256_and_ps(moved, (__m256)inside);
#else
    Pack shifted{};
    for (int lane = 0; lane < WIDTH; ++lane) {
        if (inside[lane]) shifted[lane] = value[(lane - step) & (WIDTH - 1)];
    }
    return shifted;
#endif
}

// Inclusive prefix sum within segments.
S3D_HD Pack prefix_sum(Pack value, int segment) {
    for (int step = 1; step < segment; step *= 2) value += shift_lanes(value, step, segment);
    return value;
}

// Inclusive suffix sum within segments.
S3D_HD Pack suffix_sum(Pack value, int segment) {
    for (int step = 1; step < segment; step *= 2) value += shift_lanes(value, -step, segment);
    return value;
}

// Permutes the lanes of two packs; indices from WIDTH on select from `other`.
S3D_HD Pack permute(Pack one, Pack other, PackInt lanes) {
#if defined(__AVX512F__)
    return (Pack)_mm512_permutex2var_ps((__m512)one, (__m512i)lanes, (__m512)other);
#else
    Pack value;
    for (int lane = 0; lane < WIDTH; ++lane) {
        value[lane] = lanes[lane] < WIDTH ? one[lanes[lane]] : other[lanes[lane] - WIDTH];
    }
    return value;
#endif
}

// Permutes the lanes of one pack; all indices are below WIDTH.
S3D_HD Pack permute(Pack value, PackInt lanes) {
#if defined(__AVX512F__)
    return (Pack)_mm512_permutexvar_ps((__m512i)lanes, (__m512)value);
#elif defined(__AVX2__)
    return (Pack)_mm256_permutevar8x32_ps((__m256)value, (__m256i)lanes);
#else
    Pack picked;
    for (int lane = 0; lane < WIDTH; ++lane) picked[lane] = value[lanes[lane]];
    return picked;
#endif
}

// Transposes a square block in place.
S3D_HD void transpose(Pack (&rows)[WIDTH]) {
#if defined(__AVX2__) && !defined(__AVX512F__)
    __m256 pair[8], four[8];
    for (int i = 0; i < 8; i += 2) {
        pair[i] = _mm256_unpacklo_ps((__m256)rows[i], (__m256)rows[i + 1]);
        pair[i + 1] = _mm256_unpackhi_ps((__m256)rows[i], (__m256)rows[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        four[i] = _mm256_shuffle_ps(pair[i], pair[i + 2], 0x44);
        four[i + 1] = _mm256_shuffle_ps(pair[i], pair[i + 2], 0xee);
        four[i + 2] = _mm256_shuffle_ps(pair[i + 1], pair[i + 3], 0x44);
        four[i + 3] = _mm256_shuffle_ps(pair[i + 1], pair[i + 3], 0xee);
    }
    for (int i = 0; i < 4; ++i) {
        rows[i] = (Pack)_mm256_permute2f128_ps(four[i], four[i + 4], 0x20);
        rows[i + 4] = (Pack)_mm256_permute2f128_ps(four[i], four[i + 4], 0x31);
    }
#else
    // Interleaves the upper and lower half of the rows once for each bit of the row index, which transposes the block.
    PackInt low, high;
    for (int lane = 0; lane < WIDTH; ++lane) {
        low[lane] = lane / 2 + lane % 2 * WIDTH;
        high[lane] = low[lane] + WIDTH / 2;
    }
    for (int step = 1; step < WIDTH; step *= 2) {
        Pack transposed[WIDTH];
        for (int i = 0; i < WIDTH / 2; ++i) {
            transposed[2 * i] = permute(rows[i], rows[i + WIDTH / 2], low);
            transposed[2 * i + 1] = permute(rows[i], rows[i + WIDTH / 2], high);
        }
        for (int i = 0; i < WIDTH; ++i) rows[i] = transposed[i];
    }
#endif
}

// Converts a mask to one bit per lane.
S3D_HD uint32_t mask_to_bits(PackInt mask) {
#if defined(__AVX512F__)
    return _mm512_movepi32_mask((__m512i)mask);
#elif defined(__AVX2__)
    return static_cast<uint32_t>(_mm256_movemask_ps((__m256)mask));
#else
    uint32_t bits = 0;
    for (int lane = 0; lane < WIDTH; ++lane) bits |= (mask[lane] != 0 ? 1u : 0u) << lane;
    return bits;
#endif
}

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

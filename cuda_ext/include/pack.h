// Vector registers of the CPU as one type, `Pack`: 16, 8 or 4 floats, by the instruction set this file is compiled for.
// Arithmetic and comparisons come from the compiler's vector extension, which GCC and Clang share on all processors.
// A GPU has no such type; there this file only brings in the scalar functions. It must precede the templates that use it:
// overloads on a vector type are found at their definition only.
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
typedef uint32_t PackWord __attribute__((vector_size(4 * WIDTH)));
typedef uint16_t PackHalf __attribute__((vector_size(2 * WIDTH)));

template <>
struct Lanes<Pack> {
    using Int = PackInt;
    using Word = PackWord;
};

S3D_HD Pack to_float(PackInt value) { return __builtin_convertvector(value, Pack); }

S3D_HD PackInt to_int(Pack value) { return __builtin_convertvector(value, PackInt); }

S3D_HD PackWord to_word(PackInt value) { return reinterpret_cast<PackWord>(value); }

S3D_HD PackInt to_signed(PackWord value) { return reinterpret_cast<PackInt>(value); }

S3D_HD Pack from_bits(PackWord value) { return reinterpret_cast<Pack>(value); }

S3D_HD PackWord to_bits(Pack value) { return reinterpret_cast<PackWord>(value); }

S3D_HD Pack load(const float* place) {
    Pack value;
    memcpy(&value, place, sizeof value);
    return value;
}

S3D_HD Pack load(const Bfloat* place) {
    PackHalf stored;
    memcpy(&stored, place, sizeof stored);
    return from_bits(__builtin_convertvector(stored, PackWord) << 16);
}

S3D_HD void store(float* place, Pack value) { memcpy(place, &value, sizeof value); }

S3D_HD void store(uint32_t* place, PackWord value) { memcpy(place, &value, sizeof value); }

S3D_HD void store(int32_t* place, PackInt value) { memcpy(place, &value, sizeof value); }

#if defined(__AVX2__) && !defined(__AVX512F__)
// All bits of the first `count` lanes.
S3D_HD __m256i first_lanes(int count) {
    alignas(64) static const int32_t bits[2 * WIDTH] = {-1, -1, -1, -1, -1, -1, -1, -1};
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bits + WIDTH - count));
}

// The first 1 to 8 stored values in two or three reads, none of them beyond the last one.
S3D_HD __m128i load_halves(const void* place, int count) {
    const char* from = static_cast<const char*>(place);
    if (count >= 4) {
        uint64_t first, last;
        memcpy(&first, from, 8);
        memcpy(&last, from + 2 * (count - 4), 8);
        // In two steps: of four values, nothing is left of the last.
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

// The first `count` <= WIDTH values, zeros behind them; memory beyond them is not touched.
S3D_HD Pack load_some(const float* place, int count) {
#if defined(__AVX512F__)
    return (Pack)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1u), place);
#elif defined(__AVX2__)
    return (Pack)_mm256_maskload_ps(place, first_lanes(count));
#else
    float values[WIDTH] = {};
    for (int lane = 0; lane < count; ++lane) values[lane] = place[lane];
    return load(values);
#endif
}

S3D_HD Pack load_some(const Bfloat* place, int count) {
#if defined(__AVX512F__)
    const __m256i stored = _mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << count) - 1u), place);
    return from_bits((PackWord)_mm512_cvtepu16_epi32(stored) << 16);
#elif defined(__AVX2__)
    return from_bits((PackWord)_mm256_cvtepu16_epi32(load_halves(place, count)) << 16);
#else
    Bfloat values[WIDTH] = {};
    for (int lane = 0; lane < count; ++lane) values[lane] = place[lane];
    return load(values);
#endif
}

// 2 * WIDTH stored values as two packs: those at even and at odd places.
struct PackPair {
    Pack even, odd;
};

S3D_HD PackPair load_pairs(const Bfloat* place) {
    PackWord words;
    memcpy(&words, place, sizeof words);
    return {from_bits(words << 16), from_bits(words & 0xffff0000u)};
}

// The same values in their order.
struct PackHalves {
    Pack first, second;
};

S3D_HD PackHalves interleave(PackPair pair) {
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

// Whether `store_past_cache` can write rows of `channels` at `place`, `stride` floats apart, in whole cache lines.
S3D_HD bool can_store_past_cache(const float* place, int64_t stride, int channels) {
#if defined(__AVX2__)
    return reinterpret_cast<uintptr_t>(place) % 64 == 0 && stride % 16 == 0 && channels % 16 == 0;
#else
    (void)place, (void)stride, (void)channels;
    return false;
#endif
}

// Writes a cache line, whole or in two packs that follow each other, without reading it first; to be followed by
// `finish_stores`.
S3D_HD void store_past_cache(float* place, Pack value) {
#if defined(__AVX512F__)
    _mm512_stream_ps(place, (__m512)value);
#elif defined(__AVX2__)
    _mm256_stream_ps(place, (__m256)value);
#else
    store(place, value);
#endif
}

// Makes what was written past the cache visible to other threads.
S3D_HD void finish_stores() {
#if defined(__AVX2__)
    _mm_sfence();
#endif
}

S3D_HD void store_some(float* place, Pack value, int count) {
#if defined(__AVX512F__)
    _mm512_mask_storeu_ps(place, static_cast<__mmask16>((1u << count) - 1u), (__m512)value);
#elif defined(__AVX2__)
    // In parts: a masked store takes longer on many processors.
    __m128 part = _mm256_castps256_ps128((__m256)value);
    if (count & 8) return store(place, value);
    if (count & 4) {
        _mm_storeu_ps(place, part);
        part = _mm256_extractf128_ps((__m256)value, 1);
        place += 4;
    }
    if (count & 2) {
        _mm_storel_pi(reinterpret_cast<__m64*>(place), part);
        part = _mm_movehl_ps(part, part);
        place += 2;
    }
    if (count & 1) _mm_store_ss(place, part);
#else
    for (int lane = 0; lane < count; ++lane) place[lane] = value[lane];
#endif
}

// Rounded to the nearest, ties to even; NaN stays NaN.
S3D_HD void store_rounded(Bfloat* place, Pack value, int count) {
    const PackWord bits = to_bits(value);
    const PackWord rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const PackWord chosen = choose(value == value, rounded, PackWord{} + 0x7fc0u);
    const PackHalf stored = __builtin_convertvector(chosen, PackHalf);
    if (count == WIDTH) {
        memcpy(place, &stored, sizeof stored);
    } else {
        memcpy(place, &stored, sizeof(Bfloat) * count);
    }
}

// The values at `place[index]` of the first `count` lanes, zeros behind them.
S3D_HD Pack gather(const float* place, PackInt index, int count) {
#if defined(__AVX512F__)
    const __mmask16 lanes = static_cast<__mmask16>((1u << count) - 1u);
    return (Pack)_mm512_mask_i32gather_ps(_mm512_setzero_ps(), lanes, (__m512i)index, place, 4);
#elif defined(__AVX2__)
    const __m256 lanes = _mm256_castsi256_ps(first_lanes(count));
    return (Pack)_mm256_mask_i32gather_ps(_mm256_setzero_ps(), place, (__m256i)index, lanes, 4);
#else
    float values[WIDTH] = {};
    for (int lane = 0; lane < count; ++lane) values[lane] = place[index[lane]];
    return load(values);
#endif
}

// 0, 1, 2, ...
S3D_HD PackInt count_up() {
    int32_t numbers[WIDTH];
    for (int lane = 0; lane < WIDTH; ++lane) numbers[lane] = lane;
    PackInt value;
    memcpy(&value, numbers, sizeof value);
    return value;
}

// One stored value in all lanes.
S3D_HD Pack load_all(const float* place) {
#if defined(__AVX512F__)
    return (Pack)_mm512_set1_ps(*place);
#else
    return *place - Pack{};
#endif
}

// The same for counts up to WIDTH.
template <class T>
S3D_HD Pack load_part(const T* place, int count) {
    return count == WIDTH ? load(place) : load_some(place, count);
}

S3D_HD void store_part(float* place, Pack value, int count) {
    if (count == WIDTH) {
        store(place, value);
    } else {
        store_some(place, value, count);
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

struct TwoSums {
    float one, other;
};

// The sums of two packs, in fewer steps than one after the other.
S3D_HD TwoSums sum_lanes(Pack one, Pack other) {
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

// The sums of WIDTH packs, in their order.
S3D_HD Pack sum_rows(const Pack (&rows)[WIDTH]) {
#if defined(__AVX512F__)
    __m512 four[4];
    for (int i = 0; i < 4; ++i) {
        const __m512 a = (__m512)rows[4 * i], b = (__m512)rows[4 * i + 1];
        const __m512 c = (__m512)rows[4 * i + 2], d = (__m512)rows[4 * i + 3];
        const __m512d ab = _mm512_castps_pd(_mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)));
        const __m512d cd = _mm512_castps_pd(_mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d)));
        four[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)),
                                _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)));
    }
    const __m512 low = _mm512_add_ps(_mm512_shuffle_f32x4(four[0], four[1], 0x88),
                                     _mm512_shuffle_f32x4(four[0], four[1], 0xdd));
    const __m512 high = _mm512_add_ps(_mm512_shuffle_f32x4(four[2], four[3], 0x88),
                                      _mm512_shuffle_f32x4(four[2], four[3], 0xdd));
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

// Each lane takes the value `step` lanes before it in its segment (behind it if negative), zero where there is none.
// Segments have a power of two of lanes.
S3D_HD Pack shift_lanes(Pack value, int step, int segment) {
    const PackInt place = (count_up() & (segment - 1)) - step;
    const PackInt inside = (place >= 0) & (place < segment);
#if defined(__AVX512F__)
    const __mmask16 lanes = _mm512_movepi32_mask((__m512i)inside);
    return (Pack)_mm512_maskz_permutexvar_ps(lanes, (__m512i)(count_up() - step), (__m512)value);
#elif defined(__AVX2__)
    const __m256 moved = _mm256_permutevar8x32_ps((__m256)value, (__m256i)(count_up() - step));
    return (Pack)_mm256_and_ps(moved, (__m256)inside);
#else
    Pack shifted{};
    for (int lane = 0; lane < WIDTH; ++lane) {
        if (inside[lane]) shifted[lane] = value[(lane - step) & (WIDTH - 1)];
    }
    return shifted;
#endif
}

// Sums of each lane and all before it in its segment.
S3D_HD Pack sum_up(Pack value, int segment) {
    for (int step = 1; step < segment; step *= 2) value += shift_lanes(value, step, segment);
    return value;
}

// Sums of each lane and all behind it in its segment.
S3D_HD Pack sum_down(Pack value, int segment) {
    for (int step = 1; step < segment; step *= 2) value += shift_lanes(value, -step, segment);
    return value;
}

// The lanes with these numbers out of two packs; those of the other follow those of the first.
S3D_HD Pack pick(Pack one, Pack other, PackInt lanes) {
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

// The lanes with these numbers, all of them below WIDTH.
S3D_HD Pack pick(Pack value, PackInt lanes) {
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

// Rows become columns.
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
    // Interleaving the two halves of all rows, once for each bit of a row's number, turns the whole.
    PackInt low, high;
    for (int lane = 0; lane < WIDTH; ++lane) {
        low[lane] = lane / 2 + lane % 2 * WIDTH;
        high[lane] = low[lane] + WIDTH / 2;
    }
    for (int step = 1; step < WIDTH; step *= 2) {
        Pack turned[WIDTH];
        for (int i = 0; i < WIDTH / 2; ++i) {
            turned[2 * i] = pick(rows[i], rows[i + WIDTH / 2], low);
            turned[2 * i + 1] = pick(rows[i], rows[i + WIDTH / 2], high);
        }
        for (int i = 0; i < WIDTH; ++i) rows[i] = turned[i];
    }
#endif
}

// A mask as one bit a lane.
S3D_HD uint32_t to_lane_bits(PackInt mask) {
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

S3D_HD Pack fused(Pack a, Pack b, Pack c) {
#if defined(__AVX512F__)
    return (Pack)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
    return (Pack)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__FP_FAST_FMAF)
    for (int lane = 0; lane < WIDTH; ++lane) a[lane] = __builtin_fmaf(a[lane], b[lane], c[lane]);
    return a;
#else
    // A product of two floats is exact in double; only the last rounding remains, as in the instruction.
    for (int lane = 0; lane < WIDTH; ++lane) {
        a[lane] = static_cast<float>(static_cast<double>(a[lane]) * b[lane] + c[lane]);
    }
    return a;
#endif
}

#if defined(__AVX512F__)
// One instruction each; of two operands, the second is kept where either is NaN.
S3D_HD Pack limit(Pack value, float low, float high) {
    return (Pack)_mm512_min_ps(_mm512_set1_ps(high), _mm512_max_ps(_mm512_set1_ps(low), (__m512)value));
}

S3D_HD Pack scale_by_power(Pack value, Pack power) {
    return (Pack)_mm512_scalef_ps((__m512)value, (__m512)power);
}
#elif defined(__AVX2__)
S3D_HD Pack limit(Pack value, float low, float high) {
    return (Pack)_mm256_min_ps(_mm256_set1_ps(high), _mm256_max_ps(_mm256_set1_ps(low), (__m256)value));
}
#endif

S3D_HD PackWord remainder_of(PackWord value, uint32_t divisor) {
    if (!any(value >= divisor)) return value;
    for (int lane = 0; lane < WIDTH; ++lane) value[lane] %= divisor;
    return value;
}

}  // namespace S3D_VARIANT

#endif

// Operations across the lanes of packs: reductions, shifts, permutations and transposes. CPU only.
#pragma once

#include "pack_memory.h"

namespace S3D_VARIANT {

// 0, 1, 2, ...
S3D_HD PackInt iota() {
    int32_t numbers[WIDTH];
    for (int lane = 0; lane < WIDTH; ++lane) numbers[lane] = lane;
    PackInt value;
    memcpy(&value, numbers, sizeof value);
    return value;
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

}  // namespace S3D_VARIANT

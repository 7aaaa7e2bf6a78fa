// Loads, stores and gathers of packs. CPU only.
#pragma once

#include "pack.h"

namespace S3D_VARIANT {

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
#if defined(__AVX512BF16__)
    const __m256i rounded = (__m256i)_mm512_cvtneps_pbh((__m512)value);
    if (count == WIDTH) return _mm256_storeu_si256(reinterpret_cast<__m256i*>(address), rounded);
    _mm256_mask_storeu_epi16(address, static_cast<__mmask16>((1u << count) - 1u), rounded);
#else
    const PackUInt bits = to_bits(value);
    const PackUInt rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const PackUInt chosen = select(value == value, rounded, PackUInt{} + 0x7fc0u);
    const PackUInt16 stored = __builtin_convertvector(chosen, PackUInt16);
    if (count == WIDTH) {
        memcpy(address, &stored, sizeof stored);
    } else {
        memcpy(address, &stored, sizeof(BFloat16) * count);
    }
#endif
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

}  // namespace S3D_VARIANT

// Matrix products in bfloat16 with float32 accumulation on AMX: eight tiles of 16 rows of 64 bytes. Operands are
// rounded from float32 into the layouts that tiles are loaded from.
#pragma once

#include "product.h"

#if defined(__AMX_BF16__) && defined(__AVX512BF16__)
#define S3D_BF16_PRODUCTS
#endif

namespace S3D_VARIANT {

constexpr int BF16_TILE = 16;        // rows of a tile, and columns of accumulators
constexpr int BF16_TILE_DEPTH = 32;  // bfloat16 values per row

S3D_HD int pad_to_tile(int count) { return (count + BF16_TILE - 1) / BF16_TILE * BF16_TILE; }
S3D_HD int pad_to_depth(int count) { return (count + BF16_TILE_DEPTH - 1) / BF16_TILE_DEPTH * BF16_TILE_DEPTH; }

// One thread's buffers for rounded operands; all null if products run in float32.
struct Bf16Scratch {
    uint16_t* rows = nullptr;        // left operand, row by row
    uint32_t* pairs = nullptr;       // right operand; a word holds two rows of a column
    uint32_t* transposed = nullptr;  // left operand that is stored column by column
};

#if defined(S3D_BF16_PRODUCTS)

// Configures the thread's AMX tiles and restores the previous configuration, because other code uses them too.
struct AmxTiles {
    bool used;
    alignas(64) uint8_t before[64];

    explicit AmxTiles(bool use) : used(use) {
        if (!used) return;
        _tile_storeconfig(before);
        alignas(64) uint8_t setup[64] = {};
        setup[0] = 1;
        for (int tile = 0; tile < 8; ++tile) {
            setup[16 + 2 * tile] = 64;
            setup[48 + tile] = BF16_TILE;
        }
        asm volatile("" ::: "memory");
        _tile_loadconfig(setup);
    }
    AmxTiles(const AmxTiles&) = delete;
    AmxTiles& operator=(const AmxTiles&) = delete;
    ~AmxTiles() {
        if (used && before[0] == 0) _tile_release();
        if (used && before[0] != 0) _tile_loadconfig(before);
    }
};

// Rounds `high` and `low` and packs their elements in pairs, one pair per word.
S3D_HD __m512i round_pairs(Pack high, Pack low) {
    const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
    alignas(64) uint16_t order[32];
    for (int i = 0; i < 32; ++i) order[i] = static_cast<uint16_t>(i / 2 + i % 2 * 16);
    return _mm512_permutexvar_epi16(_mm512_load_si512(order), halves);
}

// `rows` x `columns` -> [rows, pad_to_depth(columns)], zero-padded.
static inline void round_rows(const float* from, int64_t stride, int rows, int columns, uint16_t* to) {
    for (int row = 0; row < rows; ++row, from += stride) {
        for (int c = 0; c < columns; c += BF16_TILE_DEPTH, to += BF16_TILE_DEPTH) {
            const int left = columns - c;
            const Pack low = left >= WIDTH ? load(from + c) : load_masked(from + c, left);
            const int rest = left <= WIDTH ? 0 : left < 2 * WIDTH ? left - WIDTH : WIDTH;
            const Pack high = rest == WIDTH ? load(from + c + WIDTH) : load_masked(from + c + WIDTH, rest);
            _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low));
        }
    }
}

S3D_HD __m512i round_two_rows(const float* from, int64_t stride, int row, int rows) {
    const Pack low = row < rows ? load(from + row * stride) : Pack{};
    return round_pairs(row + 1 < rows ? load(from + (row + 1) * stride) : Pack{}, low);
}

// `rows` x `columns` -> words [pad_to_depth(rows) / 2, pad_to_tile(columns)], zero-padded below.
static inline void round_to_pairs(const float* from, int64_t stride, int rows, int columns, uint32_t* to) {
    for (int row = 0; row < pad_to_depth(rows); row += 2) {
        for (int c = 0; c < columns; c += BF16_TILE, to += BF16_TILE) {
            _mm512_storeu_si512(to, round_two_rows(from + c, stride, row, rows));
        }
    }
}

// Swaps the upper right and lower left SIZE x SIZE blocks of words in every group of two by two blocks.
template <int SIZE>
S3D_HD void swap_blocks(__m512i (&row)[BF16_TILE]) {
    alignas(64) int32_t first[BF16_TILE], second[BF16_TILE];
    for (int lane = 0; lane < BF16_TILE; ++lane) {
        first[lane] = lane & SIZE ? BF16_TILE + lane - SIZE : lane;
        second[lane] = lane & SIZE ? BF16_TILE + lane : lane + SIZE;
    }
    const __m512i upper = _mm512_load_si512(first), lower = _mm512_load_si512(second);
    for (int i = 0; i < BF16_TILE; ++i) {
        if (i & SIZE) continue;
        const __m512i a = row[i], b = row[i + SIZE];
        row[i] = _mm512_permutex2var_epi32(a, upper, b);
        row[i + SIZE] = _mm512_permutex2var_epi32(a, lower, b);
    }
}

// Transposes a block of 16 x 16 words.
S3D_HD void transpose_words(__m512i (&row)[BF16_TILE]) {
    swap_blocks<8>(row);
    swap_blocks<4>(row);
    swap_blocks<2>(row);
    swap_blocks<1>(row);
}

// `rows` x `columns` -> the transpose [pad_to_tile(columns), pad_to_depth(rows)], two values per word.
static inline void round_and_transpose(const float* from, int64_t stride, int rows, int columns, uint32_t* to) {
    const int depth = pad_to_depth(rows) / 2;
    for (int c = 0; c < columns; c += BF16_TILE) {
        for (int first = 0; first < depth; first += BF16_TILE) {
            __m512i block[BF16_TILE];
            for (int i = 0; i < BF16_TILE; ++i) block[i] = round_two_rows(from + c, stride, 2 * (first + i), rows);
            transpose_words(block);
            for (int i = 0; i < BF16_TILE; ++i) _mm512_storeu_si512(to + (c + i) * depth + first, block[i]);
        }
    }
}

// Computes one accumulator tile, or up to two by two adjacent ones. `depth` counts tiles; strides are in bytes.
template <bool BELOW, bool BESIDE>
void multiply_tiles(const char* left, int64_t left_stride, const char* right, int64_t right_stride, int depth,
                    const char* addend, int64_t addend_stride, char* target, int64_t target_stride) {
    const int64_t down = BF16_TILE * left_stride, addend_down = BF16_TILE * addend_stride,
                  target_down = BF16_TILE * target_stride;
    _tile_loadd(0, addend, addend_stride);
    if (BESIDE) _tile_loadd(1, addend + 64, addend_stride);
    if (BELOW) _tile_loadd(2, addend + addend_down, addend_stride);
    if (BELOW && BESIDE) _tile_loadd(3, addend + addend_down + 64, addend_stride);
    for (int k = 0; k < depth; ++k, left += 64, right += BF16_TILE * right_stride) {
        _tile_loadd(4, left, left_stride);
        _tile_loadd(6, right, right_stride);
        _tile_dpbf16ps(0, 4, 6);
        if (BESIDE) {
            _tile_loadd(7, right + 64, right_stride);
            _tile_dpbf16ps(1, 4, 7);
        }
        if (BELOW) {
            _tile_loadd(5, left + down, left_stride);
            _tile_dpbf16ps(2, 5, 6);
        }
        if (BELOW && BESIDE) _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, target, target_stride);
    if (BESIDE) _tile_stored(1, target + 64, target_stride);
    if (BELOW) _tile_stored(2, target + target_down, target_stride);
    if (BELOW && BESIDE) _tile_stored(3, target + target_down + 64, target_stride);
}

// target = addend + left * right, with left [rows, 32 depth] and right in pairs [16 depth, width], of which the first
// `columns` are used. `rows` and `columns` are multiples of a tile.
static inline void multiply_bf16(const void* left, const uint32_t* right, int rows, int columns, int width, int depth,
                                 Addend addend, OutputMatrix target) {
    const int64_t left_stride = depth * 64, right_stride = width * 4;
    // The compiler does not know that a tile load reads memory.
    asm volatile("" ::: "memory");
    for (int row = 0; row < rows; row += 2 * BF16_TILE) {
        for (int column = 0; column < columns; column += 2 * BF16_TILE) {
            const bool below = rows - row > BF16_TILE, beside = columns - column > BF16_TILE;
            const auto block = below ? (beside ? multiply_tiles<true, true> : multiply_tiles<true, false>)
                                     : (beside ? multiply_tiles<false, true> : multiply_tiles<false, false>);
            block(static_cast<const char*>(left) + row * left_stride, left_stride,
                  reinterpret_cast<const char*>(right + column), right_stride, depth,
                  reinterpret_cast<const char*>(addend.data + row * addend.row + column), addend.row * 4,
                  reinterpret_cast<char*>(target.data + row * target.row + column), target.row * 4);
        }
    }
}

#else

struct AmxTiles {
    explicit AmxTiles(bool) {}
};

#endif

}  // namespace S3D_VARIANT

// Matrix products in bfloat16 with float32 accumulation: on AMX in tiles of 16 rows of 64 bytes, on AVX-512 (since Zen 4
// and Cooper Lake) by instructions for pairs of values. Operands are rounded from float32 into the layout of tiles, which
// serves both.
#pragma once

#include "product.h"

#if defined(__AVX512BF16__)
#define S3D_BF16_PRODUCTS
#endif
#if defined(S3D_BF16_PRODUCTS) && defined(__AMX_BF16__)
#define S3D_AMX_TILES
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

#if defined(S3D_AMX_TILES)

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

#else

struct AmxTiles {
    explicit AmxTiles(bool) {}
};

#endif

#if defined(S3D_BF16_PRODUCTS)

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

// Matrices of whole tiles, the same number of left and right ones; strides are in bytes. Rows of a left matrix hold
// `depth` tiles; rows of a right one pairs of values, and `step` bytes further is the next right matrix.
struct TilesLeft {
    const char* const* matrices;
    int count, depth;
    int64_t stride;
};
struct TilesRight {
    const char* data;
    int64_t stride, step;
};
struct TilesAddend {
    const float* data;
    int64_t stride;
};
struct TilesOutput {
    float* data;
    int64_t stride;
};

constexpr int TILE_BYTES = 4 * BF16_TILE;

#if defined(S3D_AMX_TILES)

// Adds the products of all left matrices, from byte `first` of each, with the right ones to one tile, or to up to two by
// two adjacent ones.
template <bool BELOW, bool BESIDE>
void sum_tiles(const TilesLeft& from, int64_t first, TilesRight weights, TilesAddend addend, TilesOutput target) {
    const int64_t down = BF16_TILE * from.stride;
    const char* start = reinterpret_cast<const char*>(addend.data);
    char* end = reinterpret_cast<char*>(target.data);
    // The compiler does not know that tiles read and write memory.
    asm volatile("" ::: "memory");
    _tile_loadd(0, start, addend.stride);
    if (BESIDE) _tile_loadd(1, start + TILE_BYTES, addend.stride);
    if (BELOW) _tile_loadd(2, start + BF16_TILE * addend.stride, addend.stride);
    if (BELOW && BESIDE) _tile_loadd(3, start + BF16_TILE * addend.stride + TILE_BYTES, addend.stride);
    for (int i = 0; i < from.count; ++i) {
        const char *left = from.matrices[i] + first, *right = weights.data + i * weights.step;
        for (int k = 0; k < from.depth; ++k, left += TILE_BYTES, right += BF16_TILE * weights.stride) {
            _tile_loadd(4, left, from.stride);
            _tile_loadd(6, right, weights.stride);
            _tile_dpbf16ps(0, 4, 6);
            if (BESIDE) {
                _tile_loadd(7, right + TILE_BYTES, weights.stride);
                _tile_dpbf16ps(1, 4, 7);
            }
            if (BELOW) {
                _tile_loadd(5, left + down, from.stride);
                _tile_dpbf16ps(2, 5, 6);
            }
            if (BELOW && BESIDE) _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, end, target.stride);
    if (BESIDE) _tile_stored(1, end + TILE_BYTES, target.stride);
    if (BELOW) _tile_stored(2, end + BF16_TILE * target.stride, target.stride);
    if (BELOW && BESIDE) _tile_stored(3, end + BF16_TILE * target.stride + TILE_BYTES, target.stride);
    asm volatile("" ::: "memory");
}

#else

S3D_HD Pack multiply_pairs(Pack sum, uint32_t left, __m512i right) {
    return (Pack)_mm512_dpbf16_ps((__m512)sum, (__m512bh)right, (__m512bh)_mm512_set1_epi32(static_cast<int>(left)));
}

S3D_HD uint32_t load_pair(const char* from) {
    uint32_t pair;
    memcpy(&pair, from, sizeof pair);
    return pair;
}

// The same without tiles, a few rows at a time.
template <bool BELOW, bool BESIDE>
void sum_tiles(const TilesLeft& from, int64_t first, TilesRight weights, TilesAddend addend, TilesOutput target) {
    constexpr int PACKS = BESIDE ? 2 : 1, ROWS = BF16_TILE / PACKS;  // as many sums as hide the latency of products
    for (int row = 0; row < (BELOW ? 2 : 1) * BF16_TILE; row += ROWS) {
        Pack sum[ROWS][PACKS];
        for (int r = 0; r < ROWS; ++r) {
            const char* start = reinterpret_cast<const char*>(addend.data) + (row + r) * addend.stride;
            for (int p = 0; p < PACKS; ++p) sum[r][p] = load(reinterpret_cast<const float*>(start) + p * WIDTH);
        }
        for (int i = 0; i < from.count; ++i) {
            const char *left = from.matrices[i] + first + row * from.stride, *right = weights.data + i * weights.step;
            for (int k = 0; k < from.depth * BF16_TILE; ++k, left += 4, right += weights.stride) {
                __m512i pairs[PACKS];
                for (int p = 0; p < PACKS; ++p) pairs[p] = _mm512_loadu_si512(right + p * TILE_BYTES);
                for (int r = 0; r < ROWS; ++r) {
                    const uint32_t pair = load_pair(left + r * from.stride);
                    for (int p = 0; p < PACKS; ++p) sum[r][p] = multiply_pairs(sum[r][p], pair, pairs[p]);
                }
            }
        }
        for (int r = 0; r < ROWS; ++r) {
            char* end = reinterpret_cast<char*>(target.data) + (row + r) * target.stride;
            for (int p = 0; p < PACKS; ++p) store(reinterpret_cast<float*>(end) + p * WIDTH, sum[r][p]);
        }
    }
}

#endif

// Picks the block of `rows` x `columns`, or of as much of it as two by two tiles hold.
static inline auto choose_tiles(int rows, int columns) {
    const bool below = rows > BF16_TILE, beside = columns > BF16_TILE;
    return below ? (beside ? sum_tiles<true, true> : sum_tiles<true, false>)
                 : (beside ? sum_tiles<false, true> : sum_tiles<false, false>);
}

// target = addend + left * right, with left [rows, 32 depth] and right in pairs [16 depth, width], of which the first
// `columns` are used. `rows` and `columns` are multiples of a tile.
static inline void multiply_bf16(const void* left, const uint32_t* right, int rows, int columns, int width, int depth,
                                 Addend addend, OutputMatrix target) {
    const char* matrix = static_cast<const char*>(left);
    const TilesLeft from = {&matrix, 1, depth, int64_t{depth} * TILE_BYTES};
    for (int row = 0; row < rows; row += 2 * BF16_TILE) {
        for (int column = 0; column < columns; column += 2 * BF16_TILE) {
            choose_tiles(rows - row, columns - column)(
                from, row * from.stride, {reinterpret_cast<const char*>(right + column), int64_t{width} * 4, 0},
                {addend.data + row * addend.row + column, addend.row * 4},
                {target.data + row * target.row + column, target.row * 4});
        }
    }
}

#endif

}  // namespace S3D_VARIANT

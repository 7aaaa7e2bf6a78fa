// Matrix products held in registers: a few rows by a few packs of columns at a time.
#pragma once

#include <cstdlib>

#include "pack.h"

namespace S3D_VARIANT {

constexpr int BLOCK_ROWS = 6;
constexpr int BLOCK_PACKS = WIDTH == 16 ? 4 : 2;  // packs; 24 or 12 sums, as many as the registers clamp_index

S3D_HD int pad_to_pack(int count) { return (count + WIDTH - 1) / WIDTH * WIDTH; }

// Floats on a cache line of their own, all zero; null when memory is out.
static inline float* allocate_zeros(size_t floats) {
    void* memory = nullptr;
    if (posix_memalign(&memory, 64, floats * sizeof(float)) != 0) return nullptr;
    return static_cast<float*>(memset(memory, 0, floats * sizeof(float)));
}

// Takes the next `count` floats from a buffer, each part on a cache line; only counts where there is no buffer yet.
struct Arena {
    float* buffer;
    size_t used = 0;

    float* take(size_t count) {
        float* part = buffer == nullptr ? nullptr : buffer + used;
        used += (count + 15) / 16 * 16;
        return part;
    }
};

// The left factor: element (r, k) is data[r * row + k * step].
struct LeftMatrix {
    const float* data;
    int64_t row, step;
};

// The right factor, of `depth` rows, with columns in whole packs.
struct RightMatrix {
    const float* data;
    int64_t step;
    int depth;
};

struct OutputMatrix {
    float* data;
    int64_t row;
};

// What a product is added to: one row for all rows, or with `row` of a target, each its own.
struct Addend {
    const float* data;
    int64_t row;
};

template <int R, int P, class Epilogue>
S3D_HD void multiply_block(LeftMatrix left, RightMatrix right, Addend addend, OutputMatrix target, Epilogue epilogue) {
    Pack sum[R][P];
    for (int r = 0; r < R; ++r) {
        for (int p = 0; p < P; ++p) sum[r][p] = load(addend.data + r * addend.row + p * WIDTH);
    }
    const float *from = left.data, *weight = right.data;
    for (int k = 0; k < right.depth; ++k, from += left.step, weight += right.step) {
        Pack part[P];
        for (int p = 0; p < P; ++p) part[p] = load(weight + p * WIDTH);
        for (int r = 0; r < R; ++r) {
            const Pack x = load_broadcast(from + r * left.row);
            for (int p = 0; p < P; ++p) sum[r][p] = multiply_add(x, part[p], sum[r][p]);
        }
    }
    for (int r = 0; r < R; ++r) {
        for (int p = 0; p < P; ++p) store(target.data + r * target.row + p * WIDTH, epilogue(sum[r][p]));
    }
}

template <int R, class Epilogue>
void multiply_rows(LeftMatrix left, RightMatrix right, int columns, Addend addend, OutputMatrix target,
                   Epilogue epilogue) {
    int column = 0;
    const auto step = [&](int packs) {
        column += packs * WIDTH;
        right.data += packs * WIDTH;
        addend.data += packs * WIDTH;
        target.data += packs * WIDTH;
    };
    for (; columns - column >= BLOCK_PACKS * WIDTH; step(BLOCK_PACKS)) {
        multiply_block<R, BLOCK_PACKS>(left, right, addend, target, epilogue);
    }
    for (; columns - column >= 2 * WIDTH; step(2)) multiply_block<R, 2>(left, right, addend, target, epilogue);
    for (; column < columns; step(1)) multiply_block<R, 1>(left, right, addend, target, epilogue);
}

// target = epilogue(addend + left * right) for `rows` rows and `columns` columns, rounded up to whole packs.
template <class Epilogue>
void multiply(LeftMatrix left, RightMatrix right, int rows, int columns, Addend addend, OutputMatrix target,
              Epilogue epilogue) {
    int row = 0;
    const auto step = [&](int count) {
        row += count;
        left.data += count * left.row;
        addend.data += count * addend.row;
        target.data += count * target.row;
    };
    // Two rows alone would wait for each other's sums: the last eight go four by four.
    for (; rows - row >= BLOCK_ROWS && rows - row != BLOCK_ROWS + 2; step(BLOCK_ROWS)) {
        multiply_rows<BLOCK_ROWS>(left, right, columns, addend, target, epilogue);
    }
    for (; rows - row >= 4; step(4)) multiply_rows<4>(left, right, columns, addend, target, epilogue);
    for (; rows - row >= 2; step(2)) multiply_rows<2>(left, right, columns, addend, target, epilogue);
    for (; row < rows; step(1)) multiply_rows<1>(left, right, columns, addend, target, epilogue);
}

}  // namespace S3D_VARIANT

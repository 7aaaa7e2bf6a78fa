// Matrix products held in registers: a few rows by a few packs of columns at a time.
#pragma once

#include <cstdlib>

#include "pack.h"

namespace S3D_VARIANT {

constexpr int ROWS = 6;
constexpr int COLUMNS = WIDTH == 16 ? 4 : 2;  // packs; 24 or 12 sums, as many as the registers hold

S3D_HD int pad_to_pack(int count) { return (count + WIDTH - 1) / WIDTH * WIDTH; }

// Floats on a cache line of their own, all zero; null when memory is out.
static inline float* allocate(size_t floats) {
    void* memory = nullptr;
    if (posix_memalign(&memory, 64, floats * sizeof(float)) != 0) return nullptr;
    return static_cast<float*>(memset(memory, 0, floats * sizeof(float)));
}

// Takes the next `count` floats from a buffer, each part on a cache line; only counts where there is no buffer yet.
struct Cutter {
    float* buffer;
    size_t taken = 0;

    float* take(size_t count) {
        float* part = buffer == nullptr ? nullptr : buffer + taken;
        taken += (count + 15) / 16 * 16;
        return part;
    }
};

// The left factor: element (r, k) is data[r * row + k * step].
struct LeftFactor {
    const float* data;
    int64_t row, step;
};

// The right factor, of `depth` rows, with columns in whole packs.
struct RightFactor {
    const float* data;
    int64_t step;
    int depth;
};

struct Target {
    float* data;
    int64_t row;
};

// What a product is added to: one row for all rows, or with `row` of a target, each its own.
struct Addend {
    const float* data;
    int64_t row;
};

template <int R, int P, class Finish>
S3D_HD void multiply_block(LeftFactor left, RightFactor right, Addend addend, Target target, Finish finish) {
    Pack sum[R][P];
    for (int r = 0; r < R; ++r) {
        for (int p = 0; p < P; ++p) sum[r][p] = load(addend.data + r * addend.row + p * WIDTH);
    }
    const float *from = left.data, *weight = right.data;
    for (int k = 0; k < right.depth; ++k, from += left.step, weight += right.step) {
        Pack part[P];
        for (int p = 0; p < P; ++p) part[p] = load(weight + p * WIDTH);
        for (int r = 0; r < R; ++r) {
            const Pack x = load_all(from + r * left.row);
            for (int p = 0; p < P; ++p) sum[r][p] = multiply_add(x, part[p], sum[r][p]);
        }
    }
    for (int r = 0; r < R; ++r) {
        for (int p = 0; p < P; ++p) store(target.data + r * target.row + p * WIDTH, finish(sum[r][p]));
    }
}

template <int R, class Finish>
void multiply_rows(LeftFactor left, RightFactor right, int columns, Addend addend, Target target, Finish finish) {
    int column = 0;
    const auto step = [&](int packs) {
        column += packs * WIDTH;
        right.data += packs * WIDTH;
        addend.data += packs * WIDTH;
        target.data += packs * WIDTH;
    };
    for (; columns - column >= COLUMNS * WIDTH; step(COLUMNS)) {
        multiply_block<R, COLUMNS>(left, right, addend, target, finish);
    }
    for (; columns - column >= 2 * WIDTH; step(2)) multiply_block<R, 2>(left, right, addend, target, finish);
    for (; column < columns; step(1)) multiply_block<R, 1>(left, right, addend, target, finish);
}

// target = finish(addend + left * right) for `rows` rows and `columns` columns, rounded up to whole packs.
template <class Finish>
void multiply(LeftFactor left, RightFactor right, int rows, int columns, Addend addend, Target target, Finish finish) {
    int row = 0;
    const auto step = [&](int count) {
        row += count;
        left.data += count * left.row;
        addend.data += count * addend.row;
        target.data += count * target.row;
    };
    // Two rows alone would wait for each other's sums: the last eight go four by four.
    for (; rows - row >= ROWS && rows - row != ROWS + 2; step(ROWS)) {
        multiply_rows<ROWS>(left, right, columns, addend, target, finish);
    }
    for (; rows - row >= 4; step(4)) multiply_rows<4>(left, right, columns, addend, target, finish);
    for (; rows - row >= 2; step(2)) multiply_rows<2>(left, right, columns, addend, target, finish);
    for (; row < rows; step(1)) multiply_rows<1>(left, right, columns, addend, target, finish);
}

}  // namespace S3D_VARIANT

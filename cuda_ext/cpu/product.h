// Matrix products with register blocking: a few rows by a few packs of columns at a time.
#pragma once

#include <cstdlib>
#include <type_traits>

#include "pack_lanes.h"

namespace S3D_VARIANT {

constexpr int BLOCK_ROWS = 6;
constexpr int BLOCK_PACKS = WIDTH == 16 ? 4 : 2;  // 24 or 12 accumulators, as many as fit into the registers

S3D_HD int pad_to_pack(int count) { return (count + WIDTH - 1) / WIDTH * WIDTH; }

// Allocates zeroed floats, aligned to a cache line; returns null if memory is exhausted.
static inline float* allocate_zeros(size_t floats) {
#if defined(_WIN32)
    // Its aligned blocks could not go to free(). Alignment is for speed only.
    return static_cast<float*>(calloc(floats, sizeof(float)));
#else
    void* memory = nullptr;
    if (posix_memalign(&memory, 64, floats * sizeof(float)) != 0) return nullptr;
    return static_cast<float*>(memset(memory, 0, floats * sizeof(float)));
#endif
}

// Hands out consecutive cache-line-aligned parts of a buffer. Without a buffer it only counts the size.
struct Arena {
    float* buffer;
    size_t used = 0;

    float* take(size_t count) {
        float* part = buffer == nullptr ? nullptr : buffer + used;
        used += (count + 15) / 16 * 16;
        return part;
    }
};

// Left operand: element (r, k) is data[r * row + k * step].
struct LeftMatrix {
    const float* data;
    int64_t row, step;
};

// Right operand with `depth` rows; columns are padded to whole packs.
struct RightMatrix {
    const float* data;
    int64_t step;
    int depth;
};

struct OutputMatrix {
    float* data;
    int64_t row;
};

// Initial value of a product: one row for all rows if `row` is 0, else a row for each.
struct Addend {
    const float* data;
    int64_t row;
};

// Where a block lies in the product.
struct BlockPlace {
    int row, column;
};

// The epilogue maps a sum to the value that is stored, and may ask for its row and column.
template <class Epilogue>
S3D_HD Pack finish_sum(const Epilogue& epilogue, Pack sum, int row, int column) {
    if constexpr (std::is_invocable_v<Epilogue, Pack, int, int>) {
        return epilogue(sum, row, column);
    } else {
        (void)row, (void)column;
        return epilogue(sum);
    }
}

template <int R, int P, class Epilogue>
S3D_HD void multiply_block(LeftMatrix left, RightMatrix right, Addend addend, OutputMatrix target, BlockPlace place,
                           const Epilogue& epilogue) {
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
        for (int p = 0; p < P; ++p) {
            const Pack done = finish_sum(epilogue, sum[r][p], place.row + r, place.column + p * WIDTH);
            store(target.data + r * target.row + p * WIDTH, done);
        }
    }
}

template <int R, class Epilogue>
void multiply_rows(LeftMatrix left, RightMatrix right, int columns, Addend addend, OutputMatrix target, int row,
                   const Epilogue& epilogue) {
    BlockPlace place = {row, 0};
    const auto step = [&](int packs) {
        place.column += packs * WIDTH;
        right.data += packs * WIDTH;
        addend.data += packs * WIDTH;
        target.data += packs * WIDTH;
    };
    for (; columns - place.column >= BLOCK_PACKS * WIDTH; step(BLOCK_PACKS)) {
        multiply_block<R, BLOCK_PACKS>(left, right, addend, target, place, epilogue);
    }
    for (; columns - place.column >= 2 * WIDTH; step(2)) {
        multiply_block<R, 2>(left, right, addend, target, place, epilogue);
    }
    for (; place.column < columns; step(1)) multiply_block<R, 1>(left, right, addend, target, place, epilogue);
}

// target = epilogue(addend + left * right) for `rows` rows and `columns` columns, rounded up to whole packs.
template <class Epilogue>
void multiply(LeftMatrix left, RightMatrix right, int rows, int columns, Addend addend, OutputMatrix target,
              const Epilogue& epilogue) {
    int row = 0;
    const auto step = [&](int count) {
        row += count;
        left.data += count * left.row;
        addend.data += count * addend.row;
        target.data += count * target.row;
    };
    // Blocks of two rows would stall on the latency of their sums, so the last eight rows run as four and four.
    for (; rows - row >= BLOCK_ROWS && rows - row != BLOCK_ROWS + 2; step(BLOCK_ROWS)) {
        multiply_rows<BLOCK_ROWS>(left, right, columns, addend, target, row, epilogue);
    }
    for (; rows - row >= 4; step(4)) multiply_rows<4>(left, right, columns, addend, target, row, epilogue);
    for (; rows - row >= 2; step(2)) multiply_rows<2>(left, right, columns, addend, target, row, epilogue);
    for (; row < rows; step(1)) multiply_rows<1>(left, right, columns, addend, target, row, epilogue);
}

}  // namespace S3D_VARIANT

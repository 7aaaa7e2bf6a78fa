// A small network on a few dozen rows at a time: each layer is a matrix product held in registers, 6 rows by up to 4 packs
// of outputs, with the activation applied before the results are stored.
#pragma once

#include <cstdlib>

#include "elementary.h"

namespace S3D_VARIANT {

constexpr int ROWS = 6;
constexpr int COLUMNS = WIDTH == 16 ? 4 : 2;  // packs; 24 or 12 sums, as many as the registers hold
constexpr int LAYERS = 3;

S3D_HD int pad_to_pack(int count) { return (count + WIDTH - 1) / WIDTH * WIDTH; }

// Floats on a cache line of their own; null when memory is out.
static inline float* allocate(size_t floats) {
    void* memory = nullptr;
    return posix_memalign(&memory, 64, floats * sizeof(float)) == 0 ? static_cast<float*>(memory) : nullptr;
}

struct Layer {
    int inputs = 0, outputs = 0, stride = 0;
    float* weights = nullptr;  // [inputs, stride]: transposed and padded with zeros
    float* bias = nullptr;     // [stride]

    bool pack(int input_count, int output_count, const float* weight, const float* offset) {
        inputs = input_count;
        outputs = output_count;
        stride = pad_to_pack(outputs);
        weights = allocate((static_cast<size_t>(inputs) + 1) * stride);
        if (weights == nullptr) return false;
        bias = weights + static_cast<size_t>(inputs) * stride;
        memset(weights, 0, sizeof(float) * (static_cast<size_t>(inputs) + 1) * stride);
        for (int o = 0; o < outputs; ++o) {
            for (int i = 0; i < inputs; ++i) weights[i * stride + o] = weight[static_cast<size_t>(o) * inputs + i];
            bias[o] = offset[o];
        }
        return true;
    }

    // `rows` of `from` -> rows of `to`; both have room for whole blocks of ROWS.
    void apply(const float* from, int from_stride, int rows, float* to, int to_stride, bool activate) const {
        for (int row = 0; row < rows; row += ROWS) {
            const float* in = from + row * from_stride;
            float* out = to + row * to_stride;
            int column = 0;
            for (; stride - column >= COLUMNS * WIDTH; column += COLUMNS * WIDTH) {
                multiply<COLUMNS>(in, from_stride, column, out, to_stride, activate);
            }
            for (; stride - column >= 2 * WIDTH; column += 2 * WIDTH) {
                multiply<2>(in, from_stride, column, out, to_stride, activate);
            }
            for (; column < stride; column += WIDTH) multiply<1>(in, from_stride, column, out, to_stride, activate);
        }
    }

    template <int PACKS>
    void multiply(const float* in, int in_stride, int column, float* out, int out_stride, bool activate) const {
        Pack sum[ROWS][PACKS];
        for (int r = 0; r < ROWS; ++r) {
            for (int p = 0; p < PACKS; ++p) sum[r][p] = load(bias + column + p * WIDTH);
        }
        const float* weight = weights + column;
        for (int i = 0; i < inputs; ++i, weight += stride) {
            Pack part[PACKS];
            for (int p = 0; p < PACKS; ++p) part[p] = load(weight + p * WIDTH);
            for (int r = 0; r < ROWS; ++r) {
                const Pack x = splat<Pack>(in[r * in_stride + i]);
                for (int p = 0; p < PACKS; ++p) sum[r][p] = multiply_add(x, part[p], sum[r][p]);
            }
        }
        for (int r = 0; r < ROWS; ++r) {
            for (int p = 0; p < PACKS; ++p) {
                store(out + r * out_stride + column + p * WIDTH, activate ? silu(sum[r][p]) : sum[r][p]);
            }
        }
    }
};

struct Network {
    Layer layer[LAYERS];

    Network() = default;
    Network(const Network&) = delete;
    Network& operator=(const Network&) = delete;
    ~Network() {
        for (Layer& part : layer) free(part.weights);
    }

    bool pack(const int (&widths)[LAYERS + 1], const float* const* weights, const float* const* biases) {
        for (int i = 0; i < LAYERS; ++i) {
            if (!layer[i].pack(widths[i], widths[i + 1], weights[i], biases[i])) return false;
        }
        return true;
    }
};

}  // namespace S3D_VARIANT

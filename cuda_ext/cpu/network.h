// A small MLP evaluated on a few dozen rows at a time.
#pragma once

#include "elementary.h"
#include "bf16.h"

namespace S3D_VARIANT {

constexpr int LAYERS = 3;

struct Layer {
    int inputs = 0, outputs = 0, stride = 0, input_stride = 0;
    float* weights = nullptr;     // [inputs, stride]: transposed and zero-padded
    float* bias = nullptr;        // [stride]
    float* transposed = nullptr;  // [outputs, input_stride]: zero-padded, for the backward pass
    float* zeros = nullptr;       // [input_stride]
    // Both matrices in bfloat16, in pairs of rows; null if products run in float32.
    uint32_t *bf16_weights = nullptr, *bf16_transposed = nullptr;

    bool pack(int input_count, int output_count, const float* weight, const float* bias_values) {
        inputs = input_count;
        outputs = output_count;
        stride = pad_to_pack(outputs);
        input_stride = pad_to_pack(inputs);
        const size_t forward = static_cast<size_t>(inputs) * stride, back = static_cast<size_t>(outputs) * input_stride;
        weights = allocate_zeros(forward + stride + back + input_stride);
        if (weights == nullptr) return false;
        bias = weights + forward;
        transposed = bias + stride;
        zeros = transposed + back;
        for (int o = 0; o < outputs; ++o) {
            for (int i = 0; i < inputs; ++i) {
                weights[i * stride + o] = transposed[o * input_stride + i] =
                    weight[static_cast<size_t>(o) * inputs + i];
            }
            bias[o] = bias_values[o];
        }
        return true;
    }

    // Rounds the matrices for products in bfloat16.
    bool pack_bf16() {
#if defined(S3D_BF16_PRODUCTS)
        const size_t forward = static_cast<size_t>(pad_to_depth(inputs)) / 2 * stride;
        const size_t back = static_cast<size_t>(pad_to_depth(outputs)) / 2 * input_stride;
        bf16_weights = reinterpret_cast<uint32_t*>(allocate_zeros(forward + back));
        if (bf16_weights == nullptr) return false;
        bf16_transposed = bf16_weights + forward;
        round_to_pairs(weights, stride, inputs, stride, bf16_weights);
        round_to_pairs(transposed, input_stride, outputs, input_stride, bf16_transposed);
#endif
        return true;
    }

    // Maps `rows` of `from` to rows of `to`. In bfloat16, `to` must have room for whole tiles.
    void forward(const float* from, int from_stride, int rows, float* to, int to_stride, bool activate,
                 const Bf16Scratch& scratch) const {
#if defined(S3D_BF16_PRODUCTS)
        if (scratch.rows != nullptr) {
            round_rows(from, from_stride, rows, inputs, scratch.rows);
            multiply_bf16(scratch.rows, bf16_weights, pad_to_tile(rows), stride, stride,
                          pad_to_depth(inputs) / BF16_TILE_DEPTH, {bias, 0}, {to, to_stride});
            for (int row = 0; activate && row < rows; ++row, to += to_stride) {
                for (int c = 0; c < stride; c += WIDTH) store(to + c, silu(load(to + c)));
            }
            return;
        }
#else
        (void)scratch;
#endif
        const LeftMatrix left = {from, from_stride, 1};
        const RightMatrix right = {weights, stride, inputs};
        if (activate) {
            multiply(left, right, rows, outputs, {bias, 0}, {to, to_stride}, [](Pack sum) { return silu(sum); });
        } else {
            multiply(left, right, rows, outputs, {bias, 0}, {to, to_stride}, [](Pack sum) { return sum; });
        }
    }

    // Computes the gradient to the first `columns` inputs from the gradient to the outputs.
    void backward_input(const float* from, int from_stride, int rows, float* to, int to_stride, int columns,
                        const Bf16Scratch& scratch) const {
#if defined(S3D_BF16_PRODUCTS)
        if (scratch.rows != nullptr) {
            round_rows(from, from_stride, rows, outputs, scratch.rows);
            multiply_bf16(scratch.rows, bf16_transposed, pad_to_tile(rows), pad_to_tile(columns), input_stride,
                          pad_to_depth(outputs) / BF16_TILE_DEPTH, {zeros, 0}, {to, to_stride});
            return;
        }
#else
        (void)scratch;
#endif
        const RightMatrix right = {transposed, input_stride, outputs};
        multiply({from, from_stride, 1}, right, rows, columns, {zeros, 0}, {to, to_stride},
                 [](Pack sum) { return sum; });
    }
};

// One thread's accumulated gradients to the parameters of a layer.
struct LayerGradient {
    float* weights = nullptr;  // [outputs padded to a tile, input_stride]
    float* bias = nullptr;     // [stride]

    // Accumulates the contribution of `rows` rows, given the gradient to the layer's outputs and the layer's inputs.
    void accumulate(const Layer& layer, const float* gradient, int stride, int rows, const float* from, int from_stride,
                    const Bf16Scratch& scratch) {
        accumulate_weights(layer, gradient, stride, rows, from, from_stride, scratch);
        for (int o = 0; o < layer.outputs; o += WIDTH) {
            Pack sum = load(bias + o);
            for (int row = 0; row < rows; ++row) sum += load(gradient + static_cast<int64_t>(row) * stride + o);
            store(bias + o, sum);
        }
    }

    void accumulate_weights(const Layer& layer, const float* gradient, int stride, int rows, const float* from,
                            int from_stride, const Bf16Scratch& scratch) {
        const int width = layer.input_stride;
#if defined(S3D_BF16_PRODUCTS)
        if (scratch.rows != nullptr) {
            round_and_transpose(gradient, stride, rows, layer.outputs, scratch.transposed);
            round_to_pairs(from, from_stride, rows, width, scratch.pairs);
            multiply_bf16(scratch.transposed, scratch.pairs, pad_to_tile(layer.outputs), width, width,
                          pad_to_depth(rows) / BF16_TILE_DEPTH, {weights, width}, {weights, width});
            return;
        }
#else
        (void)scratch;
#endif
        multiply({gradient, 1, stride}, {from, from_stride, rows}, layer.outputs, layer.inputs, {weights, width},
                 {weights, width}, [](Pack sum) { return sum; });
    }
};

struct LayerSize {
    int inputs, outputs;
};

struct Network {
    Layer layer[LAYERS];

    Network() = default;
    Network(const Network&) = delete;
    Network& operator=(const Network&) = delete;
    ~Network() {
        for (Layer& part : layer) {
            free(part.weights);
            free(part.bf16_weights);
        }
    }

    bool pack(const LayerSize (&size)[LAYERS], const float* const* weights, const float* const* biases, bool bf16) {
        for (int i = 0; i < LAYERS; ++i) {
            if (!layer[i].pack(size[i].inputs, size[i].outputs, weights[i], biases[i])) return false;
            if (bf16 && !layer[i].pack_bf16()) return false;
        }
        return true;
    }

    bool uses_bf16() const { return layer[0].bf16_weights != nullptr; }

    // Number of words a thread needs to hold one rounded operand of any product with `rows` rows.
    size_t count_bf16_words(int rows) const {
        int widest = 0;
        for (const Layer& part : layer) {
            const int wide = part.stride > part.input_stride ? part.stride : part.input_stride;
            widest = wide > widest ? wide : widest;
        }
        return static_cast<size_t>(pad_to_depth(rows)) * pad_to_depth(widest) / 2;
    }
};

// One thread's accumulated gradients to all layers.
struct NetworkGradient {
    LayerGradient layer[LAYERS];
    float* memory = nullptr;

    bool reserve(const Network& network) {
        memory = allocate_zeros(assign_buffers(network, nullptr));
        if (memory == nullptr) return false;
        assign_buffers(network, memory);
        return true;
    }

    void release() { free(memory); }

    // Adds the gradients to [outputs, inputs] and [outputs] of each layer.
    void add_to(const Network& network, float* const* weights, float* const* biases) const {
        if (memory == nullptr) return;
        for (int i = 0; i < LAYERS; ++i) {
            const Layer& part = network.layer[i];
            for (int o = 0; o < part.outputs; ++o) {
                const float* from = layer[i].weights + static_cast<int64_t>(o) * part.input_stride;
                float* to = weights[i] + static_cast<int64_t>(o) * part.inputs;
                for (int c = 0; c < part.inputs; ++c) to[c] += from[c];
                biases[i][o] += layer[i].bias[o];
            }
        }
    }

private:
    size_t assign_buffers(const Network& network, float* buffer) {
        Arena arena = {buffer};
        for (int i = 0; i < LAYERS; ++i) {
            const Layer& part = network.layer[i];
            layer[i].weights = arena.take(static_cast<size_t>(pad_to_tile(part.outputs)) * part.input_stride);
            layer[i].bias = arena.take(part.stride);
        }
        return arena.used;
    }
};

// Applies SiLU to `rows` rows in place and stores its derivatives.
static inline void activate_rows(float* values, float* derivatives, int64_t stride, int rows, int columns) {
    for (int row = 0; row < rows; ++row, values += stride, derivatives += stride) {
        for (int c = 0; c < columns; c += WIDTH) {
            const Activation<Pack> part = silu_with_derivative(load(values + c));
            store(values + c, part.value);
            store(derivatives + c, part.derivative);
        }
    }
}

// Multiplies `rows` of `to` by those of `by`, in place.
static inline void multiply_rows_by(float* to, int64_t stride, const float* by, int64_t by_stride, int rows,
                                    int columns) {
    for (int row = 0; row < rows; ++row, to += stride, by += by_stride) {
        for (int c = 0; c < columns; c += WIDTH) store(to + c, load(to + c) * load(by + c));
    }
}

}  // namespace S3D_VARIANT

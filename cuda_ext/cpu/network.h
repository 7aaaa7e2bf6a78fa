// A small network on some dozens of rows at a time.
#pragma once

#include "elementary.h"
#include "product.h"

namespace S3D_VARIANT {

constexpr int LAYERS = 3;

struct Layer {
    int inputs = 0, outputs = 0, stride = 0, input_stride = 0;
    float* weights = nullptr;  // [inputs, stride]: transposed and padded with zeros
    float* bias = nullptr;     // [stride]
    float* turned = nullptr;   // [outputs, input_stride]: padded with zeros, for the way back
    float* zeros = nullptr;    // [input_stride]

    bool pack(int input_count, int output_count, const float* weight, const float* offset) {
        inputs = input_count;
        outputs = output_count;
        stride = pad_to_pack(outputs);
        input_stride = pad_to_pack(inputs);
        const size_t forward = static_cast<size_t>(inputs) * stride, back = static_cast<size_t>(outputs) * input_stride;
        weights = allocate(forward + stride + back + input_stride);
        if (weights == nullptr) return false;
        bias = weights + forward;
        turned = bias + stride;
        zeros = turned + back;
        for (int o = 0; o < outputs; ++o) {
            for (int i = 0; i < inputs; ++i) {
                weights[i * stride + o] = turned[o * input_stride + i] = weight[static_cast<size_t>(o) * inputs + i];
            }
            bias[o] = offset[o];
        }
        return true;
    }

    // `rows` of `from` -> rows of `to`.
    void apply(const float* from, int from_stride, int rows, float* to, int to_stride, bool activate) const {
        const LeftFactor left = {from, from_stride, 1};
        const RightFactor right = {weights, stride, inputs};
        if (activate) {
            multiply(left, right, rows, outputs, {bias, 0}, {to, to_stride}, [](Pack sum) { return silu(sum); });
        } else {
            multiply(left, right, rows, outputs, {bias, 0}, {to, to_stride}, [](Pack sum) { return sum; });
        }
    }

    // The gradient to the first `columns` inputs from that to the outputs.
    void apply_back(const float* from, int from_stride, int rows, float* to, int to_stride, int columns) const {
        const RightFactor right = {turned, input_stride, outputs};
        multiply({from, from_stride, 1}, right, rows, columns, {zeros, 0}, {to, to_stride}, [](Pack sum) { return sum; });
    }
};

// Gradients to the weights of a layer, as one thread adds them up.
struct LayerGradient {
    float* weights = nullptr;  // [outputs, input_stride]
    float* bias = nullptr;     // [stride]

    // Adds what `rows` of the gradient to the layer's outputs and of its inputs give.
    void add(const Layer& layer, const float* gradient, int stride, int rows, const float* from, int from_stride) {
        multiply({gradient, 1, stride}, {from, from_stride, rows}, layer.outputs, layer.inputs,
                 {weights, layer.input_stride}, {weights, layer.input_stride}, [](Pack sum) { return sum; });
        for (int o = 0; o < layer.outputs; o += WIDTH) {
            Pack sum = load(bias + o);
            for (int row = 0; row < rows; ++row) sum += load(gradient + static_cast<int64_t>(row) * stride + o);
            store(bias + o, sum);
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

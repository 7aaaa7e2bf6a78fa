// A chain of depthwise separable convolutions with the additions and activations around them, in channels-last layout.
// Each layer is computed row by row: the depthwise convolution of a row stays in the first-level cache, where it is
// multiplied by the pointwise filters. Maps between layers have their channels padded to whole packs, and a border of
// zeros, so that no filter tap needs a check.
#include <cmath>

#include "elementary.h"
#include "kernels.h"
#include "product.h"

namespace S3D_VARIANT {
namespace {

constexpr int LANES = 16;  // channels are padded to multiples of this, of which the width of every variant is a divisor
constexpr int BORDER = 2;  // pixels of zeros around a map: the radius of the largest filter
constexpr int MAX_RESIDUAL = 4;
enum Activation { SLOPES, RELU, HARD_SWISH, NONE };
enum Kind { DEPTHWISE, SEPARABLE, DENSE, GATE };

int pad_channels(int count) { return (count + LANES - 1) / LANES * LANES; }

// One layer.
//   DEPTHWISE  middle(depthwise(x)) + residual
//   SEPARABLE  activation(pointwise(middle(depthwise(x))) + residual), without depthwise filters if `kernel` is 1
//   DENSE      activation(convolution(x)); the first layer only
//   GATE       x times sigmoid(expand(relu(squeeze(means of the channels))))
struct Layer {
    int inputs, outputs;  // channels
    int kernel;           // side of the depthwise or dense filters; 1 for none
    int stride;
    int begin;       // rows and columns of padding before the map; of a gate, its number of squeezed channels
    int residual;    // 0: none, n: the input of the layer n - 1 before; halved by max pooling if this one does
    int middle;      // Activation after the depthwise convolution
    int activation;  // Activation of the result
    int kind;
    int height, width, output_height, output_width;
    int depth, columns;  // channels, padded
    const float *depthwise, *depthwise_bias, *filters, *bias, *slopes;

    // Reads a row of the plan; returns the weights of the next layer.
    const float* read(const int32_t* plan, const float* weights, int map_height, int map_width) {
        inputs = plan[0], outputs = plan[1], kernel = plan[2], stride = plan[3], begin = plan[4];
        residual = plan[5], middle = plan[6], activation = plan[7], kind = plan[8];
        height = map_height, width = map_width;
        output_height = (height + stride - 1) / stride, output_width = (width + stride - 1) / stride;
        depth = pad_channels(inputs), columns = pad_channels(outputs);
        const auto take = [&](int64_t count) {
            const float* part = weights;
            weights += count;
            return part;
        };
        if (kind == GATE) {
            depthwise = take(int64_t{inputs} * pad_channels(begin)), depthwise_bias = take(pad_channels(begin));
            filters = take(int64_t{begin} * columns), bias = take(columns);
            return weights;
        }
        if (kind != DENSE && kernel > 1)
            depthwise = take(int64_t{kernel} * kernel * depth), depthwise_bias = take(depth);
        if (kind != DEPTHWISE)
            filters = take(int64_t{count_rows()} * columns), bias = take(columns), slopes = take(columns);
        return weights;
    }

    // Rows of the matrix of filters.
    int count_rows() const { return kind == DENSE ? kernel * kernel * inputs : inputs; }

    // Floats of an image row with its padding, under the dense filters of an output row.
    int image_row() const { return (stride * (output_width - 1) + kernel) * inputs; }

    // Floats of scratch memory that each thread needs.
    size_t count_scratch() const {
        return kind == DENSE ? static_cast<size_t>(kernel) * image_row() : static_cast<size_t>(output_width) * depth;
    }

    // Whether the map is read where it lies: without a border, and with its pixels next to each other.
    bool reads_in_place() const { return kind != DENSE && kernel == 1 && inputs == depth; }

    bool is_valid(bool is_first) const {
        if (kind == GATE) return inputs > 0 && inputs == outputs && begin > 0 && stride == 1 && residual == 0;
        const bool sizes = inputs > 0 && outputs > 0 && height > 0 && width > 0;
        const bool filter = kernel == 1 ? stride == 1 : (kernel == 3 || kernel == 5) && (stride == 1 || stride == 2);
        const bool even = stride == 1 || (height % 2 == 0 && width % 2 == 0);
        return sizes && filter && even && begin >= 0 && begin <= kernel / 2 && residual >= 0 &&
               residual <= MAX_RESIDUAL &&
               (kind == SEPARABLE || (kind == DEPTHWISE && inputs == outputs && kernel > 1) ||
                (kind == DENSE && is_first && residual == 0 && kernel > 1));
    }
};

// A map, with a border of zeros where a filter may reach beyond it.
struct Map {
    float* origin;       // the first pixel inside the border
    int64_t row, pixel;  // floats between rows and pixels

    float* at(int y, int x) const { return origin + y * row + x * pixel; }
};

size_t count_floats(int height, int width, int depth) {
    return static_cast<size_t>(height + 2 * BORDER) * (width + 2 * BORDER) * depth;
}

Map shape_map(float* data, int width, int depth) {
    const int64_t row = int64_t{width + 2 * BORDER} * depth;
    return {data + BORDER * (row + depth), row, depth};
}

void clear_border(Map map, int y, int height, int width) {
    const size_t side = sizeof(float) * BORDER * map.pixel;
    memset(map.at(y, -BORDER), 0, side);
    memset(map.at(y, width), 0, side);
    for (int row = 0; row < BORDER; ++row) {
        if (y == 0) memset(map.at(-1 - row, -BORDER), 0, sizeof(float) * map.row);
        if (y == height - 1) memset(map.at(height + row, -BORDER), 0, sizeof(float) * map.row);
    }
}

// Memory for the maps that each calling thread keeps: the system's zeroing of new pages would cost as much as computing.
// Every value is written before it is read.
struct Workspace {
    float* memory = nullptr;
    size_t floats = 0;

    ~Workspace() { free(memory); }

    float* reserve(size_t count) {
        if (count > floats) {
            free(memory);
            memory = allocate_zeros(count);
            floats = memory == nullptr ? 0 : count;
        }
        return memory;
    }
};

thread_local Workspace workspace;

S3D_HD Pack maximum(Pack a, Pack b) { return a > b ? a : b; }

S3D_HD Pack activate(Pack x, int activation) {
    const Pack zero = {};
    if (activation == RELU) return maximum(x, zero);
    if (activation == HARD_SWISH) return x * clamp(x + 3.0f, 0.0f, 6.0f) * (1.0f / 6.0f);
    return x;
}

template <int K>
void convolve_row(const Layer& layer, Map input, int y, float* row) {
    const int top = y * layer.stride - layer.begin;
    for (int c = 0; c < layer.depth; c += WIDTH) {
        Pack taps[K * K];
        for (int tap = 0; tap < K * K; ++tap) taps[tap] = load(layer.depthwise + tap * layer.depth + c);
        const Pack bias = load(layer.depthwise_bias + c);
        for (int x = 0; x < layer.output_width; ++x) {
            const float* from = input.at(top, x * layer.stride - layer.begin) + c;
            Pack sum = bias;
            for (int v = 0; v < K; ++v) {
                for (int u = 0; u < K; ++u) {
                    sum = multiply_add(load(from + v * input.row + u * input.pixel), taps[v * K + u], sum);
                }
            }
            store(row + x * layer.depth + c, activate(sum, layer.middle));
        }
    }
}

// Adds the residual of one output row to `row`, whose pixels are `columns` apart.
void add_skip(const Layer& layer, Map skip, int y, float* row, int columns) {
    const int shared = skip.pixel < columns ? static_cast<int>(skip.pixel) : columns;
    for (int x = 0; x < layer.output_width; ++x) {
        const float* from = skip.at(y * layer.stride, x * layer.stride);
        for (int c = 0; c < shared; c += WIDTH) {
            Pack value = load(from + c);
            if (layer.stride == 2) {
                const Pack above = maximum(value, load(from + skip.pixel + c));
                const float* below = from + skip.row;
                value = maximum(above, maximum(load(below + c), load(below + skip.pixel + c)));
            }
            store(row + x * columns + c, load(row + x * columns + c) + value);
        }
    }
}

Pack activate_by_slopes(Pack x, const float* slopes) {
    const Pack zero = {};
    return x > zero ? x : x * load(slopes);
}

void activate_row(const Layer& layer, float* row) {
    for (int x = 0; x < layer.output_width; ++x, row += layer.columns) {
        for (int c = 0; c < layer.columns; c += WIDTH) {
            const Pack value = load(row + c);
            store(row + c, layer.activation == SLOPES ? activate_by_slopes(value, layer.slopes + c)
                                                      : activate(value, layer.activation));
        }
    }
}

// Copies the image rows under the filters of an output row; zero beyond the image.
void copy_rows(const Layer& layer, const float* image, int y, float* rows) {
    const int before = layer.begin * layer.inputs, inside = layer.width * layer.inputs, length = layer.image_row();
    const int copied = inside < length - before ? inside : length - before;
    for (int v = 0; v < layer.kernel; ++v, rows += length) {
        const int above = y * layer.stride - layer.begin + v;
        if (above < 0 || above >= layer.height) {
            memset(rows, 0, sizeof(float) * length);
            continue;
        }
        memset(rows, 0, sizeof(float) * before);
        memcpy(rows + before, image + static_cast<int64_t>(above) * inside, sizeof(float) * copied);
        memset(rows + before + copied, 0, sizeof(float) * (length - before - copied));
    }
}

// Computes the factor of each channel of a gate; `factors` has room for three times the padded channels.
void compute_factors(const Layer& layer, Map input, float* factors) {
    const int narrow = pad_channels(layer.begin);
    float *means = factors + layer.depth, *squeezed = means + layer.depth;
    for (int c = 0; c < layer.depth; c += WIDTH) {
        Pack total = {};
        for (int y = 0; y < layer.height; ++y) {
            Pack sum = {};
            for (int x = 0; x < layer.width; ++x) sum += load(input.at(y, x) + c);
            total += sum;
        }
        store(means + c, total * (1.0f / (static_cast<float>(layer.height) * layer.width)));
    }
    const auto keep = [](Pack sum) { return sum; };
    multiply({means, layer.depth, 1}, {layer.depthwise, narrow, layer.inputs}, 1, narrow, {layer.depthwise_bias, 0},
             {squeezed, narrow}, [](Pack sum) { return activate(sum, RELU); });
    multiply({squeezed, narrow, 1}, {layer.filters, layer.columns, layer.begin}, 1, layer.columns, {layer.bias, 0},
             {factors, layer.columns}, keep);
    for (int c = 0; c < layer.inputs; ++c) factors[c] = 1.0f / (1.0f + expf(-factors[c]));
}

void scale_row(const Layer& layer, Map input, Map output, int y, const float* factors) {
    for (int x = 0; x < layer.width; ++x) {
        for (int c = 0; c < layer.depth; c += WIDTH) {
            store(output.at(y, x) + c, load(input.at(y, x) + c) * load(factors + c));
        }
    }
}

// Multiplies a row of pixels by the filters. The dense filters need a product for each of their rows, in which the pixels
// under a filter follow each other.
template <class Epilogue>
void multiply_row(const Layer& layer, const float* left, float* target, Epilogue epilogue) {
    const auto keep = [](Pack sum) { return sum; };
    const int width = layer.output_width, columns = layer.columns;
    if (layer.kind != DENSE) {
        multiply({left, layer.depth, 1}, {layer.filters, columns, layer.inputs}, width, columns, {layer.bias, 0},
                 {target, columns}, epilogue);
        return;
    }
    const int side = layer.kernel * layer.inputs, step = layer.stride * layer.inputs;
    for (int v = 0; v < layer.kernel; ++v, left += layer.image_row()) {
        const LeftMatrix pixels = {left, step, 1};
        const RightMatrix filters = {layer.filters + int64_t{v} * side * columns, columns, side};
        const Addend addend = v == 0 ? Addend{layer.bias, 0} : Addend{target, columns};
        if (v < layer.kernel - 1) {
            multiply(pixels, filters, width, columns, addend, {target, columns}, keep);
        } else {
            multiply(pixels, filters, width, columns, addend, {target, columns}, epilogue);
        }
    }
}

void compute_row(const Layer& layer, const float* image, Map input, Map skip, Map output, int y, float* scratch) {
    const float* left = input.at(y, 0);
    float* target = output.at(y, 0);
    if (layer.kind == DENSE) {
        copy_rows(layer, image, y, scratch);
        left = scratch;
    } else if (layer.kernel > 1) {
        float* row = layer.kind == DEPTHWISE ? target : scratch;
        (layer.kernel == 3 ? convolve_row<3> : convolve_row<5>)(layer, input, y, row);
        left = row;
    }
    if (layer.kind == DEPTHWISE) {
        if (layer.residual) add_skip(layer, skip, y, target, layer.columns);
        return;
    }
    const auto multiply_with = [&](auto epilogue) { multiply_row(layer, left, target, epilogue); };
    const bool adds_alike = layer.residual > 0 && layer.stride == 1 && skip.pixel == layer.columns;
    if (adds_alike && layer.activation == SLOPES) {
        const float* added = skip.at(y, 0);
        multiply_with([&](Pack sum, int x, int c) {
            return activate_by_slopes(sum + load(added + x * skip.pixel + c), layer.slopes + c);
        });
    } else if (layer.residual == 0 && layer.activation == SLOPES) {
        multiply_with([&](Pack sum, int, int c) { return activate_by_slopes(sum, layer.slopes + c); });
    } else if (layer.residual == 0 && layer.activation == RELU) {
        multiply_with([](Pack sum) { return activate(sum, RELU); });
    } else if (layer.residual == 0 && layer.activation == HARD_SWISH) {
        multiply_with([](Pack sum) { return activate(sum, HARD_SWISH); });
    } else {
        multiply_with([](Pack sum) { return sum; });
        if (layer.residual) add_skip(layer, skip, y, target, layer.columns);
        if (layer.activation != NONE) activate_row(layer, target);
    }
}

// Whether the map that layer `i` adds is there and has the size of its input.
bool has_skip(const Layer* layers, int i) {
    if (layers[i].residual == 0) return true;
    if (layers[i].residual > i + 1) return false;
    const Layer& before = layers[i + 1 - layers[i].residual];
    return before.kind != DENSE && before.height == layers[i].height && before.width == layers[i].width;
}

}  // namespace

int separable_forward(const S3dSeparable& chain, int threads) {
    if (chain.batch < 0 || chain.layers < 1 || threads < 1) return S3D_BAD_SIZE;
    Layer* layers = static_cast<Layer*>(calloc(chain.layers, sizeof(Layer)));
    if (layers == nullptr) return S3D_NO_MEMORY;
    size_t floats = 0, row_floats = 0;
    int most_channels = 0, maps = 2;
    const float* weights = chain.weights;
    for (int i = 0, height = chain.height, width = chain.width; i < chain.layers; ++i) {
        Layer& layer = layers[i];
        weights = layer.read(chain.plan + i * S3D_SEPARABLE_FIELDS, weights, height, width);
        const bool follows = i == 0 || layer.inputs == layers[i - 1].outputs;
        if (!layer.is_valid(i == 0) || !follows || !has_skip(layers, i)) {
            free(layers);
            return S3D_BAD_SIZE;
        }
        height = layer.output_height, width = layer.output_width;
        const size_t before = layer.kind == DENSE ? 0 : count_floats(layer.height, layer.width, layer.depth);
        const size_t after = count_floats(height, width, layer.columns);
        const size_t row = layer.count_scratch();
        most_channels = layer.depth > most_channels ? layer.depth : most_channels;
        maps = layer.residual + 1 > maps ? layer.residual + 1 : maps;
        floats = before > floats ? before : floats;
        floats = after > floats ? after : floats;
        row_floats = row > row_floats ? row : row_floats;
    }
    floats = (floats + LANES - 1) / LANES * LANES;
    float* memory = workspace.reserve(maps * floats + 3 * most_channels);
    if (memory == nullptr) {
        free(layers);
        return S3D_NO_MEMORY;
    }
    float* factors = memory + maps * floats;
    int error = S3D_OK;
    const Layer &first = layers[0], &last = layers[chain.layers - 1];
    const bool is_copied = first.kind != DENSE && !first.reads_in_place(), is_padded = last.outputs < last.columns;
#pragma omp parallel num_threads(threads)
    {
        float* scratch = allocate_zeros(row_floats);
        if (scratch == nullptr) {
#pragma omp atomic write
            error = S3D_NO_MEMORY;
        }
        for (int64_t item = 0; item < chain.batch; ++item) {
            const float* image = chain.input + item * first.height * first.width * first.inputs;
            float* result = chain.output + item * last.output_height * last.output_width * last.outputs;
            // The input of layer `index`.
            const auto map_of = [&](int index) -> Map {
                const bool is_end = index == chain.layers;
                const int width = is_end ? last.output_width : layers[index].width;
                const int depth = is_end ? last.columns : layers[index].depth;
                if (index == 0 && first.reads_in_place()) return {const_cast<float*>(image), width * depth, depth};
                if (is_end && !is_padded) return {result, width * depth, depth};
                return shape_map(memory + (index % maps) * floats, width, depth);
            };
            const Map start = map_of(0), end = map_of(chain.layers);
#pragma omp for schedule(static)
            for (int y = 0; y < (is_copied ? first.height : 0); ++y) {
                const float* from = image + static_cast<int64_t>(y) * first.width * first.inputs;
                for (int x = 0; x < first.width; ++x) {
                    float* to = start.at(y, x);
                    memcpy(to, from + x * first.inputs, sizeof(float) * first.inputs);
                    memset(to + first.inputs, 0, sizeof(float) * (first.depth - first.inputs));
                }
                clear_border(start, y, first.height, first.width);
            }
            for (int i = 0; i < chain.layers; ++i) {
                const Layer& layer = layers[i];
                const Map input = map_of(i), output = map_of(i + 1);
                const Map skip = layer.residual > 0 ? map_of(i + 1 - layer.residual) : input;
                if (layer.kind == GATE) {
#pragma omp single
                    compute_factors(layer, input, factors);
                }
#pragma omp for schedule(static)
                for (int y = 0; y < layer.output_height; ++y) {
                    if (scratch == nullptr) continue;
                    if (layer.kind == GATE) {
                        scale_row(layer, input, output, y, factors);
                    } else {
                        compute_row(layer, image, input, skip, output, y, scratch);
                    }
                    if (i < chain.layers - 1) clear_border(output, y, layer.output_height, layer.output_width);
                }
            }
#pragma omp for schedule(static)
            for (int y = 0; y < (is_padded ? last.output_height : 0); ++y) {
                float* to = result + static_cast<int64_t>(y) * last.output_width * last.outputs;
                for (int x = 0; x < last.output_width; ++x) {
                    memcpy(to + x * last.outputs, end.at(y, x), sizeof(float) * last.outputs);
                }
            }
        }
        free(scratch);
    }
    free(layers);
    return error;
}

}  // namespace S3D_VARIANT

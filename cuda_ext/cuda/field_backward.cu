// Backward pass of the fused field. A block takes whole rays, recomputes their samples and keeps inputs, hidden layers
// and outputs of the network in shared memory, where gradients replace them from the last layer to the first. Phases
// alternate between one thread per sample, and one thread per weight, which sums over the samples of the block before
// it adds to the result.
#include "field_sample.h"

namespace S3D_VARIANT {
namespace {

// 96 KiB, which a block can have on every GPU of compute capability 8.0 and later; `field.py` knows the number.
constexpr int MAX_SHARED_FLOATS = 24 * 1024;
constexpr int OUTPUTS_PER_JOB = 8;    // gradients to weights of one input that a thread sums at once
constexpr int COLUMNS_PER_STEP = 16;  // gradients to the inputs of a layer that a thread computes at once
constexpr int PHASES = 10;
constexpr int SAMPLE_ROWS = 7;  // rows of `Rows` besides those of the network

// How a block is divided: whole rays, one column of shared memory for each sample.
struct Division {
    int rays, samples;
    int stride;  // of a row in shared memory; odd, so that neighbors in a column lie in different banks
};

S3D_HD int count_rows(const S3dField& field) {
    return count_inputs(field) + 2 * field.hidden + 4 + field.features + SAMPLE_ROWS;
}

S3D_HD Division divide_block(const S3dField& field) {
    const int fit = MAX_SHARED_FLOATS / count_rows(field) - 1;
    const int rays = (fit < S3D_THREADS ? fit : S3D_THREADS) / field.samples, samples = rays * field.samples;
    return {rays, samples, samples | 1};
}

// Rows of shared memory, each with one value per sample.
struct Rows {
    float* input;      // of the network, later the gradient
    float* hidden[2];  // before the activation, later the gradient
    float* output;     // of the network, later the gradient
    float* projected;  // u, v, depth
    float *length, *weight, *transmittance;
    float* weight_gradient;  // later the gradient to the raw density
};

__device__ Rows find_rows(const S3dField& field, const Division& division, float* shared) {
    Rows rows;
    const int stride = division.stride;
    rows.input = shared;
    rows.hidden[0] = rows.input + count_inputs(field) * stride;
    rows.hidden[1] = rows.hidden[0] + field.hidden * stride;
    rows.output = rows.hidden[1] + field.hidden * stride;
    rows.projected = rows.output + (4 + field.features) * stride;
    rows.length = rows.projected + 3 * stride;
    rows.weight = rows.length + stride;
    rows.transmittance = rows.weight + stride;
    rows.weight_gradient = rows.transmittance + stride;
    return rows;
}

template <class T>
struct Differentiate {
    __device__ static void run_phase(int phase, float* shared, const S3dField& field) {
        const Division division = divide_block(field);
        const Rows rows = find_rows(field, division, shared);
        const int hidden = field.hidden, outputs = 4 + field.features;
        switch (phase) {
            case 0: return evaluate(field, division, rows);
            case 1: return composite_backward(field, division, rows);
            case 2: return outputs_backward(field, division, rows);
            case 3: return add_layer(field, division, 2, rows.output, outputs, rows.hidden[1], hidden, true);
            case 4: return hidden_backward(field, division, 2, rows.output, outputs, rows.hidden[1]);
            case 5: return add_layer(field, division, 1, rows.hidden[1], hidden, rows.hidden[0], hidden, true);
            case 6: return hidden_backward(field, division, 1, rows.hidden[1], hidden, rows.hidden[0]);
            case 7:
                return add_layer(field, division, 0, rows.hidden[0], hidden, rows.input, count_inputs(field), false);
            case 8: return inputs_backward(field, division, rows);
            default: return planes_backward(field, division, rows);
        }
    }

    // Number of the ray of a sample of this block within its item; at least `field.rays` if there is none.
    __device__ static int64_t find_ray(const S3dField& field, const Division& division, int sample) {
        return static_cast<int64_t>(blockIdx.x) * division.rays + sample / field.samples;
    }

    // One thread per sample: the forward pass, and the gradient to the weight of the sample.
    __device__ static void evaluate(const S3dField& field, const Division& division, const Rows& rows) {
        const int n = threadIdx.x, stride = division.stride;
        if (n >= division.samples) return;
        const int64_t number = find_ray(field, division, n), item = blockIdx.y;
        if (number >= field.rays) {
            // Zeros contribute nothing to the sums over the samples.
            for (int r = 0; r < count_rows(field); ++r) rows.input[r * stride + n] = 0.0f;
            return;
        }
        const int64_t ray = item * field.rays + number, sample_index = ray * field.samples + n % field.samples;
        const int inputs = count_inputs(field), outputs = 4 + field.features;
        float from[MAX_WIDTH], to[MAX_WIDTH];
        const ProjectedPoint<float> projected = prepare_input<T>(field, item, sample_index, from);
        for (int i = 0; i < inputs; ++i) rows.input[i * stride + n] = from[i];
        for (int layer = 0; layer < 2; ++layer) {
            apply_layer(field, layer, from, layer == 0 ? inputs : field.hidden, to, field.hidden, false);
            for (int i = 0; i < field.hidden; ++i) {
                rows.hidden[layer][i * stride + n] = to[i];
                from[i] = silu(to[i]);
            }
        }
        apply_layer(field, 2, from, field.hidden, to, outputs, false);
        const float* gradient = field.output_gradient + ray * (5 + field.features);
        float sum = field.alpha_gradient[ray];
        for (int c = 0; c < outputs; ++c) {
            rows.output[c * stride + n] = to[c];
            if (c > 0) sum += (c < 4 ? sigmoid(to[c]) : to[c]) * gradient[c - 1];
        }
        sum += projected.u * gradient[3 + field.features] + projected.v * gradient[4 + field.features];
        rows.projected[n] = projected.u;
        rows.projected[stride + n] = projected.v;
        rows.projected[2 * stride + n] = projected.depth;
        rows.length[n] = field.deltas[sample_index];
        rows.weight_gradient[n] = sum;
    }

    // One thread per ray: front to back for the weights, then back to front for the gradients to the raw density.
    __device__ static void composite_backward(const S3dField& field, const Division& division, const Rows& rows) {
        const int first = threadIdx.x * field.samples;
        if (threadIdx.x >= static_cast<unsigned>(division.rays)) return;
        if (find_ray(field, division, first) >= field.rays) return;
        const float max_depth = max_visible_depth(field.early_stop_eps);
        float depth = 0.0f, behind = 0.0f;
        for (int n = first; n < first + field.samples; ++n) {
            const float optical_depth = to_density(rows.output[n]) * rows.length[n];
            const bool ended = depth > max_depth;
            rows.weight[n] = ended ? 0.0f : sample_weight(optical_depth, depth);
            depth += optical_depth;
            rows.transmittance[n] = ended ? 0.0f : exponential(-depth);
        }
        for (int n = first + field.samples - 1; n >= first; --n) {
            const float gradient = rows.weight_gradient[n];
            const float to_depth = depth_derivative(gradient, rows.transmittance[n], behind);
            behind += gradient * rows.weight[n];
            rows.weight_gradient[n] = to_depth * rows.length[n] * density_derivative(rows.output[n]);
        }
    }

    // One thread per sample: replaces the outputs of the network by their gradient.
    __device__ static void outputs_backward(const S3dField& field, const Division& division, const Rows& rows) {
        const int n = threadIdx.x, stride = division.stride;
        if (n >= division.samples) return;
        const int64_t number = find_ray(field, division, n);
        if (number >= field.rays) return;
        const float* gradient = field.output_gradient + (blockIdx.y * field.rays + number) * (5 + field.features);
        rows.output[n] = rows.weight_gradient[n];
        for (int c = 1; c < 4 + field.features; ++c) {
            float* output = rows.output + c * stride + n;
            const float derivative = c < 4 ? sigmoid_derivative(sigmoid(*output)) : 1.0f;
            *output = rows.weight[n] * gradient[c - 1] * derivative;
        }
    }

    // One thread per input and `OUTPUTS_PER_JOB` outputs of a layer: adds the gradient to weights and biases.
    __device__ static void add_layer(const S3dField& field, const Division& division, int layer, const float* gradient,
                                     int outputs, const float* from, int inputs, bool activate) {
        const int groups = (outputs + OUTPUTS_PER_JOB - 1) / OUTPUTS_PER_JOB, stride = division.stride;
        for (int job = threadIdx.x; job < inputs * groups; job += S3D_THREADS) {
            const int i = job % inputs, first = job / inputs * OUTPUTS_PER_JOB;
            const int rest = outputs - first, count = rest < OUTPUTS_PER_JOB ? rest : OUTPUTS_PER_JOB;
            float sum[OUTPUTS_PER_JOB] = {};
            for (int n = 0; n < division.samples; ++n) {
                const float value = from[i * stride + n], x = activate ? silu(value) : value;
                for (int k = 0; k < OUTPUTS_PER_JOB; ++k) {
                    // The last group reads its last row again instead of rows that do not exist.
                    sum[k] += gradient[(first + (k < count ? k : count - 1)) * stride + n] * x;
                }
            }
            for (int k = 0; k < count; ++k) {
                atomicAdd(field.weights_gradient[layer] + static_cast<int64_t>(first + k) * inputs + i, sum[k]);
            }
        }
        for (int o = threadIdx.x; o < outputs; o += S3D_THREADS) {
            float sum = 0.0f;
            for (int n = 0; n < division.samples; ++n) sum += gradient[o * stride + n];
            atomicAdd(field.biases_gradient[layer] + o, sum);
        }
    }

    // Computes the gradients to inputs `first` and following of a layer.
    __device__ static void apply_columns(const float* weight, const float* gradient, int outputs, int inputs, int first,
                                         float (&sum)[COLUMNS_PER_STEP]) {
        const int rest = inputs - first, count = rest < COLUMNS_PER_STEP ? rest : COLUMNS_PER_STEP;
        for (int k = 0; k < COLUMNS_PER_STEP; ++k) sum[k] = 0.0f;
        for (int o = 0; o < outputs; ++o) {
            const float* row = weight + static_cast<int64_t>(o) * inputs + first;
            for (int k = 0; k < COLUMNS_PER_STEP; ++k) sum[k] += row[k < count ? k : count - 1] * gradient[o];
        }
    }

    // One thread per sample: replaces a hidden layer by the gradient to it.
    __device__ static void hidden_backward(const S3dField& field, const Division& division, int layer,
                                           const float* gradient, int outputs, float* hidden) {
        const int n = threadIdx.x, stride = division.stride;
        if (n >= division.samples) return;
        float column[MAX_WIDTH], sum[COLUMNS_PER_STEP];
        for (int o = 0; o < outputs; ++o) column[o] = gradient[o * stride + n];
        for (int first = 0; first < field.hidden; first += COLUMNS_PER_STEP) {
            apply_columns(field.weights[layer], column, outputs, field.hidden, first, sum);
            for (int k = 0; k < COLUMNS_PER_STEP && first + k < field.hidden; ++k) {
                float* value = hidden + (first + k) * stride + n;
                *value = sum[k] * silu_with_derivative(*value).derivative;
            }
        }
    }

    // One thread per sample: replaces the inputs of the network by their gradient and adds the part of the lattice.
    __device__ static void inputs_backward(const S3dField& field, const Division& division, const Rows& rows) {
        const int n = threadIdx.x, stride = division.stride;
        if (n >= division.samples) return;
        const int64_t number = find_ray(field, division, n), item = blockIdx.y;
        if (number >= field.rays) return;
        const int columns = field.scales * field.plane_channels, learned = columns + field.ambient + 3;
        float column[MAX_WIDTH], sum[COLUMNS_PER_STEP];
        for (int o = 0; o < field.hidden; ++o) column[o] = rows.hidden[0][o * stride + n];
        for (int first = 0; first < learned; first += COLUMNS_PER_STEP) {
            apply_columns(field.weights[0], column, field.hidden, count_inputs(field), first, sum);
            for (int k = 0; k < COLUMNS_PER_STEP && first + k < learned; ++k) {
                rows.input[(first + k) * stride + n] = sum[k];
            }
        }
        const int64_t ray = item * field.rays + number, sample_index = ray * field.samples + n % field.samples;
        const float* flow = field.output_gradient + ray * (5 + field.features) + 3 + field.features;
        float slope[3] = {rows.weight[n] * flow[0], rows.weight[n] * flow[1], 0.0f};
        add_projection_gradient(field, division, rows, n, item, slope);
        const ProjectedPoint<float> projected = {slope[0], slope[1], slope[2]};
        float value[MAX_CHANNELS];
        for (int d = 0; d < 3; ++d) {
            value[d] = OFFSET_GAIN * rows.input[(columns + field.ambient + d) * stride + n] +
                       projection_backward(projected, field.rotation + item * 9, field.scale[item], d);
        }
        for (int c = 0; c < field.ambient; ++c) value[3 + c] = rows.input[(columns + c) * stride + n];
        const LatticeCell cell = find_cell(field, item, field.positions + sample_index * 3);
        for (int corner = 0; corner < 8; ++corner) {
            float* to = field.lattice_gradient + find_corner(cell, corner);
            const float weight = corner_weight(corner, cell.weight);
            for (int c = 0; c < 3 + field.ambient; ++c) atomicAdd(to + c, weight * value[c]);
        }
    }

    // Adds the gradient to the position in the source, u, v and depth, that comes from the planes' features.
    __device__ static void add_projection_gradient(const S3dField& field, const Division& division, const Rows& rows,
                                                   int n, int64_t item, float (&slope)[3]) {
        const int stride = division.stride, channels = field.plane_channels;
        const float position[3] = {rows.projected[n], rows.projected[stride + n], rows.projected[2 * stride + n]};
        for (int s = 0; s < field.scales; ++s) {
            const T* planes = static_cast<const T*>(field.planes[s]) + item * field.plane_batch_stride[s];
            const int64_t row_stride = static_cast<int64_t>(field.plane_width[s]) * channels;
            for (int p = 0; p < 3; ++p) {
                const PlaneCorners corners =
                    locate_corners(position, p, field.plane_height[s], field.plane_width[s], row_stride, channels);
                const T* plane = planes + p * row_stride * field.plane_height[s];
                float columns = 0.0f, along_rows = 0.0f;
                for (int c = 0; c < channels; ++c) {
                    float value[4];
                    for (int corner = 0; corner < 4; ++corner) value[corner] = read(plane + corners.offset[corner] + c);
                    const PlaneDerivative<float> derivative = bilinear_derivative(
                        value[0], value[1], value[2], value[3], corners.column.weight, corners.row.weight);
                    const float gradient = rows.input[(s * channels + c) * stride + n];
                    columns += gradient * derivative.column;
                    along_rows += gradient * derivative.row;
                }
                slope[column_axis(p)] += PLANE_WEIGHT * columns * corners.column.slope;
                slope[row_axis(p)] += PLANE_WEIGHT * along_rows * corners.row.slope;
            }
        }
    }

    // One thread per sample and channel of the planes: adjacent threads add to adjacent channels of a pixel.
    __device__ static void planes_backward(const S3dField& field, const Division& division, const Rows& rows) {
        const int stride = division.stride, channels = field.plane_channels, columns = field.scales * channels;
        for (int job = threadIdx.x; job < division.samples * columns; job += S3D_THREADS) {
            const int n = job / columns, s = job % columns / channels, c = job % channels;
            if (find_ray(field, division, n) >= field.rays) continue;
            const float position[3] = {rows.projected[n], rows.projected[stride + n], rows.projected[2 * stride + n]};
            const float gradient = rows.input[(s * channels + c) * stride + n];
            const int64_t row_stride = static_cast<int64_t>(field.plane_width[s]) * channels,
                          plane_stride = row_stride * field.plane_height[s],
                          own = field.plane_batch_stride[s] == 0 ? 0 : blockIdx.y;
            for (int p = 0; p < 3; ++p) {
                const PlaneCorners corners =
                    locate_corners(position, p, field.plane_height[s], field.plane_width[s], row_stride, channels);
                float* plane = field.planes_gradient[s] + (own * 3 + p) * plane_stride + c;
                for (int corner = 0; corner < 4; ++corner) {
                    atomicAdd(plane + corners.offset[corner], corners.weight[corner] * gradient);
                }
            }
        }
    }
};

}  // namespace
}  // namespace S3D_VARIANT

int s3d_cuda_field_backward(const S3dField* field, void* stream) {
    using namespace S3D_VARIANT;
    if (int error = check_field(*field)) return error;
    if (field->rays == 0 || field->batch == 0) return S3D_OK;
    const Division division = divide_block(*field);
    if (division.rays < 1) return S3D_BAD_SIZE;
    const dim3 blocks(count_blocks(field->rays, division.rays), static_cast<unsigned>(field->batch));
    if (blocks.x == 0) return S3D_BAD_SIZE;
    const size_t shared = static_cast<size_t>(count_rows(*field)) * division.stride;
    const bool full = field->storage == S3D_FLOAT32;
    const auto run =
        full ? launch_phases<Differentiate<float>, S3dField> : launch_phases<Differentiate<BFloat16>, S3dField>;
    return run(blocks, PHASES, shared, static_cast<cudaStream_t>(stream), *field);
}

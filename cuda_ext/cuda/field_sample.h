// One sample of the fused field: the steps from its position to the inputs of the network, and the layers. Forward and
// backward pass share them.
#pragma once

#include "field.h"

#include <cstdint>

#include "compositing.h"
#include "launch.h"
#include "plane_corners.h"
#include "triplane.h"

namespace S3D_VARIANT {

constexpr int MAX_WIDTH = 256;       // of inputs and hidden layers
constexpr int MAX_OUTPUTS = 128;     // of the network
constexpr int MAX_CHANNELS = 64;     // of the lattice
constexpr int ROWS_PER_THREAD = 16;  // outputs of a layer that a thread computes at once

// One sample of a ray.
struct Sample {
    float position[3], warped[3];
};

// The lattice cell around a sample.
struct LatticeCell {
    int64_t first, across[3];  // index of its lowest corner in the lattice, and distances to the next ones
    float weight[3];           // of the upper point along each axis
};

__device__ static LatticeCell find_cell(const S3dField& field, int64_t item, const float* position) {
    const int64_t channels = 3 + field.ambient, row = channels * field.lattice_size[0],
                  layer = row * field.lattice_size[1];
    LatticeCell cell = {item * layer * field.lattice_size[2], {channels, row, layer}, {}};
    for (int d = 0; d < 3; ++d) {
        const LatticeAxis<float> axis = locate_in_lattice(position[d], field.lattice_center[d], field.lattice_focus[d],
                                                          field.lattice_extent[d], field.lattice_size[d]);
        cell.weight[d] = axis.weight;
        cell.first += axis.low * cell.across[d];
    }
    return cell;
}

// Index of a corner of the cell in the lattice; bit d of `corner` selects the upper point along axis d.
__device__ static int64_t find_corner(const LatticeCell& cell, int corner) {
    int64_t index = cell.first;
    for (int d = 0; d < 3; ++d) index += (corner >> d & 1) * cell.across[d];
    return index;
}

__device__ static void deform(const S3dField& field, int64_t item, Sample& sample, float* ambient_and_offset) {
    const int channels = 3 + field.ambient;
    const LatticeCell cell = find_cell(field, item, sample.position);
    float value[MAX_CHANNELS] = {};
    for (int corner = 0; corner < 8; ++corner) {
        const float* from = field.lattice + find_corner(cell, corner);
        const float weight = corner_weight(corner, cell.weight);
        for (int c = 0; c < channels; ++c) value[c] += weight * from[c];
    }
    for (int c = 0; c < field.ambient; ++c) ambient_and_offset[c] = value[3 + c];
    for (int d = 0; d < 3; ++d) {
        ambient_and_offset[field.ambient + d] = OFFSET_GAIN * value[d];
        sample.warped[d] = sample.position[d] + value[d];
    }
}

// `N` values that are read in one access.
template <int N, class T>
struct alignas(N * sizeof(T)) Group {
    T part[N];
};

// Samples all channels at one position, `N` at a time; the planes lie `plane_stride` apart.
template <int N, class T>
__device__ static void read_channels(const T* planes, int64_t plane_stride, const PlaneCorners (&corners)[3],
                                     int channels, float* input) {
    for (int c = 0; c < channels; c += N) {
        float sum[N] = {};
        for (int p = 0; p < 3; ++p) {
            for (int corner = 0; corner < 4; ++corner) {
                const T* address = planes + p * plane_stride + corners[p].offset[corner] + c;
                const auto group = *reinterpret_cast<const Group<N, T>*>(address);
                for (int n = 0; n < N; ++n) sum[n] += corners[p].weight[corner] * read(group.part + n);
            }
        }
        for (int n = 0; n < N; ++n) input[c + n] = sum[n];
    }
}

template <int N, class T>
__device__ static bool is_aligned(const T* pointer) {
    return reinterpret_cast<uintptr_t>(pointer) % (N * sizeof(T)) == 0;
}

template <class T>
__device__ static void read_appearance(const S3dField& field, int64_t item, const ProjectedPoint<float>& projected,
                                       float* input) {
    const float position[3] = {projected.u, projected.v, projected.depth};
    const int channels = field.plane_channels;
    for (int s = 0; s < field.scales; ++s) {
        const T* planes = static_cast<const T*>(field.planes[s]) + item * field.plane_batch_stride[s];
        const int32_t height = field.plane_height[s], width = field.plane_width[s];
        const int64_t row_stride = static_cast<int64_t>(width) * channels, plane_stride = row_stride * height;
        PlaneCorners corners[3];
        for (int p = 0; p < 3; ++p) corners[p] = locate_corners(position, p, height, width, row_stride, channels);
        if (channels % 4 == 0 && is_aligned<4>(planes)) {
            read_channels<4>(planes, plane_stride, corners, channels, input + s * channels);
        } else {
            read_channels<1>(planes, plane_stride, corners, channels, input + s * channels);
        }
    }
}

__device__ static void encode_position(const S3dField& field, const Sample& sample, float* input) {
    for (int d = 0; d < 3; ++d) {
        input[d] = sample.position[d];
        SineCosine<float> angle = sine_cosine_pi(sample.position[d]);
        for (int octave = 0; octave < field.frequencies; ++octave) {
            input[3 + 6 * octave + d] = angle.sine;
            input[6 + 6 * octave + d] = angle.cosine;
            angle = double_angle(angle);
        }
    }
}

// Computes `N` outputs of a layer: each input is read once for all of them, weights in groups of V.
template <int N, int V>
__device__ static void apply_rows(const float* weight, const float* bias, const float* from, int inputs, float* to,
                                  bool activate) {
    float sum[N];
    for (int n = 0; n < N; ++n) sum[n] = bias[n];
    for (int i = 0; i < inputs; i += V) {
        float x[V];
        for (int v = 0; v < V; ++v) x[v] = from[i + v];
#pragma unroll
        for (int n = 0; n < N; ++n) {
            const auto row = *reinterpret_cast<const Group<V, float>*>(weight + n * inputs + i);
#pragma unroll
            for (int v = 0; v < V; ++v) sum[n] += row.part[v] * x[v];
        }
    }
    for (int n = 0; n < N; ++n) to[n] = activate ? silu(sum[n]) : sum[n];
}

template <int V>
__device__ static void apply_all_rows(const float* weight, const float* bias, const float* from, int inputs, float* to,
                                      int outputs, bool activate) {
    int o = 0;
    for (; o + ROWS_PER_THREAD <= outputs; o += ROWS_PER_THREAD) {
        apply_rows<ROWS_PER_THREAD, V>(weight + o * inputs, bias + o, from, inputs, to + o, activate);
    }
    for (; o + 4 <= outputs; o += 4) apply_rows<4, V>(weight + o * inputs, bias + o, from, inputs, to + o, activate);
    for (; o < outputs; ++o) apply_rows<1, V>(weight + o * inputs, bias + o, from, inputs, to + o, activate);
}

__device__ static void apply_layer(const S3dField& field, int layer, const float* from, int inputs, float* to,
                                   int outputs, bool activate) {
    const float *weight = field.weights[layer], *bias = field.biases[layer];
    if (inputs % 4 == 0 && is_aligned<4>(weight)) {
        apply_all_rows<4>(weight, bias, from, inputs, to, outputs, activate);
    } else {
        apply_all_rows<1>(weight, bias, from, inputs, to, outputs, activate);
    }
}

// Fills in the inputs of the network and returns the position in the source.
template <class T>
__device__ static ProjectedPoint<float> prepare_input(const S3dField& field, int64_t item, int64_t sample_index,
                                                      float* input) {
    const int columns = field.scales * field.plane_channels;
    Sample sample;
    for (int d = 0; d < 3; ++d) sample.position[d] = field.positions[sample_index * 3 + d];
    deform(field, item, sample, input + columns);
    encode_position(field, sample, input + columns + field.ambient + 3);
    const ProjectedPoint<float> projected =
        project(sample.warped[0], sample.warped[1], sample.warped[2], field.rotation + item * 9, field.scale[item],
                field.center + item * 2);
    read_appearance<T>(field, item, projected, input);
    return projected;
}

static int check_field(const S3dField& field) {
    if (field.batch < 0 || field.batch > 65535 || field.rays < 0 || field.samples < 1) return S3D_BAD_SIZE;
    if (field.scales < 1 || field.scales > S3D_MAX_SCALES || field.plane_channels < 1) return S3D_BAD_SIZE;
    if (field.ambient < 0 || 3 + field.ambient > MAX_CHANNELS) return S3D_BAD_SIZE;
    if (field.hidden < 1 || field.hidden > MAX_WIDTH || count_inputs(field) > MAX_WIDTH) return S3D_BAD_SIZE;
    if (field.features < 0 || 4 + field.features > MAX_OUTPUTS || field.frequencies < 0) return S3D_BAD_SIZE;
    for (int d = 0; d < 3; ++d) {
        if (field.lattice_size[d] < 2) return S3D_BAD_SIZE;
    }
    for (int s = 0; s < field.scales; ++s) {
        if (field.plane_height[s] < 1 || field.plane_width[s] < 1) return S3D_BAD_SIZE;
    }
    return field.storage == S3D_FLOAT32 || field.storage == S3D_BFLOAT16 ? S3D_OK : S3D_BAD_STORAGE;
}

}  // namespace S3D_VARIANT

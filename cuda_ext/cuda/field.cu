// The fused field. Phases alternate: first each thread evaluates a sample and leaves its values in shared memory, then
// each thread accumulates one channel of a ray over these samples.
#include "field.h"

#include <cstdint>

#include "compositing.h"
#include "launch.h"
#include "plane_corners.h"
#include "triplane.h"

namespace S3D_VARIANT {
namespace {

constexpr int MAX_WIDTH = 256;           // of inputs and hidden layers
constexpr int MAX_OUTPUTS = 128;         // of the network
constexpr int MAX_CHANNELS = 64;         // of the lattice
constexpr int MAX_SAMPLES_PER_PASS = 8;  // samples of a ray in shared memory at once
constexpr int ROWS_PER_THREAD = 16;      // outputs of a layer that a thread computes at once

// One sample of a ray.
struct Sample {
    float position[3], warped[3];
};

__device__ void deform(const S3dField& field, int64_t item, Sample& sample, float* ambient_and_offset) {
    const int channels = 3 + field.ambient;
    const int64_t across[3] = {channels, static_cast<int64_t>(channels) * field.lattice_size[0],
                               static_cast<int64_t>(channels) * field.lattice_size[0] * field.lattice_size[1]};
    const float* corner = field.lattice + item * across[2] * field.lattice_size[2];
    float weight[3], value[MAX_CHANNELS] = {};
    for (int d = 0; d < 3; ++d) {
        const LatticeAxis<float> axis =
            locate_in_lattice(sample.position[d], field.lattice_center[d], field.lattice_focus[d],
                              field.lattice_extent[d], field.lattice_size[d]);
        weight[d] = axis.weight;
        corner += axis.low * across[d];
    }
    for (int bits = 0; bits < 8; ++bits) {
        const float* from = corner;
        for (int d = 0; d < 3; ++d) from += (bits >> d & 1) * across[d];
        const float weight_of_corner = corner_weight(bits, weight);
        for (int c = 0; c < channels; ++c) value[c] += weight_of_corner * from[c];
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
__device__ void read_channels(const T* planes, int64_t plane_stride, const PlaneCorners (&corners)[3], int channels,
                              float* input) {
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
__device__ bool is_aligned(const T* pointer) {
    return reinterpret_cast<uintptr_t>(pointer) % (N * sizeof(T)) == 0;
}

template <class T>
__device__ void read_appearance(const S3dField& field, int64_t item, const ProjectedPoint<float>& projected,
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

__device__ void encode_position(const S3dField& field, const Sample& sample, float* input) {
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
__device__ void apply_rows(const float* weight, const float* bias, const float* from, int inputs, float* to,
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
__device__ void apply_all_rows(const float* weight, const float* bias, const float* from, int inputs, float* to,
                               int outputs, bool activate) {
    int o = 0;
    for (; o + ROWS_PER_THREAD <= outputs; o += ROWS_PER_THREAD) {
        apply_rows<ROWS_PER_THREAD, V>(weight + o * inputs, bias + o, from, inputs, to + o, activate);
    }
    for (; o + 4 <= outputs; o += 4) apply_rows<4, V>(weight + o * inputs, bias + o, from, inputs, to + o, activate);
    for (; o < outputs; ++o) apply_rows<1, V>(weight + o * inputs, bias + o, from, inputs, to + o, activate);
}

__device__ void apply_layer(const S3dField& field, int layer, const float* from, int inputs, float* to, int outputs) {
    const float *weight = field.weights[layer], *bias = field.biases[layer];
    const bool activate = layer < 2;
    if (inputs % 4 == 0 && is_aligned<4>(weight)) {
        apply_all_rows<4>(weight, bias, from, inputs, to, outputs, activate);
    } else {
        apply_all_rows<1>(weight, bias, from, inputs, to, outputs, activate);
    }
}

// How the rays are partitioned among the threads of a block.
struct RayPartition {
    int samples_per_pass, rays, channels;
};

S3D_HD RayPartition partition_rays(const S3dField& field) {
    const int samples_per_pass = field.samples < MAX_SAMPLES_PER_PASS ? field.samples : MAX_SAMPLES_PER_PASS;
    return {samples_per_pass, S3D_THREADS / samples_per_pass, 5 + field.features};
}

// Shared memory holds the optical depth and the values of each thread's sample, channel by channel, then the optical
// depth of the block's rays before and after these samples (double-buffered).
size_t count_shared_floats(const RayPartition& partition) {
    return static_cast<size_t>(S3D_THREADS) * (1 + partition.channels + 2);
}

__device__ float* find_depths(const RayPartition& partition, float* shared, int pass) {
    return shared + S3D_THREADS * (1 + partition.channels + pass % 2);
}

template <class T>
struct March {
    __device__ static void run_phase(int phase, float* shared, const S3dField& field) {
        const RayPartition partition = partition_rays(field);
        if (phase % 2 == 0) {
            evaluate(phase / 2, partition, shared, field);
        } else {
            accumulate(phase / 2, partition, shared, field);
        }
    }

    // One thread per sample.
    __device__ static void evaluate(int pass, const RayPartition& partition, float* shared, const S3dField& field) {
        const int local_ray = threadIdx.x / partition.samples_per_pass,
                  s = pass * partition.samples_per_pass + threadIdx.x % partition.samples_per_pass;
        const int64_t number = static_cast<int64_t>(blockIdx.x) * partition.rays + local_ray, item = blockIdx.y;
        if (local_ray >= partition.rays || number >= field.rays || s >= field.samples) return;
        if (pass > 0 && find_depths(partition, shared, pass)[local_ray] > max_visible_depth(field.early_stop_eps))
            return;
        const int64_t sample_index = (item * field.rays + number) * field.samples + s;
        const int columns = field.scales * field.plane_channels;
        float input[MAX_WIDTH], hidden[MAX_WIDTH];
        Sample sample;
        for (int d = 0; d < 3; ++d) sample.position[d] = field.positions[sample_index * 3 + d];
        deform(field, item, sample, input + columns);
        encode_position(field, sample, input + columns + field.ambient + 3);
        const ProjectedPoint<float> projected =
            project(sample.warped[0], sample.warped[1], sample.warped[2], field.rotation + item * 9, field.scale[item],
                    field.center + item * 2);
        read_appearance<T>(field, item, projected, input);
        apply_layer(field, 0, input, count_inputs(field), hidden, field.hidden);
        apply_layer(field, 1, hidden, field.hidden, input, field.hidden);
        apply_layer(field, 2, input, field.hidden, hidden, 4 + field.features);
        float* staged = shared + threadIdx.x;
        staged[0] = to_density(hidden[0]) * field.deltas[sample_index];
        for (int c = 1; c < 4; ++c) staged[c * S3D_THREADS] = sigmoid(hidden[c]);
        for (int c = 4; c < 4 + field.features; ++c) staged[c * S3D_THREADS] = hidden[c];
        staged[(4 + field.features) * S3D_THREADS] = projected.u;
        staged[(5 + field.features) * S3D_THREADS] = projected.v;
    }

    // One thread per ray and channel; alpha is the last channel.
    __device__ static void accumulate(int pass, const RayPartition& partition, float* shared, const S3dField& field) {
        const float max_depth = max_visible_depth(field.early_stop_eps);
        const int rest = field.samples - pass * partition.samples_per_pass,
                  count = rest < partition.samples_per_pass ? rest : partition.samples_per_pass;
        for (int job = threadIdx.x; job < partition.rays * (partition.channels + 1); job += S3D_THREADS) {
            const int local_ray = job % partition.rays, c = job / partition.rays;
            const int64_t number = static_cast<int64_t>(blockIdx.x) * partition.rays + local_ray;
            if (number >= field.rays) continue;
            const int64_t ray = blockIdx.y * field.rays + number;
            float* total = c < partition.channels ? field.output + ray * partition.channels + c : field.alpha + ray;
            float depth = pass > 0 ? find_depths(partition, shared, pass)[local_ray] : 0.0f,
                  sum = pass > 0 ? *total : 0.0f;
            const float* staged = shared + local_ray * partition.samples_per_pass;
            for (int k = 0; k < count && !(depth > max_depth); ++k) {
                const float weight = sample_weight(staged[k], depth);
                sum += c < partition.channels ? weight * staged[(c + 1) * S3D_THREADS + k] : weight;
                depth += staged[k];
            }
            *total = sum;
            if (c == partition.channels) find_depths(partition, shared, pass + 1)[local_ray] = depth;
        }
    }
};

int check(const S3dField& field) {
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

}  // namespace
}  // namespace S3D_VARIANT

int s3d_cuda_field_forward(const S3dField* field, void* stream) {
    using namespace S3D_VARIANT;
    if (int error = check(*field)) return error;
    if (field->rays == 0 || field->batch == 0) return S3D_OK;
    const RayPartition partition = partition_rays(*field);
    const int phases = 2 * ((field->samples + partition.samples_per_pass - 1) / partition.samples_per_pass);
    const dim3 blocks(count_blocks(field->rays, partition.rays), static_cast<unsigned>(field->batch));
    if (blocks.x == 0) return S3D_BAD_SIZE;
    const bool full = field->storage == S3D_FLOAT32;
    const auto run = full ? launch_phases<March<float>, S3dField> : launch_phases<March<BFloat16>, S3dField>;
    return run(blocks, phases, count_shared_floats(partition), static_cast<cudaStream_t>(stream), *field);
}

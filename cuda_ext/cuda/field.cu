// The fused path, one thread a ray: a sample's features, layers and values stay in the thread.
#include "field.h"

#include "compositing.h"
#include "launch.h"
#include "triplane.h"

namespace S3D_VARIANT {
namespace {

constexpr int MAX_WIDTH = 256;     // of inputs and hidden layers
constexpr int MAX_RESULTS = 128;   // of the network
constexpr int MAX_CHANNELS = 64;   // of the lattice
constexpr float THIRD = 1.0f / 3.0f;

// One sample of a ray.
struct Sample {
    float position[3], warped[3];
    SeenPoint<float> seen;
    int inputs;  // written so far
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
        const float share = share_of_corner(bits, weight);
        for (int c = 0; c < channels; ++c) value[c] += share * from[c];
    }
    for (int c = 0; c < field.ambient; ++c) ambient_and_offset[c] = value[3 + c];
    for (int d = 0; d < 3; ++d) {
        ambient_and_offset[field.ambient + d] = OFFSET_GAIN * value[d];
        sample.warped[d] = sample.position[d] + value[d];
    }
}

template <class T>
__device__ void read_appearance(const S3dField& field, int64_t item, const Sample& sample, float* input) {
    const float place[3] = {sample.seen.u, sample.seen.v, sample.seen.depth};
    for (int s = 0; s < field.scales; ++s) {
        const int64_t row_stride = static_cast<int64_t>(field.plane_width[s]) * field.plane_channels;
        const T* planes = static_cast<const T*>(field.planes[s]) + item * field.plane_batch_stride[s];
        for (int c = 0; c < field.plane_channels; ++c) input[s * field.plane_channels + c] = 0.0f;
        for (int p = 0; p < 3; ++p) {
            const PlaneAxis<float> column = locate_on_plane(place[column_axis(p)], field.plane_width[s]);
            const PlaneAxis<float> row = locate_on_plane(place[row_axis(p)], field.plane_height[s]);
            float share[4];
            share_corners(column.weight, row.weight, THIRD, share);
            for (int corner = 0; corner < 4; ++corner) {
                const int64_t x = corner & 1 ? column.high : column.low, y = corner & 2 ? row.high : row.low;
                const T* pixel = planes + p * row_stride * field.plane_height[s] + y * row_stride + x * field.plane_channels;
                for (int c = 0; c < field.plane_channels; ++c) {
                    input[s * field.plane_channels + c] += share[corner] * read(pixel + c);
                }
            }
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

__device__ void apply_layer(const float* weight, const float* bias, const float* from, int inputs, float* to, int outputs,
                            bool activate) {
    for (int o = 0; o < outputs; ++o) {
        float sum = bias[o];
        for (int i = 0; i < inputs; ++i) sum += weight[o * inputs + i] * from[i];
        to[o] = activate ? silu(sum) : sum;
    }
}

template <class T>
__global__ void march_rays(S3dField field) {
    if (find_thread() >= field.rays) return;
    const int64_t item = blockIdx.y, ray = item * field.rays + find_thread();
    const int channels = 5 + field.features, inputs = count_inputs(field);
    const int columns = field.scales * field.plane_channels;
    const float last_seen = last_seen_depth(field.stop);
    float input[MAX_WIDTH], hidden[MAX_WIDTH], result[MAX_RESULTS], seen[MAX_RESULTS + 1] = {};
    float depth = 0.0f, alpha = 0.0f;
    for (int s = 0; s < field.samples && !(depth > last_seen); ++s) {
        Sample sample;
        for (int d = 0; d < 3; ++d) sample.position[d] = field.positions[(ray * field.samples + s) * 3 + d];
        deform(field, item, sample, input + columns);
        encode_position(field, sample, input + columns + field.ambient + 3);
        sample.seen = project(sample.warped[0], sample.warped[1], sample.warped[2], field.rotation + item * 9,
                              field.scale[item], field.center + item * 2);
        read_appearance<T>(field, item, sample, input);
        apply_layer(field.weights[0], field.biases[0], input, inputs, hidden, field.hidden, true);
        apply_layer(field.weights[1], field.biases[1], hidden, field.hidden, input, field.hidden, true);
        apply_layer(field.weights[2], field.biases[2], input, field.hidden, result, 4 + field.features, false);
        const float optical = to_density(result[0]) * field.lengths[ray * field.samples + s];
        const float weight = weigh_sample(optical, depth);
        for (int c = 0; c < 3; ++c) seen[c] += weight * sigmoid(result[1 + c]);
        for (int c = 3; c < 3 + field.features; ++c) seen[c] += weight * result[1 + c];
        seen[3 + field.features] += weight * sample.seen.u;
        seen[4 + field.features] += weight * sample.seen.v;
        alpha += weight;
        depth += optical;
    }
    for (int c = 0; c < channels; ++c) field.output[ray * channels + c] = seen[c];
    field.alpha[ray] = alpha;
}

int check(const S3dField& field) {
    if (field.batch < 0 || field.batch > 65535 || field.rays < 0 || field.samples < 1) return S3D_BAD_SIZE;
    if (field.scales < 1 || field.scales > S3D_MAX_SCALES || field.plane_channels < 1) return S3D_BAD_SIZE;
    if (field.ambient < 0 || 3 + field.ambient > MAX_CHANNELS) return S3D_BAD_SIZE;
    if (field.hidden < 1 || field.hidden > MAX_WIDTH || count_inputs(field) > MAX_WIDTH) return S3D_BAD_SIZE;
    if (field.features < 0 || 4 + field.features > MAX_RESULTS || field.frequencies < 0) return S3D_BAD_SIZE;
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
    const unsigned blocks = count_blocks(field->rays);
    if (blocks == 0) return S3D_BAD_SIZE;
    const auto kernel = field->storage == S3D_FLOAT32 ? march_rays<float> : march_rays<Bfloat>;
    return launch(kernel, dim3(blocks, static_cast<unsigned>(field->batch)), static_cast<cudaStream_t>(stream), *field);
}

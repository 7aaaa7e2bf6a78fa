// The fused field. Phases alternate: first each thread evaluates a sample and leaves its values in shared memory, then
// each thread accumulates one channel of a ray over these samples.
#include "field_sample.h"

namespace S3D_VARIANT {
namespace {

constexpr int MAX_SAMPLES_PER_PASS = 8;  // samples of a ray in shared memory at once

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
        float input[MAX_WIDTH], hidden[MAX_WIDTH];
        const ProjectedPoint<float> projected = prepare_input<T>(field, item, sample_index, input);
        apply_layer(field, 0, input, count_inputs(field), hidden, field.hidden, true);
        apply_layer(field, 1, hidden, field.hidden, input, field.hidden, true);
        apply_layer(field, 2, input, field.hidden, hidden, 4 + field.features, false);
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

}  // namespace
}  // namespace S3D_VARIANT

int s3d_cuda_field_forward(const S3dField* field, void* stream) {
    using namespace S3D_VARIANT;
    if (int error = check_field(*field)) return error;
    if (field->rays == 0 || field->batch == 0) return S3D_OK;
    const RayPartition partition = partition_rays(*field);
    const int phases = 2 * ((field->samples + partition.samples_per_pass - 1) / partition.samples_per_pass);
    const dim3 blocks(count_blocks(field->rays, partition.rays), static_cast<unsigned>(field->batch));
    if (blocks.x == 0) return S3D_BAD_SIZE;
    const bool full = field->storage == S3D_FLOAT32;
    const auto run = full ? launch_phases<March<float>, S3dField> : launch_phases<March<BFloat16>, S3dField>;
    return run(blocks, phases, count_shared_floats(partition), static_cast<cudaStream_t>(stream), *field);
}

// The fused field. A thread marches a chunk of rays front to back, one sample at a time. All intermediate values stay
// in its cache, and rays that have become opaque leave the chunk.
#include "compositing.h"
#include "kernels.h"
#include "samples.h"

namespace S3D_VARIANT {
namespace {

constexpr int CHUNK_RAYS = 48;  // a multiple of BF16_TILE, small enough for the L1 cache

// One thread's buffers, taken from one allocation.
struct Scratch {
    SampleRows rows;          // the rows of inputs have room for a hidden layer too
    float *hidden, *outputs;  // [CHUNK_RAYS, *]: layers of the network
    float* sums;              // [CHUNK_RAYS, *]: composited so far
    Bf16Scratch bf16;
    alignas(64) float coordinates[9][CHUNK_RAYS];  // position, deformed and projected position of `rows`
    alignas(64) float density[CHUNK_RAYS], length[CHUNK_RAYS], before[CHUNK_RAYS], weight[CHUNK_RAYS];
    alignas(64) float depth[CHUNK_RAYS], alpha[CHUNK_RAYS];  // of each ray, so far
    int ray[CHUNK_RAYS];                                     // the active rays, one per row
};

struct Strides {
    int inputs, hidden, outputs;
};

// Output rows hold density, color, features and the position in the source; they are read in whole packs.
Strides find_strides(const S3dField& field) {
    const int hidden = pad_to_pack(field.hidden), inputs = pad_to_pack(count_inputs(field));
    return {inputs > hidden ? inputs : hidden, hidden, pad_to_pack(6 + field.features) + WIDTH};
}

void assign_buffers(float* buffer, const Strides& stride, Scratch& scratch) {
    for (int d = 0; d < 3; ++d) {
        scratch.rows.position[d] = scratch.coordinates[d];
        scratch.rows.warped[d] = scratch.coordinates[3 + d];
        scratch.rows.projected[d] = scratch.coordinates[6 + d];
    }
    scratch.rows.inputs = buffer;
    scratch.rows.stride = stride.inputs;
    scratch.hidden = buffer + static_cast<size_t>(CHUNK_RAYS) * stride.inputs;
    scratch.outputs = scratch.hidden + static_cast<size_t>(CHUNK_RAYS) * stride.hidden;
    scratch.sums = scratch.outputs + static_cast<size_t>(CHUNK_RAYS) * stride.outputs;
}

// Gathers positions and deltas of sample `s` of the active rays.
void gather_samples(const S3dField& field, const Item& item, int64_t first, int s, Scratch& scratch) {
    for (int i = 0; i < scratch.rows.count; ++i) {
        const int64_t index = (first + scratch.ray[i]) * field.samples + s;
        for (int d = 0; d < 3; ++d) scratch.rows.position[d][i] = item.positions[index * 3 + d];
        scratch.length[i] = item.deltas[index];
        scratch.before[i] = scratch.depth[scratch.ray[i]];
    }
    for (int i = scratch.rows.count; i < CHUNK_RAYS; ++i) {
        for (int d = 0; d < 3; ++d) scratch.rows.position[d][i] = 0.0f;
        scratch.length[i] = scratch.before[i] = 0.0f;
    }
}

// Converts the network's outputs to weights and, in coordinates, to the values that are composited.
void activate_outputs(const S3dField& field, const Strides& stride, Scratch& scratch) {
    for (int i = 0; i < scratch.rows.count; ++i) {
        float* row = scratch.outputs + i * stride.outputs;
        alignas(64) float bounded[WIDTH];
        store(bounded, sigmoid(load(row)));
        scratch.density[i] = row[0];
        for (int c = 1; c < 4; ++c) row[c] = bounded[c];
        row[4 + field.features] = scratch.rows.projected[0][i];
        row[5 + field.features] = scratch.rows.projected[1][i];
    }
    for (int first = 0; first < scratch.rows.count; first += WIDTH) {
        const Pack density = to_density(load(scratch.density + first));
        const Pack optical_depth = density * load(scratch.length + first);
        store(scratch.weight + first, sample_weight(optical_depth, load(scratch.before + first)));
        store(scratch.density + first, optical_depth);
    }
}

// Accumulates the samples into their rays and drops rays that have become opaque.
void composite_samples(const S3dField& field, const Strides& stride, float max_depth, Scratch& scratch) {
    int active = 0;
    for (int i = 0; i < scratch.rows.count; ++i) {
        const int ray = scratch.ray[i];
        const float* row = scratch.outputs + i * stride.outputs + 1;
        float* sum = scratch.sums + ray * stride.outputs;
        for (int c = 0; c < 5 + field.features; c += WIDTH) {
            store(sum + c, load(sum + c) + scratch.weight[i] * load(row + c));
        }
        scratch.alpha[ray] += scratch.weight[i];
        scratch.depth[ray] += scratch.density[i];
        if (!(scratch.depth[ray] > max_depth)) scratch.ray[active++] = ray;
    }
    scratch.rows.count = active;
}

template <class T>
void march_rays(const S3dField& field, const Item& item, const Network& network, const Strides& stride, int64_t first,
                Scratch& scratch) {
    const int rays = field.rays - first < CHUNK_RAYS ? static_cast<int>(field.rays - first) : CHUNK_RAYS;
    const int channels = 5 + field.features;
    const float max_depth = max_visible_depth(field.early_stop_eps);
    SampleRows& rows = scratch.rows;
    rows.count = rays;
    for (int i = 0; i < rays; ++i) {
        scratch.ray[i] = i;
        scratch.depth[i] = scratch.alpha[i] = 0.0f;
    }
    memset(scratch.sums, 0, sizeof(float) * CHUNK_RAYS * stride.outputs);
    for (int s = 0; s < field.samples && rows.count > 0; ++s) {
        gather_samples(field, item, first, s, scratch);
        prepare_inputs<T>(field, item, rows);
        const Bf16Scratch& bf16 = scratch.bf16;
        network.layer[0].forward(rows.inputs, rows.stride, rows.count, scratch.hidden, stride.hidden, true, bf16);
        network.layer[1].forward(scratch.hidden, stride.hidden, rows.count, rows.inputs, rows.stride, true, bf16);
        network.layer[2].forward(rows.inputs, rows.stride, rows.count, scratch.outputs, stride.outputs, false, bf16);
        activate_outputs(field, stride, scratch);
        composite_samples(field, stride, max_depth, scratch);
    }
    for (int i = 0; i < rays; ++i) {
        const int64_t ray = item.index * field.rays + first + i;
        field.alpha[ray] = scratch.alpha[i];
        memcpy(field.output + ray * channels, scratch.sums + i * stride.outputs, sizeof(float) * channels);
    }
}

template <class T>
int march_all_rays(const S3dField& field, const Network& network, int threads) {
    const Strides stride = find_strides(field);
    const size_t floats = static_cast<size_t>(CHUNK_RAYS) * (stride.inputs + stride.hidden + 2 * stride.outputs);
    const size_t words = network.uses_bf16() ? network.count_bf16_words(CHUNK_RAYS) : 0;
    const int64_t chunks = (field.rays + CHUNK_RAYS - 1) / CHUNK_RAYS;
    int error = S3D_OK;
#pragma omp parallel num_threads(threads)
    {
        Scratch scratch = {};
        float* buffer = allocate_zeros(floats + words);
        if (buffer == nullptr) {
#pragma omp atomic write
            error = S3D_NO_MEMORY;
        } else {
            assign_buffers(buffer, stride, scratch);
            if (words > 0) scratch.bf16.rows = reinterpret_cast<uint16_t*>(buffer + floats);
        }
        const AmxTiles tiles(words > 0);
#pragma omp for schedule(dynamic, 4)
        for (int64_t task = 0; task < field.batch * chunks; ++task) {
            if (buffer == nullptr) continue;
            march_rays<T>(field, find_item(field, task / chunks), network, stride, task % chunks * CHUNK_RAYS, scratch);
        }
        free(buffer);
    }
    return error;
}

}  // namespace

int field_forward(const S3dField& field, int threads) {
    if (int error = check(field, threads)) return error;
    const int hidden = field.hidden;
    const LayerSize sizes[] = {{count_inputs(field), hidden}, {hidden, hidden}, {hidden, 4 + field.features}};
    Network network;
    if (!network.pack(sizes, field.weights, field.biases, field.bf16_products != 0)) return S3D_NO_MEMORY;
    return field.storage == S3D_FLOAT32 ? march_all_rays<float>(field, network, threads)
                                        : march_all_rays<BFloat16>(field, network, threads);
}

}  // namespace S3D_VARIANT

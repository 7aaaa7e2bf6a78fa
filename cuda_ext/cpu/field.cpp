// The fused path. A thread takes a chunk of rays and walks it sample by sample, front to back; what it makes of a sample
// never leaves its cache, and rays that have become opaque are left out of the next step.
#include "compositing.h"
#include "kernels.h"
#include "samples.h"

namespace S3D_VARIANT {
namespace {

constexpr int RAYS = 48;  // of a chunk: a multiple of a tile, small enough for the first-level cache

// Buffers of one thread, cut from one allocation.
struct Scratch {
    SampleRows rows;                   // the inputs' rows have room for a hidden layer too
    float *hidden, *outputs;           // [RAYS, *]: the network's layers
    float* sums;                       // [RAYS, *]: composited so far
    NarrowScratch narrow;
    alignas(64) float place[9][RAYS];  // position, warped and seen of `rows`
    alignas(64) float density[RAYS], length[RAYS], before[RAYS], weight[RAYS];
    alignas(64) float depth[RAYS], alpha[RAYS];  // of each ray, so far
    int ray[RAYS];                               // the rays still seen: as many as there are rows
};

struct Strides {
    int inputs, hidden, outputs;
};

// Rows of the output buffer hold density, color, features and the point in the portrait, and are read in whole packs.
Strides find_strides(const S3dField& field) {
    const int hidden = pad_to_pack(field.hidden), inputs = pad_to_pack(count_inputs(field));
    return {inputs > hidden ? inputs : hidden, hidden, pad_to_pack(6 + field.features) + WIDTH};
}

void cut(float* buffer, const Strides& stride, Scratch& scratch) {
    for (int d = 0; d < 3; ++d) {
        scratch.rows.position[d] = scratch.place[d];
        scratch.rows.warped[d] = scratch.place[3 + d];
        scratch.rows.seen[d] = scratch.place[6 + d];
    }
    scratch.rows.inputs = buffer;
    scratch.rows.stride = stride.inputs;
    scratch.hidden = buffer + static_cast<size_t>(RAYS) * stride.inputs;
    scratch.outputs = scratch.hidden + static_cast<size_t>(RAYS) * stride.hidden;
    scratch.sums = scratch.outputs + static_cast<size_t>(RAYS) * stride.outputs;
}

// Positions and lengths of sample `s` of the rays still seen.
void gather_samples(const S3dField& field, const Item& item, int64_t first, int s, Scratch& scratch) {
    for (int i = 0; i < scratch.rows.count; ++i) {
        const int64_t index = (first + scratch.ray[i]) * field.samples + s;
        for (int d = 0; d < 3; ++d) scratch.rows.position[d][i] = item.positions[index * 3 + d];
        scratch.length[i] = item.lengths[index];
        scratch.before[i] = scratch.depth[scratch.ray[i]];
    }
    for (int i = scratch.rows.count; i < RAYS; ++i) {
        for (int d = 0; d < 3; ++d) scratch.rows.position[d][i] = 0.0f;
        scratch.length[i] = scratch.before[i] = 0.0f;
    }
}

// Turns the network's outputs into densities and, in place, into the values that are composited.
void finish_values(const S3dField& field, const Strides& stride, Scratch& scratch) {
    for (int i = 0; i < scratch.rows.count; ++i) {
        float* row = scratch.outputs + i * stride.outputs;
        alignas(64) float bounded[WIDTH];
        store(bounded, sigmoid(load(row)));
        scratch.density[i] = row[0];
        for (int c = 1; c < 4; ++c) row[c] = bounded[c];
        row[4 + field.features] = scratch.rows.seen[0][i];
        row[5 + field.features] = scratch.rows.seen[1][i];
    }
    for (int first = 0; first < scratch.rows.count; first += WIDTH) {
        const Pack density = to_density(load(scratch.density + first));
        const Pack optical = density * load(scratch.length + first);
        store(scratch.weight + first, weigh_sample(optical, load(scratch.before + first)));
        store(scratch.density + first, optical);
    }
}

// Adds the samples to their rays and forgets the rays behind which nothing is seen.
void composite_samples(const S3dField& field, const Strides& stride, float last_seen, Scratch& scratch) {
    int kept = 0;
    for (int i = 0; i < scratch.rows.count; ++i) {
        const int ray = scratch.ray[i];
        const float* row = scratch.outputs + i * stride.outputs + 1;
        float* sum = scratch.sums + ray * stride.outputs;
        for (int c = 0; c < 5 + field.features; c += WIDTH) {
            store(sum + c, load(sum + c) + scratch.weight[i] * load(row + c));
        }
        scratch.alpha[ray] += scratch.weight[i];
        scratch.depth[ray] += scratch.density[i];
        if (!(scratch.depth[ray] > last_seen)) scratch.ray[kept++] = ray;
    }
    scratch.rows.count = kept;
}

template <class T>
void march(const S3dField& field, const Item& item, const Network& network, const Strides& stride, int64_t first,
           Scratch& scratch) {
    const int rays = field.rays - first < RAYS ? static_cast<int>(field.rays - first) : RAYS;
    const int channels = 5 + field.features;
    const float last_seen = last_seen_depth(field.stop);
    SampleRows& rows = scratch.rows;
    rows.count = rays;
    for (int i = 0; i < rays; ++i) {
        scratch.ray[i] = i;
        scratch.depth[i] = scratch.alpha[i] = 0.0f;
    }
    memset(scratch.sums, 0, sizeof(float) * RAYS * stride.outputs);
    for (int s = 0; s < field.samples && rows.count > 0; ++s) {
        gather_samples(field, item, first, s, scratch);
        prepare_inputs<T>(field, item, rows);
        const NarrowScratch& narrow = scratch.narrow;
        network.layer[0].apply(rows.inputs, rows.stride, rows.count, scratch.hidden, stride.hidden, true, narrow);
        network.layer[1].apply(scratch.hidden, stride.hidden, rows.count, rows.inputs, rows.stride, true, narrow);
        network.layer[2].apply(rows.inputs, rows.stride, rows.count, scratch.outputs, stride.outputs, false,
                               narrow);
        finish_values(field, stride, scratch);
        composite_samples(field, stride, last_seen, scratch);
    }
    for (int i = 0; i < rays; ++i) {
        const int64_t ray = item.index * field.rays + first + i;
        field.alpha[ray] = scratch.alpha[i];
        memcpy(field.output + ray * channels, scratch.sums + i * stride.outputs, sizeof(float) * channels);
    }
}

template <class T>
int march_all(const S3dField& field, const Network& network, int threads) {
    const Strides stride = find_strides(field);
    const size_t floats = static_cast<size_t>(RAYS) * (stride.inputs + stride.hidden + 2 * stride.outputs);
    const size_t words = network.narrow() ? network.count_narrow_words(RAYS) : 0;
    const int64_t chunks = (field.rays + RAYS - 1) / RAYS;
    int error = S3D_OK;
#pragma omp parallel num_threads(threads)
    {
        Scratch scratch = {};
        float* buffer = allocate(floats + words);
        if (buffer == nullptr) {
#pragma omp atomic write
            error = S3D_NO_MEMORY;
        } else {
            cut(buffer, stride, scratch);
            if (words > 0) scratch.narrow.rows = reinterpret_cast<uint16_t*>(buffer + floats);
        }
        const Tiles tiles(words > 0);
#pragma omp for schedule(dynamic, 4)
        for (int64_t task = 0; task < field.batch * chunks; ++task) {
            if (buffer == nullptr) continue;
            march<T>(field, find_item(field, task / chunks), network, stride, task % chunks * RAYS, scratch);
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
    if (!network.pack(sizes, field.weights, field.biases, field.bfloat_products != 0)) return S3D_NO_MEMORY;
    return field.storage == S3D_FLOAT32 ? march_all<float>(field, network, threads)
                                        : march_all<Bfloat>(field, network, threads);
}

}  // namespace S3D_VARIANT

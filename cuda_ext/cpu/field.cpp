// The fused path. A thread takes a chunk of rays and walks it sample by sample, front to back; what it makes of a sample
// never leaves its cache, and rays that have become opaque are left out of the next step.
#include "field.h"

#include "compositing.h"
#include "kernels.h"
#include "network.h"
#include "planes.h"

namespace S3D_VARIANT {
namespace {

constexpr int RAYS = 48;  // of a chunk: a multiple of the network's rows, small enough for the first-level cache
constexpr int MAX_LATTICE_CHANNELS = 64;

struct Item {
    const float* positions;  // [rays, samples, 3]
    const float* lengths;    // [rays, samples]
    const float* lattice;    // [z, y, x, 3 + ambient]
    const float* rotation;
    const float* center;
    float scale;
    int64_t index;
};

// Buffers of one thread, cut from one allocation.
struct Scratch {
    float *inputs, *hidden, *outputs;  // [RAYS, *]: the network's layers
    float* sums;                       // [RAYS, *]: composited so far
    alignas(64) float position[3][RAYS + WIDTH], warped[3][RAYS + WIDTH], seen[3][RAYS + WIDTH];
    alignas(64) float density[RAYS + WIDTH], length[RAYS + WIDTH], before[RAYS + WIDTH], weight[RAYS + WIDTH];
    alignas(64) float depth[RAYS], alpha[RAYS];  // of each ray, so far
    int ray[RAYS];                               // the rays still seen, and how many
    int count;
};

struct Strides {
    int inputs, hidden, outputs;
};

// Rows of the output buffer hold density, color, features and the point in the portrait, and are read in whole packs.
Strides find_strides(const S3dField& field) {
    const int widest = pad_to_pack(field.hidden);
    const int results = pad_to_pack(4 + field.features);
    const int composited = pad_to_pack(5 + field.features) + WIDTH;
    return {pad_to_pack(count_inputs(field)) + WIDTH, widest, results > composited ? results : composited};
}

// Positions and lengths of sample `s` of the rays still seen.
void gather_samples(const S3dField& field, const Item& item, int64_t first, int s, Scratch& scratch) {
    for (int i = 0; i < scratch.count; ++i) {
        const int64_t index = (first + scratch.ray[i]) * field.samples + s;
        for (int d = 0; d < 3; ++d) scratch.position[d][i] = item.positions[index * 3 + d];
        scratch.length[i] = item.lengths[index];
        scratch.before[i] = scratch.depth[scratch.ray[i]];
    }
    for (int i = scratch.count; i < scratch.count + WIDTH && i < RAYS + WIDTH; ++i) {
        for (int d = 0; d < 3; ++d) scratch.position[d][i] = 0.0f;
        scratch.length[i] = scratch.before[i] = 0.0f;
    }
}

// Reads the lattice: offsets and ambient coordinates go to the network's inputs, warped points to the scratch.
void deform(const S3dField& field, const Item& item, const Strides& stride, Scratch& scratch) {
    const int channels = 3 + field.ambient, columns = field.scales * field.plane_channels;
    const int32_t* size = field.lattice_size;
    const int64_t across[3] = {channels, static_cast<int64_t>(channels) * size[0],
                               static_cast<int64_t>(channels) * size[0] * size[1]};
    for (int first = 0; first < scratch.count; first += WIDTH) {
        alignas(64) int32_t low[3][WIDTH];
        alignas(64) float weight[3][WIDTH];
        for (int d = 0; d < 3; ++d) {
            const LatticeAxis<Pack> axis =
                locate_in_lattice(load(scratch.position[d] + first), field.lattice_center[d], field.lattice_focus[d],
                                  field.lattice_extent[d], size[d]);
            store(low[d], axis.low);
            store(weight[d], axis.weight);
        }
        const int lanes = count_lanes(first, scratch.count);
        for (int lane = 0; lane < lanes; ++lane) {
            const float* corner = item.lattice;
            for (int d = 0; d < 3; ++d) corner += low[d][lane] * across[d];
            float value[MAX_LATTICE_CHANNELS + WIDTH];
            for (int c = 0; c < channels; c += WIDTH) {
                const int count = channels - c < WIDTH ? channels - c : WIDTH;
                Pack sum{};
                for (int bits = 0; bits < 8; ++bits) {
                    const float* from = corner + c;
                    float share = 1.0f;
                    for (int d = 0; d < 3; ++d) {
                        from += (bits >> d & 1) * across[d];
                        share *= (bits >> d & 1) ? weight[d][lane] : 1.0f - weight[d][lane];
                    }
                    sum += share * load_part(from, count);
                }
                store(value + c, sum);
            }
            const int row = first + lane;
            float* input = scratch.inputs + row * stride.inputs + columns;
            for (int c = 0; c < field.ambient; ++c) input[c] = value[3 + c];
            for (int d = 0; d < 3; ++d) {
                input[field.ambient + d] = OFFSET_GAIN * value[d];
                scratch.warped[d][row] = scratch.position[d][row] + value[d];
            }
        }
    }
}

// Writes positions and their sines behind the offsets.
void encode_positions(const S3dField& field, const Strides& stride, Scratch& scratch) {
    const int columns = field.scales * field.plane_channels + field.ambient + 3;
    for (int first = 0; first < scratch.count; first += WIDTH) {
        const int lanes = count_lanes(first, scratch.count);
        float* input = scratch.inputs + first * stride.inputs + columns;
        for (int d = 0; d < 3; ++d) {
            const Pack x = load(scratch.position[d] + first);
            for (int lane = 0; lane < lanes; ++lane) input[lane * stride.inputs + d] = x[lane];
            SineCosine<Pack> angle = sine_cosine_pi(x);
            for (int octave = 0; octave < field.frequencies; ++octave) {
                float* place = input + 3 + 6 * octave + d;
                for (int lane = 0; lane < lanes; ++lane) {
                    place[lane * stride.inputs] = angle.sine[lane];
                    place[lane * stride.inputs + 3] = angle.cosine[lane];
                }
                angle = double_angle(angle);
            }
        }
    }
}

// Projects the warped points into the portrait and reads the planes of every scale there.
template <class T>
void read_appearance(const S3dField& field, const Item& item, const Strides& stride, Scratch& scratch) {
    for (int first = 0; first < scratch.count; first += WIDTH) {
        const SeenPoint<Pack> seen =
            project(load(scratch.warped[0] + first), load(scratch.warped[1] + first), load(scratch.warped[2] + first),
                    item.rotation, item.scale, item.center);
        store(scratch.seen[0] + first, seen.u);
        store(scratch.seen[1] + first, seen.v);
        store(scratch.seen[2] + first, seen.depth);
    }
    for (int s = 0; s < field.scales; ++s) {
        const int64_t plane_stride =
            static_cast<int64_t>(field.plane_height[s]) * field.plane_width[s] * field.plane_channels;
        const T* planes = static_cast<const T*>(field.planes[s]) + item.index * field.plane_batch_stride[s];
        for (int first = 0; first < scratch.count; first += WIDTH) {
            PlaneCorners corners[3];
            const T* plane[3];
            for (int p = 0; p < 3; ++p) {
                plane[p] = planes + p * plane_stride;
                const Pack column = load(scratch.seen[column_axis(p)] + first);
                const Pack row = load(scratch.seen[row_axis(p)] + first);
                find_corners(locate_on_plane(column, field.plane_width[s]),
                             locate_on_plane(row, field.plane_height[s]), field.plane_channels,
                             field.plane_channels * field.plane_width[s], corners[p]);
            }
            read_channels(plane, corners, count_lanes(first, scratch.count), field.plane_channels,
                          scratch.inputs + first * stride.inputs + s * field.plane_channels, stride.inputs);
        }
    }
}

// Turns the network's outputs into densities and, in place, into the values that are composited.
void finish_values(const S3dField& field, const Strides& stride, Scratch& scratch) {
    for (int i = 0; i < scratch.count; ++i) {
        float* row = scratch.outputs + i * stride.outputs;
        alignas(64) float bounded[WIDTH];
        store(bounded, sigmoid(load(row)));
        scratch.density[i] = row[0];
        for (int c = 1; c < 4; ++c) row[c] = bounded[c];
        row[4 + field.features] = scratch.seen[0][i];
        row[5 + field.features] = scratch.seen[1][i];
    }
    for (int first = 0; first < scratch.count; first += WIDTH) {
        const Pack density = to_density(load(scratch.density + first));
        const Pack optical = density * load(scratch.length + first);
        store(scratch.weight + first, weigh_sample(optical, load(scratch.before + first)));
        store(scratch.density + first, optical);
    }
}

// Adds the samples to their rays and forgets the rays behind which nothing is seen.
void composite_samples(const S3dField& field, const Strides& stride, float last_seen, Scratch& scratch) {
    int kept = 0;
    for (int i = 0; i < scratch.count; ++i) {
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
    scratch.count = kept;
}

template <class T>
void march(const S3dField& field, const Item& item, const Network& network, const Strides& stride, int64_t first,
           Scratch& scratch) {
    const int rays = field.rays - first < RAYS ? static_cast<int>(field.rays - first) : RAYS;
    const int channels = 5 + field.features;
    const float last_seen = last_seen_depth(field.stop);
    scratch.count = rays;
    for (int i = 0; i < rays; ++i) {
        scratch.ray[i] = i;
        scratch.depth[i] = scratch.alpha[i] = 0.0f;
    }
    memset(scratch.sums, 0, sizeof(float) * RAYS * stride.outputs);
    for (int s = 0; s < field.samples && scratch.count > 0; ++s) {
        gather_samples(field, item, first, s, scratch);
        deform(field, item, stride, scratch);
        encode_positions(field, stride, scratch);
        read_appearance<T>(field, item, stride, scratch);
        network.layer[0].apply(scratch.inputs, stride.inputs, scratch.count, scratch.hidden, stride.hidden, true);
        network.layer[1].apply(scratch.hidden, stride.hidden, scratch.count, scratch.inputs, stride.hidden, true);
        network.layer[2].apply(scratch.inputs, stride.hidden, scratch.count, scratch.outputs, stride.outputs, false);
        finish_values(field, stride, scratch);
        composite_samples(field, stride, last_seen, scratch);
    }
    for (int i = 0; i < rays; ++i) {
        const int64_t ray = item.index * field.rays + first + i;
        field.alpha[ray] = scratch.alpha[i];
        memcpy(field.output + ray * channels, scratch.sums + i * stride.outputs, sizeof(float) * channels);
    }
}

Item find_item(const S3dField& field, int64_t index) {
    const int64_t samples = field.rays * field.samples;
    const int64_t points = static_cast<int64_t>(field.lattice_size[0]) * field.lattice_size[1] * field.lattice_size[2];
    return {field.positions + index * samples * 3,
            field.lengths + index * samples,
            field.lattice + index * points * (3 + field.ambient),
            field.rotation + index * 9,
            field.center + index * 2,
            field.scale[index],
            index};
}

int check(const S3dField& field, int threads) {
    if (field.batch < 0 || field.rays < 0 || field.samples < 1 || threads < 1) return S3D_BAD_SIZE;
    if (field.scales < 1 || field.scales > S3D_MAX_SCALES || field.plane_channels < 1) return S3D_BAD_SIZE;
    if (field.ambient < 0 || 3 + field.ambient > MAX_LATTICE_CHANNELS) return S3D_BAD_SIZE;
    if (field.hidden < 1 || field.features < 0 || field.frequencies < 0) return S3D_BAD_SIZE;
    for (int d = 0; d < 3; ++d) {
        if (field.lattice_size[d] < 2) return S3D_BAD_SIZE;
    }
    for (int s = 0; s < field.scales; ++s) {
        const int64_t pixels = static_cast<int64_t>(field.plane_height[s]) * field.plane_width[s];
        if (field.plane_height[s] < 1 || field.plane_width[s] < 1) return S3D_BAD_SIZE;
        if (pixels * field.plane_channels > INT32_MAX) return S3D_BAD_SIZE;
    }
    return field.storage == S3D_FLOAT32 || field.storage == S3D_BFLOAT16 ? S3D_OK : S3D_BAD_STORAGE;
}

template <class T>
int march_all(const S3dField& field, const Network& network, int threads) {
    const Strides stride = find_strides(field);
    const int input_width = stride.inputs > stride.hidden ? stride.inputs : stride.hidden;
    const size_t floats = static_cast<size_t>(RAYS + ROWS) * (input_width + stride.hidden + 2 * stride.outputs);
    const int64_t chunks = (field.rays + RAYS - 1) / RAYS;
    int error = S3D_OK;
#pragma omp parallel num_threads(threads)
    {
        Scratch scratch;
        float* buffer = allocate(floats);
        if (buffer == nullptr) {
#pragma omp atomic write
            error = S3D_NO_MEMORY;
        } else {
            memset(buffer, 0, floats * sizeof(float));
            scratch.inputs = buffer;
            scratch.hidden = scratch.inputs + static_cast<size_t>(RAYS + ROWS) * input_width;
            scratch.outputs = scratch.hidden + static_cast<size_t>(RAYS + ROWS) * stride.hidden;
            scratch.sums = scratch.outputs + static_cast<size_t>(RAYS + ROWS) * stride.outputs;
        }
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
    const int widths[4] = {count_inputs(field), field.hidden, field.hidden, 4 + field.features};
    Network network;
    if (!network.pack(widths, field.weights, field.biases)) return S3D_NO_MEMORY;
    return field.storage == S3D_FLOAT32 ? march_all<float>(field, network, threads)
                                        : march_all<Bfloat>(field, network, threads);
}

}  // namespace S3D_VARIANT

// The steps of the fused field from samples to the network's inputs, for a few dozen samples at a time; shared by the
// forward and backward passes.
#pragma once

#include "field.h"
#include "network.h"
#include "planes.h"

namespace S3D_VARIANT {

constexpr int MAX_LATTICE_CHANNELS = 64;

// One batch item.
struct Item {
    const float* positions;  // [rays, samples, 3]
    const float* deltas;     // [rays, samples]
    const float* lattice;    // [z, y, x, 3 + ambient]
    const float* rotation;
    const float* center;
    float scale;
    int64_t index;
};

// A group of samples and the values derived from them. Arrays are padded to whole packs.
struct SampleRows {
    float *position[3], *warped[3], *projected[3];
    float* inputs;  // of the network, one row per sample
    int stride;     // of `inputs`
    int count;
};

static inline Item find_item(const S3dField& field, int64_t index) {
    const int64_t samples = field.rays * field.samples;
    const int64_t points = static_cast<int64_t>(field.lattice_size[0]) * field.lattice_size[1] * field.lattice_size[2];
    return {field.positions + index * samples * 3,
            field.deltas + index * samples,
            field.lattice + index * points * (3 + field.ambient),
            field.rotation + index * 9,
            field.center + index * 2,
            field.scale[index],
            index};
}

// The lattice cells around up to WIDTH points: index of the first corner, and the weight of each corner.
struct LatticeCells {
    alignas(64) int32_t point[WIDTH];
    alignas(64) float weight[8][WIDTH];
};

static inline void find_cells(const S3dField& field, const SampleRows& rows, int first, LatticeCells& cells) {
    PackInt point{};
    Pack weight[3];
    for (int d = 2; d >= 0; --d) {
        const LatticeAxis<Pack> axis =
            locate_in_lattice(load(rows.position[d] + first), field.lattice_center[d], field.lattice_focus[d],
                              field.lattice_extent[d], field.lattice_size[d]);
        point = point * field.lattice_size[d] + axis.low;
        weight[d] = axis.weight;
    }
    store(cells.point, point);
    for (int corner = 0; corner < 8; ++corner) store(cells.weight[corner], corner_weight(corner, weight));
}

// Offset in points from the first corner of a cell to `corner`.
S3D_HD int64_t corner_offset(const S3dField& field, int corner) {
    const int64_t row = field.lattice_size[0], layer = row * field.lattice_size[1];
    return (corner & 1) + (corner >> 1 & 1) * row + (corner >> 2) * layer;
}

// Interpolates the lattice. Offsets and ambient coordinates go to the network's inputs, deformed positions to `warped`.
static inline void deform(const S3dField& field, const Item& item, SampleRows& rows) {
    const int channels = 3 + field.ambient, columns = field.scales * field.plane_channels;
    int64_t distance[8];
    for (int corner = 0; corner < 8; ++corner) distance[corner] = corner_offset(field, corner) * channels;
    LatticeCells cells;
    for (int first = 0; first < rows.count; first += WIDTH) {
        find_cells(field, rows, first, cells);
        const int lanes = count_lanes(first, rows.count);
        for (int lane = 0; lane < lanes; ++lane) {
            const float* from = item.lattice + static_cast<int64_t>(cells.point[lane]) * channels;
            float value[MAX_LATTICE_CHANNELS + WIDTH];
            for (int c = 0; c < channels; c += WIDTH) {
                const int count = channels - c < WIDTH ? channels - c : WIDTH;
                Pack sum{};
                for (int corner = 0; corner < 8; ++corner) {
                    sum +=
                        load_broadcast(cells.weight[corner] + lane) * load_partial(from + distance[corner] + c, count);
                }
                store(value + c, sum);
            }
            const int row = first + lane;
            float* input = rows.inputs + static_cast<int64_t>(row) * rows.stride + columns;
            for (int c = 0; c < field.ambient; ++c) input[c] = value[3 + c];
            for (int d = 0; d < 3; ++d) {
                input[field.ambient + d] = OFFSET_GAIN * value[d];
                rows.warped[d][row] = rows.position[d][row] + value[d];
            }
        }
    }
}

// Writes positions and their positional encoding behind the offsets.
static inline void encode_positions(const S3dField& field, SampleRows& rows) {
    const int columns = field.scales * field.plane_channels + field.ambient + 3;
    const int64_t stride = rows.stride;
    for (int first = 0; first < rows.count; first += WIDTH) {
        const int lanes = count_lanes(first, rows.count);
        float* input = rows.inputs + first * stride + columns;
        for (int d = 0; d < 3; ++d) {
            const Pack x = load(rows.position[d] + first);
            for (int lane = 0; lane < lanes; ++lane) input[lane * stride + d] = x[lane];
            SineCosine<Pack> angle = sine_cosine_pi(x);
            for (int octave = 0; octave < field.frequencies; ++octave) {
                float* target = input + 3 + 6 * octave + d;
                for (int lane = 0; lane < lanes; ++lane) {
                    target[lane * stride] = angle.sine[lane];
                    target[lane * stride + 3] = angle.cosine[lane];
                }
                angle = double_angle(angle);
            }
        }
    }
}

// Projects the deformed positions into the source image.
static inline void project_samples(const Item& item, SampleRows& rows) {
    for (int first = 0; first < rows.count; first += WIDTH) {
        const ProjectedPoint<Pack> projected =
            project(load(rows.warped[0] + first), load(rows.warped[1] + first), load(rows.warped[2] + first),
                    item.rotation, item.scale, item.center);
        store(rows.projected[0] + first, projected.u);
        store(rows.projected[1] + first, projected.v);
        store(rows.projected[2] + first, projected.depth);
    }
}

template <class T>
const T* find_planes(const S3dField& field, const Item& item, int scale) {
    return static_cast<const T*>(field.planes[scale]) + item.index * field.plane_batch_stride[scale];
}

S3D_HD int64_t count_pixels(const S3dField& field, int scale) {
    return static_cast<int64_t>(field.plane_height[scale]) * field.plane_width[scale];
}

// Samples the planes of every scale at the projected positions.
template <class T>
void read_appearance(const S3dField& field, const Item& item, SampleRows& rows) {
    for (int s = 0; s < field.scales; ++s) {
        const int64_t plane_stride = count_pixels(field, s) * field.plane_channels;
        const T* planes = find_planes<T>(field, item, s);
        for (int first = 0; first < rows.count; first += WIDTH) {
            PlaneCorners corners[3];
            const T* plane[3];
            for (int p = 0; p < 3; ++p) {
                plane[p] = planes + p * plane_stride;
                const Pack column = load(rows.projected[column_axis(p)] + first);
                const Pack row = load(rows.projected[row_axis(p)] + first);
                find_corners(locate_on_plane(column, field.plane_width[s]), locate_on_plane(row, field.plane_height[s]),
                             field.plane_channels, field.plane_channels * field.plane_width[s], corners[p]);
            }
            float* inputs = rows.inputs + static_cast<int64_t>(first) * rows.stride + s * field.plane_channels;
            read_channels(plane, corners, count_lanes(first, rows.count), field.plane_channels,
                          ContiguousRows{inputs, rows.stride});
        }
    }
}

// Computes all inputs of the network.
template <class T>
void prepare_inputs(const S3dField& field, const Item& item, SampleRows& rows) {
    deform(field, item, rows);
    project_samples(item, rows);
    read_appearance<T>(field, item, rows);
    encode_positions(field, rows);
}

static inline int check(const S3dField& field, int threads) {
    if (field.batch < 0 || field.rays < 0 || field.samples < 1 || threads < 1) return S3D_BAD_SIZE;
    if (field.scales < 1 || field.scales > S3D_MAX_SCALES || field.plane_channels < 1) return S3D_BAD_SIZE;
    if (field.ambient < 0 || 3 + field.ambient > MAX_LATTICE_CHANNELS) return S3D_BAD_SIZE;
    if (field.hidden < 1 || field.features < 0 || field.frequencies < 0) return S3D_BAD_SIZE;
    int64_t points = 1;
    for (int d = 0; d < 3; ++d) {
        if (field.lattice_size[d] < 2) return S3D_BAD_SIZE;
        points *= field.lattice_size[d];
        if (points > INT32_MAX) return S3D_BAD_SIZE;
    }
    for (int s = 0; s < field.scales; ++s) {
        if (field.plane_height[s] < 1 || field.plane_width[s] < 1) return S3D_BAD_SIZE;
        if (count_pixels(field, s) * pad_to_pack(field.plane_channels) > INT32_MAX) return S3D_BAD_SIZE;
    }
    return field.storage == S3D_FLOAT32 || field.storage == S3D_BFLOAT16 ? S3D_OK : S3D_BAD_STORAGE;
}

}  // namespace S3D_VARIANT

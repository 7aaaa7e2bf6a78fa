#include "triplane.h"

#include "kernels.h"

namespace S3D_VARIANT {
namespace {

constexpr int64_t BLOCK = 1024;  // points handed to a thread at a time
constexpr float THIRD = 1.0f / 3.0f;

// Where up to WIDTH points lie on the three planes: offsets of the four pixels around each, and their shares.
struct Corners {
    PlaneAxis<Pack> column[3], row[3];
    alignas(64) int32_t offset[3][4][WIDTH];
    alignas(64) float share[3][4][WIDTH];
};

void locate(const S3dTriplane& lookup, const float* positions, int lanes, int plane, Corners& corners) {
    alignas(64) float x[WIDTH] = {}, y[WIDTH] = {};
    for (int lane = 0; lane < lanes; ++lane) {
        x[lane] = positions[lane * 3 + column_axis(plane)];
        y[lane] = positions[lane * 3 + row_axis(plane)];
    }
    const PlaneAxis<Pack> column = locate_on_plane(load(x), lookup.width);
    const PlaneAxis<Pack> row = locate_on_plane(load(y), lookup.height);
    corners.column[plane] = column;
    corners.row[plane] = row;
    const int32_t across = static_cast<int32_t>(lookup.column_stride), down = static_cast<int32_t>(lookup.row_stride);
    store(corners.offset[plane][0], row.low * down + column.low * across);
    store(corners.offset[plane][1], row.low * down + column.high * across);
    store(corners.offset[plane][2], row.high * down + column.low * across);
    store(corners.offset[plane][3], row.high * down + column.high * across);
    Pack share[4];
    share_corners(column.weight, row.weight, splat<Pack>(THIRD), share);
    for (int corner = 0; corner < 4; ++corner) store(corners.share[plane][corner], share[corner]);
}

// Fetches the pixels of a point before they are needed; a plane rarely fits the first-level cache.
template <class T>
S3D_HD void prefetch(const T* const (&plane)[3], const Corners& corners, int lane, int channels) {
    for (int p = 0; p < 3; ++p) {
        for (int corner = 0; corner < 4; ++corner) {
            const char* place = reinterpret_cast<const char*>(plane[p] + corners.offset[p][corner][lane]);
            for (int byte = 0; byte < channels * static_cast<int>(sizeof(T)); byte += 64) __builtin_prefetch(place + byte);
        }
    }
}

// P packs of channels, the last of them with `last` channels, of one point.
template <int P, class T>
S3D_HD void read_point(const T* const (&plane)[3], const Corners& corners, int lane, int last, float* output) {
    Pack sum[P] = {};
    for (int p = 0; p < 3; ++p) {
        for (int corner = 0; corner < 4; ++corner) {
            const T* pixel = plane[p] + corners.offset[p][corner][lane];
            const Pack share = splat<Pack>(corners.share[p][corner][lane]);
            for (int part = 0; part < P - 1; ++part) sum[part] += share * load(pixel + part * WIDTH);
            sum[P - 1] += share * load_part(pixel + (P - 1) * WIDTH, last);
        }
    }
    for (int part = 0; part < P - 1; ++part) store(output + part * WIDTH, sum[part]);
    store_part(output + (P - 1) * WIDTH, sum[P - 1], last);
}

template <class T>
S3D_HD void read_channels(const T* const (&plane)[3], const Corners& corners, int lane, int channels, float* output) {
    const T* from[3] = {plane[0], plane[1], plane[2]};
    while (channels > 0) {
        const int packs = (channels + WIDTH - 1) / WIDTH;
        const int taken = packs > 4 ? 4 : packs;
        const int last = packs > 4 ? WIDTH : channels - (packs - 1) * WIDTH;
        switch (taken) {
            case 1: read_point<1>(from, corners, lane, last, output); break;
            case 2: read_point<2>(from, corners, lane, last, output); break;
            case 3: read_point<3>(from, corners, lane, last, output); break;
            default: read_point<4>(from, corners, lane, last, output); break;
        }
        channels -= 4 * WIDTH;
        output += 4 * WIDTH;
        for (int p = 0; p < 3; ++p) from[p] += 4 * WIDTH;
    }
}

template <class T>
void read_block(const S3dTriplane& lookup, int64_t item, int64_t begin, int64_t end) {
    const T* first_plane = static_cast<const T*>(lookup.planes) + item * lookup.batch_stride;
    const T* plane[3] = {first_plane, first_plane + lookup.plane_stride, first_plane + 2 * lookup.plane_stride};
    const float* positions = lookup.positions + item * lookup.points * 3;
    float* output = lookup.output + item * lookup.points * lookup.output_stride;
    Corners corners[2];
    for (int p = 0; p < 3; ++p) locate(lookup, positions + begin * 3, count_lanes(begin, end), p, corners[0]);
    for (int64_t first = begin, turn = 0; first < end; first += WIDTH, turn ^= 1) {
        const int lanes = count_lanes(first, end);
        const int64_t next = first + WIDTH;
        const int next_lanes = next < end ? count_lanes(next, end) : 0;
        if (next_lanes > 0) {
            for (int p = 0; p < 3; ++p) locate(lookup, positions + next * 3, next_lanes, p, corners[turn ^ 1]);
        }
        for (int lane = 0; lane < lanes; ++lane) {
            if (lane < next_lanes) prefetch(plane, corners[turn ^ 1], lane, lookup.channels);
            read_channels(plane, corners[turn], lane, lookup.channels, output + (first + lane) * lookup.output_stride);
        }
    }
}

// Adds the gradient of `channels` <= 16 channels of one plane; the caller gives each thread other channels or planes.
void add_plane_gradient(const S3dTriplane& dense, int64_t item, int plane, int channel, int channels) {
    const float* positions = dense.positions + item * dense.points * 3;
    const float* gradient = dense.output_gradient + item * dense.points * dense.output_stride + channel;
    float* pixels = dense.planes_gradient + item * dense.batch_stride + plane * dense.plane_stride + channel;
    Corners corners;
    for (int64_t first = 0; first < dense.points; first += WIDTH) {
        const int lanes = count_lanes(first, dense.points);
        locate(dense, positions + first * 3, lanes, plane, corners);
        for (int lane = 0; lane < lanes; ++lane) {
            const float* from = gradient + (first + lane) * dense.output_stride;
            for (int part = 0; part < channels; part += WIDTH) {
                const int count = channels - part < WIDTH ? channels - part : WIDTH;
                const Pack value = load_part(from + part, count);
                for (int corner = 0; corner < 4; ++corner) {
                    float* pixel = pixels + corners.offset[plane][corner][lane] + part;
                    store_part(pixel, load_part(pixel, count) + corners.share[plane][corner][lane] * value, count);
                }
            }
        }
    }
}

// Gradient of one point along the columns and the rows of one plane, in pixels.
template <class T>
S3D_HD void differentiate_point(const T* plane, const Corners& corners, int p, int lane, const float* gradient,
                                int channels, float& along_columns, float& along_rows) {
    const float column = corners.column[p].weight[lane], row = corners.row[p].weight[lane];
    const T* pixel[4];
    for (int corner = 0; corner < 4; ++corner) pixel[corner] = plane + corners.offset[p][corner][lane];
    Pack columns{}, rows{};
    for (int c = 0; c < channels; c += WIDTH) {
        const int count = channels - c < WIDTH ? channels - c : WIDTH;
        const Pack value = load_part(gradient + c, count);
        const Pack a = load_part(pixel[0] + c, count), b = load_part(pixel[1] + c, count);
        const Pack d = load_part(pixel[2] + c, count), e = load_part(pixel[3] + c, count);
        columns += value * ((1.0f - row) * (b - a) + row * (e - d));
        rows += value * ((1.0f - column) * (d - a) + column * (e - b));
    }
    along_columns = sum_lanes(columns);
    along_rows = sum_lanes(rows);
}

template <class T>
void add_positions_gradient(const S3dTriplane& lookup, int64_t item, int64_t begin, int64_t end) {
    const T* first_plane = static_cast<const T*>(lookup.planes) + item * lookup.batch_stride;
    const float* positions = lookup.positions + item * lookup.points * 3;
    const float* gradient = lookup.output_gradient + item * lookup.points * lookup.output_stride;
    float* slopes = lookup.positions_gradient + item * lookup.points * 3;
    Corners corners;
    for (int64_t first = begin; first < end; first += WIDTH) {
        const int lanes = count_lanes(first, end);
        for (int p = 0; p < 3; ++p) locate(lookup, positions + first * 3, lanes, p, corners);
        for (int lane = 0; lane < lanes; ++lane) {
            float* slope = slopes + (first + lane) * 3;
            for (int p = 0; p < 3; ++p) {
                float columns, rows;
                differentiate_point(first_plane + p * lookup.plane_stride, corners, p, lane,
                                    gradient + (first + lane) * lookup.output_stride, lookup.channels, columns, rows);
                slope[column_axis(p)] += THIRD * columns * corners.column[p].slope[lane];
                slope[row_axis(p)] += THIRD * rows * corners.row[p].slope[lane];
            }
        }
    }
}

using BlockWork = void (*)(const S3dTriplane&, int64_t item, int64_t begin, int64_t end);

void run_blocks(const S3dTriplane& lookup, int threads, BlockWork work) {
    const int64_t blocks = (lookup.points + BLOCK - 1) / BLOCK;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t index = 0; index < lookup.batch * blocks; ++index) {
        const int64_t begin = index % blocks * BLOCK;
        work(lookup, index / blocks, begin, begin + BLOCK < lookup.points ? begin + BLOCK : lookup.points);
    }
}

// The gradient is dense whatever the strides of the planes are.
S3dTriplane with_dense_strides(S3dTriplane lookup) {
    lookup.column_stride = lookup.channels;
    lookup.row_stride = lookup.column_stride * lookup.width;
    lookup.plane_stride = lookup.row_stride * lookup.height;
    lookup.batch_stride = lookup.plane_stride * 3;
    return lookup;
}

void add_planes_gradient(const S3dTriplane& lookup, int threads) {
    const S3dTriplane dense = with_dense_strides(lookup);
    const int groups = (lookup.channels + 15) / 16;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (int64_t task = 0; task < lookup.batch * 3 * groups; ++task) {
        const int channel = static_cast<int>(task % groups) * 16;
        const int channels = lookup.channels - channel < 16 ? lookup.channels - channel : 16;
        add_plane_gradient(dense, task / groups / 3, static_cast<int>(task / groups % 3), channel, channels);
    }
}

int check(const S3dTriplane& lookup, int threads) {
    if (lookup.batch < 0 || lookup.points < 0 || threads < 1) return S3D_BAD_SIZE;
    if (lookup.channels < 1 || lookup.height < 1 || lookup.width < 1) return S3D_BAD_SIZE;
    const int64_t reach = lookup.row_stride * lookup.height + lookup.column_stride * lookup.width;
    if (reach > INT32_MAX) return S3D_BAD_SIZE;
    if (lookup.storage != S3D_FLOAT32 && lookup.storage != S3D_BFLOAT16) return S3D_BAD_STORAGE;
    return S3D_OK;
}

}  // namespace

int triplane_forward(const S3dTriplane& lookup, int threads) {
    if (int error = check(lookup, threads)) return error;
    run_blocks(lookup, threads, lookup.storage == S3D_FLOAT32 ? read_block<float> : read_block<Bfloat>);
    return S3D_OK;
}

int triplane_backward(const S3dTriplane& lookup, int threads) {
    if (int error = check(lookup, threads)) return error;
    if (lookup.planes_gradient != nullptr) add_planes_gradient(lookup, threads);
    if (lookup.positions_gradient != nullptr) {
        const bool full = lookup.storage == S3D_FLOAT32;
        run_blocks(lookup, threads, full ? add_positions_gradient<float> : add_positions_gradient<Bfloat>);
    }
    return S3D_OK;
}

}  // namespace S3D_VARIANT

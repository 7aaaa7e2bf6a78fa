#include <numeric>

#include "kernels.h"
#include "planes.h"
#include "point_order.h"

namespace S3D_VARIANT {
namespace {

constexpr int64_t BLOCK_POINTS = 1024;  // points per work item

struct Axes {
    PlaneAxis<Pack> column, row;
};

// Locates up to WIDTH points on one plane; `index` holds the offsets of their positions.
Axes locate(const S3dTriplane& lookup, const float* positions, PackInt index, int lanes, int plane,
            PlaneCorners& corners) {
    const Pack x = gather(positions + column_axis(plane), index, lanes);
    const Pack y = gather(positions + row_axis(plane), index, lanes);
    const Axes axes = {locate_on_plane(x, lookup.width), locate_on_plane(y, lookup.height)};
    find_corners(axes.column, axes.row, static_cast<int32_t>(lookup.column_stride),
                 static_cast<int32_t>(lookup.row_stride), corners);
    return axes;
}

// Locates consecutive points.
Axes locate(const S3dTriplane& lookup, const float* positions, int lanes, int plane, PlaneCorners& corners) {
    return locate(lookup, positions, iota() * 3, lanes, plane, corners);
}

// Output rows at sorted point indices. They are scattered, and ordinary stores, which read the cache line first, would
// take longer than everything else.
struct ScatteredRows {
    float* first;
    int64_t stride;
    const int32_t* point;

    void write(int lane, int channel, Pack value) const { stream_store(first + point[lane] * stride + channel, value); }

    void write_masked(int lane, int channel, Pack value, int count) const {
        store_masked(first + point[lane] * stride + channel, value, count);
    }
};

// A range of points of one item.
struct Part {
    const float* positions;
    int64_t count;
    float* output;
};

template <class T>
void read_in_order(const S3dTriplane& lookup, const T* const (&plane)[3], const Part& part) {
    PlaneCorners corners[3];
    for (int64_t first = 0; first < part.count; first += WIDTH) {
        const int lanes = count_lanes(first, part.count);
        for (int p = 0; p < 3; ++p) locate(lookup, part.positions + first * 3, lanes, p, corners[p]);
        const ContiguousRows rows = {part.output + first * lookup.output_stride, lookup.output_stride};
        read_channels(plane, corners, lanes, lookup.channels, rows);
    }
}

template <class T>
void read_sorted(const S3dTriplane& lookup, const T* const (&plane)[3], const Part& part, const int32_t* points) {
    PlaneCorners corners[3];
    for (int64_t first = 0; first < part.count; first += WIDTH) {
        const int lanes = count_lanes(first, part.count);
        PackInt point;
        memcpy(&point, points + first, sizeof point);
        for (int p = 0; p < 3; ++p) locate(lookup, part.positions, point * 3, lanes, p, corners[p]);
        read_channels(plane, corners, lanes, lookup.channels,
                      ScatteredRows{part.output, lookup.output_stride, points + first});
    }
    stream_fence();
}

// Partition of the points of each item among threads. Sorting works best on large parts.
struct Partition {
    int64_t parts, size;

    Partition(const S3dTriplane& lookup, int threads) {
        const int64_t even = threads / std::gcd<int64_t>(threads, lookup.batch);
        const int64_t fewest = (lookup.points + MAX_SORTED_POINTS - 1) / MAX_SORTED_POINTS;
        parts = fewest > even ? (fewest + even - 1) / even * even : even;
        size = (lookup.points + parts - 1) / parts;
    }

    Part find(const S3dTriplane& lookup, int64_t index) const {
        const int64_t begin = index % parts * size, left = lookup.points - begin;
        const int64_t origin = index / parts * lookup.points + begin;
        return {lookup.positions + origin * 3, left < size ? left : size,
                lookup.output + origin * lookup.output_stride};
    }
};

// Size of the planes above which sorting pays off. Without AVX-512, sampling is so much slower than the latency of the
// next cache level that sorting only pays off for planes that exceed the core's own caches.
constexpr int64_t SORT_THRESHOLD_BYTES = WIDTH == 16 ? 32 << 10 : 8 << 20;

// Whether sorting pays off for points in arbitrary order.
template <class T>
bool should_sort(const S3dTriplane& lookup, int64_t points) {
    const int64_t bytes = 3 * sizeof(T) * lookup.channels * lookup.height * lookup.width;
    return bytes > SORT_THRESHOLD_BYTES && points >= 1024 &&
           can_stream_store(lookup.output, lookup.output_stride, lookup.channels);
}

template <class T>
void read_planes(const S3dTriplane& lookup, int threads) {
    const Partition partition(lookup, threads);
    const bool sorted = should_sort<T>(lookup, partition.size);
#pragma omp parallel num_threads(threads)
    {
        PointOrder order(sorted ? partition.size : 0, lookup.width > lookup.height ? lookup.width : lookup.height);
#pragma omp for schedule(static)
        for (int64_t index = 0; index < lookup.batch * partition.parts; ++index) {
            const Part part = partition.find(lookup, index);
            const T* first = static_cast<const T*>(lookup.planes) + index / partition.parts * lookup.batch_stride;
            const T* const plane[3] = {first, first + lookup.plane_stride, first + 2 * lookup.plane_stride};
            if (sorted && order.sort(part.positions, part.count)) {
                read_sorted(lookup, plane, part, order.points());
            } else {
                read_in_order(lookup, plane, part);
            }
        }
    }
}

// Accumulates one pack of channels (`count` of its lanes) of up to WIDTH points to the four pixels around each.
template <bool WHOLE>
S3D_HD void add_pack(const float* gradient, int64_t stride, int lanes, int count, const PlaneCorners& corners,
                     float* pixels) {
    for (int lane = 0; lane < lanes; ++lane, gradient += stride) {
        const Pack value = WHOLE ? load(gradient) : load_masked(gradient, count);
        for (int corner = 0; corner < 4; ++corner) {
            float* pixel = pixels + corners.offset[corner][lane];
            const Pack weight = load_broadcast(corners.weight[corner] + lane);
            if (WHOLE) {
                store(pixel, load(pixel) + weight * value);
            } else {
                store_masked(pixel, load_masked(pixel, count) + weight * value, count);
            }
        }
    }
}

// Accumulates the gradient of `channels` <= 16 channels of one plane. Each thread has different channels or planes.
void add_plane_gradient(const S3dTriplane& dense, int64_t item, int plane, int channel, int channels) {
    const float* positions = dense.positions + item * dense.points * 3;
    const float* gradient = dense.output_gradient + item * dense.points * dense.output_stride + channel;
    float* pixels = dense.planes_gradient + item * dense.batch_stride + plane * dense.plane_stride + channel;
    PlaneCorners corners;
    for (int64_t first = 0; first < dense.points; first += WIDTH) {
        const int lanes = count_lanes(first, dense.points);
        locate(dense, positions + first * 3, lanes, plane, corners);
        const float* from = gradient + first * dense.output_stride;
        for (int part = 0; part < channels; part += WIDTH) {
            const int count = channels - part < WIDTH ? channels - part : WIDTH;
            if (count == WIDTH) {
                add_pack<true>(from + part, dense.output_stride, lanes, count, corners, pixels + part);
            } else {
                add_pack<false>(from + part, dense.output_stride, lanes, count, corners, pixels + part);
            }
        }
    }
}

// Derivative of one point on one plane per pixel, along columns and rows.
template <class T>
S3D_HD SumPair differentiate_point(const T* plane, const PlaneCorners& corners, int lane, float column, float row,
                                   const float* gradient, int channels) {
    const T* pixel[4];
    for (int corner = 0; corner < 4; ++corner) pixel[corner] = plane + corners.offset[corner][lane];
    Pack columns{}, rows{};
    for (int c = 0; c < channels; c += WIDTH) {
        const int count = channels - c < WIDTH ? channels - c : WIDTH;
        const Pack value = load_partial(gradient + c, count);
        const Pack top_left = load_partial(pixel[0] + c, count), top_right = load_partial(pixel[1] + c, count);
        const Pack low_left = load_partial(pixel[2] + c, count), low_right = load_partial(pixel[3] + c, count);
        columns += value * ((1.0f - row) * (top_right - top_left) + row * (low_right - low_left));
        rows += value * ((1.0f - column) * (low_left - top_left) + column * (low_right - top_right));
    }
    return sum_lanes(columns, rows);
}

template <class T>
void add_positions_gradient(const S3dTriplane& lookup, int64_t item, int64_t begin, int64_t end) {
    const T* plane = static_cast<const T*>(lookup.planes) + item * lookup.batch_stride;
    PlaneCorners corners;
    for (int64_t first = begin; first < end; first += WIDTH) {
        const int lanes = count_lanes(first, end);
        const int64_t origin = item * lookup.points + first;
        const float* gradient = lookup.output_gradient + origin * lookup.output_stride;
        float* slopes = lookup.positions_gradient + origin * 3;
        for (int p = 0; p < 3; ++p) {
            const Axes axes = locate(lookup, lookup.positions + origin * 3, lanes, p, corners);
            for (int lane = 0; lane < lanes; ++lane) {
                const SumPair slope =
                    differentiate_point(plane + p * lookup.plane_stride, corners, lane, axes.column.weight[lane],
                                        axes.row.weight[lane], gradient + lane * lookup.output_stride, lookup.channels);
                slopes[lane * 3 + column_axis(p)] += PLANE_WEIGHT * slope.first * axes.column.slope[lane];
                slopes[lane * 3 + row_axis(p)] += PLANE_WEIGHT * slope.second * axes.row.slope[lane];
            }
        }
    }
}

using BlockWork = void (*)(const S3dTriplane&, int64_t item, int64_t begin, int64_t end);

void run_blocks(const S3dTriplane& lookup, int threads, BlockWork work) {
    const int64_t blocks = (lookup.points + BLOCK_POINTS - 1) / BLOCK_POINTS;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t index = 0; index < lookup.batch * blocks; ++index) {
        const int64_t begin = index % blocks * BLOCK_POINTS;
        work(lookup, index / blocks, begin,
             begin + BLOCK_POINTS < lookup.points ? begin + BLOCK_POINTS : lookup.points);
    }
}

// The gradient is dense, whatever the strides of the planes.
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
    if (lookup.batch == 0 || lookup.points == 0) return S3D_OK;
    if (lookup.storage == S3D_FLOAT32) {
        read_planes<float>(lookup, threads);
    } else {
        read_planes<BFloat16>(lookup, threads);
    }
    return S3D_OK;
}

int triplane_backward(const S3dTriplane& lookup, int threads) {
    if (int error = check(lookup, threads)) return error;
    if (lookup.planes_gradient != nullptr) add_planes_gradient(lookup, threads);
    if (lookup.positions_gradient != nullptr) {
        const bool full = lookup.storage == S3D_FLOAT32;
        run_blocks(lookup, threads, full ? add_positions_gradient<float> : add_positions_gradient<BFloat16>);
    }
    return S3D_OK;
}

}  // namespace S3D_VARIANT

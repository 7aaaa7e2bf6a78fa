// Reading of three feature planes, channels side by side in vector registers; shared by the lookup and the fused path.
#pragma once

#include "triplane.h"

namespace S3D_VARIANT {

constexpr float THIRD = 1.0f / 3.0f;

// The four pixels around each of up to WIDTH points of one plane: where they lie, and their shares of a third.
struct PlaneCorners {
    alignas(64) int32_t offset[4][WIDTH];
    alignas(64) float share[4][WIDTH];
};

S3D_HD void find_corners(const PlaneAxis<Pack>& column, const PlaneAxis<Pack>& row, int32_t column_stride,
                         int32_t row_stride, PlaneCorners& corners) {
    store(corners.offset[0], row.low * row_stride + column.low * column_stride);
    store(corners.offset[1], row.low * row_stride + column.high * column_stride);
    store(corners.offset[2], row.high * row_stride + column.low * column_stride);
    store(corners.offset[3], row.high * row_stride + column.high * column_stride);
    Pack share[4];
    share_corners(column.weight, row.weight, splat<Pack>(THIRD), share);
    for (int corner = 0; corner < 4; ++corner) store(corners.share[corner], share[corner]);
}

// P packs of channels, the last of them with `last` channels (WIDTH if WHOLE), of some points. Each point is a row of
// `output`, whose rows are `stride` floats apart.
template <int P, bool WHOLE, class T>
S3D_HD void read_packs(const T* const (&plane)[3], const PlaneCorners (&corners)[3], int lanes, int last, float* output,
                       int64_t stride) {
    for (int lane = 0; lane < lanes; ++lane) {
        Pack sum[P] = {};
        for (int p = 0; p < 3; ++p) {
            for (int corner = 0; corner < 4; ++corner) {
                const T* pixel = plane[p] + corners[p].offset[corner][lane];
                const Pack share = load_all(corners[p].share[corner] + lane);
                for (int part = 0; part < P; ++part) {
                    const T* place = pixel + part * WIDTH;
                    sum[part] += share * (WHOLE || part < P - 1 ? load(place) : load_some(place, last));
                }
            }
        }
        float* to = output + lane * stride;
        for (int part = 0; part < P - 1; ++part) store(to + part * WIDTH, sum[part]);
        if (WHOLE) {
            store(to + (P - 1) * WIDTH, sum[P - 1]);
        } else {
            store_some(to + (P - 1) * WIDTH, sum[P - 1], last);
        }
    }
}

template <int P, class T>
S3D_HD void read_last_packs(const T* const (&plane)[3], const PlaneCorners (&corners)[3], int lanes, int last,
                            float* output, int64_t stride) {
    if (last == WIDTH) {
        read_packs<P, true>(plane, corners, lanes, last, output, stride);
    } else {
        read_packs<P, false>(plane, corners, lanes, last, output, stride);
    }
}

// Two packs of channels at a time in bfloat16: a word holds two channels, and unpacks in one instruction each.
S3D_HD void read_pairs(const Bfloat* const (&plane)[3], const PlaneCorners (&corners)[3], int lanes, float* output,
                       int64_t stride) {
    for (int lane = 0; lane < lanes; ++lane) {
        PackPair sum = {};
        for (int p = 0; p < 3; ++p) {
            for (int corner = 0; corner < 4; ++corner) {
                const PackPair pixel = load_pairs(plane[p] + corners[p].offset[corner][lane]);
                const Pack share = load_all(corners[p].share[corner] + lane);
                sum.even += share * pixel.even;
                sum.odd += share * pixel.odd;
            }
        }
        store_pairs(output + lane * stride, sum);
    }
}

S3D_HD int read_whole_pairs(const float* const (&)[3], const PlaneCorners (&)[3], int, int, float*, int64_t) {
    return 0;
}

// Reads what `read_pairs` can; returns the number of channels read.
S3D_HD int read_whole_pairs(const Bfloat* const (&plane)[3], const PlaneCorners (&corners)[3], int lanes, int channels,
                            float* output, int64_t stride) {
    int read = 0;
    for (; channels - read >= 2 * WIDTH; read += 2 * WIDTH) {
        const Bfloat* const from[3] = {plane[0] + read, plane[1] + read, plane[2] + read};
        read_pairs(from, corners, lanes, output + read, stride);
    }
    return read;
}

// All channels of some points, four packs at a time.
template <class T>
S3D_HD void read_channels(const T* const (&plane)[3], const PlaneCorners (&corners)[3], int lanes, int channels,
                          float* output, int64_t stride) {
    const int read = read_whole_pairs(plane, corners, lanes, channels, output, stride);
    if (read == channels) return;
    const T* from[3] = {plane[0] + read, plane[1] + read, plane[2] + read};
    channels -= read;
    output += read;
    for (; channels > 4 * WIDTH; channels -= 4 * WIDTH, output += 4 * WIDTH) {
        read_packs<4, true>(from, corners, lanes, WIDTH, output, stride);
        for (int p = 0; p < 3; ++p) from[p] += 4 * WIDTH;
    }
    const int packs = (channels + WIDTH - 1) / WIDTH, last = channels - (packs - 1) * WIDTH;
    switch (packs) {
        case 1: read_last_packs<1>(from, corners, lanes, last, output, stride); break;
        case 2: read_last_packs<2>(from, corners, lanes, last, output, stride); break;
        case 3: read_last_packs<3>(from, corners, lanes, last, output, stride); break;
        default: read_last_packs<4>(from, corners, lanes, last, output, stride); break;
    }
}

}  // namespace S3D_VARIANT

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
// `stride` floats in `output`.
template <int P, bool WHOLE, class T>
S3D_HD void read_packs(const T* const (&plane)[3], const PlaneCorners (&corners)[3], int lanes, int last, float* output,
                       int64_t stride) {
    for (int lane = 0; lane < lanes; ++lane, output += stride) {
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
        for (int part = 0; part < P - 1; ++part) store(output + part * WIDTH, sum[part]);
        if (WHOLE) {
            store(output + (P - 1) * WIDTH, sum[P - 1]);
        } else {
            store_some(output + (P - 1) * WIDTH, sum[P - 1], last);
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

// All channels of some points, four packs at a time.
template <class T>
S3D_HD void read_channels(const T* const (&plane)[3], const PlaneCorners (&corners)[3], int lanes, int channels,
                          float* output, int64_t stride) {
    const T* from[3] = {plane[0], plane[1], plane[2]};
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

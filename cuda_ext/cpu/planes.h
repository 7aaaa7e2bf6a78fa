// Sampling of three feature planes with channels across the lanes; shared by the tri-plane lookup and the fused field.
#pragma once

#include "pack_lanes.h"
#include "triplane.h"

namespace S3D_VARIANT {

constexpr float PLANE_WEIGHT = 1.0f / 3.0f;

// The four pixels around each of up to WIDTH points on one plane: offsets, and weights that include the factor 1/3.
struct PlaneCorners {
    alignas(64) int32_t offset[4][WIDTH];
    alignas(64) float weight[4][WIDTH];
};

S3D_HD void find_corners(const PlaneAxis<Pack>& column, const PlaneAxis<Pack>& row, int32_t column_stride,
                         int32_t row_stride, PlaneCorners& corners) {
    store(corners.offset[0], row.low * row_stride + column.low * column_stride);
    store(corners.offset[1], row.low * row_stride + column.high * column_stride);
    store(corners.offset[2], row.high * row_stride + column.low * column_stride);
    store(corners.offset[3], row.high * row_stride + column.high * column_stride);
    Pack weight[4];
    bilinear_weights(column.weight, row.weight, splat<Pack>(PLANE_WEIGHT), weight);
    for (int corner = 0; corner < 4; ++corner) store(corners.weight[corner], weight[corner]);
}

// Output rows of consecutive points.
struct ContiguousRows {
    float* first;
    int64_t stride;

    void write(int lane, int channel, Pack value) const { store(first + lane * stride + channel, value); }

    void write_masked(int lane, int channel, Pack value, int count) const {
        store_masked(first + lane * stride + channel, value, count);
    }
};

// Samples P packs of channels from `channel` on, the last with `last` channels (WIDTH if WHOLE), for `lanes` points.
template <int P, bool WHOLE, class T, class Rows>
S3D_HD void read_packs(const T* const (&plane)[3], const PlaneCorners (&corners)[3], int lanes, int channel, int last,
                       const Rows& output) {
    for (int lane = 0; lane < lanes; ++lane) {
        Pack sum[P] = {};
        for (int p = 0; p < 3; ++p) {
            for (int corner = 0; corner < 4; ++corner) {
                const T* pixel = plane[p] + corners[p].offset[corner][lane] + channel;
                const Pack weight = load_broadcast(corners[p].weight[corner] + lane);
                for (int part = 0; part < P; ++part) {
                    const T* address = pixel + part * WIDTH;
                    sum[part] += weight * (WHOLE || part < P - 1 ? load(address) : load_masked(address, last));
                }
            }
        }
        for (int part = 0; part < P - 1; ++part) output.write(lane, channel + part * WIDTH, sum[part]);
        if (WHOLE) {
            output.write(lane, channel + (P - 1) * WIDTH, sum[P - 1]);
        } else {
            output.write_masked(lane, channel + (P - 1) * WIDTH, sum[P - 1], last);
        }
    }
}

template <int P, class T, class Rows>
S3D_HD void read_last_packs(const T* const (&plane)[3], const PlaneCorners (&corners)[3], int lanes, int channel,
                            int last, const Rows& output) {
    if (last == WIDTH) {
        read_packs<P, true>(plane, corners, lanes, channel, last, output);
    } else {
        read_packs<P, false>(plane, corners, lanes, channel, last, output);
    }
}

// Samples two packs of bfloat16 channels at a time: a word holds two channels and unpacks in one instruction each.
template <class Rows>
S3D_HD void read_bf16_pairs(const BFloat16* const (&plane)[3], const PlaneCorners (&corners)[3], int lanes, int channel,
                            const Rows& output) {
    for (int lane = 0; lane < lanes; ++lane) {
        DeinterleavedPacks sum = {};
        for (int p = 0; p < 3; ++p) {
            for (int corner = 0; corner < 4; ++corner) {
                const DeinterleavedPacks pixel =
                    load_deinterleaved(plane[p] + corners[p].offset[corner][lane] + channel);
                const Pack weight = load_broadcast(corners[p].weight[corner] + lane);
                sum.even += weight * pixel.even;
                sum.odd += weight * pixel.odd;
            }
        }
        const ConsecutivePacks halves = interleave(sum);
        output.write(lane, channel, halves.first);
        output.write(lane, channel + WIDTH, halves.second);
    }
}

template <class Rows>
S3D_HD int read_whole_bf16_pairs(const float* const (&)[3], const PlaneCorners (&)[3], int, int, const Rows&) {
    return 0;
}

// Samples as many channels as `read_bf16_pairs` can; returns their number.
template <class Rows>
S3D_HD int read_whole_bf16_pairs(const BFloat16* const (&plane)[3], const PlaneCorners (&corners)[3], int lanes,
                                 int channels, const Rows& output) {
    int read = 0;
    for (; channels - read >= 2 * WIDTH; read += 2 * WIDTH) read_bf16_pairs(plane, corners, lanes, read, output);
    return read;
}

// Samples all channels of `lanes` points, four packs at a time.
template <class T, class Rows>
S3D_HD void read_channels(const T* const (&plane)[3], const PlaneCorners (&corners)[3], int lanes, int channels,
                          const Rows& output) {
    int read = read_whole_bf16_pairs(plane, corners, lanes, channels, output);
    if (read == channels) return;
    for (; channels - read > 4 * WIDTH; read += 4 * WIDTH) {
        read_packs<4, true>(plane, corners, lanes, read, WIDTH, output);
    }
    const int packs = (channels - read + WIDTH - 1) / WIDTH, last = channels - read - (packs - 1) * WIDTH;
    switch (packs) {
        case 1: read_last_packs<1>(plane, corners, lanes, read, last, output); break;
        case 2: read_last_packs<2>(plane, corners, lanes, read, last, output); break;
        case 3: read_last_packs<3>(plane, corners, lanes, read, last, output); break;
        default: read_last_packs<4>(plane, corners, lanes, read, last, output); break;
    }
}

}  // namespace S3D_VARIANT

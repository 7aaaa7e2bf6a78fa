// Bilinear sampling of planar images, with pixels across the lanes; the border is repeated outside.
#pragma once

#include "pack_lanes.h"
#include "triplane.h"

namespace S3D_VARIANT {

// Image coordinate of pixel centers.
S3D_HD Pack pixel_center(Pack pixel, int32_t size) { return (2.0f * pixel + 1.0f) / static_cast<float>(size) - 1.0f; }

// The four pixels around image coordinates u and v, and their weights.
struct BilinearCorners {
    PackInt offset[4];
    Pack weight[4];

    BilinearCorners(Pack u, Pack v, int32_t height, int32_t width) {
        const PlaneAxis<Pack> column = locate_on_plane(u, width), row = locate_on_plane(v, height);
        offset[0] = row.low * width + column.low;
        offset[1] = row.low * width + column.high;
        offset[2] = row.high * width + column.low;
        offset[3] = row.high * width + column.high;
        bilinear_weights(column.weight, row.weight, splat<Pack>(1.0f), weight);
    }

    // Samples one channel.
    Pack sample(const float* image, int lanes) const {
        Pack value = weight[0] * gather(image, offset[0], lanes);
        for (int corner = 1; corner < 4; ++corner) value += weight[corner] * gather(image, offset[corner], lanes);
        return value;
    }
};

// Upsamples by two: the row of `2 * width` values between row `near` (weight 3/4) and row `far`. `row` is scratch memory
// for `width` values and a pack on either side.
static inline void upsample_row(const float* near, const float* far, int32_t width, float* row, float* to) {
    row += WIDTH;
    for (int32_t x = 0; x < width; x += WIDTH) {
        const int lanes = count_lanes(x, width);
        store_partial(row + x, 0.75f * load_partial(near + x, lanes) + 0.25f * load_partial(far + x, lanes), lanes);
    }
    row[-1] = row[0];
    row[width] = row[width - 1];
    for (int32_t x = 0; x < width; x += WIDTH, to += 2 * WIDTH) {
        const Pack here = 0.75f * load(row + x);
        const ConsecutivePacks both = interleave({here + 0.25f * load(row + x - 1), here + 0.25f * load(row + x + 1)});
        const int left = 2 * (width - x);
        store_partial(to, both.first, count_lanes(0, left));
        if (left > WIDTH) store_partial(to + WIDTH, both.second, count_lanes(WIDTH, left));
    }
}

}  // namespace S3D_VARIANT

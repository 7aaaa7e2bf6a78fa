// The four pixels around a point on one feature plane; shared by the tri-plane lookup and the fused field.
#pragma once

#include "launch.h"
#include "triplane.h"

namespace S3D_VARIANT {

constexpr float PLANE_WEIGHT = 1.0f / 3.0f;

struct PlaneCorners {
    PlaneAxis<float> column, row;
    int64_t offset[4];  // from the plane's first pixel
    float weight[4];    // includes the factor 1/3
};

__device__ static inline PlaneCorners locate_corners(const float* position, int plane, int32_t height, int32_t width,
                                                     int64_t row_stride, int64_t column_stride) {
    PlaneCorners found;
    found.column = locate_on_plane(position[column_axis(plane)], width);
    found.row = locate_on_plane(position[row_axis(plane)], height);
    for (int corner = 0; corner < 4; ++corner) {
        const int64_t column = corner & 1 ? found.column.high : found.column.low;
        const int64_t row = corner & 2 ? found.row.high : found.row.low;
        found.offset[corner] = row * row_stride + column * column_stride;
    }
    bilinear_weights(found.column.weight, found.row.weight, PLANE_WEIGHT, found.weight);
    return found;
}

}  // namespace S3D_VARIANT

// Bilinear sampling of three feature planes: xy, yz and xz of a position in [-1, 1]^3. Pixel i of N has its center at
// (2 i + 1) / N - 1. The border is repeated outside.
#pragma once

#include "pack.h"
#include "s3d.h"

namespace S3D_VARIANT {

// Position of a coordinate between the pixels of one axis.
template <class F>
struct PlaneAxis {
    typename Lanes<F>::Int low, high;  // neighboring pixels; equal at the border
    F weight;                          // of the higher pixel
    F slope;                           // pixels per unit of the coordinate; 0 outside
};

template <class F>
S3D_HD PlaneAxis<F> locate_on_plane(F x, int32_t size) {
    const float scale = 0.5f * static_cast<float>(size), shift = 0.5f * static_cast<float>(size - 1);
    const float last = static_cast<float>(size - 1);
    const F coordinate = fused_multiply_add(x, splat<F>(scale), splat<F>(shift));
    const auto inside = (coordinate > splat<F>(0.0f)) & (coordinate < splat<F>(last));
    const F low =
        round_down(select(inside, coordinate, select(coordinate >= splat<F>(last), splat<F>(last), splat<F>(0.0f))));
    // A single rounding keeps all digits on wide planes.
    const F weight = fused_multiply_add(x, splat<F>(scale), shift - low);
    const F next = select(inside, low + 1.0f, low);
    return {to_int(low), to_int(next), select(inside, weight, (x != x) ? x : splat<F>(0.0f)),
            select(inside, splat<F>(scale), splat<F>(0.0f))};
}

// The coordinate along the width and along the height of planes 0, 1 and 2.
S3D_HD int column_axis(int plane) { return plane == 1 ? 1 : 0; }
S3D_HD int row_axis(int plane) { return plane == 0 ? 1 : 2; }

// Interpolates four corner values, given row by row.
template <class F>
S3D_HD F interpolate(F a, F b, F c, F d, const float (&weight)[4]) {
    return multiply_add(d, splat<F>(weight[3]),
                        multiply_add(c, splat<F>(weight[2]), multiply_add(b, splat<F>(weight[1]), a * weight[0])));
}

template <class F>
S3D_HD void bilinear_weights(F column, F row, F scale, F (&weight)[4]) {
    weight[0] = (1.0f - row) * (1.0f - column) * scale;
    weight[1] = (1.0f - row) * column * scale;
    weight[2] = row * (1.0f - column) * scale;
    weight[3] = row * column * scale;
}

template <class F>
struct PlaneDerivative {
    F column, row;
};

// Derivative of the bilinear interpolation per pixel, along columns and rows.
template <class F>
S3D_HD PlaneDerivative<F> bilinear_derivative(F a, F b, F c, F d, F column, F row) {
    const F across = b - a, cross = (d - c) - across;
    return {multiply_add(row, cross, across), multiply_add(column, cross, c - a)};
}

}  // namespace S3D_VARIANT

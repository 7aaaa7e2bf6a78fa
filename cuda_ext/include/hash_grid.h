// Multi-resolution hash grid (Mueller et al., 2022) in the layout of tiny-cuda-nn, which s3dnerf/encoding/hash_grid.py
// documents.
#pragma once

#include "pack.h"
#include "s3d.h"

namespace S3D_VARIANT {

// Position of a coordinate between two vertices of one axis; `weight` belongs to the upper vertex.
template <class F>
struct GridAxis {
    F weight;
    typename Lanes<F>::UInt vertex;
};

template <class F>
S3D_HD GridAxis<F> locate_in_cell(F x, float scale) {
    const F low = round_down(fused_multiply_add(x, splat<F>(scale), splat<F>(0.5f)));
    // A single rounding keeps all digits on fine levels. NaN propagates through the weight; the vertex stays a valid
    // integer.
    const F weight = fused_multiply_add(x, splat<F>(scale), 0.5f - low);
    const F valid = select(absolute(low) < splat<F>(1e9f), low, splat<F>(0.0f));
    return {weight, to_unsigned(to_int(valid))};
}

// Index within the level of a cell corner; bit d of `corner` is the step along axis d from the cell's first vertex.
template <int D, class F>
S3D_HD typename Lanes<F>::UInt entry_index(const GridAxis<F> (&axis)[D], int corner, const S3dGridLevel& level) {
    using UInt = typename Lanes<F>::UInt;
    const UInt x = axis[0].vertex + static_cast<uint32_t>(corner & 1);
    const UInt y = axis[1].vertex + static_cast<uint32_t>(corner >> 1 & 1);
    const UInt z = D > 2 ? axis[D - 1].vertex + static_cast<uint32_t>(corner >> 2) : UInt{};
    if (level.hashed) return (x ^ y * 2654435761u ^ z * 805459861u) & (level.entries - 1u);
    return modulo((z * level.resolution + y) * level.resolution + x, level.entries);
}

// Interpolation weight of a cell corner: the product of weight or 1 - weight over all axes except `skipped`.
template <int D, class F>
S3D_HD F corner_weight(const GridAxis<F> (&axis)[D], int corner, int skipped = -1) {
    F product = splat<F>(1.0f);
    for (int d = 0; d < D; ++d) {
        if (d != skipped) product = product * ((corner >> d & 1) ? axis[d].weight : 1.0f - axis[d].weight);
    }
    return product;
}

// Derivative of the interpolated value along axis `d`, given the values at all corners.
template <int D, class F>
S3D_HD F derivative_along_axis(const GridAxis<F> (&axis)[D], const F* at_corner, int d, float scale) {
    F slope = splat<F>(0.0f);
    for (int corner = 0; corner < 1 << D; ++corner) {
        if (corner >> d & 1) continue;
        slope = slope + corner_weight(axis, corner, d) * (at_corner[corner | 1 << d] - at_corner[corner]);
    }
    return slope * scale;
}

}  // namespace S3D_VARIANT

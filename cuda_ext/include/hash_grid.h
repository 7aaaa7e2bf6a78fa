// Multi-resolution hash grid (Mueller et al., 2022), layout of tiny-cuda-nn. The rule is written out in
// s3dnerf/encoding/hash_grid.py.
#pragma once

#include "pack.h"
#include "s3d.h"

namespace S3D_VARIANT {

// Where a coordinate lies on one axis: between two vertices, `weight` of the way.
template <class F>
struct GridAxis {
    F weight;
    typename Lanes<F>::Word vertex;
};

template <class F>
S3D_HD GridAxis<F> locate_on_axis(F x, float scale) {
    const F low = round_down(fused(x, splat<F>(scale), splat<F>(0.5f)));
    // One rounding, so that fine levels lose no digits. NaN goes on into the weight; the vertex stays an integer.
    const F weight = fused(x, splat<F>(scale), 0.5f - low);
    const F known = choose(absolute(low) < splat<F>(1e9f), low, splat<F>(0.0f));
    return {weight, to_word(to_int(known))};
}

// Index, within its level, of the vertex whose steps from the cell's first vertex are the bits of `corner`.
template <int D, class F>
S3D_HD typename Lanes<F>::Word find_entry(const GridAxis<F> (&axis)[D], int corner, const S3dGridLevel& level) {
    using Word = typename Lanes<F>::Word;
    const Word x = axis[0].vertex + static_cast<uint32_t>(corner & 1);
    const Word y = axis[1].vertex + static_cast<uint32_t>(corner >> 1 & 1);
    const Word z = D > 2 ? axis[D - 1].vertex + static_cast<uint32_t>(corner >> 2) : Word{};
    if (level.hashed) return (x ^ y * 2654435761u ^ z * 805459861u) & (level.entries - 1u);
    return remainder_of((z * level.resolution + y) * level.resolution + x, level.entries);
}

// Share of that vertex: the product over the axes of weight or 1 - weight. `skipped` leaves one axis out.
template <int D, class F>
S3D_HD F share_of_corner(const GridAxis<F> (&axis)[D], int corner, int skipped = -1) {
    F share = splat<F>(1.0f);
    for (int d = 0; d < D; ++d) {
        if (d != skipped) share = share * ((corner >> d & 1) ? axis[d].weight : 1.0f - axis[d].weight);
    }
    return share;
}

// Derivative along axis `d` of the interpolated value, from the values at all corners.
template <int D, class F>
S3D_HD F slope_on_axis(const GridAxis<F> (&axis)[D], const F* at_corner, int d, float scale) {
    F slope = splat<F>(0.0f);
    for (int corner = 0; corner < 1 << D; ++corner) {
        if (corner >> d & 1) continue;
        slope = slope + share_of_corner(axis, corner, d) * (at_corner[corner | 1 << d] - at_corner[corner]);
    }
    return slope * scale;
}

}  // namespace S3D_VARIANT

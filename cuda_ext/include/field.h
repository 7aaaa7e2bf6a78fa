// The steps from a sample in head space to its density, color and features, as s3dnerf/models composes them: look up
// the offset and the ambient coordinates in a lattice, project the deformed point with the source camera, sample the
// feature planes there, apply a small network and map its outputs to their ranges.
#pragma once

#include "elementary.h"
#include "s3d.h"

namespace S3D_VARIANT {

// Position of a coordinate between the points of one lattice axis.
template <class F>
struct LatticeAxis {
    typename Lanes<F>::Int low;  // index of the lower point; the upper one is low + 1
    F weight;                    // of the upper point
};

// The lattice is uniform in asinh((x - center) / focus). Positions outside read its border.
template <class F>
S3D_HD LatticeAxis<F> locate_in_lattice(F x, float center, float focus, float extent, int32_t points) {
    const float last = static_cast<float>(points - 1);
    const F unit = inverse_sinh((x - center) * (1.0f / focus)) * (1.0f / extent);
    const F coordinate = clamp((unit + 1.0f) * (0.5f * last), 0.0f, last);
    const F valid = select(coordinate == coordinate, coordinate, splat<F>(0.0f));
    const F low = clamp(round_down(valid), 0.0f, last - 1.0f);
    return {to_int(low), coordinate - low};
}

template <class F>
struct ProjectedPoint {
    F u, v, depth;  // image coordinates, and depth toward the viewer in head units
};

// Interpolation weight of cell corner `corner`; bit d of `corner` selects the lower or upper point along axis d.
template <class F>
S3D_HD F corner_weight(int corner, const F (&weight)[3]) {
    F product = (corner & 1) ? weight[0] : 1.0f - weight[0];
    product = product * ((corner & 2) ? weight[1] : 1.0f - weight[1]);
    return product * ((corner & 4) ? weight[2] : 1.0f - weight[2]);
}

// Scaled orthographic camera: `rotation [3, 3]` from head to camera, `scale`, `center [2]`.
template <class F>
S3D_HD ProjectedPoint<F> project(F x, F y, F z, const float* rotation, float scale, const float* center) {
    const F across = x * rotation[0] + y * rotation[1] + z * rotation[2];
    const F upward = x * rotation[3] + y * rotation[4] + z * rotation[5];
    const F nearer = x * rotation[6] + y * rotation[7] + z * rotation[8];
    return {center[0] + scale * across, center[1] - scale * upward, nearer};
}

// Gradient to coordinate `axis` of a point, given the gradient to its projection.
template <class F>
S3D_HD F projection_backward(const ProjectedPoint<F>& gradient, const float* rotation, float scale, int axis) {
    const F flat = gradient.u * rotation[axis] - gradient.v * rotation[3 + axis];
    return scale * flat + gradient.depth * rotation[6 + axis];
}

// Next octave: sin 2a = 2 sin a cos a, cos 2a = 1 - 2 sin^2 a.
template <class F>
S3D_HD SineCosine<F> double_angle(SineCosine<F> angle) {
    return {2.0f * angle.sine * angle.cosine, 1.0f - 2.0f * angle.sine * angle.sine};
}

// Width of the network's input: features of all planes, ambient coordinates, offset times `OFFSET_GAIN`, position and
// its sines and cosines.
S3D_HD int32_t count_inputs(const S3dField& field) {
    return field.scales * field.plane_channels + field.ambient + 3 + 3 * (1 + 2 * field.frequencies);
}

constexpr float OFFSET_GAIN = 4.0f, DENSITY_GAIN = 4.0f;

template <class F>
S3D_HD F to_density(F raw) {
    return DENSITY_GAIN * softplus(raw);
}

// Derivative of `to_density`.
template <class F>
S3D_HD F density_derivative(F raw) {
    return DENSITY_GAIN * sigmoid(raw);
}

// Derivative of the sigmoid, given its value.
template <class F>
S3D_HD F sigmoid_derivative(F value) {
    return value * (1.0f - value);
}

}  // namespace S3D_VARIANT

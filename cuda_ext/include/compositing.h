// Emission-absorption volume rendering along a ray (Max, 1995). A sample with the optical depth o (density times
// length) behind the accumulated optical depth b has the weight exp(-b) (1 - exp(-o)).
#pragma once

#include <cmath>

#include "elementary.h"
#include "pack.h"
#include "s3d.h"

namespace S3D_VARIANT {

template <class F>
S3D_HD F sample_weight(F optical_depth, F before) {
    return exponential(-before) * one_minus_exp(optical_depth);
}

// Same weight, computed from the transmittance, which is reduced by it.
template <class F>
S3D_HD F absorb(F optical_depth, F& transmittance) {
    const F weight = transmittance * one_minus_exp(optical_depth);
    transmittance = transmittance - weight;
    return weight;
}

struct SampleRange {
    int64_t begin, end;
};

// Sample range of a ray.
S3D_HD SampleRange find_samples(const S3dComposite& rays, int64_t ray) {
    const int64_t count = rays.samples / rays.rays;
    return {ray * count, (ray + 1) * count};
}

// Accumulated optical depth at which the transmittance falls below `stop`; samples behind it are invisible.
S3D_HD float max_visible_depth(float stop) { return stop > 0.0f ? -logf(stop) : 3e38f; }

// Derivative of a ray's result with respect to the optical depth of one sample. The sample gains the light behind it
// (transmittance `after`) and dims all samples behind it, whose weighted gradients sum to `behind`.
template <class F>
S3D_HD F depth_derivative(F weight_gradient, F after, F behind) {
    return weight_gradient * after - behind;
}

}  // namespace S3D_VARIANT

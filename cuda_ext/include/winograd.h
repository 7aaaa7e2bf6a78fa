// 3 x 3 convolution in tiles of 4 x 4 outputs, each computed from a patch of 6 x 6 inputs with 36 instead of 144
// products (Lavin and Gray, 2016, "Fast Algorithms for Convolutional Neural Networks", section 4.3: F(4x4, 3x3)). These
// are its one-dimensional transforms; each is applied along both axes.
#pragma once

#include "pack.h"

namespace S3D_VARIANT {

constexpr int WINOGRAD_TILE = 4, PATCH = 6, WINOGRAD_POINTS = PATCH * PATCH;

template <class F>
S3D_HD void transform_filter(const F (&g)[3], F (&u)[PATCH]) {
    const F outer = (1.0f / 6.0f) * (g[0] + g[2]), inner = (1.0f / 6.0f) * g[1];
    const F uneven = (1.0f / 24.0f) * g[0] + (1.0f / 6.0f) * g[2];
    u[0] = 0.25f * g[0];
    u[1] = -outer - inner;
    u[2] = inner - outer;
    u[3] = uneven + 0.5f * inner;
    u[4] = uneven - 0.5f * inner;
    u[5] = g[2];
}

// Adjoint of `transform_filter`: maps the gradient to u to the gradient to g.
template <class F>
S3D_HD void transform_filter_adjoint(const F (&u)[PATCH], F (&g)[3]) {
    const F even = (1.0f / 6.0f) * (u[1] + u[2]), wide = (1.0f / 6.0f) * (u[3] + u[4]);
    g[0] = 0.25f * (u[0] + wide) - even;
    g[1] = (1.0f / 6.0f) * (u[2] - u[1] + 0.5f * (u[3] - u[4]));
    g[2] = wide - even + u[5];
}

template <class F>
S3D_HD void transform_patch(const F (&d)[PATCH], F (&v)[PATCH]) {
    const F even = d[4] - 4.0f * d[2], odd = d[3] - 4.0f * d[1];
    const F near = d[4] - d[2], far = 2.0f * (d[3] - d[1]);
    v[0] = 4.0f * d[0] - 5.0f * d[2] + d[4];
    v[1] = even + odd;
    v[2] = even - odd;
    v[3] = near + far;
    v[4] = near - far;
    v[5] = 4.0f * d[1] - 5.0f * d[3] + d[5];
}

template <class F>
S3D_HD void transform_products(const F (&m)[PATCH], F (&y)[WINOGRAD_TILE]) {
    const F even = m[1] + m[2], odd = m[1] - m[2];
    const F wide = m[3] + m[4], skewed = m[3] - m[4];
    y[0] = m[0] + even + wide;
    y[1] = odd + 2.0f * skewed;
    y[2] = even + 4.0f * wide;
    y[3] = odd + 8.0f * skewed + m[5];
}

// Adjoint of `transform_products`: maps the gradient to y to the gradient to m.
template <class F>
S3D_HD void transform_products_adjoint(const F (&y)[WINOGRAD_TILE], F (&m)[PATCH]) {
    const F even = y[0] + y[2], odd = y[1] + y[3];
    const F wide = y[0] + 4.0f * y[2], skewed = 2.0f * y[1] + 8.0f * y[3];
    m[0] = y[0];
    m[1] = even + odd;
    m[2] = even - odd;
    m[3] = wide + skewed;
    m[4] = wide - skewed;
    m[5] = y[3];
}

}  // namespace S3D_VARIANT

// Backward pass of plane sampling: gradients to the pixels and to the projected sample positions.
#pragma once

#include "thread_gradient.h"

namespace S3D_VARIANT {

// Where up to WIDTH samples read one plane, and where they accumulate its gradient.
struct PlaneSample {
    PlaneCorners from;
    alignas(64) int32_t to[4][WIDTH];
    alignas(64) float column[WIDTH], row[WIDTH];                        // weight of the higher pixel
    alignas(64) float column_derivative[WIDTH], row_derivative[WIDTH];  // pixels per unit, times 1/3
};

static inline void locate_plane_sample(const S3dField& field, const SampleRows& rows, int first, int scale, int plane,
                                       int stride, PlaneSample& sample) {
    const int32_t width = field.plane_width[scale], height = field.plane_height[scale];
    const PlaneAxis<Pack> column = locate_on_plane(load(rows.projected[column_axis(plane)] + first), width);
    const PlaneAxis<Pack> row = locate_on_plane(load(rows.projected[row_axis(plane)] + first), height);
    find_corners(column, row, stride, stride * width, sample.from);
    memcpy(sample.to, sample.from.offset, sizeof sample.to);
    find_corners(column, row, field.plane_channels, field.plane_channels * width, sample.from);
    store(sample.column, column.weight);
    store(sample.row, row.weight);
    store(sample.column_derivative, column.slope * PLANE_WEIGHT);
    store(sample.row_derivative, row.slope * PLANE_WEIGHT);
}

// Accumulates the gradient of one sample on one plane to its pixels and to its position.
template <class T>
S3D_HD void plane_sample_backward(const PlaneSample& sample, int lane, const T* plane, const float* gradient,
                                  int channels, float* pixels, Pack& column_gradient, Pack& row_gradient) {
    const Pack column = load_broadcast(sample.column + lane), row = load_broadcast(sample.row + lane);
    const Pack column_derivative = load_broadcast(sample.column_derivative + lane),
               row_derivative = load_broadcast(sample.row_derivative + lane);
    for (int c = 0; c < channels; c += WIDTH) {
        const int count = channels - c < WIDTH ? channels - c : WIDTH;
        const Pack value = load(gradient + c);
        Pack corner[4];
        for (int i = 0; i < 4; ++i) {
            corner[i] = load_partial(plane + sample.from.offset[i][lane] + c, count);
            float* pixel = pixels + sample.to[i][lane] + c;
            store(pixel, multiply_add(load_broadcast(sample.from.weight[i] + lane), value, load(pixel)));
        }
        const PlaneDerivative<Pack> slope =
            bilinear_derivative(corner[0], corner[1], corner[2], corner[3], column, row);
        column_gradient = multiply_add(value * column_derivative, slope.column, column_gradient);
        row_gradient = multiply_add(value * row_derivative, slope.row, row_gradient);
    }
}

// Backward pass for the lanes from sample `first` on. `rows.inputs` holds the gradient to the network's inputs; the
// gradient to u, v and depth is added to `position_gradient`.
template <class T>
void planes_backward(const S3dField& field, const Item& item, const SampleRows& rows, int first,
                     const ThreadGradient (&planes)[S3D_MAX_SCALES], float* const (&position_gradient)[3]) {
    PlaneSample sample[S3D_MAX_SCALES][3];
    const T* plane[S3D_MAX_SCALES][3];
    float* pixels[S3D_MAX_SCALES][3];
    for (int s = 0; s < field.scales; ++s) {
        const int64_t size = count_pixels(field, s);
        for (int p = 0; p < 3; ++p) {
            locate_plane_sample(field, rows, first, s, p, planes[s].stride, sample[s][p]);
            plane[s][p] = find_planes<T>(field, item, s) + p * size * field.plane_channels;
            pixels[s][p] = planes[s].data + p * size * planes[s].stride;
        }
    }
    const int lanes = count_lanes(first, rows.count);
    for (int lane = 0; lane < lanes; ++lane) {
        const float* gradient = rows.inputs + static_cast<int64_t>(first + lane) * rows.stride;
        Pack sum[3] = {};
        for (int s = 0; s < field.scales; ++s, gradient += field.plane_channels) {
            for (int p = 0; p < 3; ++p) {
                plane_sample_backward(sample[s][p], lane, plane[s][p], gradient, field.plane_channels, pixels[s][p],
                                      sum[column_axis(p)], sum[row_axis(p)]);
            }
        }
        const SumPair flat = sum_lanes(sum[0], sum[1]);
        position_gradient[0][first + lane] += flat.first;
        position_gradient[1][first + lane] += flat.second;
        position_gradient[2][first + lane] += sum_lanes(sum[2]);
    }
}

}  // namespace S3D_VARIANT

#include "triplane.h"

#include "launch.h"
#include "plane_corners.h"

namespace S3D_VARIANT {
namespace {

constexpr int CHANNELS_PER_THREAD = 4;  // channels of a thread

__device__ PlaneCorners find_corners(const S3dTriplane& lookup, const float* position, int plane) {
    return locate_corners(position, plane, lookup.height, lookup.width, lookup.row_stride, lookup.column_stride);
}

// Adjacent threads read adjacent channels.
struct Part {
    int64_t item, point;
    int first, last;  // channels
};

__device__ Part find_part(const S3dTriplane& lookup) {
    const int quads = (lookup.channels + CHANNELS_PER_THREAD - 1) / CHANNELS_PER_THREAD;
    const int64_t thread = find_thread();
    const int first = static_cast<int>(thread % quads) * CHANNELS_PER_THREAD;
    return {static_cast<int64_t>(blockIdx.y), thread / quads, first,
            first + CHANNELS_PER_THREAD < lookup.channels ? first + CHANNELS_PER_THREAD : lookup.channels};
}

template <class T>
__global__ void read_planes(S3dTriplane lookup) {
    const Part part = find_part(lookup);
    if (part.point >= lookup.points) return;
    const float* position = lookup.positions + (part.item * lookup.points + part.point) * 3;
    const T* planes = static_cast<const T*>(lookup.planes) + part.item * lookup.batch_stride;
    float sum[CHANNELS_PER_THREAD] = {};
    for (int p = 0; p < 3; ++p) {
        const PlaneCorners corners = find_corners(lookup, position, p);
        for (int corner = 0; corner < 4; ++corner) {
            const T* pixel = planes + p * lookup.plane_stride + corners.offset[corner];
            for (int c = part.first; c < part.last; ++c)
                sum[c - part.first] += corners.weight[corner] * read(pixel + c);
        }
    }
    float* output = lookup.output + (part.item * lookup.points + part.point) * lookup.output_stride;
    for (int c = part.first; c < part.last; ++c) output[c] = sum[c - part.first];
}

// `dense` has the strides of the gradient.
__global__ void add_planes_gradient(S3dTriplane dense) {
    const Part part = find_part(dense);
    if (part.point >= dense.points) return;
    const int64_t point = part.item * dense.points + part.point;
    const float* gradient = dense.output_gradient + point * dense.output_stride;
    float* planes = dense.planes_gradient + part.item * dense.batch_stride;
    for (int p = 0; p < 3; ++p) {
        const PlaneCorners corners = find_corners(dense, dense.positions + point * 3, p);
        for (int corner = 0; corner < 4; ++corner) {
            float* pixel = planes + p * dense.plane_stride + corners.offset[corner];
            for (int c = part.first; c < part.last; ++c) atomicAdd(pixel + c, corners.weight[corner] * gradient[c]);
        }
    }
}

// One thread per point.
template <class T>
__global__ void add_positions_gradient(S3dTriplane lookup) {
    if (find_thread() >= lookup.points) return;
    const int64_t point = blockIdx.y * lookup.points + find_thread();
    const T* planes = static_cast<const T*>(lookup.planes) + blockIdx.y * lookup.batch_stride;
    const float* gradient = lookup.output_gradient + point * lookup.output_stride;
    float* slope = lookup.positions_gradient + point * 3;
    for (int p = 0; p < 3; ++p) {
        const PlaneCorners corners = find_corners(lookup, lookup.positions + point * 3, p);
        const float column = corners.column.weight, row = corners.row.weight;
        const T* pixel[4];
        for (int corner = 0; corner < 4; ++corner) {
            pixel[corner] = planes + p * lookup.plane_stride + corners.offset[corner];
        }
        float columns = 0.0f, rows = 0.0f;
        for (int c = 0; c < lookup.channels; ++c) {
            const float a = read(pixel[0] + c), b = read(pixel[1] + c), d = read(pixel[2] + c), e = read(pixel[3] + c);
            columns += gradient[c] * ((1.0f - row) * (b - a) + row * (e - d));
            rows += gradient[c] * ((1.0f - column) * (d - a) + column * (e - b));
        }
        slope[column_axis(p)] += PLANE_WEIGHT * columns * corners.column.slope;
        slope[row_axis(p)] += PLANE_WEIGHT * rows * corners.row.slope;
    }
}

S3dTriplane with_dense_strides(S3dTriplane lookup) {
    lookup.column_stride = lookup.channels;
    lookup.row_stride = lookup.column_stride * lookup.width;
    lookup.plane_stride = lookup.row_stride * lookup.height;
    lookup.batch_stride = lookup.plane_stride * 3;
    return lookup;
}

int check(const S3dTriplane& lookup) {
    if (lookup.batch < 0 || lookup.batch > 65535 || lookup.points < 0) return S3D_BAD_SIZE;
    if (lookup.channels < 1 || lookup.height < 1 || lookup.width < 1) return S3D_BAD_SIZE;
    if (count_blocks(lookup.points * lookup.channels) == 0 && lookup.points > 0) return S3D_BAD_SIZE;
    if (lookup.storage != S3D_FLOAT32 && lookup.storage != S3D_BFLOAT16) return S3D_BAD_STORAGE;
    return S3D_OK;
}

// One thread per group of channels of a point.
dim3 cover_channels(const S3dTriplane& lookup) {
    const int64_t quads = (lookup.channels + CHANNELS_PER_THREAD - 1) / CHANNELS_PER_THREAD;
    return dim3(count_blocks(lookup.points * quads), static_cast<unsigned>(lookup.batch));
}

int run_forward(const S3dTriplane& lookup, cudaStream_t stream) {
    if (int error = check(lookup)) return error;
    if (lookup.points == 0 || lookup.batch == 0) return S3D_OK;
    const auto kernel = lookup.storage == S3D_FLOAT32 ? read_planes<float> : read_planes<BFloat16>;
    return launch(kernel, cover_channels(lookup), stream, lookup);
}

int run_backward(const S3dTriplane& lookup, cudaStream_t stream) {
    if (int error = check(lookup)) return error;
    if (lookup.points == 0 || lookup.batch == 0) return S3D_OK;
    int error = S3D_OK;
    if (lookup.planes_gradient != nullptr) {
        error = launch(add_planes_gradient, cover_channels(lookup), stream, with_dense_strides(lookup));
    }
    if (error == S3D_OK && lookup.positions_gradient != nullptr) {
        const bool full = lookup.storage == S3D_FLOAT32;
        const auto kernel = full ? add_positions_gradient<float> : add_positions_gradient<BFloat16>;
        const dim3 blocks(count_blocks(lookup.points), static_cast<unsigned>(lookup.batch));
        error = launch(kernel, blocks, stream, lookup);
    }
    return error;
}

}  // namespace
}  // namespace S3D_VARIANT

int s3d_cuda_triplane_forward(const S3dTriplane* lookup, void* stream) {
    return S3D_VARIANT::run_forward(*lookup, static_cast<cudaStream_t>(stream));
}

int s3d_cuda_triplane_backward(const S3dTriplane* lookup, void* stream) {
    return S3D_VARIANT::run_backward(*lookup, static_cast<cudaStream_t>(stream));
}

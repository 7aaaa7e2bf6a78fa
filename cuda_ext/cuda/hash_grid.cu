#include "hash_grid.h"

#include "launch.h"

namespace S3D_VARIANT {
namespace {

template <int D>
__device__ void find_cell(const S3dHashGrid& grid, int64_t point, const S3dGridLevel& level,
                          GridAxis<float> (&axis)[D]) {
    for (int d = 0; d < D; ++d) axis[d] = locate_in_cell(grid.positions[point * D + d], level.scale);
}

// One thread per point and level.
template <int D, int F, class T>
__global__ void read_level(S3dHashGrid grid) {
    const int64_t point = find_thread();
    if (point >= grid.points) return;
    const S3dGridLevel& level = grid.level[blockIdx.y];
    const T* table = static_cast<const T*>(grid.table) + level.offset * F;
    GridAxis<float> axis[D];
    find_cell(grid, point, level, axis);
    float sum[F] = {};
    for (int corner = 0; corner < 1 << D; ++corner) {
        const T* entry = table + static_cast<int64_t>(entry_index(axis, corner, level)) * F;
        const float weight = corner_weight(axis, corner);
        for (int f = 0; f < F; ++f) sum[f] += weight * read(entry + f);
    }
    float* output = grid.output + (point * grid.levels + blockIdx.y) * F;
    for (int f = 0; f < F; ++f) output[f] = sum[f];
}

// One thread per point and level; points may share entries.
template <int D, int F>
__global__ void add_level_gradient(S3dHashGrid grid) {
    const int64_t point = find_thread();
    if (point >= grid.points) return;
    const S3dGridLevel& level = grid.level[blockIdx.y];
    const float* gradient = grid.output_gradient + (point * grid.levels + blockIdx.y) * F;
    GridAxis<float> axis[D];
    find_cell(grid, point, level, axis);
    for (int corner = 0; corner < 1 << D; ++corner) {
        float* entry = grid.table_gradient + (level.offset + entry_index(axis, corner, level)) * F;
        const float weight = corner_weight(axis, corner);
        for (int f = 0; f < F; ++f) atomicAdd(entry + f, weight * gradient[f]);
    }
}

// One thread per point, over all levels.
template <int D, int F, class T>
__global__ void write_positions_gradient(S3dHashGrid grid) {
    const int64_t point = find_thread();
    if (point >= grid.points) return;
    float slope[D] = {};
    for (int l = 0; l < grid.levels; ++l) {
        const S3dGridLevel& level = grid.level[l];
        const T* table = static_cast<const T*>(grid.table) + level.offset * F;
        const float* gradient = grid.output_gradient + (point * grid.levels + l) * F;
        GridAxis<float> axis[D];
        find_cell(grid, point, level, axis);
        float at_corner[1 << D];
        for (int corner = 0; corner < 1 << D; ++corner) {
            const T* entry = table + static_cast<int64_t>(entry_index(axis, corner, level)) * F;
            at_corner[corner] = 0.0f;
            for (int f = 0; f < F; ++f) at_corner[corner] += gradient[f] * read(entry + f);
        }
        for (int d = 0; d < D; ++d) slope[d] += derivative_along_axis(axis, at_corner, d, level.scale);
    }
    for (int d = 0; d < D; ++d) grid.positions_gradient[point * D + d] = slope[d];
}

template <int D, int F, class T>
int run_forward(const S3dHashGrid& grid, cudaStream_t stream) {
    return launch(read_level<D, F, T>, dim3(count_blocks(grid.points), grid.levels), stream, grid);
}

template <int D, int F, class T>
int run_backward(const S3dHashGrid& grid, cudaStream_t stream) {
    int error = S3D_OK;
    if (grid.table_gradient != nullptr) {
        const dim3 blocks(count_blocks(grid.points), grid.levels);
        error = launch(add_level_gradient<D, F>, blocks, stream, grid);
    }
    if (error == S3D_OK && grid.positions_gradient != nullptr) {
        error = launch(write_positions_gradient<D, F, T>, dim3(count_blocks(grid.points)), stream, grid);
    }
    return error;
}

using Work = int (*)(const S3dHashGrid&, cudaStream_t);

template <int D, class T>
Work choose_features(int features, bool backward) {
    switch (features) {
        case 1: return backward ? run_backward<D, 1, T> : run_forward<D, 1, T>;
        case 2: return backward ? run_backward<D, 2, T> : run_forward<D, 2, T>;
        case 4: return backward ? run_backward<D, 4, T> : run_forward<D, 4, T>;
        case 8: return backward ? run_backward<D, 8, T> : run_forward<D, 8, T>;
        default: return nullptr;
    }
}

template <class T>
Work choose_dimensions(const S3dHashGrid& grid, bool backward) {
    if (grid.dimensions == 2) return choose_features<2, T>(grid.features, backward);
    if (grid.dimensions == 3) return choose_features<3, T>(grid.features, backward);
    return nullptr;
}

int run(const S3dHashGrid& grid, void* stream, bool backward) {
    if (grid.levels < 1 || grid.levels > S3D_MAX_LEVELS || grid.points < 0) return S3D_BAD_SIZE;
    if (grid.storage != S3D_FLOAT32 && grid.storage != S3D_FLOAT16) return S3D_BAD_STORAGE;
    if (grid.points == 0) return S3D_OK;
    const bool full = grid.storage == S3D_FLOAT32;
    const Work work = full ? choose_dimensions<float>(grid, backward) : choose_dimensions<Half>(grid, backward);
    if (work == nullptr || count_blocks(grid.points) == 0) return S3D_BAD_SIZE;
    return work(grid, static_cast<cudaStream_t>(stream));
}

}  // namespace
}  // namespace S3D_VARIANT

int s3d_cuda_hash_grid_forward(const S3dHashGrid* grid, void* stream) { return S3D_VARIANT::run(*grid, stream, false); }

int s3d_cuda_hash_grid_backward(const S3dHashGrid* grid, void* stream) { return S3D_VARIANT::run(*grid, stream, true); }

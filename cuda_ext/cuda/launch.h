// Starts a kernel: on a GPU under nvcc, or, compiled as C++ with S3D_EMULATE, in plain loops over its blocks and threads, so
// that the kernels run in tests on machines without a GPU. The loops are for kernels whose threads never wait for each other.
#pragma once

#include "s3d.h"

constexpr int S3D_THREADS = 128;  // of a block

#if defined(S3D_EMULATE)

#include <cstddef>

#define __global__ static
#define __device__

using cudaStream_t = void*;

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};

static dim3 blockIdx, threadIdx, blockDim, gridDim;

// Threads take turns here, so that nothing can come between reading and writing.
static inline float atomicAdd(float* place, float value) {
    const float before = *place;
    *place = before + value;
    return before;
}

template <class Kernel, class Arguments>
static int launch(Kernel kernel, dim3 blocks, cudaStream_t, const Arguments& arguments) {
    gridDim = blocks;
    blockDim = dim3(S3D_THREADS);
    for (blockIdx.y = 0; blockIdx.y < blocks.y; ++blockIdx.y) {
        for (blockIdx.x = 0; blockIdx.x < blocks.x; ++blockIdx.x) {
            for (threadIdx.x = 0; threadIdx.x < blockDim.x; ++threadIdx.x) kernel(arguments);
        }
    }
    return S3D_OK;
}

#else

#include <cuda_runtime.h>

template <class Kernel, class Arguments>
static int launch(Kernel kernel, dim3 blocks, cudaStream_t stream, const Arguments& arguments) {
    kernel<<<blocks, S3D_THREADS, 0, stream>>>(arguments);
    return static_cast<int>(cudaGetLastError());
}

#endif

// Number of blocks whose threads cover `count` items; 0 if a grid cannot hold them.
static inline unsigned count_blocks(int64_t count) {
    const int64_t blocks = (count + S3D_THREADS - 1) / S3D_THREADS;
    return blocks > 0x7fffffff ? 0u : static_cast<unsigned>(blocks);
}

// The item of this thread.
__device__ static inline int64_t find_thread() {
    return static_cast<int64_t>(blockIdx.x) * S3D_THREADS + threadIdx.x;
}

// Launches kernels: on a GPU under nvcc, or, compiled as C++ with S3D_EMULATE, in plain loops over blocks and threads,
// so that tests run without a GPU. Threads synchronize between phases: all threads of a block finish a phase before any
// starts the next. They exchange data through shared memory.
#pragma once

#include "s3d.h"

constexpr int S3D_THREADS = 128;  // per block

#if defined(S3D_EMULATE)

#include <cstddef>
#include <vector>

#define __global__ static
#define __device__

using cudaStream_t = void*;

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};

static dim3 blockIdx, threadIdx, blockDim, gridDim;

// Threads run one after the other here, so a plain read and write is atomic.
static inline float atomicAdd(float* address, float value) {
    const float before = *address;
    *address = before + value;
    return before;
}

template <class Work>
static int visit_blocks(dim3 blocks, Work work) {
    gridDim = blocks;
    blockDim = dim3(S3D_THREADS);
    for (blockIdx.y = 0; blockIdx.y < blocks.y; ++blockIdx.y) {
        for (blockIdx.x = 0; blockIdx.x < blocks.x; ++blockIdx.x) work();
    }
    return S3D_OK;
}

template <class Kernel, class Arguments>
static int launch(Kernel kernel, dim3 blocks, cudaStream_t, const Arguments& arguments) {
    return visit_blocks(blocks, [&] {
        for (threadIdx.x = 0; threadIdx.x < blockDim.x; ++threadIdx.x) kernel(arguments);
    });
}

template <class Kernel, class Arguments>
static int launch_phases(dim3 blocks, int phases, size_t shared, cudaStream_t, const Arguments& arguments) {
    return visit_blocks(blocks, [&] {
        std::vector<float> memory(shared);
        for (int phase = 0; phase < phases; ++phase) {
            for (threadIdx.x = 0; threadIdx.x < blockDim.x; ++threadIdx.x) {
                Kernel::run_phase(phase, memory.data(), arguments);
            }
        }
    });
}

#else

#include <cuda_runtime.h>

template <class Kernel, class Arguments>
static int launch(Kernel kernel, dim3 blocks, cudaStream_t stream, const Arguments& arguments) {
    kernel<<<blocks, S3D_THREADS, 0, stream>>>(arguments);
    return static_cast<int>(cudaGetLastError());
}

template <class Kernel, class Arguments>
__global__ void run_phases(Arguments arguments, int phases) {
    extern __shared__ float memory[];
    for (int phase = 0; phase < phases; ++phase) {
        Kernel::run_phase(phase, memory, arguments);
        __syncthreads();
    }
}

// Launches a kernel with `shared` floats of shared memory per block.
template <class Kernel, class Arguments>
static int launch_phases(dim3 blocks, int phases, size_t shared, cudaStream_t stream, const Arguments& arguments) {
    constexpr size_t DEFAULT_SHARED_BYTES = 48 * 1024;  // available without opting in
    const auto kernel = run_phases<Kernel, Arguments>;
    const size_t bytes = shared * sizeof(float);
    if (bytes > DEFAULT_SHARED_BYTES) {
        const cudaError_t error =
            cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
        if (error != cudaSuccess) return static_cast<int>(error);
    }
    kernel<<<blocks, S3D_THREADS, bytes, stream>>>(arguments, phases);
    return static_cast<int>(cudaGetLastError());
}

#endif

// Number of blocks whose threads cover `count` items; 0 if they exceed the largest grid.
static inline unsigned count_blocks(int64_t count, int64_t items_a_block = S3D_THREADS) {
    const int64_t blocks = (count + items_a_block - 1) / items_a_block;
    return blocks > 0x7fffffff ? 0u : static_cast<unsigned>(blocks);
}

// Global index of this thread.
__device__ static inline int64_t find_thread() { return static_cast<int64_t>(blockIdx.x) * S3D_THREADS + threadIdx.x; }

#include "launch.h"

const char* s3d_cuda_error(int code) {
#if defined(S3D_EMULATE)
    return code == 0 ? "no error" : "emulated";
#else
    return cudaGetErrorString(static_cast<cudaError_t>(code));
#endif
}

// build.py defines S3D_ABI_HASH.
const char* s3d_abi_hash(void) { return S3D_ABI_HASH; }

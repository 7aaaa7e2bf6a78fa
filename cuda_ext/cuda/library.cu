#include "launch.h"

const char* s3d_cuda_error(int code) {
#if defined(S3D_EMULATE)
    return code == 0 ? "no error" : "emulated";
#else
    return cudaGetErrorString(static_cast<cudaError_t>(code));
#endif
}

int64_t s3d_structure_size(int which) {
    const int64_t sizes[] = {sizeof(S3dHashGrid), sizeof(S3dTriplane), sizeof(S3dComposite), sizeof(S3dField),
                             sizeof(S3dWarp),     sizeof(S3dPhotograph), sizeof(S3dConvolution),
                             sizeof(S3dDetail),   sizeof(S3dEnlarging)};
    return which >= 0 && which < 9 ? sizes[which] : -1;
}

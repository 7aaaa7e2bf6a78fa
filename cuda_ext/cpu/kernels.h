// The kernels of one instruction set; dispatch.cpp selects one.
#pragma once

#include "s3d.h"

#define S3D_DECLARE_KERNELS(variant)                                              \
    namespace variant {                                                           \
    int hash_grid_forward(const S3dHashGrid&, int threads);                       \
    int hash_grid_backward(const S3dHashGrid&, int threads);                      \
    int triplane_forward(const S3dTriplane&, int threads);                        \
    int triplane_backward(const S3dTriplane&, int threads);                       \
    int composite_forward(const S3dComposite&, int threads);                      \
    int composite_backward(const S3dComposite&, int threads);                     \
    int field_forward(const S3dField&, int threads);                              \
    int field_backward(const S3dField&, int threads);                             \
    int deformation_forward(const S3dDeformation&, int threads);                  \
    int deformation_backward(const S3dDeformation&, int threads);                 \
    int warp_source_forward(const S3dWarpSource&, int threads);                   \
    int convolution_forward(const S3dConvolution&, int threads);                  \
    int convolution_backward(const S3dConvolution&, int threads);                 \
    int convolution_bf16_forward(const S3dConvolutionBf16&, int threads);         \
    int add_residual_forward(const S3dAddResidual&, int threads);                 \
    int upsample_add_forward(const S3dUpsampleAdd&, int threads);                 \
    int separable_forward(const S3dSeparable&, int threads);                      \
    int compose_layers_forward(const S3dComposeLayers&, int threads);             \
    int composite_background_forward(const S3dCompositeBackground&, int threads); \
    int add_detail_forward(const S3dAddDetail&, int threads);                     \
    int place_samples_forward(const S3dPlaceSamples&, int threads);               \
    int stretch_forward(const S3dStretch&, int threads);                          \
    int mark_cells_forward(const S3dMarkCells&, int threads);                     \
    }

#ifdef S3D_VARIANT
S3D_DECLARE_KERNELS(S3D_VARIANT)
#endif

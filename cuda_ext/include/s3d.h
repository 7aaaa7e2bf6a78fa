// The binary interface of the kernels: plain structures of sizes and raw pointers, C functions that return 0 or an error
// code. `s3dnerf/backend.py` mirrors it. Pointers are to the memory of the device that computes; all arrays are dense
// and row-major unless strides are named. Pointers to gradients may be null where a gradient is not wanted.
#pragma once

#include <stdint.h>

#define S3D_API __attribute__((visibility("default")))

#define S3D_MAX_LEVELS 32
#define S3D_MAX_SCALES 8

enum S3dStorage { S3D_FLOAT32 = 0, S3D_BFLOAT16 = 1, S3D_FLOAT16 = 2 };

enum S3dError { S3D_OK = 0, S3D_BAD_SIZE = -1, S3D_BAD_STORAGE = -2, S3D_NO_MEMORY = -3 };

typedef struct {
    float scale;          // coordinate of vertex i is (i - 0.5) / scale
    uint32_t resolution;  // vertices an axis
    uint32_t entries;     // vertices stored
    uint32_t hashed;      // 1: addressed by hash, 0: densely
    int64_t offset;       // entries of all coarser levels
} S3dGridLevel;

typedef struct {
    int64_t points;
    int32_t dimensions;            // 2 or 3
    int32_t features;              // 1, 2, 4 or 8 at a vertex
    int32_t levels;                // at most S3D_MAX_LEVELS
    int32_t storage;               // of the table; float16 and bfloat16 on CUDA only
    const float* positions;        // [points, dimensions]
    const void* table;             // [entries, features]
    float* output;                 // [points, levels * features]
    const float* output_gradient;  // as output
    float* table_gradient;         // as table, always float32; is added to
    float* positions_gradient;     // as positions; is overwritten
    S3dGridLevel level[S3D_MAX_LEVELS];
} S3dHashGrid;

typedef struct {
    int64_t batch, points;
    int32_t channels, height, width;
    int32_t storage;  // of the planes: float32 or bfloat16
    // Distances between elements of planes[batch][plane][row][column]; channels are contiguous.
    int64_t batch_stride, plane_stride, row_stride, column_stride;
    int64_t output_stride;  // distance between two points in output and output_gradient
    const void* planes;
    const float* positions;        // [batch, points, 3]
    float* output;                 // [batch, points, channels] with output_stride
    const float* output_gradient;  // as output
    float* planes_gradient;        // [batch, 3, height, width, channels], dense; is added to
    float* positions_gradient;     // as positions; is added to
} S3dTriplane;

typedef struct {
    int64_t rays;
    int64_t samples;  // in all
    int32_t channels;
    float stop;              // samples behind less transmittance than this are not seen; 0 sees all
    const int64_t* offsets;  // [rays + 1] first sample of each ray, or null: all rays have samples / rays
    const float* density;    // [samples]
    const float* values;     // [samples, channels]
    const float* lengths;    // [samples]
    float* output;           // [rays, channels]
    float* alpha;            // [rays]
    float* weights;          // [samples]
    const float* output_gradient;
    const float* alpha_gradient;
    const float* weights_gradient;
    float* density_gradient;  // these three are overwritten
    float* values_gradient;
    float* lengths_gradient;
} S3dComposite;

typedef struct {
    int64_t batch, rays;
    int32_t samples;           // a ray, nearest first
    int32_t lattice_size[3];   // points along x, y, z
    int32_t ambient;           // channels of the lattice behind its three offsets
    int32_t scales;            // tri-planes, at most S3D_MAX_SCALES
    int32_t plane_channels;    // of each
    int32_t storage;           // of the planes
    int32_t frequencies;       // octaves of the position encoding
    int32_t hidden, features;  // widths of the network: inputs -> hidden -> hidden -> 1 + 3 + features
    float stop;                // as in S3dComposite
    float lattice_center[3], lattice_focus[3], lattice_extent[3];
    int32_t plane_height[S3D_MAX_SCALES], plane_width[S3D_MAX_SCALES];
    int64_t plane_batch_stride[S3D_MAX_SCALES];  // 0: all items of the batch share the planes
    const void* planes[S3D_MAX_SCALES];          // [batch, 3, height, width, plane_channels]
    const float* positions;                      // [batch, rays, samples, 3]
    const float* lengths;                        // [batch, rays, samples]
    const float* lattice;                        // [batch, z, y, x, 3 + ambient]
    const float* rotation;                       // [batch, 3, 3] of the portrait's camera
    const float* scale;                          // [batch]
    const float* center;                         // [batch, 2]
    const float* weights[3];                     // [outputs, inputs] of the three layers
    const float* biases[3];
    float* output;                 // [batch, rays, 3 + features + 2]: color, features, u and v in the portrait
    float* alpha;                  // [batch, rays]
    int32_t bfloat_products;       // 1: the network may multiply in bfloat16 where that is faster
    const float* output_gradient;  // as output
    const float* alpha_gradient;   // as alpha
    float* lattice_gradient;       // as lattice; these are added to
    float* planes_gradient[S3D_MAX_SCALES];  // [batch, 3, height, width, plane_channels], batch 1 if planes are shared
    float* weights_gradient[3];              // as weights
    float* biases_gradient[3];
} S3dField;

typedef struct {
    int64_t batch, points;  // frames, and the positions that they share
    int32_t regions;
    int32_t hidden, narrow, outputs;  // widths of the network: hidden -> narrow -> hidden; hidden + hidden -> outputs
    int32_t bfloat_products;          // as in S3dField
    const float* position;            // [points, hidden]
    const float* shares;              // [points, regions]
    const float* by_region;           // [batch, regions, hidden]
    const float* pose;                // [batch, hidden]
    const float* weights[3];          // [outputs, inputs] of the three layers
    const float* biases[3];
    float* output;                 // [batch, points, outputs]
    const float* output_gradient;  // as output
    float* position_gradient;      // as position; these two are overwritten
    float* shares_gradient;        // as shares
    float* by_region_gradient;     // as by_region; these are added to
    float* pose_gradient;          // as pose
    float* weights_gradient[3];    // as weights
    float* biases_gradient[3];
} S3dWarp;

typedef struct {
    int64_t batch;
    int32_t height, width;  // pixels of what was rendered; the photograph is warped to twice as many
    int32_t rendered;       // its channels beside the flow
    int32_t image_height, image_width;
    int32_t detail_channels, detail_height, detail_width, detail_storage;
    int32_t inputs_storage;               // float32 or bfloat16
    int64_t image_stride, detail_stride;  // from item to item; 0 where all share one
    const float* fine;                    // [batch, rendered + 2, height, width]: the last two are the flow, u and v
    const float* image;                   // [3, image_height, image_width] an item
    const void* detail;                   // [detail_height, detail_width, detail_channels] an item
    float* warped;                        // [batch, 3, 2 height, 2 width]
    void* inputs;                         // [batch, height, width, 12 + detail_channels + rendered]
} S3dPhotograph;

typedef struct {
    int64_t batch;
    int32_t height, width, inputs, outputs;
    int32_t activate_input, activate_output;  // by SiLU, if not 0
    const float* input;                       // [batch, height, width, inputs]; what lies around it is zero
    const float* weights;                     // [outputs, inputs, 3, 3]
    const float* bias;                        // [outputs]
    const float* addend;                      // as output, added before it is activated; or null
    float* output;                            // [batch, height, width, outputs]
    const float* output_gradient;             // as output, without activations
    float* weights_gradient;                  // as weights; these two are overwritten
    float* bias_gradient;                     // as bias
} S3dConvolution;

typedef struct {
    int64_t batch;
    int32_t height, width;  // of the change; even
    int32_t storage;        // of the change
    float share;            // of its detail, in [0, 1], that is taken out where it is small
    float agreement;        // its mean size of which a third is kept of that
    const void* change;     // [batch, height, width, 12]: two by two pixels, of each color in turn
    const float* warped;    // [batch, 3, 2 height, 2 width]
    float* image;           // as warped
} S3dDetail;

typedef struct {
    int64_t batch;
    int32_t height, width, channels;
    int32_t storage;     // of all three maps
    const void* coarse;  // [batch, height, width, channels]
    const void* addend;  // [batch, 2 height, 2 width, channels]
    void* output;        // as addend
} S3dEnlarging;

#ifdef __cplusplus
extern "C" {
#endif

// The CPU library. `threads` is at least 1.
S3D_API int s3d_cpu_hash_grid_forward(const S3dHashGrid* grid, int threads);
S3D_API int s3d_cpu_hash_grid_backward(const S3dHashGrid* grid, int threads);
S3D_API int s3d_cpu_triplane_forward(const S3dTriplane* lookup, int threads);
S3D_API int s3d_cpu_triplane_backward(const S3dTriplane* lookup, int threads);
S3D_API int s3d_cpu_composite_forward(const S3dComposite* rays, int threads);
S3D_API int s3d_cpu_composite_backward(const S3dComposite* rays, int threads);
S3D_API int s3d_cpu_field_forward(const S3dField* field, int threads);
S3D_API int s3d_cpu_field_backward(const S3dField* field, int threads);
S3D_API int s3d_cpu_warp_forward(const S3dWarp* warp, int threads);
S3D_API int s3d_cpu_warp_backward(const S3dWarp* warp, int threads);
S3D_API int s3d_cpu_photograph_forward(const S3dPhotograph* photograph, int threads);
S3D_API int s3d_cpu_convolution_forward(const S3dConvolution* layer, int threads);
// The gradients to weights and bias. That to the input is a convolution of the output's with the filters turned.
S3D_API int s3d_cpu_convolution_backward(const S3dConvolution* layer, int threads);
S3D_API int s3d_cpu_detail_forward(const S3dDetail* detail, int threads);
S3D_API int s3d_cpu_enlarging_forward(const S3dEnlarging* maps, int threads);
// The instruction set in use: "amx" (AVX-512 and matrix registers for bfloat16), "avx512", "avx2" or "plain".
// `s3d_cpu_use` chooses one of those the processor has.
S3D_API const char* s3d_cpu_variant(void);
S3D_API int s3d_cpu_use(const char* variant);

// The CUDA library. `stream` is a cudaStream_t; errors are those of cudaError_t.
S3D_API int s3d_cuda_hash_grid_forward(const S3dHashGrid* grid, void* stream);
S3D_API int s3d_cuda_hash_grid_backward(const S3dHashGrid* grid, void* stream);
S3D_API int s3d_cuda_triplane_forward(const S3dTriplane* lookup, void* stream);
S3D_API int s3d_cuda_triplane_backward(const S3dTriplane* lookup, void* stream);
S3D_API int s3d_cuda_composite_forward(const S3dComposite* rays, void* stream);
S3D_API int s3d_cuda_composite_backward(const S3dComposite* rays, void* stream);
S3D_API int s3d_cuda_field_forward(const S3dField* field, void* stream);
S3D_API const char* s3d_cuda_error(int code);

// Hash of the layout of all structures above, which build.py computes, so that callers can reject a stale library.
S3D_API const char* s3d_abi_hash(void);

#ifdef __cplusplus
}
#endif

// Binary interface of the kernels: plain structures of sizes and raw pointers, and C functions that return 0 or an
// error code. The ctypes structures in `s3dnerf/ops` mirror it. Pointers refer to memory of the device that computes.
// Arrays are dense and row-major unless strides are given. Pointers to gradients that are not needed may be null.
#pragma once

#include <stdint.h>

#if defined(_WIN32)
#define S3D_API __attribute__((dllexport))
#else
#define S3D_API __attribute__((visibility("default")))
#endif

#define S3D_MAX_LEVELS 32
#define S3D_MAX_SCALES 8

enum S3dStorage { S3D_FLOAT32 = 0, S3D_BFLOAT16 = 1, S3D_FLOAT16 = 2 };

enum S3dError { S3D_OK = 0, S3D_BAD_SIZE = -1, S3D_BAD_STORAGE = -2, S3D_NO_MEMORY = -3 };

typedef struct {
    float scale;          // vertex i lies at the coordinate (i - 0.5) / scale
    uint32_t resolution;  // vertices per axis
    uint32_t entries;     // number of stored vertices
    uint32_t hashed;      // 1: hashed, 0: dense
    int64_t offset;       // total entries of all coarser levels
} S3dGridLevel;

typedef struct {
    int64_t points;
    int32_t dimensions;            // 2 or 3
    int32_t features;              // per vertex: 1, 2, 4 or 8
    int32_t levels;                // at most S3D_MAX_LEVELS
    int32_t storage;               // of the table; float16 and bfloat16 on CUDA only
    const float* positions;        // [points, dimensions]
    const void* table;             // [entries, features]
    float* output;                 // [points, levels * features]
    const float* output_gradient;  // like output
    float* table_gradient;         // like table, always float32; accumulated
    float* positions_gradient;     // like positions; overwritten
    S3dGridLevel level[S3D_MAX_LEVELS];
} S3dHashGrid;

typedef struct {
    int64_t batch, points;
    int32_t channels, height, width;
    int32_t storage;  // of the planes: float32 or bfloat16
    // Strides of planes[batch][plane][row][column] in elements; channels are contiguous.
    int64_t batch_stride, plane_stride, row_stride, column_stride;
    int64_t output_stride;  // between two points in output and output_gradient
    const void* planes;
    const float* positions;        // [batch, points, 3]
    float* output;                 // [batch, points, channels] with output_stride
    const float* output_gradient;  // like output
    float* planes_gradient;        // [batch, 3, height, width, channels], dense; accumulated
    float* positions_gradient;     // like positions; accumulated
} S3dTriplane;

typedef struct {
    int64_t rays;
    int64_t samples;  // total number
    int32_t channels;
    float early_stop_eps;  // samples behind less transmittance than this are skipped; 0 disables early termination
    const float* density;  // [samples]
    const float* values;   // [samples, channels]
    const float* deltas;   // [samples]
    float* output;         // [rays, channels]
    float* alpha;          // [rays]
    float* weights;        // [samples]
    const float* output_gradient;
    const float* alpha_gradient;
    const float* weights_gradient;
    float* density_gradient;  // these three are overwritten
    float* values_gradient;
    float* deltas_gradient;
} S3dComposite;

typedef struct {
    int64_t batch, rays;
    int32_t samples;           // per ray, nearest first
    int32_t lattice_size[3];   // points along x, y, z
    int32_t ambient;           // ambient coordinates, which follow the three offsets in the lattice's channels
    int32_t scales;            // number of tri-planes, at most S3D_MAX_SCALES
    int32_t plane_channels;    // of each tri-plane
    int32_t storage;           // of the planes
    int32_t frequencies;       // octaves of the positional encoding
    int32_t hidden, features;  // widths of the network: inputs -> hidden -> hidden -> 1 + 3 + features
    float early_stop_eps;      // as in S3dComposite
    float lattice_center[3], lattice_focus[3], lattice_extent[3];
    int32_t plane_height[S3D_MAX_SCALES], plane_width[S3D_MAX_SCALES];
    int64_t plane_batch_stride[S3D_MAX_SCALES];  // 0 if the batch shares the planes
    const void* planes[S3D_MAX_SCALES];          // [batch, 3, height, width, plane_channels]
    const float* positions;                      // [batch, rays, samples, 3]
    const float* deltas;                         // [batch, rays, samples]
    const float* lattice;                        // [batch, z, y, x, 3 + ambient]
    const float* rotation;                       // [batch, 3, 3] of the source camera
    const float* scale;                          // [batch]
    const float* center;                         // [batch, 2]
    const float* weights[3];                     // [outputs, inputs] of the three layers
    const float* biases[3];
    float* output;                 // [batch, rays, 3 + features + 2]: color, features, u and v in the source
    float* alpha;                  // [batch, rays]
    int32_t bf16_products;         // 1: matrix products may run in bfloat16 where that is faster
    const float* output_gradient;  // like output
    const float* alpha_gradient;   // like alpha
    float* lattice_gradient;       // like lattice; all of these are accumulated
    float*
        planes_gradient[S3D_MAX_SCALES];  // [batch, 3, height, width, plane_channels]; batch is 1 if planes are shared
    float* weights_gradient[3];           // like weights
    float* biases_gradient[3];
} S3dField;

typedef struct {
    int64_t batch, points;  // frames, and the positions they share
    int32_t regions;
    // Widths of the network: hidden -> bottleneck -> hidden; both hidden layers -> outputs.
    int32_t hidden, bottleneck, outputs;
    int32_t bf16_products;        // as in S3dField
    const float* position;        // [points, hidden]
    const float* region_weights;  // [points, regions]
    const float* by_region;       // [batch, regions, hidden]
    const float* pose;            // [batch, hidden]
    const float* weights[3];      // [outputs, inputs] of the three layers
    const float* biases[3];
    float* output;                   // [batch, points, outputs]
    const float* output_gradient;    // like output
    float* position_gradient;        // like position; these two are overwritten
    float* region_weights_gradient;  // like region_weights
    float* by_region_gradient;       // like by_region; all of these are accumulated
    float* pose_gradient;            // like pose
    float* weights_gradient[3];      // like weights
    float* biases_gradient[3];
} S3dDeformation;

typedef struct {
    int64_t batch;
    int32_t height, width;  // size of the rendered image; the source is warped to twice that size
    int32_t rendered;       // number of rendered channels besides the flow
    int32_t image_height, image_width;
    int32_t detail_channels, detail_height, detail_width, detail_storage;
    int32_t inputs_storage;               // float32 or bfloat16
    int64_t image_stride, detail_stride;  // between batch items; 0 if the batch shares one
    const float* fine;   // [batch, rendered + 2, height, width]; the last two channels are the flow, u and v
    const float* image;  // [3, image_height, image_width] per item
    const void* detail;  // [detail_height, detail_width, detail_channels] per item
    float* warped;       // [batch, 3, 2 height, 2 width]
    void* inputs;        // [batch, height, width, 12 + detail_channels + rendered]
} S3dWarpSource;

typedef struct {
    int64_t batch;
    int32_t height, width, inputs, outputs;
    int32_t activate_input, activate_output;  // nonzero: apply SiLU
    const float* input;                       // [batch, height, width, inputs]; zero-padded
    const float* weights;                     // [outputs, inputs, 3, 3]
    const float* bias;                        // [outputs]
    const float* addend;                      // like output, added before the activation; or null
    float* output;                            // [batch, height, width, outputs]
    const float* output_gradient;             // like output, before the activation
    float* weights_gradient;                  // like weights; these two are overwritten
    float* bias_gradient;                     // like bias
} S3dConvolution;

typedef struct {
    int64_t batch;
    int32_t height, width;    // of the input
    int32_t inputs, outputs;  // channels
    int32_t stride;           // 1 or 2; the output has (height - 1) / stride + 1 rows
    int32_t activate_input, activate_output;
    const void* input;     // bfloat16 [batch, height, width, inputs], finite
    const float* weights;  // [outputs, inputs, 3, 3]; rounded to bfloat16
    const float* bias;     // [outputs]
    const void* addend;    // bfloat16, like output; may be null
    void* output;          // bfloat16 [batch, output height, output width, outputs]
} S3dConvolutionBf16;

typedef struct {
    int64_t batch;
    int32_t height, width;  // of the residual; even
    int32_t storage;        // of the residual
    float detail_scale;     // fraction of the residual's detail, in [0, 1], that is removed where the residual is small
    float detail_threshold;  // mean absolute residual at which 1/e of that fraction is removed
    const void* residual;    // [batch, height, width, 12]: residual, two by two pixels of each color in turn
    const float* warped;     // [batch, 3, 2 height, 2 width]
    float* image;            // like warped
} S3dAddResidual;

typedef struct {
    int64_t batch;
    int32_t height, width, channels;
    int32_t storage;     // of all three feature maps
    const void* coarse;  // [batch, height, width, channels]
    const void* addend;  // [batch, 2 height, 2 width, channels]
    void* output;        // like addend
} S3dUpsampleAdd;

#define S3D_SEPARABLE_FIELDS 9

typedef struct {
    int64_t batch;
    int32_t height, width;  // of the input
    int32_t layers;
    const int32_t* plan;   // [layers, S3D_SEPARABLE_FIELDS], see separable.cpp
    const float* weights;  // of all layers in turn, channels padded to multiples of 16
    const float* input;    // [batch, height, width, inputs of the first layer]
    float* output;         // [batch, output height, output width, outputs of the last layer]
} S3dSeparable;

typedef struct {
    int64_t batch, foveated;              // frames, and foveated rays per frame
    int32_t size;                         // rays of a frame are size x size, followed by the foveated ones
    int32_t channels;                     // colors and features
    int64_t image_stride, person_stride;  // between batch items; 0 if the batch shares one
    float head_low, head_high;            // heights over which the body gives way to the head, head units
    const float* values;                  // [batch, rays, channels + 2]: colors, features, position in the source
    const float* alpha;                   // [batch, rays]
    const int64_t* cells;                 // [batch, foveated]: pixels of the fine image
    const float* opacity;                 // [batch, foveated]
    const float* image;                   // [3, 2 size, 2 size] per item
    const float* person;                  // [2 size, 2 size] per item
    const float* plane;  // [batch, 9]: flow (u, v) and height of the head in the middle, changes along u, and along v
    const float* body;   // [batch, 2]: flow of the body
    float* coarse;       // [batch, channels + 3, size, size]: colors, features, opacity, flow
    float* fine;         // [batch, channels + 3, 2 size, 2 size]
} S3dComposeLayers;

typedef struct {
    int64_t batch;
    int32_t size;                        // of flow and masks; the frame is twice as large, `alpha` half
    float uncovered_from, uncovered_to;  // decrease of opacity over which the head uncovers the background
    int64_t flow_stride, alpha_stride;   // between batch items
    const float* image;                  // [batch, 3, 2 size, 2 size]
    const float* flow;                   // [2, size, size] per item
    const float* alpha;                  // [size / 2, size / 2] per item
    const float* background;             // [3, 2 size, 2 size]
    const float* person;                 // [size, size], like the next two
    const float* head;
    const float* inpainted;
    float* output;  // like image
} S3dCompositeBackground;

#define S3D_DETAIL_SCALE 16384  // the integer that stands for a detail of 1

typedef struct {
    int64_t batch;
    int32_t channels, size, flow_size, side;  // channels: colors, or also opacity; side: of the enlarged frames
    int64_t flow_stride;                      // between batch items
    const float* image;                       // [batch, channels, size, size]
    const float* shares;                      // [batch, 2, size, size]: of detail that moves, and that stays in place
    const float* flow;                        // [2, flow_size, flow_size] per item
    const int16_t* moving;                    // [side, side, 4] detail; the fourth value is 0
    const int16_t* still;
    uint8_t* output;  // [batch, side, side, channels]
} S3dAddDetail;

typedef struct {
    int64_t batch, rays;
    int32_t samples;                                // per ray
    float ellipsoid_center[3], ellipsoid_radii[3];  // in head units
    float inner_margin, outer_margin;  // half the sampled length in the middle of the ellipsoid, and where rays miss it
    const float* points;               // [batch, rays, 2]: image coordinates
    const float* rotation;             // [batch, 3, 3]
    const float* scale;                // [batch]
    const float* center;               // [batch, 2]
    float* positions;                  // [batch, rays, samples, 3]
    float* deltas;                     // [batch, rays, samples]
} S3dPlaceSamples;

typedef struct {
    int64_t batch;
    int32_t size[3];  // points along x, y and z
    int32_t ambient;
    int64_t offsets_stride, ambient_stride;  // floats per point
    const float* offsets;                    // [batch, z, y, x, 3]
    const float* ambient_values;             // [batch, z, y, x, ambient]
    const float* heights;                    // [size of y]
    float* output;                           // [batch, z, y, x, 3 + ambient]
} S3dStretch;

typedef struct {
    int64_t count;                         // of positions
    int32_t size[3];                       // points along x, y and z
    float center[3], focus[3], extent[3];  // of the lattice, see S3dField
    const float* positions;                // [count, 3]
    uint8_t* marks;                        // [z, y, x]: 1 for points that interpolation reads, else 0
} S3dMarkCells;

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
S3D_API int s3d_cpu_deformation_forward(const S3dDeformation* warp, int threads);
S3D_API int s3d_cpu_deformation_backward(const S3dDeformation* warp, int threads);
S3D_API int s3d_cpu_warp_source_forward(const S3dWarpSource* photograph, int threads);
S3D_API int s3d_cpu_convolution_forward(const S3dConvolution* layer, int threads);
// Gradients to weights and bias. The gradient to the input is a convolution of the output gradient with the flipped and
// transposed filters.
S3D_API int s3d_cpu_convolution_backward(const S3dConvolution* layer, int threads);
// With the variants "amx" and "avx512bf16" alone; all others return S3D_BAD_STORAGE.
S3D_API int s3d_cpu_convolution_bf16_forward(const S3dConvolutionBf16* layer, int threads);
S3D_API int s3d_cpu_add_residual_forward(const S3dAddResidual* detail, int threads);
S3D_API int s3d_cpu_upsample_add_forward(const S3dUpsampleAdd* maps, int threads);
S3D_API int s3d_cpu_separable_forward(const S3dSeparable* chain, int threads);
S3D_API int s3d_cpu_compose_layers_forward(const S3dComposeLayers* layers, int threads);
S3D_API int s3d_cpu_composite_background_forward(const S3dCompositeBackground* frames, int threads);
S3D_API int s3d_cpu_add_detail_forward(const S3dAddDetail* frames, int threads);
S3D_API int s3d_cpu_place_samples_forward(const S3dPlaceSamples* samples, int threads);
S3D_API int s3d_cpu_stretch_forward(const S3dStretch* lattice, int threads);
S3D_API int s3d_cpu_mark_cells_forward(const S3dMarkCells* cells, int threads);
// The instruction set in use: "amx" (AVX-512, and AMX for bfloat16), "avx512bf16" (AVX-512 with products in bfloat16),
// "avx512", "avx2" or "plain". `s3d_cpu_use` selects one that the processor supports.
S3D_API const char* s3d_cpu_variant(void);
S3D_API int s3d_cpu_use(const char* variant);

// The CUDA library. `stream` is a cudaStream_t; error codes are those of cudaError_t.
S3D_API int s3d_cuda_hash_grid_forward(const S3dHashGrid* grid, void* stream);
S3D_API int s3d_cuda_hash_grid_backward(const S3dHashGrid* grid, void* stream);
S3D_API int s3d_cuda_triplane_forward(const S3dTriplane* lookup, void* stream);
S3D_API int s3d_cuda_triplane_backward(const S3dTriplane* lookup, void* stream);
S3D_API int s3d_cuda_composite_forward(const S3dComposite* rays, void* stream);
S3D_API int s3d_cuda_composite_backward(const S3dComposite* rays, void* stream);
S3D_API int s3d_cuda_field_forward(const S3dField* field, void* stream);
S3D_API int s3d_cuda_field_backward(const S3dField* field, void* stream);
S3D_API const char* s3d_cuda_error(int code);

// Hash of the layout of all structures above, computed by build.py, so that callers can reject a stale library.
S3D_API const char* s3d_abi_hash(void);

#ifdef __cplusplus
}
#endif

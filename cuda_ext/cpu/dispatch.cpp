// Selects the instruction set at run time, so that one library runs on every processor of its architecture.
#include <cstring>

#include "kernels.h"
#include "memory.h"

#if defined(__x86_64__) && !defined(S3D_PORTABLE)
#define S3D_X86
#include <cpuid.h>
#endif

// build.py defines S3D_WITH_BF16 and S3D_WITH_AMX if the compiler supports the instructions.
#if defined(S3D_X86) && defined(S3D_WITH_BF16)
#define S3D_BF16
#endif
#if defined(S3D_BF16) && defined(S3D_WITH_AMX) && defined(__linux__)
#define S3D_AMX
#include <sys/syscall.h>
#include <unistd.h>
#endif

S3D_DECLARE_KERNELS(s3d_plain)
#if defined(S3D_X86)
S3D_DECLARE_KERNELS(s3d_avx2)
S3D_DECLARE_KERNELS(s3d_avx512)
#endif
#if defined(S3D_BF16)
S3D_DECLARE_KERNELS(s3d_avx512bf16)
#endif
#if defined(S3D_AMX)
S3D_DECLARE_KERNELS(s3d_amx)
#endif

namespace {

struct Kernels {
    const char* name;
    int (*hash_grid_forward)(const S3dHashGrid&, int);
    int (*hash_grid_backward)(const S3dHashGrid&, int);
    int (*triplane_forward)(const S3dTriplane&, int);
    int (*triplane_backward)(const S3dTriplane&, int);
    int (*composite_forward)(const S3dComposite&, int);
    int (*composite_backward)(const S3dComposite&, int);
    int (*field_forward)(const S3dField&, int);
    int (*field_backward)(const S3dField&, int);
    int (*deformation_forward)(const S3dDeformation&, int);
    int (*deformation_backward)(const S3dDeformation&, int);
    int (*warp_source_forward)(const S3dWarpSource&, int);
    int (*convolution_forward)(const S3dConvolution&, int);
    int (*convolution_backward)(const S3dConvolution&, int);
    int (*convolution_bf16_forward)(const S3dConvolutionBf16&, int);
    int (*add_residual_forward)(const S3dAddResidual&, int);
    int (*upsample_add_forward)(const S3dUpsampleAdd&, int);
    int (*separable_forward)(const S3dSeparable&, int);
    int (*compose_layers_forward)(const S3dComposeLayers&, int);
    int (*composite_background_forward)(const S3dCompositeBackground&, int);
    int (*add_detail_forward)(const S3dAddDetail&, int);
    int (*place_samples_forward)(const S3dPlaceSamples&, int);
    int (*stretch_forward)(const S3dStretch&, int);
    int (*mark_cells_forward)(const S3dMarkCells&, int);
};

#define S3D_LIST_KERNELS(name, variant)     \
    {name,                                  \
     variant::hash_grid_forward,            \
     variant::hash_grid_backward,           \
     variant::triplane_forward,             \
     variant::triplane_backward,            \
     variant::composite_forward,            \
     variant::composite_backward,           \
     variant::field_forward,                \
     variant::field_backward,               \
     variant::deformation_forward,          \
     variant::deformation_backward,         \
     variant::warp_source_forward,          \
     variant::convolution_forward,          \
     variant::convolution_backward,         \
     variant::convolution_bf16_forward,     \
     variant::add_residual_forward,         \
     variant::upsample_add_forward,         \
     variant::separable_forward,            \
     variant::compose_layers_forward,       \
     variant::composite_background_forward, \
     variant::add_detail_forward,           \
     variant::place_samples_forward,        \
     variant::stretch_forward,              \
     variant::mark_cells_forward}

const Kernels VARIANTS[] = {
#if defined(S3D_AMX)
    S3D_LIST_KERNELS("amx", s3d_amx),
#endif
#if defined(S3D_BF16)
    S3D_LIST_KERNELS("avx512bf16", s3d_avx512bf16),
#endif
#if defined(S3D_X86)
    S3D_LIST_KERNELS("avx512", s3d_avx512),
    S3D_LIST_KERNELS("avx2", s3d_avx2),
#endif
    S3D_LIST_KERNELS("plain", s3d_plain),
};

#if defined(S3D_X86)
bool has_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
#endif

#if defined(S3D_BF16)
bool has_avx512_bf16() {
    constexpr unsigned AVX512_BF16 = 1u << 5;
    unsigned a = 0, b = 0, c = 0, d = 0;
    return has_avx512() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & AVX512_BF16) != 0;
}
#endif

#if defined(S3D_AMX)
// AMX for bfloat16, and the system's permission to use it, which a process has to request once.
bool has_amx() {
    constexpr unsigned AMX_BF16 = 1u << 22, AMX_TILE = 1u << 24;
    constexpr long ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18;
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (!has_avx512_bf16() || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    if ((d & AMX_BF16) == 0 || (d & AMX_TILE) == 0) return false;
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}
#endif

bool processor_has(const char* name) {
#if defined(S3D_AMX)
    if (strcmp(name, "amx") == 0) return has_amx();
#endif
#if defined(S3D_BF16)
    if (strcmp(name, "avx512bf16") == 0) return has_avx512_bf16();
#endif
#if defined(S3D_X86)
    if (strcmp(name, "avx512") == 0) return has_avx512();
    if (strcmp(name, "avx2") == 0) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
    return strcmp(name, "plain") == 0;
}

const Kernels* find_kernels(const char* name) {
    for (const Kernels& kernels : VARIANTS) {
        if ((name == nullptr || strcmp(name, kernels.name) == 0) && processor_has(kernels.name)) return &kernels;
    }
    return nullptr;
}

const Kernels* chosen = find_kernels(nullptr);

}  // namespace

extern "C" {

const char* s3d_cpu_variant(void) { return chosen->name; }

int s3d_cpu_use(const char* variant) {
    const Kernels* kernels = find_kernels(variant);
    if (kernels == nullptr) return S3D_BAD_SIZE;
    chosen = kernels;
    return S3D_OK;
}

int s3d_cpu_hash_grid_forward(const S3dHashGrid* grid, int threads) {
    advise_huge_pages(grid->output, sizeof(float) * grid->points * grid->levels * grid->features);
    return chosen->hash_grid_forward(*grid, threads);
}
int s3d_cpu_hash_grid_backward(const S3dHashGrid* grid, int threads) {
    return chosen->hash_grid_backward(*grid, threads);
}
int s3d_cpu_triplane_forward(const S3dTriplane* lookup, int threads) {
    advise_huge_pages(lookup->output, sizeof(float) * lookup->batch * lookup->points * lookup->output_stride);
    return chosen->triplane_forward(*lookup, threads);
}
int s3d_cpu_triplane_backward(const S3dTriplane* lookup, int threads) {
    return chosen->triplane_backward(*lookup, threads);
}
int s3d_cpu_composite_forward(const S3dComposite* rays, int threads) {
    return chosen->composite_forward(*rays, threads);
}
int s3d_cpu_composite_backward(const S3dComposite* rays, int threads) {
    advise_huge_pages(rays->values_gradient, sizeof(float) * rays->samples * rays->channels);
    return chosen->composite_backward(*rays, threads);
}
int s3d_cpu_field_forward(const S3dField* field, int threads) { return chosen->field_forward(*field, threads); }
int s3d_cpu_field_backward(const S3dField* field, int threads) { return chosen->field_backward(*field, threads); }
int s3d_cpu_deformation_forward(const S3dDeformation* warp, int threads) {
    return chosen->deformation_forward(*warp, threads);
}
int s3d_cpu_deformation_backward(const S3dDeformation* warp, int threads) {
    return chosen->deformation_backward(*warp, threads);
}
int s3d_cpu_warp_source_forward(const S3dWarpSource* photograph, int threads) {
    return chosen->warp_source_forward(*photograph, threads);
}
int s3d_cpu_convolution_forward(const S3dConvolution* layer, int threads) {
    return chosen->convolution_forward(*layer, threads);
}
int s3d_cpu_convolution_backward(const S3dConvolution* layer, int threads) {
    return chosen->convolution_backward(*layer, threads);
}
int s3d_cpu_convolution_bf16_forward(const S3dConvolutionBf16* layer, int threads) {
    return chosen->convolution_bf16_forward(*layer, threads);
}
int s3d_cpu_add_residual_forward(const S3dAddResidual* detail, int threads) {
    return chosen->add_residual_forward(*detail, threads);
}
int s3d_cpu_upsample_add_forward(const S3dUpsampleAdd* maps, int threads) {
    return chosen->upsample_add_forward(*maps, threads);
}
int s3d_cpu_separable_forward(const S3dSeparable* chain, int threads) {
    return chosen->separable_forward(*chain, threads);
}
int s3d_cpu_compose_layers_forward(const S3dComposeLayers* layers, int threads) {
    return chosen->compose_layers_forward(*layers, threads);
}
int s3d_cpu_composite_background_forward(const S3dCompositeBackground* frames, int threads) {
    return chosen->composite_background_forward(*frames, threads);
}
int s3d_cpu_add_detail_forward(const S3dAddDetail* frames, int threads) {
    return chosen->add_detail_forward(*frames, threads);
}
int s3d_cpu_place_samples_forward(const S3dPlaceSamples* samples, int threads) {
    return chosen->place_samples_forward(*samples, threads);
}
int s3d_cpu_stretch_forward(const S3dStretch* lattice, int threads) {
    return chosen->stretch_forward(*lattice, threads);
}
int s3d_cpu_mark_cells_forward(const S3dMarkCells* cells, int threads) {
    return chosen->mark_cells_forward(*cells, threads);
}

// build.py defines S3D_ABI_HASH.
const char* s3d_abi_hash(void) { return S3D_ABI_HASH; }

}  // extern "C"

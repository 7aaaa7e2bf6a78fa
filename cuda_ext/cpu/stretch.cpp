// Writes a deformed lattice: the offsets, and the ambient coordinates with the stretch of the deformation added to the
// first one.
#include "kernels.h"
#include "pack.h"

namespace S3D_VARIANT {
namespace {

constexpr float LEAST = -1.0f, MOST = 1.5f;

// Finite differences along y, of second order on uneven spacing and one-sided at both ends.
struct Slope {
    int below = 0, above = 0;  // steps to the neighbors in y
    float from_below = 0.0f, here = 0.0f, from_above = 0.0f;

    Slope(const float* heights, int y, int size) {
        below = y > 0 ? -1 : 0;
        above = y < size - 1 ? 1 : 0;
        const float lower = heights[y] - heights[y + below], upper = heights[y + above] - heights[y];
        if (below == 0) {
            from_above = 1.0f / upper;
            here = -from_above;
        } else if (above == 0) {
            here = 1.0f / lower;
            from_below = -here;
        } else {
            from_below = -upper / (lower * (lower + upper));
            here = (upper - lower) / (lower * upper);
            from_above = lower / (upper * (lower + upper));
        }
    }
};

void write_row(const S3dStretch& lattice, int64_t row) {
    const int width = lattice.size[0], y = static_cast<int>(row % lattice.size[1]), channels = 3 + lattice.ambient;
    const Slope slope(lattice.heights, y, lattice.size[1]);
    const int64_t first = row * width;
    const float *offsets = lattice.offsets + first * lattice.offsets_stride + 1,
                *ambient = lattice.ambient_values + first * lattice.ambient_stride;
    const int64_t step = width * lattice.offsets_stride;
    float* output = lattice.output + first * channels;
    for (int x = 0; x < width; ++x, offsets += lattice.offsets_stride, ambient += lattice.ambient_stride) {
        const float rise = slope.from_below * offsets[slope.below * step] + slope.here * offsets[0] +
                           slope.from_above * offsets[slope.above * step];
        const float stretch = -rise < LEAST ? LEAST : -rise > MOST ? MOST : -rise;
        for (int d = 0; d < 3; ++d) output[d] = offsets[d - 1];
        output[3] = ambient[0] + stretch;
        for (int c = 1; c < lattice.ambient; ++c) output[3 + c] = ambient[c];
        output += channels;
    }
}

}  // namespace

int stretch_forward(const S3dStretch& lattice, int threads) {
    if (lattice.batch < 0 || lattice.ambient < 1 || threads < 1) return S3D_BAD_SIZE;
    for (int d = 0; d < 3; ++d) {
        if (lattice.size[d] < 2 || lattice.size[d] > 512) return S3D_BAD_SIZE;
    }
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < lattice.batch * lattice.size[2] * lattice.size[1]; ++row) write_row(lattice, row);
    return S3D_OK;
}

}  // namespace S3D_VARIANT

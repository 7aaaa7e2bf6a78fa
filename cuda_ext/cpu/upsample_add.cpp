// Adds a coarse feature map, upsampled bilinearly by two, to a fine one; channels-last layout.
#include "elementary.h"
#include "kernels.h"
#include "product.h"

namespace S3D_VARIANT {
namespace {

void store_value(float* address, Pack value, int count) { store_partial(address, value, count); }
void store_value(BFloat16* address, Pack value, int count) { store_bf16(address, value, count); }

// Interpolates two rows of the coarse map and repeats the first and last pixel at both ends.
template <class T>
void blend_rows(const T* near, const T* far, int64_t count, int32_t channels, float* row) {
    for (int64_t i = 0; i < count; i += WIDTH) {
        const int lanes = count_lanes(i, count);
        store_partial(row + i, 0.75f * load_partial(near + i, lanes) + 0.25f * load_partial(far + i, lanes), lanes);
    }
    memcpy(row - channels, row, sizeof(float) * channels);
    memcpy(row + count, row + count - channels, sizeof(float) * channels);
}

// Writes one output row. `row` is padded by one pixel on either side.
template <class T>
void write_row(const S3dUpsampleAdd& maps, const float* row, int64_t begin) {
    const T* addend = static_cast<const T*>(maps.addend) + begin;
    T* output = static_cast<T*>(maps.output) + begin;
    const int32_t channels = maps.channels;
    for (int32_t x = 0; x < maps.width; ++x, row += channels, addend += 2 * channels, output += 2 * channels) {
        for (int32_t c = 0; c < channels; c += WIDTH) {
            const int lanes = count_lanes(c, channels);
            const Pack here = 0.75f * load_partial(row + c, lanes);
            const Pack left = here + 0.25f * load_partial(row + c - channels, lanes);
            const Pack right = here + 0.25f * load_partial(row + c + channels, lanes);
            store_value(output + c, left + load_partial(addend + c, lanes), lanes);
            store_value(output + channels + c, right + load_partial(addend + channels + c, lanes), lanes);
        }
    }
}

template <class T>
void write_rows(const S3dUpsampleAdd& maps, int64_t index, float* scratch) {
    const int64_t item = index / maps.height, count = int64_t{maps.width} * maps.channels;
    const int32_t y = static_cast<int32_t>(index % maps.height);
    const T* coarse = static_cast<const T*>(maps.coarse) + item * maps.height * count;
    float* row = scratch + maps.channels;
    for (int below = 0; below < 2; ++below) {
        const int32_t far = clamp_index(below ? y + 1 : y - 1, maps.height);
        blend_rows(coarse + y * count, coarse + far * count, count, maps.channels, row);
        write_row<T>(maps, row, (2 * index + below) * 2 * count);
    }
}

}  // namespace

int upsample_add_forward(const S3dUpsampleAdd& maps, int threads) {
    if (maps.batch < 0 || maps.height < 0 || maps.width < 0 || maps.channels < 0 || threads < 1) return S3D_BAD_SIZE;
    if (maps.storage != S3D_FLOAT32 && maps.storage != S3D_BFLOAT16) return S3D_BAD_STORAGE;
    if (maps.height == 0 || maps.width == 0 || maps.channels == 0) return S3D_OK;
    const size_t floats = (static_cast<size_t>(maps.width) + 2) * maps.channels;
    int error = S3D_OK;
#pragma omp parallel num_threads(threads)
    {
        float* scratch = allocate_zeros(floats);
        if (scratch == nullptr) {
#pragma omp atomic write
            error = S3D_NO_MEMORY;
        }
#pragma omp for schedule(static)
        for (int64_t index = 0; index < maps.batch * maps.height; ++index) {
            if (scratch == nullptr) continue;
            (maps.storage == S3D_FLOAT32 ? write_rows<float> : write_rows<BFloat16>)(maps, index, scratch);
        }
        free(scratch);
    }
    return error;
}

}  // namespace S3D_VARIANT

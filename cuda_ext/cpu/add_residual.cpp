// Final step of super-resolution: adds the residual to the warped source and removes the residual's own detail where
// the residual is small. A thread processes bands of rows and keeps all intermediate values in its cache.
#include "elementary.h"
#include "kernels.h"
#include "product.h"

namespace S3D_VARIANT {
namespace {

constexpr int COLORS = 3;
constexpr int CHANNELS = 4 * COLORS;  // per pixel of the residual: two by two image pixels of each color in turn
constexpr int BAND_ROWS = 16;         // rows of the residual; even, so that it holds whole agreement cells

// One thread's buffers, taken from one allocation and padded for reads beyond the ends of rows.
struct Scratch {
    float* memory = nullptr;
    int64_t pitch;
    float *row, *smooth, *agreement, *pixels, *blended, *shares;

    explicit Scratch(const S3dAddResidual& arguments) : pitch(pad_to_pack(arguments.width) + 2 * WIDTH) {
        Arena arena = {nullptr};
        for (int pass = 0; pass < 2; ++pass) {
            row = arena.take(CHANNELS * arguments.width);
            smooth = arena.take(COLORS * (BAND_ROWS + 4) * pitch);
            agreement = arena.take((BAND_ROWS / 2 + 2) * pitch);
            pixels = arena.take(CHANNELS * pitch);
            blended = arena.take(pitch);
            shares = arena.take(2 * pitch);
            if (pass == 0) arena = {memory = allocate_zeros(arena.used)};
        }
    }

    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    ~Scratch() { free(memory); }
};

struct Band {
    int64_t item;
    int32_t first, count;  // rows of the residual

    // Rows of the averaged pixels start two above the band, rows of the agreement one above it.
    float* smooth(const Scratch& scratch, int color, int32_t y) const {
        return scratch.smooth + (color * (BAND_ROWS + 4) + y - first + 2) * scratch.pitch;
    }
    float* agreement(const Scratch& scratch, int32_t y) const {
        return scratch.agreement + (y - first / 2 + 1) * scratch.pitch;
    }
};

template <class T>
void read_row(const S3dAddResidual& arguments, int64_t item, int32_t y, float* row) {
    const int64_t count = int64_t{CHANNELS} * arguments.width;
    const T* from = static_cast<const T*>(arguments.residual) + (item * arguments.height + y) * count;
    for (int64_t i = 0; i < count; i += WIDTH) {
        const int lanes = count_lanes(i, count);
        store_partial(row + i, load_partial(from + i, lanes), lanes);
    }
}

void read_row(const S3dAddResidual& arguments, int64_t item, int32_t y, float* row) {
    (arguments.storage == S3D_FLOAT32 ? read_row<float> : read_row<BFloat16>)(arguments, item, y, row);
}

// Averages two by two image pixels of each color and computes the agreement with the source.
void compute_agreement(const S3dAddResidual& arguments, const Band& band, const Scratch& scratch) {
    const int32_t begin = band.first < 2 ? 0 : band.first - 2;
    const int32_t end = band.first + band.count + 2 > arguments.height ? arguments.height : band.first + band.count + 2;
    for (int32_t y = begin; y < end; ++y) {
        read_row(arguments, band.item, y, scratch.row);
        for (int color = 0; color < COLORS; ++color) {
            float* smooth = band.smooth(scratch, color, y);
            const float* quarters = scratch.row + 4 * color;
            for (int32_t x = 0; x < arguments.width; ++x, quarters += CHANNELS) {
                smooth[x] = 0.25f * (quarters[0] + quarters[1] + quarters[2] + quarters[3]);
            }
        }
    }
    for (int32_t y = begin / 2; y < end / 2; ++y) {
        float* agreement = band.agreement(scratch, y);
        for (int32_t x = 0; x < arguments.width / 2; ++x) {
            float size = 0.0f;
            for (int color = 0; color < COLORS; ++color) {
                const float* upper = band.smooth(scratch, color, 2 * y) + 2 * x;
                const float* lower = band.smooth(scratch, color, 2 * y + 1) + 2 * x;
                size += absolute(0.25f * (upper[0] + upper[1] + lower[0] + lower[1]));
            }
            agreement[x] = size / (COLORS * arguments.detail_threshold);
        }
        for (int32_t x = 0; x < arguments.width / 2; x += WIDTH) {
            const Pack size = load(agreement + x);
            store(agreement + x, exponential(-size * size));
        }
    }
}

// Interpolates two rows and pads the result with a neighbor at both ends.
void blend_rows(const float* near, const float* far, float share, int32_t count, float* row) {
    for (int32_t x = 0; x < count; x += WIDTH) {
        store(row + x, (1.0f - share) * load(near + x) + share * load(far + x));
    }
    row[-1] = row[0];
    row[count] = row[count - 1];
}

// Fraction of the detail removed from a row of the image: left pixels of each pair first, then right ones.
void upsample_agreement(const S3dAddResidual& arguments, const Band& band, const Scratch& scratch, int32_t row) {
    const int32_t size = arguments.height / 2, near = row / 4, phase = row % 4;
    const int32_t far = clamp_index(phase < 2 ? near - 1 : near + 1, size);
    float* blended = scratch.blended + WIDTH;
    blend_rows(band.agreement(scratch, near), band.agreement(scratch, far), phase == 0 || phase == 3 ? 0.375f : 0.125f,
               arguments.width / 2, blended);
    float *left = scratch.shares, *right = scratch.shares + scratch.pitch;
    for (int32_t x = 0; x < arguments.width / 2; ++x) {
        left[2 * x] = arguments.detail_scale * (0.625f * blended[x] + 0.375f * blended[x - 1]);
        right[2 * x] = arguments.detail_scale * (0.875f * blended[x] + 0.125f * blended[x - 1]);
        left[2 * x + 1] = arguments.detail_scale * (0.875f * blended[x] + 0.125f * blended[x + 1]);
        right[2 * x + 1] = arguments.detail_scale * (0.625f * blended[x] + 0.375f * blended[x + 1]);
    }
}

// Writes one color of an image row.
void write_row(const S3dAddResidual& arguments, const Band& band, const Scratch& scratch, int color, int32_t row) {
    const int32_t near = row / 2, far = clamp_index(row % 2 ? near + 1 : near - 1, arguments.height);
    float* blended = scratch.blended + WIDTH;
    blend_rows(band.smooth(scratch, color, near), band.smooth(scratch, color, far), 0.25f, arguments.width, blended);
    const float* pixels = scratch.pixels + (4 * color + row % 2 * 2) * scratch.pitch;
    const int64_t begin = ((band.item * COLORS + color) * 2 * arguments.height + row) * 2 * arguments.width;
    for (int32_t x = 0; x < arguments.width; x += WIDTH) {
        const auto keep = [&](const float* from, const float* share, int step) {
            const Pack pixel = load(from + x);
            const Pack smooth = 0.75f * load(blended + x) + 0.25f * load(blended + x + step);
            return fused_multiply_add(load(share + x), smooth - pixel, pixel);
        };
        const Pack left = keep(pixels, scratch.shares, -1);
        const Pack right = keep(pixels + scratch.pitch, scratch.shares + scratch.pitch, 1);
        const ConsecutivePacks both = interleave({left, right});
        const int32_t count = 2 * count_lanes(x, arguments.width);
        const float* warped = arguments.warped + begin + 2 * x;
        float* image = arguments.image + begin + 2 * x;
        const int first = count < WIDTH ? count : WIDTH;
        store_partial(image, load_partial(warped, first) + both.first, first);
        if (count > WIDTH) {
            const int second = count - WIDTH;
            store_partial(image + WIDTH, load_partial(warped + WIDTH, second) + both.second, second);
        }
    }
}

void write_band(const S3dAddResidual& arguments, const Band& band, const Scratch& scratch) {
    compute_agreement(arguments, band, scratch);
    for (int32_t y = band.first; y < band.first + band.count; ++y) {
        read_row(arguments, band.item, y, scratch.row);
        for (int channel = 0; channel < CHANNELS; ++channel) {
            float* pixels = scratch.pixels + channel * scratch.pitch;
            for (int32_t x = 0; x < arguments.width; ++x) pixels[x] = scratch.row[CHANNELS * x + channel];
        }
        for (int32_t row = 2 * y; row < 2 * y + 2; ++row) {
            upsample_agreement(arguments, band, scratch, row);
            for (int color = 0; color < COLORS; ++color) write_row(arguments, band, scratch, color, row);
        }
    }
}

}  // namespace

int add_residual_forward(const S3dAddResidual& arguments, int threads) {
    if (arguments.batch < 0 || arguments.height < 0 || arguments.width < 0 || threads < 1) return S3D_BAD_SIZE;
    if (arguments.height % 2 || arguments.width % 2) return S3D_BAD_SIZE;
    if (int64_t{4} * CHANNELS * arguments.height * arguments.width > INT32_MAX) return S3D_BAD_SIZE;
    if (arguments.storage != S3D_FLOAT32 && arguments.storage != S3D_BFLOAT16) return S3D_BAD_STORAGE;
    if (arguments.height == 0 || arguments.width == 0) return S3D_OK;
    const int64_t bands = (arguments.height + BAND_ROWS - 1) / BAND_ROWS;
    int error = S3D_OK;
#pragma omp parallel num_threads(threads)
    {
        const Scratch scratch(arguments);
        if (scratch.memory == nullptr) {
#pragma omp atomic write
            error = S3D_NO_MEMORY;
        }
#pragma omp for schedule(static)
        for (int64_t task = 0; task < arguments.batch * bands; ++task) {
            if (scratch.memory == nullptr) continue;
            const int32_t first = static_cast<int32_t>(task % bands) * BAND_ROWS, left = arguments.height - first;
            write_band(arguments, {task / bands, first, left < BAND_ROWS ? left : BAND_ROWS}, scratch);
        }
    }
    return error;
}

}  // namespace S3D_VARIANT

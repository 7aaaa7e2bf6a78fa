// Assembles the input of super-resolution in one pass: the source image, warped bicubically by the rendered flow; the
// source features, warped bilinearly; and the rendered features.
#include "bilinear.h"
#include "kernels.h"
#include "product.h"

namespace S3D_VARIANT {
namespace {

constexpr int SOURCE_CHANNELS = 12;  // two by two pixels of three colors
constexpr int MAX_INPUTS = 512;

// Up to WIDTH consecutive pixels in a row of the rendered image.
struct Pixels {
    int64_t item;
    int32_t row, column;
    int lanes;
};

struct Neighbors {
    PackInt low, high;
};

// The columns that the left (0) or right (1) half of each pixel lies between; its center is a quarter pixel off the
// middle.
Neighbors find_neighbors(PackInt pixel, int side, int32_t size) {
    const PackInt low = pixel + (side - 1), high = pixel + side;
    return {select(low < 0, PackInt{}, low), select(high > size - 1, PackInt{} + (size - 1), high)};
}

// The flow, upsampled by two, at one subpixel of each pixel.
Pack upsample_flow(const float* flow, const S3dWarpSource& arguments, const Pixels& pixels, int below, int right) {
    const int32_t first = pixels.column + right - 1;
    const bool inside = first >= 0 && first + WIDTH < arguments.width;
    const Neighbors columns = find_neighbors(iota() + pixels.column, right, arguments.width);
    const int32_t top = clamp_index(pixels.row + below - 1, arguments.height);
    const int32_t bottom = clamp_index(pixels.row + below, arguments.height);
    const float column = right ? 0.25f : 0.75f, row = below ? 0.25f : 0.75f;
    const auto read_row = [&](int32_t number) {
        const float* line = flow + static_cast<int64_t>(number) * arguments.width;
        if (inside) return (1.0f - column) * load(line + first) + column * load(line + first + 1);
        return (1.0f - column) * gather(line, columns.low, pixels.lanes) +
               column * gather(line, columns.high, pixels.lanes);
    };
    return (1.0f - row) * read_row(top) + row * read_row(bottom);
}

const float* find_flow(const S3dWarpSource& arguments, int64_t item, int axis) {
    const int64_t size = int64_t{arguments.height} * arguments.width;
    return arguments.fine + (item * (arguments.rendered + 2) + arguments.rendered + axis) * size;
}

// The source images with four values per pixel and the border repeated, so that one load reads neighboring pixels of all
// colors and any position that a frame can ask for lies inside.
struct InterleavedImages {
    static constexpr int BORDER = 4, CHANNELS = 4;
    float* pixels = nullptr;
    int64_t row, stride;  // floats between rows and between items

    InterleavedImages(const S3dWarpSource& arguments, int threads)
        : row(CHANNELS * (int64_t{arguments.image_width} + 2 * BORDER)),
          stride(arguments.image_stride == 0 ? 0 : row * (arguments.image_height + 2 * BORDER)) {
        const int64_t lines = int64_t{arguments.image_height} + 2 * BORDER;
        const int64_t items = stride == 0 ? 1 : arguments.batch;
        pixels = allocate_zeros(static_cast<size_t>(items * lines * row));
        if (pixels == nullptr) return;
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int64_t line = 0; line < items * lines; ++line) {
            const int32_t y = clamp_index(static_cast<int32_t>(line % lines) - BORDER, arguments.image_height);
            copy_row(arguments, arguments.image + line / lines * arguments.image_stride, y, pixels + line * row);
        }
    }
    InterleavedImages(const InterleavedImages&) = delete;
    InterleavedImages& operator=(const InterleavedImages&) = delete;
    ~InterleavedImages() { free(pixels); }

private:
    static void copy_row(const S3dWarpSource& arguments, const float* image, int32_t y, float* to) {
        const int32_t width = arguments.image_width;
        const int64_t size = int64_t{arguments.image_height} * width;
        for (int32_t x = -BORDER; x < width + BORDER; ++x, to += CHANNELS) {
            const float* from = image + int64_t{y} * width + clamp_index(x, width);
            for (int color = 0; color < 3; ++color) to[color] = from[color * size];
        }
    }
};

// The four pixels around a coordinate along one axis and their weights: the cubic convolution of Keys (1981) with
// a = -3/4, as in PyTorch and OpenCV.
constexpr int TAPS = 4;

struct Taps {
    PackInt first;  // index of the first pixel, at most InterleavedImages::BORDER beyond the image
    Pack weight[TAPS];

    Taps(Pack coordinate, int32_t size) {
        const Pack exact = clamp(((coordinate + 1.0f) * static_cast<float>(size) - 1.0f) * 0.5f, -2.0f,
                                 static_cast<float>(size) + 1.0f);
        const Pack valid = select(exact == exact, exact, Pack{});
        const Pack low = round_down(valid);
        const Pack rest = exact - low, left = 1.0f - rest;
        first = to_int(low) - 1;
        weight[0] = CUBIC_A * rest * left * left;
        weight[1] = near_weight(rest);
        weight[2] = near_weight(left);
        weight[3] = CUBIC_A * left * rest * rest;
    }

private:
    static constexpr float CUBIC_A = -0.75f;

    // For a pixel at a distance below one.
    static Pack near_weight(Pack distance) {
        return ((CUBIC_A + 2.0f) * distance - (CUBIC_A + 3.0f)) * distance * distance + 1.0f;
    }
};

// The colors of one pixel of an interleaved image.
typedef float Colors __attribute__((vector_size(4 * InterleavedImages::CHANNELS)));

// The corners and weights of up to WIDTH positions.
struct Patches {
    alignas(64) int32_t first_column[WIDTH], first_row[WIDTH];
    alignas(64) float column[TAPS][WIDTH], row[TAPS][WIDTH];

    Patches(const Taps& columns, const Taps& rows) {
        store(first_column, columns.first + InterleavedImages::BORDER);
        store(first_row, rows.first + InterleavedImages::BORDER);
        for (int tap = 0; tap < TAPS; ++tap) {
            store(column[tap], columns.weight[tap]);
            store(row[tap], rows.weight[tap]);
        }
    }

    Colors interpolate(const float* image, int64_t row_step, int lane) const {
        // A pack holds one pixel or several of a row.
        constexpr int PACKS = TAPS * InterleavedImages::CHANNELS / WIDTH;
        const float* corner = image + first_row[lane] * row_step + first_column[lane] * InterleavedImages::CHANNELS;
        Pack sum[PACKS] = {};
        for (int down = 0; down < TAPS; ++down, corner += row_step) {
            const Pack weight = load_broadcast(row[down] + lane);
            for (int part = 0; part < PACKS; ++part) sum[part] += weight * load(corner + part * WIDTH);
        }
        Colors pixel[TAPS], total{};
        memcpy(pixel, sum, sizeof pixel);
        for (int tap = 0; tap < TAPS; ++tap) total += column[tap][lane] * pixel[tap];
        return total;
    }
};

// Writes three colors of one subpixel of each pixel to `inputs` (rows of `stride` channels) and to the warped source.
void warp_subpixel(const S3dWarpSource& arguments, const InterleavedImages& images, const Pixels& pixels, int below,
                   int right, float* inputs, int stride) {
    const float* const flow[2] = {find_flow(arguments, pixels.item, 0), find_flow(arguments, pixels.item, 1)};
    const int32_t height = 2 * arguments.height, width = 2 * arguments.width;
    const int32_t row = 2 * pixels.row + below;
    const Pack column = to_float(2 * (iota() + pixels.column) + right);
    const Pack u = pixel_center(column, width) + upsample_flow(flow[0], arguments, pixels, below, right);
    const Pack v = pixel_center(splat<Pack>(static_cast<float>(row)), height) +
                   upsample_flow(flow[1], arguments, pixels, below, right);
    const Taps columns(u, arguments.image_width), rows(v, arguments.image_height);
    const Patches patches(columns, rows);
    const float* image = images.pixels + pixels.item * images.stride;
    const int64_t size = int64_t{height} * width;
    float* warped = arguments.warped + pixels.item * 3 * size + int64_t{row} * width + 2 * pixels.column + right;
    inputs += 2 * below + right;
    for (int lane = 0; lane < pixels.lanes; ++lane) {
        const Colors colors = patches.interpolate(image, images.row, lane);
        for (int color = 0; color < 3; ++color) {
            warped[color * size + 2 * lane] = colors[color];
            inputs[lane * stride + 4 * color] = colors[color];
        }
    }
}

template <class T>
void warp_features(const S3dWarpSource& arguments, const Pixels& pixels, float* inputs, int stride) {
    const int64_t pixel = int64_t{pixels.row} * arguments.width + pixels.column;
    const Pack flow_u = load_partial(find_flow(arguments, pixels.item, 0) + pixel, pixels.lanes);
    const Pack flow_v = load_partial(find_flow(arguments, pixels.item, 1) + pixel, pixels.lanes);
    const Pack u = pixel_center(to_float(iota() + pixels.column), arguments.width) + flow_u;
    const Pack v = pixel_center(splat<Pack>(static_cast<float>(pixels.row)), arguments.height) + flow_v;
    const BilinearCorners corners(u, v, arguments.detail_height, arguments.detail_width);
    const T* detail = static_cast<const T*>(arguments.detail) + pixels.item * arguments.detail_stride;
    const int channels = arguments.detail_channels;
    for (int lane = 0; lane < pixels.lanes; ++lane, inputs += stride) {
        for (int c = 0; c < channels; c += WIDTH) {
            const int count = count_lanes(c, channels);
            Pack value{};
            for (int corner = 0; corner < 4; ++corner) {
                const int64_t offset = int64_t{corners.offset[corner][lane]} * channels;
                value += corners.weight[corner][lane] * load_partial(detail + offset + c, count);
            }
            store_partial(inputs + c, value, count);
        }
    }
}

void copy_rendered(const S3dWarpSource& arguments, const Pixels& pixels, float* inputs, int stride) {
    const int64_t size = int64_t{arguments.height} * arguments.width;
    const float* fine = arguments.fine + pixels.item * (arguments.rendered + 2) * size +
                        int64_t{pixels.row} * arguments.width + pixels.column;
    for (int c = 0; c < arguments.rendered; ++c, fine += size) {
        for (int lane = 0; lane < pixels.lanes; ++lane) inputs[lane * stride + c] = fine[lane];
    }
}

void write_inputs(const S3dWarpSource& arguments, const Pixels& pixels, const float* inputs, int stride) {
    const int64_t pixel = (pixels.item * arguments.height + pixels.row) * arguments.width + pixels.column;
    const int64_t begin = pixel * stride, count = int64_t{pixels.lanes} * stride;
    if (arguments.inputs_storage == S3D_FLOAT32) {
        memcpy(static_cast<float*>(arguments.inputs) + begin, inputs, sizeof(float) * count);
        return;
    }
    BFloat16* target = static_cast<BFloat16*>(arguments.inputs) + begin;
    for (int64_t i = 0; i < count; i += WIDTH) store_bf16(target + i, load(inputs + i), count_lanes(i, count));
}

void write_pixels(const S3dWarpSource& arguments, const InterleavedImages& images, const Pixels& pixels) {
    const int stride = SOURCE_CHANNELS + arguments.detail_channels + arguments.rendered;
    alignas(64) float inputs[WIDTH * MAX_INPUTS];
    for (int below = 0; below < 2; ++below) {
        for (int right = 0; right < 2; ++right) warp_subpixel(arguments, images, pixels, below, right, inputs, stride);
    }
    const bool full = arguments.detail_storage == S3D_FLOAT32;
    (full ? warp_features<float> : warp_features<BFloat16>)(arguments, pixels, inputs + SOURCE_CHANNELS, stride);
    copy_rendered(arguments, pixels, inputs + SOURCE_CHANNELS + arguments.detail_channels, stride);
    write_inputs(arguments, pixels, inputs, stride);
}

int check(const S3dWarpSource& arguments, int threads) {
    const auto fits = [](int32_t height, int32_t width) {
        return height >= 1 && width >= 1 && int64_t{height} * width <= INT32_MAX;
    };
    if (arguments.batch < 0 || threads < 1 || arguments.rendered < 0 || arguments.detail_channels < 0) {
        return S3D_BAD_SIZE;
    }
    if (!fits(arguments.height, arguments.width) || !fits(arguments.image_height, arguments.image_width) ||
        !fits(arguments.detail_height, arguments.detail_width)) {
        return S3D_BAD_SIZE;
    }
    if (int64_t{SOURCE_CHANNELS} + arguments.detail_channels + arguments.rendered > MAX_INPUTS) return S3D_BAD_SIZE;
    const auto is_supported = [](int32_t storage) { return storage == S3D_FLOAT32 || storage == S3D_BFLOAT16; };
    return is_supported(arguments.detail_storage) && is_supported(arguments.inputs_storage) ? S3D_OK : S3D_BAD_STORAGE;
}

}  // namespace

int warp_source_forward(const S3dWarpSource& arguments, int threads) {
    if (int error = check(arguments, threads)) return error;
    const InterleavedImages images(arguments, threads);
    if (images.pixels == nullptr) return S3D_NO_MEMORY;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t index = 0; index < arguments.batch * arguments.height; ++index) {
        const int32_t row = static_cast<int32_t>(index % arguments.height);
        for (int32_t column = 0; column < arguments.width; column += WIDTH) {
            write_pixels(arguments, images,
                         {index / arguments.height, row, column, count_lanes(column, arguments.width)});
        }
    }
    return S3D_OK;
}

}  // namespace S3D_VARIANT

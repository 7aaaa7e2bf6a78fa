// Turns rendered rays into images: the rays of the whole frame, the same upsampled with the foveated rays blended over
// it, and both composited over the person layer. A thread processes one item after the other.
#include "bilinear.h"
#include "kernels.h"
#include "product.h"

namespace S3D_VARIANT {
namespace {

constexpr int COLORS = 3;
constexpr int LAYER_CHANNELS = COLORS + 3;  // coverage and flow
constexpr int BLOCK_RAYS = 16;

struct Scratch {
    float* memory = nullptr;
    int64_t pitch;
    float *row, *layer, *changes;

    explicit Scratch(const S3dComposeLayers& layers) : pitch(pad_to_pack(2 * layers.size)) {
        Arena arena = {nullptr};
        for (int pass = 0; pass < 2; ++pass) {
            row = arena.take(pitch + 2 * WIDTH);
            layer = arena.take(LAYER_CHANNELS * 2 * pitch);  // of two rows
            changes = arena.take(layers.foveated);
            if (pass == 0) arena = {memory = allocate_zeros(arena.used)};
        }
    }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    ~Scratch() { free(memory); }
};

// One batch item.
struct Item {
    const float *values, *alpha;  // per ray
    const float *image, *person, *plane, *body;
    float *coarse, *fine;
    int64_t index;

    Item(const S3dComposeLayers& layers, int64_t number) : index(number) {
        const int64_t pixels = int64_t{layers.size} * layers.size, rays = pixels + layers.foveated;
        values = layers.values + index * rays * (layers.channels + 2);
        alpha = layers.alpha + index * rays;
        image = layers.image + index * layers.image_stride;
        person = layers.person + index * layers.person_stride;
        plane = layers.plane + index * 9;
        body = layers.body + index * 2;
        coarse = layers.coarse + index * pixels * (layers.channels + 3);
        fine = layers.fine + index * 4 * pixels * (layers.channels + 3);
    }
};

float find_center(int64_t pixel, int32_t size) {
    return static_cast<float>(2 * pixel + 1) / static_cast<float>(size) - 1.0f;
}

// Channel `c` of a ray through a cell of an image of `size` cells per side: colors and features, opacity, flow.
float read_ray(const S3dComposeLayers& layers, const Item& item, int64_t ray, int c, int64_t cell, int32_t size) {
    const float* values = item.values + ray * (layers.channels + 2);
    if (c < layers.channels) return values[c];
    if (c == layers.channels) return item.alpha[ray];
    return values[c - 1] - item.alpha[ray] * find_center(c == layers.channels + 1 ? cell % size : cell / size, size);
}

void read_rays(const S3dComposeLayers& layers, const Item& item) {
    const int64_t pixels = int64_t{layers.size} * layers.size;
    // A cache line of each channel at a time.
    for (int64_t first = 0; first < pixels; first += BLOCK_RAYS) {
        const int64_t end = first + BLOCK_RAYS < pixels ? first + BLOCK_RAYS : pixels;
        for (int c = 0; c < layers.channels + 3; ++c) {
            for (int64_t ray = first; ray < end; ++ray) {
                item.coarse[c * pixels + ray] = read_ray(layers, item, ray, c, ray, layers.size);
            }
        }
    }
}

void upsample(const S3dComposeLayers& layers, const Item& item, const Scratch& scratch) {
    const int32_t size = layers.size;
    for (int64_t row = 0; row < int64_t{size} * (layers.channels + 3); ++row) {
        const int32_t y = static_cast<int32_t>(row % size);
        const float* near = item.coarse + row * size;
        for (int below = 0; below < 2; ++below) {
            const float* far = near + (clamp_index(below ? y + 1 : y - 1, size) - y) * int64_t{size};
            upsample_row(near, far, size, scratch.row, item.fine + (2 * row + below) * 2 * size);
        }
    }
}

// Blends the foveated rays over the upsampled image. Rays in one cell all blend over what was there before.
void paste_foveated(const S3dComposeLayers& layers, const Item& item, const Scratch& scratch) {
    const int64_t pixels = int64_t{layers.size} * layers.size;
    const int64_t* cells = layers.cells + item.index * layers.foveated;
    const float* opacity = layers.opacity + item.index * layers.foveated;
    for (int c = 0; c < layers.channels + 3; ++c) {
        float* image = item.fine + c * 4 * pixels;
        for (int64_t i = 0; i < layers.foveated; ++i) {
            const float value = read_ray(layers, item, pixels + i, c, cells[i], 2 * layers.size);
            scratch.changes[i] = opacity[i] * (value - image[cells[i]]);
        }
        for (int64_t i = 0; i < layers.foveated; ++i) image[cells[i]] += scratch.changes[i];
    }
}

// The flow of up to WIDTH pixels of the person layer: that of the head, and lower down that of the body.
void measure_flow(const S3dComposeLayers& layers, const Item& item, Pack u, Pack v, Pack (&flow)[2]) {
    const float* plane = item.plane;
    const Pack height = plane[2] + plane[5] * u + plane[8] * v;
    const Pack share = clamp((height - layers.head_low) / (layers.head_high - layers.head_low), 0.0f, 1.0f);
    const Pack head = share * share * (3.0f - 2.0f * share);
    for (int axis = 0; axis < 2; ++axis) {
        const Pack of_head = plane[axis] + plane[3 + axis] * u + plane[6 + axis] * v;
        flow[axis] = item.body[axis] + head * (of_head - item.body[axis]);
    }
}

// Renders up to WIDTH pixels of the person layer.
void render_layer(const S3dComposeLayers& layers, const Item& item, int32_t row, int32_t column,
                  Pack (&layer)[LAYER_CHANNELS]) {
    const int32_t side = 2 * layers.size;
    const int lanes = count_lanes(column, side);
    const Pack u = pixel_center(to_float(iota() + column), side);
    const Pack v = pixel_center(splat<Pack>(static_cast<float>(row)), side);
    Pack flow[2];
    measure_flow(layers, item, u, v, flow);
    const Pack coverage = BilinearCorners(u + flow[0], v + flow[1], side, side).sample(item.person, lanes);
    layer[COLORS] = coverage;
    layer[COLORS + 1] = coverage * flow[0];
    layer[COLORS + 2] = coverage * flow[1];
    const BilinearCorners corners(u + layer[COLORS + 1], v + layer[COLORS + 2], side, side);
    for (int c = 0; c < COLORS; ++c) layer[c] = corners.sample(item.image + int64_t{side} * side * c, lanes);
}

// Adds the layer where pixels are clear; colors come first in an image, and opacity and flow last.
void add_layer(const S3dComposeLayers& layers, const Pack (&layer)[LAYER_CHANNELS], float* image, int64_t channel_step,
               int lanes) {
    const Pack clear = 1.0f - load_partial(image + layers.channels * channel_step, lanes);
    for (int c = 0; c < LAYER_CHANNELS; ++c) {
        float* to = image + (c < COLORS ? c : layers.channels + c - COLORS) * channel_step;
        store_partial(to, load_partial(to, lanes) + clear * layer[c], lanes);
    }
}

void composite_layer(const S3dComposeLayers& layers, const Item& item, const Scratch& scratch) {
    const int32_t size = layers.size, side = 2 * size;
    const int64_t pixels = int64_t{size} * size;
    for (int32_t y = 0; y < size; ++y) {
        for (int32_t row = 2 * y; row < 2 * y + 2; ++row) {
            for (int32_t x = 0; x < side; x += WIDTH) {
                Pack layer[LAYER_CHANNELS];
                render_layer(layers, item, row, x, layer);
                add_layer(layers, layer, item.fine + int64_t{row} * side + x, 4 * pixels, count_lanes(x, side));
                for (int c = 0; c < LAYER_CHANNELS; ++c) {
                    store(scratch.layer + (2 * c + row % 2) * scratch.pitch + x, layer[c]);
                }
            }
        }
        for (int32_t x = 0; x < size; x += WIDTH) {
            const int lanes = count_lanes(x, size);
            Pack layer[LAYER_CHANNELS] = {};
            for (int c = 0; c < LAYER_CHANNELS; ++c) {
                const float *upper = scratch.layer + 2 * c * scratch.pitch + 2 * x, *lower = upper + scratch.pitch;
                for (int lane = 0; lane < lanes; ++lane) {
                    const int at = 2 * lane;
                    layer[c][lane] = 0.25f * (upper[at] + upper[at + 1] + lower[at] + lower[at + 1]);
                }
            }
            add_layer(layers, layer, item.coarse + int64_t{y} * size + x, pixels, lanes);
        }
    }
}

int check(const S3dComposeLayers& layers, int threads) {
    if (layers.batch < 0 || layers.size < 1 || layers.size > (1 << 14) || threads < 1) return S3D_BAD_SIZE;
    return layers.channels < COLORS || layers.foveated < 0 ? S3D_BAD_SIZE : S3D_OK;
}

}  // namespace

int compose_layers_forward(const S3dComposeLayers& layers, int threads) {
    if (int error = check(layers, threads)) return error;
    const int64_t cells = int64_t{4} * layers.size * layers.size;
    for (int64_t i = 0; i < layers.batch * layers.foveated; ++i) {
        if (layers.cells[i] < 0 || layers.cells[i] >= cells) return S3D_BAD_SIZE;
    }
    int error = S3D_OK;
#pragma omp parallel num_threads(threads)
    {
        const Scratch scratch(layers);
        if (scratch.memory == nullptr) {
#pragma omp atomic write
            error = S3D_NO_MEMORY;
        }
#pragma omp for schedule(dynamic)
        for (int64_t index = 0; index < layers.batch; ++index) {
            if (scratch.memory == nullptr) continue;
            const Item item(layers, index);
            read_rays(layers, item);
            upsample(layers, item, scratch);
            paste_foveated(layers, item, scratch);
            composite_layer(layers, item, scratch);
        }
    }
    return error;
}

}  // namespace S3D_VARIANT

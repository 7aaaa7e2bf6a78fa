// 3 x 3 convolution in channels-last layout, fused with the activation before it and with the addition and activation
// behind it. A thread processes bands of four output rows and keeps all intermediate values in its cache.
#include "elementary.h"
#include "kernels.h"
#include "product.h"
#include "winograd.h"

namespace S3D_VARIANT {
namespace {

constexpr size_t CACHE_BYTES = size_t{200} << 10;  // of transformed patches and products at a time
constexpr int MAX_TILES = 32;
constexpr int GRADIENT_TILES = 48;  // accumulated into the filter gradients at a time
constexpr int SKEW = 16;  // floats between the parts of a buffer, so that they do not map to the same cache sets

// Transformed filters: a matrix [inputs, columns] for each of the 36 points.
struct Filters {
    float* points = nullptr;
    float* zeros = nullptr;  // [columns]
    int columns = 0;

    ~Filters() { free(points); }

    bool allocate_for(const S3dConvolution& layer) {
        columns = pad_to_pack(layer.outputs);
        const size_t count = static_cast<size_t>(WINOGRAD_POINTS) * layer.inputs * columns;
        points = allocate_zeros(count + columns);
        zeros = points + count;
        return points != nullptr;
    }

    // Transforms the filters of one input channel.
    void transform(const S3dConvolution& layer, int input) {
        const PackInt step = iota() * (layer.inputs * 9);
        for (int first = 0; first < layer.outputs; first += WIDTH) {
            const int lanes = count_lanes(first, layer.outputs);
            const float* from = layer.weights + (static_cast<int64_t>(first) * layer.inputs + input) * 9;
            Pack rows[3][PATCH];
            for (int y = 0; y < 3; ++y) {
                Pack tap[3];
                for (int x = 0; x < 3; ++x) tap[x] = gather(from + 3 * y + x, step, lanes);
                transform_filter(tap, rows[y]);
            }
            for (int x = 0; x < PATCH; ++x) {
                const Pack column[3] = {rows[0][x], rows[1][x], rows[2][x]};
                Pack done[PATCH];
                transform_filter(column, done);
                for (int y = 0; y < PATCH; ++y) {
                    const int64_t point = y * PATCH + x;
                    store(points + (point * layer.inputs + input) * columns + first, done[y]);
                }
            }
        }
    }
};

// Sizes shared by all threads.
struct Plan {
    int tiles, bands;    // per row, per column
    int tile_batch;      // tiles transformed at a time
    int depth, columns;  // channels, padded to whole packs
    int pitch;           // pixels of a row including its borders
    int64_t row_step, patch_step, product_step;

    // `for_gradient` uses larger tile batches, which may span several bands, for the filter gradients.
    Plan(const S3dConvolution& layer, bool for_gradient)
        : tiles((layer.width + WINOGRAD_TILE - 1) / WINOGRAD_TILE),
          bands((layer.height + WINOGRAD_TILE - 1) / WINOGRAD_TILE),
          depth(pad_to_pack(layer.inputs)),
          columns(pad_to_pack(layer.outputs)),
          pitch(tiles * WINOGRAD_TILE + 2) {
        const size_t fit = CACHE_BYTES / (sizeof(float) * WINOGRAD_POINTS * (depth + columns));
        const int most = fit > MAX_TILES ? MAX_TILES : fit < 1 ? 1 : static_cast<int>(fit);
        const int parts = (tiles + most - 1) / most;
        tile_batch = for_gradient ? GRADIENT_TILES : (tiles + parts - 1) / parts;
        row_step = static_cast<int64_t>(pitch) * depth;
        patch_step = static_cast<int64_t>(tile_batch) * depth + SKEW;
        product_step = static_cast<int64_t>(tile_batch) * columns + SKEW;
    }
};

// One thread's buffers, taken from one allocation.
struct Scratch {
    float* memory = nullptr;
    float *band, *patches, *products;  // [6, pitch, depth], [36, tile_batch, depth], [36, tile_batch, columns]

    explicit Scratch(const Plan& plan) {
        Arena arena = {nullptr};
        for (int pass = 0; pass < 2; ++pass) {
            band = arena.take(PATCH * plan.row_step);
            patches = arena.take(WINOGRAD_POINTS * plan.patch_step);
            products = arena.take(WINOGRAD_POINTS * plan.product_step);
            if (pass == 0) arena = {memory = allocate_zeros(arena.used)};
        }
    }

    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    ~Scratch() { free(memory); }
};

// Copies the six rows around a band, from row `begin` on; the borders stay zero.
void copy_rows(const S3dConvolution& layer, const Plan& plan, int64_t item, int band, int begin, float* to) {
    for (int row = begin; row < PATCH; ++row) {
        const int y = band * WINOGRAD_TILE - 1 + row;
        float* target = to + row * plan.row_step;
        if (y < 0 || y >= layer.height) {
            memset(target, 0, sizeof(float) * plan.row_step);
            continue;
        }
        const float* from = layer.input + (item * layer.height + y) * layer.width * layer.inputs;
        target += plan.depth;
        for (int x = 0; x < layer.width; ++x, target += plan.depth, from += layer.inputs) {
            for (int c = 0; c < layer.inputs; c += WIDTH) {
                const Pack value = load_partial(from + c, count_lanes(c, layer.inputs));
                store(target + c, layer.activate_input ? silu(value) : value);
            }
        }
    }
}

// Copies the six rows around a band. If it follows the previous band, the last two rows of that one are reused.
void copy_band(const S3dConvolution& layer, const Plan& plan, int64_t item, int band, bool follows, float* to) {
    const int kept = follows && band > 0 ? PATCH - WINOGRAD_TILE : 0;
    memcpy(to, to + WINOGRAD_TILE * plan.row_step, sizeof(float) * kept * plan.row_step);
    copy_rows(layer, plan, item, band, kept, to);
}

// Transforms tiles from `first` of a band on and stores them from `slot` on.
void transform_patches(const Plan& plan, int first, int count, int slot, const Scratch& scratch) {
    for (int tile = 0; tile < count; ++tile) {
        const float* corner = scratch.band + static_cast<int64_t>(first + tile) * WINOGRAD_TILE * plan.depth;
        float* to = scratch.patches + static_cast<int64_t>(slot + tile) * plan.depth;
        for (int c = 0; c < plan.depth; c += WIDTH) {
            Pack rows[PATCH][PATCH];
            for (int y = 0; y < PATCH; ++y) {
                Pack row[PATCH];
                for (int x = 0; x < PATCH; ++x) {
                    row[x] = load(corner + y * plan.row_step + x * plan.depth + c);
                }
                transform_patch(row, rows[y]);
            }
            for (int x = 0; x < PATCH; ++x) {
                Pack column[PATCH], done[PATCH];
                for (int y = 0; y < PATCH; ++y) column[y] = rows[y][x];
                transform_patch(column, done);
                for (int y = 0; y < PATCH; ++y) store(to + (y * PATCH + x) * plan.patch_step + c, done[y]);
            }
        }
    }
}

void multiply_points(const S3dConvolution& layer, const Plan& plan, const Filters& filters, int count,
                     const Scratch& scratch) {
    const int64_t step = static_cast<int64_t>(layer.inputs) * filters.columns;
    for (int point = 0; point < WINOGRAD_POINTS; ++point) {
        multiply({scratch.patches + point * plan.patch_step, plan.depth, 1},
                 {filters.points + point * step, filters.columns, layer.inputs}, count, layer.outputs,
                 {filters.zeros, 0}, {scratch.products + point * plan.product_step, plan.columns},
                 [](Pack sum) { return sum; });
    }
}

// Writes some channels of one output tile; `pixel` is its upper left corner.
void write_tile(const S3dConvolution& layer, const Pack (&tile)[WINOGRAD_TILE][WINOGRAD_TILE], int64_t pixel, int rows,
                int columns, int channel) {
    const int lanes = count_lanes(channel, layer.outputs);
    const Pack bias = load_partial(layer.bias + channel, lanes);
    for (int y = 0; y < rows; ++y) {
        for (int x = 0; x < columns; ++x) {
            const int64_t index = (pixel + static_cast<int64_t>(y) * layer.width + x) * layer.outputs + channel;
            Pack value = tile[y][x] + bias;
            if (layer.addend != nullptr) value += load_partial(layer.addend + index, lanes);
            if (layer.activate_output) value = silu(value);
            store_partial(layer.output + index, value, lanes);
        }
    }
}

void transform_outputs(const S3dConvolution& layer, const Plan& plan, int64_t item, int band, int first, int count,
                       const Scratch& scratch) {
    const int top = band * WINOGRAD_TILE,
              rows = layer.height - top < WINOGRAD_TILE ? layer.height - top : WINOGRAD_TILE;
    for (int tile = 0; tile < count; ++tile) {
        const int left = (first + tile) * WINOGRAD_TILE,
                  columns = layer.width - left < WINOGRAD_TILE ? layer.width - left : WINOGRAD_TILE;
        const int64_t pixel = (item * layer.height + top) * layer.width + left;
        const float* from = scratch.products + static_cast<int64_t>(tile) * plan.columns;
        for (int c = 0; c < layer.outputs; c += WIDTH) {
            Pack half[WINOGRAD_TILE][PATCH];
            for (int x = 0; x < PATCH; ++x) {
                Pack column[PATCH], done[WINOGRAD_TILE];
                for (int y = 0; y < PATCH; ++y) column[y] = load(from + (y * PATCH + x) * plan.product_step + c);
                transform_products(column, done);
                for (int y = 0; y < WINOGRAD_TILE; ++y) half[y][x] = done[y];
            }
            Pack done[WINOGRAD_TILE][WINOGRAD_TILE];
            for (int y = 0; y < WINOGRAD_TILE; ++y) transform_products(half[y], done[y]);
            write_tile(layer, done, pixel, rows, columns, c);
        }
    }
}

// One thread's accumulated gradients to the transformed filters (laid out as `Filters::points`) and to the bias.
struct FilterGradient {
    float *points, *bias;

    static size_t count(const S3dConvolution& layer, const Plan& plan) {
        return (static_cast<size_t>(WINOGRAD_POINTS) * layer.inputs + 1) * plan.columns;
    }

    FilterGradient(const S3dConvolution& layer, const Plan& plan, float* memory)
        : points(memory), bias(memory + static_cast<size_t>(WINOGRAD_POINTS) * layer.inputs * plan.columns) {}

    // Transforms the output gradient of tiles from `first` of a band on and stores it from `slot` on.
    void transform_gradient(const S3dConvolution& layer, const Plan& plan, int64_t item, int band, int first, int count,
                            int slot, const Scratch& scratch) const {
        const int top = band * WINOGRAD_TILE,
                  rows = layer.height - top < WINOGRAD_TILE ? layer.height - top : WINOGRAD_TILE;
        for (int tile = 0; tile < count; ++tile) {
            const int left = (first + tile) * WINOGRAD_TILE,
                      columns = layer.width - left < WINOGRAD_TILE ? layer.width - left : WINOGRAD_TILE;
            const int64_t pixel = (item * layer.height + top) * layer.width + left;
            float* to = scratch.products + static_cast<int64_t>(slot + tile) * plan.columns;
            for (int c = 0; c < layer.outputs; c += WIDTH) {
                const int lanes = count_lanes(c, layer.outputs);
                Pack half[WINOGRAD_TILE][PATCH], sum = load(bias + c);
                for (int y = 0; y < WINOGRAD_TILE; ++y) {
                    Pack row[WINOGRAD_TILE] = {};
                    for (int x = 0; y < rows && x < columns; ++x) {
                        const int64_t at = pixel + static_cast<int64_t>(y) * layer.width + x;
                        row[x] = load_partial(layer.output_gradient + at * layer.outputs + c, lanes);
                        sum += row[x];
                    }
                    transform_products_adjoint(row, half[y]);
                }
                store(bias + c, sum);
                for (int x = 0; x < PATCH; ++x) {
                    const Pack column[WINOGRAD_TILE] = {half[0][x], half[1][x], half[2][x], half[3][x]};
                    Pack done[PATCH];
                    transform_products_adjoint(column, done);
                    for (int y = 0; y < PATCH; ++y) store(to + (y * PATCH + x) * plan.product_step + c, done[y]);
                }
            }
        }
    }

    // Accumulates the contribution of `count` transformed tiles.
    void accumulate_tiles(const S3dConvolution& layer, const Plan& plan, int count, const Scratch& scratch) const {
        const int64_t step = static_cast<int64_t>(layer.inputs) * plan.columns;
        for (int point = 0; point < WINOGRAD_POINTS; ++point) {
            const OutputMatrix sum = {points + point * step, plan.columns};
            multiply({scratch.patches + point * plan.patch_step, 1, plan.depth},
                     {scratch.products + point * plan.product_step, plan.columns, count}, layer.inputs, layer.outputs,
                     {sum.data, sum.row}, sum, [](Pack value) { return value; });
        }
    }

    // Writes the gradient to the filters of one input channel.
    void write_filters(const S3dConvolution& layer, const Plan& plan, int input) const {
        for (int first = 0; first < layer.outputs; first += WIDTH) {
            Pack rows[PATCH][3];
            for (int y = 0; y < PATCH; ++y) {
                Pack row[PATCH];
                for (int x = 0; x < PATCH; ++x) {
                    const int64_t point = y * PATCH + x;
                    row[x] = load(points + (point * layer.inputs + input) * plan.columns + first);
                }
                transform_filter_adjoint(row, rows[y]);
            }
            const int lanes = count_lanes(first, layer.outputs);
            float* to = layer.weights_gradient + (static_cast<int64_t>(first) * layer.inputs + input) * 9;
            for (int x = 0; x < 3; ++x) {
                Pack column[PATCH], tap[3];
                for (int y = 0; y < PATCH; ++y) column[y] = rows[y][x];
                transform_filter_adjoint(column, tap);
                for (int y = 0; y < 3; ++y) {
                    for (int lane = 0; lane < lanes; ++lane) {
                        to[static_cast<int64_t>(lane) * layer.inputs * 9 + 3 * y + x] = tap[y][lane];
                    }
                }
            }
        }
    }
};

// The range of bands of one thread, which depends only on the number of threads.
struct BandRange {
    int64_t begin, end;

    BandRange(int64_t count, int thread, int threads)
        : begin(count * thread / threads), end(count * (thread + 1) / threads) {}
};

void accumulate_bands(const S3dConvolution& layer, const Plan& plan, BandRange range, const FilterGradient& gradient,
                      const Scratch& scratch) {
    int pending = 0;
    for (int64_t task = range.begin; task < range.end; ++task) {
        const int64_t item = task / plan.bands;
        const int band = static_cast<int>(task % plan.bands);
        copy_band(layer, plan, item, band, task > range.begin, scratch.band);
        for (int first = 0; first < plan.tiles;) {
            const int left = plan.tiles - first, room = plan.tile_batch - pending, count = left < room ? left : room;
            transform_patches(plan, first, count, pending, scratch);
            gradient.transform_gradient(layer, plan, item, band, first, count, pending, scratch);
            first += count;
            pending += count;
            if (pending == plan.tile_batch) {
                gradient.accumulate_tiles(layer, plan, pending, scratch);
                pending = 0;
            }
        }
    }
    if (pending > 0) gradient.accumulate_tiles(layer, plan, pending, scratch);
}

int check(const S3dConvolution& layer, int threads) {
    if (layer.batch < 0 || layer.height < 0 || layer.width < 0 || threads < 1) return S3D_BAD_SIZE;
    if (layer.inputs < 1 || layer.outputs < 1) return S3D_BAD_SIZE;
    const int64_t weights = static_cast<int64_t>(layer.inputs) * layer.outputs * 9;
    if (weights > INT32_MAX || layer.width > INT32_MAX - 2 * WINOGRAD_TILE) return S3D_BAD_SIZE;
    return S3D_OK;
}

}  // namespace

int convolution_forward(const S3dConvolution& layer, int threads) {
    if (int error = check(layer, threads)) return error;
    if (layer.batch == 0 || layer.height == 0 || layer.width == 0) return S3D_OK;
    const Plan plan(layer, false);
    Filters filters;
    if (!filters.allocate_for(layer)) return S3D_NO_MEMORY;
    int error = S3D_OK;
#pragma omp parallel num_threads(threads)
    {
        const Scratch scratch(plan);
        if (scratch.memory == nullptr) {
#pragma omp atomic write
            error = S3D_NO_MEMORY;
        }
#pragma omp for schedule(static)
        for (int input = 0; input < layer.inputs; ++input) filters.transform(layer, input);
        int64_t last = -1;
#pragma omp for schedule(dynamic, 8)
        for (int64_t task = 0; task < layer.batch * plan.bands; ++task) {
            if (scratch.memory == nullptr) continue;
            const int64_t item = task / plan.bands;
            const int band = static_cast<int>(task % plan.bands);
            copy_band(layer, plan, item, band, task == last + 1, scratch.band);
            last = task;
            for (int first = 0; first < plan.tiles; first += plan.tile_batch) {
                const int left = plan.tiles - first, count = left < plan.tile_batch ? left : plan.tile_batch;
                transform_patches(plan, first, count, 0, scratch);
                multiply_points(layer, plan, filters, count, scratch);
                transform_outputs(layer, plan, item, band, first, count, scratch);
            }
        }
    }
    return error;
}

int convolution_backward(const S3dConvolution& layer, int threads) {
    if (int error = check(layer, threads)) return error;
    const Plan plan(layer, true);
    const size_t floats = FilterGradient::count(layer, plan);
    float* sums = allocate_zeros(floats * threads);
    if (sums == nullptr) return S3D_NO_MEMORY;
    int error = S3D_OK;
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int thread = 0; thread < threads; ++thread) {
        const Scratch scratch(plan);
        if (scratch.memory == nullptr) {
#pragma omp atomic write
            error = S3D_NO_MEMORY;
            continue;
        }
        const BandRange range(layer.batch * plan.bands, thread, threads);
        accumulate_bands(layer, plan, range, FilterGradient(layer, plan, sums + floats * thread), scratch);
    }
    for (int thread = 1; thread < threads; ++thread) {
        for (size_t i = 0; i < floats; ++i) sums[i] += sums[floats * thread + i];
    }
    const FilterGradient total(layer, plan, sums);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int input = 0; input < layer.inputs; ++input) total.write_filters(layer, plan, input);
    memcpy(layer.bias_gradient, total.bias, sizeof(float) * layer.outputs);
    free(sums);
    return error;
}

}  // namespace S3D_VARIANT

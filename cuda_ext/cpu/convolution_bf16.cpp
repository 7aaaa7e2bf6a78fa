// 3 x 3 convolution of bfloat16 maps in channels-last layout, fused with the activation before it and with the
// addition and activation behind it. The pixels under a row of filters lie side by side in memory, so that a tile is
// loaded from the map itself, with a row for each output pixel.
#include "bf16.h"
#include "elementary.h"
#include "kernels.h"

namespace S3D_VARIANT {

#if defined(S3D_BF16_PRODUCTS)
namespace {

constexpr int TAPS = 3;
constexpr int BAND_ROWS = 16;         // output rows that a thread computes in turn
constexpr int BLOCK = 2 * BF16_TILE;  // pixels and channels of a block of sums

// Sizes shared by all threads.
struct Plan {
    int output_height, output_width;
    int depth;         // values under a row of filters, padded to whole tiles
    int columns;       // output channels, padded to whole tiles
    int64_t row_size;  // values of an input row with its border

    explicit Plan(const S3dConvolutionBf16& layer)
        : output_height((layer.height - 1) / layer.stride + 1),
          output_width((layer.width - 1) / layer.stride + 1),
          depth(pad_to_depth(TAPS * layer.inputs)),
          columns(pad_to_tile(layer.outputs)) {
        // Tiles reach beyond the last pixel, and their last columns beyond its filters: zeros, or finite values of the
        // pixels beside it, by which filters of zero are multiplied.
        const int64_t last = int64_t{layer.stride} * (pad_to_tile(output_width) - 1) * layer.inputs + depth;
        const int64_t whole = int64_t{layer.width + 2} * layer.inputs;
        row_size = ((last > whole ? last : whole) + BF16_TILE_DEPTH - 1) / BF16_TILE_DEPTH * BF16_TILE_DEPTH;
    }
};

// Rounded filters: for each row of filters a matrix [depth, columns] in pairs of rows, and the bias.
struct Filters {
    uint32_t* pairs = nullptr;
    float* bias = nullptr;
    int64_t step = 0;  // words between rows of filters

    ~Filters() { free(pairs); }

    bool pack(const S3dConvolutionBf16& layer, const Plan& plan) {
        step = int64_t{plan.depth} / 2 * plan.columns;
        float* memory = allocate_zeros(TAPS * step + plan.columns);
        if (memory == nullptr) return false;
        pairs = reinterpret_cast<uint32_t*>(memory);
        bias = memory + TAPS * step;
        memcpy(bias, layer.bias, sizeof(float) * layer.outputs);
        const PackInt between = iota() * (layer.inputs * TAPS * TAPS);
        uint32_t* to = pairs;
        for (int row = 0; row < TAPS; ++row) {
            for (int value = 0; value < plan.depth; value += 2) {
                for (int first = 0; first < plan.columns; first += WIDTH, to += WIDTH) {
                    const int lanes = count_lanes(first, layer.outputs);
                    const float* from = layer.weights + int64_t{first} * layer.inputs * TAPS * TAPS + TAPS * row;
                    const auto take = [&](int index) {
                        if (index >= TAPS * layer.inputs) return Pack{};
                        return gather(from + index % layer.inputs * TAPS * TAPS + index / layer.inputs, between, lanes);
                    };
                    _mm512_storeu_si512(to, round_pairs(take(value + 1), take(value)));
                }
            }
        }
        return true;
    }
};

// One thread's buffers: the input rows under a row of filters, and a block of sums.
struct Scratch {
    float* memory = nullptr;
    BFloat16* rows[TAPS];
    int kept[TAPS];  // the input row that each holds
    float* sums;

    explicit Scratch(const Plan& plan) {
        Arena arena = {nullptr};
        for (int pass = 0; pass < 2; ++pass) {
            for (BFloat16*& row : rows) row = reinterpret_cast<BFloat16*>(arena.take(plan.row_size / 2));
            sums = arena.take(BLOCK * BLOCK);
            if (pass == 0) arena = {memory = allocate_zeros(arena.used)};
        }
    }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    ~Scratch() { free(memory); }

    void forget_rows() {
        for (int& row : kept) row = -2;
    }
};

// SiLU with a relative error below 1e-4, a twentieth of that of rounding to bfloat16. The polynomial is a minimax fit of
// 2^x with a relative error of 3e-6.
Pack approximate_silu(Pack x) {
    const Pack power = x * -1.44269504f;
    const Pack whole = (Pack)_mm512_roundscale_ps((__m512)power, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const Pack rest = power - whole;
    Pack p = splat<Pack>(9.5701e-3f);
    p = multiply_add(p, rest, splat<Pack>(5.591786e-2f));
    p = multiply_add(p, rest, splat<Pack>(0.24024744f));
    p = multiply_add(p, rest, splat<Pack>(0.69312179f));
    p = multiply_add(p, rest, splat<Pack>(0.99999928f));
    // Where the power overflows, the reciprocal of infinity is zero.
    const Pack exponential = (Pack)_mm512_scalef_ps((__m512)p, (__m512)whole);
    return x * (Pack)_mm512_rcp14_ps((__m512)(1.0f + exponential));
}

// Copies an input row behind a border of one pixel, and activates it; zeros beyond the map.
void copy_row(const S3dConvolutionBf16& layer, int64_t item, int y, BFloat16* to) {
    const int64_t count = int64_t{layer.width} * layer.inputs;
    to += layer.inputs;
    if (y < 0 || y >= layer.height) {
        memset(to, 0, sizeof(BFloat16) * count);
        return;
    }
    const BFloat16* from = static_cast<const BFloat16*>(layer.input) + (item * layer.height + y) * count;
    if (!layer.activate_input) {
        memcpy(to, from, sizeof(BFloat16) * count);
        return;
    }
    for (int64_t i = 0; i < count; i += WIDTH) {
        const int lanes = count_lanes(i, count);
        store_bf16(to + i, approximate_silu(load_partial(from + i, lanes)), lanes);
    }
}

// Returns the rows under the filters of output row `y`, copying those that are not there yet.
void find_rows(const S3dConvolutionBf16& layer, int64_t item, int y, Scratch& scratch, const char* (&found)[TAPS]) {
    for (int tap = 0; tap < TAPS; ++tap) {
        const int row = y * layer.stride - 1 + tap, slot = (row + TAPS) % TAPS;
        if (scratch.kept[slot] != row) copy_row(layer, item, row, scratch.rows[slot]);
        scratch.kept[slot] = row;
        found[tap] = reinterpret_cast<const char*>(scratch.rows[slot]);
    }
}

// Adds, activates and rounds the sums of `pixels` pixels by `channels` channels; `index` is that of their first output.
void write_block(const S3dConvolutionBf16& layer, const float* sums, int pixels, int channels, int64_t index) {
    const BFloat16* addend = static_cast<const BFloat16*>(layer.addend);
    BFloat16* output = static_cast<BFloat16*>(layer.output);
    for (int pixel = 0; pixel < pixels; ++pixel, index += layer.outputs) {
        for (int c = 0; c < channels; c += WIDTH) {
            const int lanes = count_lanes(c, channels);
            Pack value = load(sums + pixel * BLOCK + c);
            if (addend != nullptr) value += load_partial(addend + index + c, lanes);
            if (layer.activate_output) value = approximate_silu(value);
            store_bf16(output + index + c, value, lanes);
        }
    }
}

void compute_row(const S3dConvolutionBf16& layer, const Plan& plan, const Filters& filters, int64_t item, int y,
                 Scratch& scratch) {
    const char* rows[TAPS];
    find_rows(layer, item, y, scratch, rows);
    const int64_t pixel = int64_t{layer.stride} * layer.inputs * static_cast<int64_t>(sizeof(BFloat16));
    const TilesLeft from = {rows, TAPS, plan.depth / BF16_TILE_DEPTH, pixel};
    const int64_t begin = (item * plan.output_height + y) * plan.output_width;
    for (int channel = 0; channel < plan.columns; channel += BLOCK) {
        const char* right = reinterpret_cast<const char*>(filters.pairs + channel);
        const TilesRight weights = {right, 4 * int64_t{plan.columns}, 4 * filters.step};
        const int channels = layer.outputs - channel < BLOCK ? layer.outputs - channel : BLOCK;
        for (int x = 0; x < plan.output_width; x += BLOCK) {
            const int pixels = plan.output_width - x < BLOCK ? plan.output_width - x : BLOCK;
            choose_tiles(pixels, plan.columns - channel)(from, x * pixel, weights, {filters.bias + channel, 0},
                                                         {scratch.sums, int64_t{sizeof(float)} * BLOCK});
            write_block(layer, scratch.sums, pixels, channels, (begin + x) * layer.outputs + channel);
        }
    }
}

}  // namespace

int convolution_bf16_forward(const S3dConvolutionBf16& layer, int threads) {
    const bool sizes = layer.batch >= 0 && layer.height > 0 && layer.width > 0 && layer.inputs > 0 && layer.outputs > 0;
    if (!sizes || layer.stride < 1 || layer.stride > 2 || threads < 1) return S3D_BAD_SIZE;
    const Plan plan(layer);
    Filters filters;
    if (!filters.pack(layer, plan)) return S3D_NO_MEMORY;
    const int64_t bands = (plan.output_height + BAND_ROWS - 1) / BAND_ROWS;
    int error = S3D_OK;
#pragma omp parallel num_threads(threads)
    {
        const AmxTiles tiles(true);
        Scratch scratch(plan);
        if (scratch.memory == nullptr) {
#pragma omp atomic write
            error = S3D_NO_MEMORY;
        }
#pragma omp for schedule(static)
        for (int64_t task = 0; task < layer.batch * bands; ++task) {
            if (scratch.memory == nullptr) continue;
            scratch.forget_rows();
            const int first = static_cast<int>(task % bands) * BAND_ROWS;
            for (int y = first; y < first + BAND_ROWS && y < plan.output_height; ++y) {
                compute_row(layer, plan, filters, task / bands, y, scratch);
            }
        }
    }
    return error;
}

#else

int convolution_bf16_forward(const S3dConvolutionBf16&, int) { return S3D_BAD_STORAGE; }

#endif

}  // namespace S3D_VARIANT

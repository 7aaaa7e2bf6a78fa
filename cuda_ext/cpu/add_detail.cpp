// Enlarges frames and adds the detail of a photograph, up to the bytes of the finished frames. A thread processes bands
// of rows. The colors of a pixel lie side by side, so that one load reads two neighboring pixels.
#include "kernels.h"
#include "product.h"

namespace S3D_VARIANT {
namespace {

constexpr int COLORS = 4;  // of a pixel in memory; the fourth is opacity, or nothing
constexpr int BAND_ROWS = 64;
constexpr int CUBIC_TAPS = 4, LINEAR_TAPS = 2;
constexpr float SCALE = 1.0f / S3D_DETAIL_SCALE;
constexpr float NOTHING = 1e-5f;  // share below which detail changes no byte

template <class T, int COUNT>
struct VectorOf {
    typedef T Type __attribute__((vector_size(sizeof(T) * COUNT)));
};
using Pixel = VectorOf<float, COLORS>::Type;
using PixelPair = VectorOf<float, 2 * COLORS>::Type;

template <class T>
T load_as(const void* address) {
    T value;
    memcpy(&value, address, sizeof value);
    return value;
}

// Loads the detail of one pixel, or of two neighboring ones. GCC would convert one value at a time.
Pixel load_pixel(const int16_t* address) {
#if defined(__AVX2__)
    const __m128i stored = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(address));
    return (Pixel)_mm_cvtepi32_ps(_mm_cvtepi16_epi32(stored));
#else
    return __builtin_convertvector(load_as<VectorOf<int16_t, COLORS>::Type>(address), Pixel);
#endif
}

PixelPair load_pair(const int16_t* address) {
#if defined(__AVX2__)
    const __m128i stored = _mm_loadu_si128(reinterpret_cast<const __m128i*>(address));
    return (PixelPair)_mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(stored));
#else
    return __builtin_convertvector(load_as<VectorOf<int16_t, 2 * COLORS>::Type>(address), PixelPair);
#endif
}

// The input pixels around the center of output pixel `index`, and their weights. The border is repeated outside.
template <int TAPS>
struct Taps {
    int32_t pixel[TAPS];
    float weight[TAPS];

    Taps(int32_t index, int32_t from, int32_t to) {
        const double exact = (index + 0.5) * from / to - 0.5;  // in pixels from the center of the first one
        const int32_t low = static_cast<int32_t>(exact + 1.0) - 1;
        for (int tap = 0; tap < TAPS; ++tap) pixel[tap] = clamp_index(low + 1 - TAPS / 2 + tap, from);
        weigh(static_cast<float>(exact - low), weight);
    }

private:
    static void weigh(float rest, float (&weight)[LINEAR_TAPS]) {
        weight[0] = 1.0f - rest;
        weight[1] = rest;
    }

    // The cubic convolution of Keys (1981) with a = -3/4, as in PyTorch and OpenCV.
    static void weigh(float rest, float (&weight)[CUBIC_TAPS]) {
        constexpr float A = -0.75f;
        const auto near = [](float distance) {
            return ((A + 2.0f) * distance - (A + 3.0f)) * distance * distance + 1.0f;
        };
        const float left = 1.0f - rest;
        weight[0] = A * rest * left * left;
        weight[1] = near(rest);
        weight[2] = near(left);
        weight[3] = A * left * rest * rest;
    }
};

// Enlarges an image of CHANNELS values per pixel row by row. Consecutive rows come from the same few rows of the input,
// so these are kept, enlarged horizontally.
template <int TAPS, int CHANNELS>
struct Enlarger {
    int32_t from, to;
    Taps<TAPS>* columns;
    float *input, *rows[TAPS];
    int32_t kept[TAPS];

    void take(Arena& arena, int32_t size, int32_t side) {
        from = size;
        to = side;
        columns = reinterpret_cast<Taps<TAPS>*>(arena.take(side * sizeof(Taps<TAPS>) / sizeof(float)));
        input = arena.take(int64_t{CHANNELS} * size);
        for (float*& row : rows) row = arena.take(int64_t{CHANNELS} * side + WIDTH);
    }

    void fill_columns() {
        for (int32_t x = 0; x < to; ++x) columns[x] = Taps<TAPS>(x, from, to);
    }

    void forget_rows() {
        for (int32_t& row : kept) row = -1;
    }

    // Computes row `y`. `read` copies a row of the input.
    template <class Read>
    void compute(int32_t y, const Read& read, float* target) {
        const Taps<TAPS> lines(y, from, to);
        const float* line[TAPS];
        for (int tap = 0; tap < TAPS; ++tap) {
            const int slot = lines.pixel[tap] % TAPS;
            line[tap] = rows[slot];
            if (kept[slot] == lines.pixel[tap]) continue;
            kept[slot] = lines.pixel[tap];
            read(kept[slot], input);
            enlarge_row(rows[slot]);
        }
        for (int64_t i = 0; i < int64_t{CHANNELS} * to; i += WIDTH) {
            Pack value = lines.weight[0] * load(line[0] + i);
            for (int tap = 1; tap < TAPS; ++tap) value += lines.weight[tap] * load(line[tap] + i);
            store(target + i, value);
        }
    }

private:
    void enlarge_row(float* row) const {
        using Values = typename VectorOf<float, CHANNELS>::Type;
        for (int32_t x = 0; x < to; ++x, row += CHANNELS) {
            Values sum{};
            for (int tap = 0; tap < TAPS; ++tap) {
                sum += columns[x].weight[tap] * load_as<Values>(input + int64_t{columns[x].pixel[tap]} * CHANNELS);
            }
            memcpy(row, &sum, sizeof sum);
        }
    }
};

// Buffers of one thread, for rows of the output.
struct Scratch {
    float* memory = nullptr;
    Enlarger<CUBIC_TAPS, COLORS> image;
    Enlarger<LINEAR_TAPS, 1> shares[2], flow[2];
    float *colors, *share[2], *weight[2];
    int32_t* corner;  // upper left pixel of the four that detail comes from

    explicit Scratch(const S3dAddDetail& frames) {
        Arena arena = {nullptr};
        for (int pass = 0; pass < 2; ++pass) {
            const int64_t row = int64_t{frames.side} + WIDTH;
            image.take(arena, frames.size, frames.side);
            for (auto& map : shares) map.take(arena, frames.size, frames.side);
            for (auto& map : flow) map.take(arena, frames.flow_size, frames.side);
            colors = arena.take(COLORS * row);
            for (float*& part : share) part = arena.take(row);
            for (float*& part : weight) part = arena.take(row);
            corner = reinterpret_cast<int32_t*>(arena.take(row));
            if (pass == 0) arena = {memory = allocate_zeros(arena.used)};
        }
        if (memory == nullptr) return;
        image.fill_columns();
        for (auto& map : shares) map.fill_columns();
        for (auto& map : flow) map.fill_columns();
    }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    ~Scratch() { free(memory); }

    void forget_rows() {
        image.forget_rows();
        for (auto& map : shares) map.forget_rows();
        for (auto& map : flow) map.forget_rows();
    }
};

// The pixels of the detail between which a position lies along one axis: the first one, and the weight of the other.
struct Place {
    Pack low, weight;

    Place(Pack pixel, int32_t side) {
        const Pack valid = select(pixel == pixel, pixel, Pack{});
        const Pack inside = clamp(valid, 0.0f, static_cast<float>(side - 1));
        low = round_down(clamp(inside, 0.0f, static_cast<float>(side - 2)));
        weight = inside - low;
    }
};

// Turns row `y` of the flow into places of the detail.
void find_places(const S3dAddDetail& frames, int64_t item, int32_t y, Scratch& scratch) {
    const int32_t side = frames.side, size = frames.flow_size;
    for (int axis = 0; axis < 2; ++axis) {
        const float* flow = frames.flow + item * frames.flow_stride + int64_t{axis} * size * size;
        const auto read = [&](int32_t row, float* to) { memcpy(to, flow + int64_t{row} * size, sizeof(float) * size); };
        scratch.flow[axis].compute(y, read, scratch.weight[axis]);
    }
    const float half = 0.5f * static_cast<float>(side);
    for (int32_t x = 0; x < side; x += WIDTH) {
        const Place column(to_float(iota() + x) + half * load(scratch.weight[0] + x), side);
        const Place row(static_cast<float>(y) + half * load(scratch.weight[1] + x), side);
        store(scratch.corner + x, to_int(row.low) * side + to_int(column.low));
        store(scratch.weight[0] + x, column.weight);
        store(scratch.weight[1] + x, row.weight);
    }
}

// Enlarges row `y` of the frame and of the shares of the detail.
void enlarge_frame(const S3dAddDetail& frames, int64_t item, int32_t y, Scratch& scratch) {
    const int32_t size = frames.size;
    const int64_t pixels = int64_t{size} * size;
    const auto read_colors = [&](int32_t row, float* to) {
        const float* from = frames.image + item * frames.channels * pixels + int64_t{row} * size;
        for (int c = 0; c < frames.channels; ++c, from += pixels) {
            for (int32_t x = 0; x < size; ++x) to[x * COLORS + c] = from[x];
        }
    };
    scratch.image.compute(y, read_colors, scratch.colors);
    for (int map = 0; map < 2; ++map) {
        const float* share = frames.shares + (2 * item + map) * pixels;
        const auto read = [&](int32_t row, float* to) {
            memcpy(to, share + int64_t{row} * size, sizeof(float) * size);
        };
        scratch.shares[map].compute(y, read, scratch.share[map]);
    }
}

// Interpolates the detail between four pixels.
Pixel sample_detail(const int16_t* corner, int64_t row_step, float column, float row) {
    const PixelPair upper = load_pair(corner), lower = load_pair(corner + row_step);
    const PixelPair pair = upper + row * (lower - upper);
    Pixel both[2];
    memcpy(both, &pair, sizeof both);
    return both[0] + column * (both[1] - both[0]);
}

// Adds the detail of row `y` to its enlarged colors.
void add_detail(const S3dAddDetail& frames, int32_t y, const Scratch& scratch) {
    const int64_t row_step = int64_t{frames.side} * COLORS;
    const int16_t* still = frames.still + y * row_step;
    float* colors = scratch.colors;
    for (int32_t x = 0; x < frames.side; ++x, colors += COLORS, still += COLORS) {
        const float moving = scratch.share[0][x], fixed = scratch.share[1][x];
        Pixel value = load_as<Pixel>(colors);
        if (moving > NOTHING) {
            const int16_t* corner = frames.moving + int64_t{scratch.corner[x]} * COLORS;
            value += (SCALE * moving) * sample_detail(corner, row_step, scratch.weight[0][x], scratch.weight[1][x]);
        }
        if (fixed > NOTHING) value += (SCALE * fixed) * load_pixel(still);
        memcpy(colors, &value, sizeof value);
    }
}

// Moves the colors of four pixels together, which leaves out every fourth byte.
void drop_fourth_bytes(const uint8_t* pixels, uint8_t* to) {
#if defined(__AVX2__)
    const __m128i order = _mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1);
    const __m128i together = _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(pixels)), order);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), together);
#else
    for (int i = 0; i < 4; ++i) memcpy(to + 3 * i, pixels + COLORS * i, COLORS);
#endif
}

// Rounds the colors of a row to bytes.
void write_row(const S3dAddDetail& frames, int64_t row, const Scratch& scratch) {
    constexpr int GROUP = 4;  // pixels
    using Bytes = VectorOf<uint8_t, WIDTH>::Type;
    const int32_t side = frames.side;
    uint8_t* output = frames.output + row * side * frames.channels;
    for (int32_t first = 0; first < side; first += GROUP, output += GROUP * frames.channels) {
        uint8_t pixels[GROUP * COLORS];
        for (int i = 0; i < GROUP * COLORS; i += WIDTH) {
            const Pack value = load(scratch.colors + int64_t{first} * COLORS + i);
            const Pack valid = clamp(select(value == value, value, Pack{}), 0.0f, 1.0f);
            const Bytes bytes = __builtin_convertvector(to_int(255.0f * valid + 0.5f), Bytes);
            memcpy(pixels + i, &bytes, sizeof bytes);
        }
        // The bytes behind a group are replaced by the next one. After the last ones of a row, they belong to another
        // thread.
        if (first + 2 * GROUP <= side) {
            if (frames.channels == COLORS) {
                memcpy(output, pixels, sizeof pixels);
            } else {
                drop_fourth_bytes(pixels, output);
            }
            continue;
        }
        for (int32_t i = 0; i < GROUP && first + i < side; ++i) {
            memcpy(output + i * frames.channels, pixels + COLORS * i, static_cast<size_t>(frames.channels));
        }
    }
}

int check(const S3dAddDetail& frames, int threads) {
    constexpr int32_t LARGEST = 1 << 14;
    if (frames.batch < 0 || threads < 1 || frames.channels < COLORS - 1 || frames.channels > COLORS)
        return S3D_BAD_SIZE;
    if (frames.size < 1 || frames.size > LARGEST || frames.flow_size < 1 || frames.flow_size > LARGEST) {
        return S3D_BAD_SIZE;
    }
    return frames.side < 2 || frames.side > LARGEST ? S3D_BAD_SIZE : S3D_OK;
}

}  // namespace

int add_detail_forward(const S3dAddDetail& frames, int threads) {
    if (int error = check(frames, threads)) return error;
    const int64_t bands = (frames.side + BAND_ROWS - 1) / BAND_ROWS;
    int error = S3D_OK;
#pragma omp parallel num_threads(threads)
    {
        Scratch scratch(frames);
        if (scratch.memory == nullptr) {
#pragma omp atomic write
            error = S3D_NO_MEMORY;
        }
#pragma omp for schedule(static)
        for (int64_t task = 0; task < frames.batch * bands; ++task) {
            if (scratch.memory == nullptr) continue;
            const int32_t first = static_cast<int32_t>(task % bands) * BAND_ROWS;
            scratch.forget_rows();
            for (int32_t y = first; y < first + BAND_ROWS && y < frames.side; ++y) {
                enlarge_frame(frames, task / bands, y, scratch);
                find_places(frames, task / bands, y, scratch);
                add_detail(frames, y, scratch);
                write_row(frames, task / bands * frames.side + y, scratch);
            }
        }
    }
    return error;
}

}  // namespace S3D_VARIANT

// Composites frames over a static background. A thread processes bands of rows.
#include "bilinear.h"
#include "kernels.h"
#include "product.h"

namespace S3D_VARIANT {
namespace {

constexpr int COLORS = 3;
constexpr int BAND_ROWS = 16;  // rows of the flow

struct Scratch {
    float* memory = nullptr;
    int64_t pitch;
    float *row, *alpha, *hidden, *shown;  // hidden: of the band and one row on either side

    explicit Scratch(const S3dCompositeBackground& frames) : pitch(pad_to_pack(2 * frames.size)) {
        Arena arena = {nullptr};
        for (int pass = 0; pass < 2; ++pass) {
            row = arena.take(pitch + 2 * WIDTH);
            alpha = arena.take(pitch);
            hidden = arena.take((BAND_ROWS + 2) * pitch);
            shown = arena.take(pitch);
            if (pass == 0) arena = {memory = allocate_zeros(arena.used)};
        }
    }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    ~Scratch() { free(memory); }
};

// The two rows around the center of row `y` of an image upsampled by two from `size` rows, the nearer one first.
struct NearRows {
    int32_t near, far;

    NearRows(int32_t y, int32_t size) : near(y / 2), far(clamp_index(y % 2 ? y / 2 + 1 : y / 2 - 1, size)) {}
};

// Computes the fraction of the background that the person hides, for one row of the flow.
void find_hidden(const S3dCompositeBackground& frames, int64_t item, int32_t y, const Scratch& scratch, float* hidden) {
    const int32_t size = frames.size, half = size / 2;
    const int64_t pixels = int64_t{size} * size;
    const float* flow = frames.flow + item * frames.flow_stride + int64_t{y} * size;
    const float* alpha = frames.alpha + item * frames.alpha_stride;
    const NearRows rows(y, half);
    upsample_row(alpha + int64_t{rows.near} * half, alpha + int64_t{rows.far} * half, half, scratch.row, scratch.alpha);
    const Pack v = pixel_center(splat<Pack>(static_cast<float>(y)), size);
    for (int32_t x = 0; x < size; x += WIDTH) {
        const int lanes = count_lanes(x, size);
        const Pack u = pixel_center(to_float(iota() + x), size);
        const BilinearCorners corners(u + load_partial(flow + x, lanes), v + load_partial(flow + pixels + x, lanes),
                                      size, size);
        const Pack person = corners.sample(frames.person, lanes), head = corners.sample(frames.head, lanes);
        const Pack loss = (head - load(scratch.alpha + x) - frames.uncovered_from) *
                          (1.0f / (frames.uncovered_to - frames.uncovered_from));
        const Pack uncovered = select(loss == loss, clamp(loss, 0.0f, 1.0f), loss);
        const Pack inpainted = load_partial(frames.inpainted + int64_t{y} * size + x, lanes);
        store(hidden + x, (1.0f - (1.0f - person) * (1.0f - inpainted)) * (1.0f - person * uncovered));
    }
}

void blend_row(const S3dCompositeBackground& frames, int64_t item, int32_t y, const float* shown) {
    const int32_t side = 2 * frames.size;
    const int64_t pixels = int64_t{side} * side;
    for (int color = 0; color < COLORS; ++color) {
        const int64_t begin = color * pixels + int64_t{y} * side;
        const float *image = frames.image + item * COLORS * pixels + begin, *behind = frames.background + begin;
        float* output = frames.output + item * COLORS * pixels + begin;
        for (int32_t x = 0; x < side; x += WIDTH) {
            const int lanes = count_lanes(x, side);
            const Pack value = load_partial(image + x, lanes);
            const Pack front = select(value == value, clamp(value, 0.0f, 1.0f), value);
            const Pack back = load_partial(behind + x, lanes);
            store_partial(output + x, back + load(shown + x) * (front - back), lanes);
        }
    }
}

void composite_band(const S3dCompositeBackground& frames, int64_t item, int32_t first, const Scratch& scratch) {
    const int32_t size = frames.size, last = first + BAND_ROWS < size ? first + BAND_ROWS : size;
    const auto find_row = [&](int32_t y) { return scratch.hidden + (y - first + 1) * scratch.pitch; };
    for (int32_t y = first > 0 ? first - 1 : 0; y < last + 1 && y < size; ++y) {
        find_hidden(frames, item, y, scratch, find_row(y));
    }
    for (int32_t y = 2 * first; y < 2 * last; ++y) {
        const NearRows rows(y, size);
        upsample_row(find_row(rows.near), find_row(rows.far), size, scratch.row, scratch.shown);
        blend_row(frames, item, y, scratch.shown);
    }
}

}  // namespace

int composite_background_forward(const S3dCompositeBackground& frames, int threads) {
    if (frames.batch < 0 || frames.size < 2 || frames.size % 2 || frames.size > (1 << 14) || threads < 1) {
        return S3D_BAD_SIZE;
    }
    const int64_t bands = (frames.size + BAND_ROWS - 1) / BAND_ROWS;
    int error = S3D_OK;
#pragma omp parallel num_threads(threads)
    {
        const Scratch scratch(frames);
        if (scratch.memory == nullptr) {
#pragma omp atomic write
            error = S3D_NO_MEMORY;
        }
#pragma omp for schedule(static)
        for (int64_t task = 0; task < frames.batch * bands; ++task) {
            if (scratch.memory == nullptr) continue;
            composite_band(frames, task / bands, static_cast<int32_t>(task % bands) * BAND_ROWS, scratch);
        }
    }
    return error;
}

}  // namespace S3D_VARIANT

// Places samples along the rays of scaled-orthographic cameras, in a shell around an ellipsoid.
#include "elementary.h"
#include "kernels.h"
#include "pack_lanes.h"

namespace S3D_VARIANT {
namespace {

constexpr int BLOCK_RAYS = 256;

// A camera, and the ellipsoid as its rays see it; all rays of a camera are parallel.
struct View {
    float rotation[9], center[2], scale;
    float direction[3], scaled_direction[3];  // the latter in radii of the ellipsoid
    float square;                             // of its length

    View(const S3dPlaceSamples& samples, int64_t item) : scale(samples.scale[item]) {
        memcpy(rotation, samples.rotation + item * 9, sizeof rotation);
        memcpy(center, samples.center + item * 2, sizeof center);
        square = 0.0f;
        for (int d = 0; d < 3; ++d) {
            direction[d] = -rotation[6 + d];
            scaled_direction[d] = direction[d] / samples.ellipsoid_radii[d];
            square += scaled_direction[d] * scaled_direction[d];
        }
    }
};

// Up to WIDTH rays: their origins, and the middle and half the length of what is sampled.
struct Segments {
    Pack origin[3], middle, margin;

    Segments(const S3dPlaceSamples& samples, const View& view, Pack u, Pack v) {
        const Pack across = (u - view.center[0]) / view.scale, upward = (view.center[1] - v) / view.scale;
        Pack product{}, squares{};
        for (int d = 0; d < 3; ++d) {
            origin[d] = view.rotation[d] * across + view.rotation[3 + d] * upward;
            const Pack scaled = (origin[d] - samples.ellipsoid_center[d]) / samples.ellipsoid_radii[d];
            product += scaled * view.scaled_direction[d];
            squares += scaled * scaled;
        }
        const Pack inside = (product * product - view.square * (squares - 1.0f)) / view.square;
        const Pack depth = select(inside > 0.0f, inside, inside != inside ? inside : Pack{});
        middle = -product / view.square - square_root(depth / view.square);
        const Pack share = square_root(select(depth > 1.0f, splat<Pack>(1.0f), depth));
        margin = samples.outer_margin + (samples.inner_margin - samples.outer_margin) * share;
    }
};

void place_block(const S3dPlaceSamples& samples, int64_t item, int64_t first, int64_t end) {
    const View view(samples, item);
    const int count = samples.samples;
    const float spacing = 1.0f / static_cast<float>(count);
    for (int64_t ray = first; ray < end; ray += WIDTH) {
        const int lanes = count_lanes(ray, end);
        const float* points = samples.points + (item * samples.rays + ray) * 2;
        Pack u{}, v{};
        for (int lane = 0; lane < lanes; ++lane) {
            u[lane] = points[2 * lane];
            v[lane] = points[2 * lane + 1];
        }
        const Segments segments(samples, view, u, v);
        alignas(64) float delta[WIDTH], place[3][WIDTH];
        store(delta, 2.0f * spacing * segments.margin);
        float* positions = samples.positions + (item * samples.rays + ray) * count * 3;
        float* deltas = samples.deltas + (item * samples.rays + ray) * count;
        for (int s = 0; s < count; ++s) {
            const float fraction = 2.0f * spacing * (static_cast<float>(s) + 0.5f) - 1.0f;
            const Pack distance = segments.middle + fraction * segments.margin;
            for (int d = 0; d < 3; ++d) store(place[d], segments.origin[d] + view.direction[d] * distance);
            for (int lane = 0; lane < lanes; ++lane) {
                const int64_t at = int64_t{lane} * count + s;
                for (int d = 0; d < 3; ++d) positions[3 * at + d] = place[d][lane];
                deltas[at] = delta[lane];
            }
        }
    }
}

}  // namespace

int place_samples_forward(const S3dPlaceSamples& samples, int threads) {
    if (samples.batch < 0 || samples.rays < 0 || samples.samples < 1 || threads < 1) return S3D_BAD_SIZE;
    const int64_t blocks = (samples.rays + BLOCK_RAYS - 1) / BLOCK_RAYS;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t task = 0; task < samples.batch * blocks; ++task) {
        const int64_t first = task % blocks * BLOCK_RAYS, end = first + BLOCK_RAYS;
        place_block(samples, task / blocks, first, end < samples.rays ? end : samples.rays);
    }
    return S3D_OK;
}

}  // namespace S3D_VARIANT

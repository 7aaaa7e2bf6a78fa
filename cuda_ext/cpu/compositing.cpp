#include "compositing.h"

#include "kernels.h"

namespace S3D_VARIANT {
namespace {

constexpr int64_t RAYS = 64;       // handed to a thread at a time
constexpr int64_t STRETCH = 1024;  // samples of a ray worked on at a time

// Weights of one ray's samples; returns their sum.
float weigh_ray(const S3dComposite& rays, SampleRange range, float last_seen) {
    alignas(64) float optical[STRETCH + WIDTH], before[STRETCH + WIDTH];
    float depth = 0.0f, alpha = 0.0f;
    for (int64_t begin = range.begin; begin < range.end; begin += STRETCH) {
        const int64_t count = range.end - begin < STRETCH ? range.end - begin : STRETCH;
        for (int64_t s = 0; s < count; ++s) {
            optical[s] = rays.density[begin + s] * rays.lengths[begin + s];
            before[s] = depth;
            depth += optical[s];
        }
        for (int64_t s = count; s < count + WIDTH; ++s) optical[s] = before[s] = 0.0f;
        for (int64_t s = 0; s < count; s += WIDTH) {
            const Pack unseen = load(before + s);
            const Pack weight = choose(unseen > splat<Pack>(last_seen), Pack{}, weigh_sample(load(optical + s), unseen));
            const int lanes = count - s < WIDTH ? static_cast<int>(count - s) : WIDTH;
            store_part(rays.weights + begin + s, weight, lanes);
        }
        for (int64_t s = 0; s < count; ++s) alpha += rays.weights[begin + s];
    }
    return alpha;
}

// sum of weight times value over the samples of one ray, for `count` <= WIDTH channels from `channel` on.
Pack add_values(const S3dComposite& rays, SampleRange range, int channel, int count) {
    Pack sum{};
    const float* value = rays.values + range.begin * rays.channels + channel;
    for (int64_t s = range.begin; s < range.end; ++s, value += rays.channels) {
        sum += rays.weights[s] * load_part(value, count);
    }
    return sum;
}

void composite_ray(const S3dComposite& rays, int64_t ray, float last_seen) {
    const SampleRange range = find_samples(rays, ray);
    rays.alpha[ray] = weigh_ray(rays, range, last_seen);
    for (int c = 0; c < rays.channels; c += WIDTH) {
        const int count = rays.channels - c < WIDTH ? rays.channels - c : WIDTH;
        store_part(rays.output + ray * rays.channels + c, add_values(rays, range, c, count), count);
    }
}

// Derivative by the weight of one sample; writes the derivative by its values.
float differentiate_weight(const S3dComposite& rays, int64_t ray, int64_t s) {
    const float* gradient = rays.output_gradient + ray * rays.channels;
    const float* value = rays.values + s * rays.channels;
    Pack sum{};
    for (int c = 0; c < rays.channels; c += WIDTH) {
        const int count = rays.channels - c < WIDTH ? rays.channels - c : WIDTH;
        const Pack part = load_part(gradient + c, count);
        sum += part * load_part(value + c, count);
        if (rays.values_gradient != nullptr) {
            store_part(rays.values_gradient + s * rays.channels + c, rays.weights[s] * part, count);
        }
    }
    return sum_lanes(sum) + rays.alpha_gradient[ray] + rays.weights_gradient[s];
}

void differentiate_ray(const S3dComposite& rays, int64_t ray, float last_seen) {
    const SampleRange range = find_samples(rays, ray);
    float depth = 0.0f;
    int64_t seen = range.begin;
    // The derivative by the weight waits where the one by density will stand, the depth where the one by length will.
    for (int64_t s = range.begin; s < range.end; ++s) {
        rays.density_gradient[s] = differentiate_weight(rays, ray, s);
        if (!(depth > last_seen)) seen = s + 1;
        depth += rays.density[s] * rays.lengths[s];
        rays.lengths_gradient[s] = depth;
    }
    for (int64_t s = range.begin; s < range.end; s += WIDTH) {
        const int lanes = range.end - s < WIDTH ? static_cast<int>(range.end - s) : WIDTH;
        const Pack after = exponential(-load_part(rays.lengths_gradient + s, lanes));
        store_part(rays.lengths_gradient + s, after, lanes);
    }
    float behind = 0.0f;
    for (int64_t s = range.end - 1; s >= range.begin; --s) {
        const float weight_gradient = rays.density_gradient[s];
        const float slope = s < seen ? differentiate_depth(weight_gradient, rays.lengths_gradient[s], behind) : 0.0f;
        behind += weight_gradient * rays.weights[s];
        rays.density_gradient[s] = slope * rays.lengths[s];
        rays.lengths_gradient[s] = slope * rays.density[s];
    }
}

int run(const S3dComposite& rays, int threads, void (*work)(const S3dComposite&, int64_t, float)) {
    if (rays.rays < 0 || rays.samples < 0 || rays.channels < 0 || threads < 1) return S3D_BAD_SIZE;
    if (rays.offsets == nullptr && rays.rays > 0 && rays.samples % rays.rays != 0) return S3D_BAD_SIZE;
    const float last_seen = last_seen_depth(rays.stop);
#pragma omp parallel for num_threads(threads) schedule(static, RAYS)
    for (int64_t ray = 0; ray < rays.rays; ++ray) work(rays, ray, last_seen);
    return S3D_OK;
}

}  // namespace

int composite_forward(const S3dComposite& rays, int threads) { return run(rays, threads, composite_ray); }

int composite_backward(const S3dComposite& rays, int threads) { return run(rays, threads, differentiate_ray); }

}  // namespace S3D_VARIANT

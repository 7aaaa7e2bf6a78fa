#include "compositing.h"

#include "kernels.h"

namespace S3D_VARIANT {
namespace {

// Samples side by side in the lanes of a pack: of one ray, or of several short ones that lie one after another.
struct SamplePack {
    int64_t begin;
    int lanes;
    int segment;  // lanes that belong to one ray; a power of two

    Pack read(const float* place) const { return load_part(place + begin, lanes); }

    void write(float* place, Pack value) const { store_part(place + begin, value, lanes); }

    uint32_t bits() const { return (1u << lanes) - 1u; }
};

// Optical depth before and behind each sample of a pack, `ahead` before the first.
struct Depth {
    Pack before, after;

    Depth(const SamplePack& samples, Pack optical, float ahead)
        : after(ahead + sum_up(optical, samples.segment)) {
        const PackInt first = (count_up() & (samples.segment - 1)) == 0;
        // Moved, not subtracted: what is infinite behind a sample need not be before it.
        before = choose(first, splat<Pack>(ahead), shift_lanes(after, 1, samples.segment));
    }
};

struct WeighedSamples {
    Pack weight;
    uint32_t visible;  // a bit for each that lies before its ray's end
};

// Writes the weights of some samples; moves `ahead` behind them.
WeighedSamples weigh_samples(const S3dComposite& rays, const SamplePack& samples, float last_seen, float& ahead) {
    const Pack optical = samples.read(rays.density) * samples.read(rays.lengths);
    const Depth depth(samples, optical, ahead);
    const PackInt ended = depth.before > splat<Pack>(last_seen);
    const Pack weight = choose(ended, Pack{}, weigh_sample(optical, depth.before));
    samples.write(rays.weights, weight);
    ahead = depth.after[samples.lanes - 1];
    return {weight, ~to_lane_bits(ended) & samples.bits()};
}

// P packs of channels, the last of them with `last` channels (WIDTH if WHOLE): the sum of weight times value over `count`
// samples. Two sums take turns, so that no addition waits for the one before it.
template <int P, bool WHOLE>
void add_packs(const float* weight, const float* value, int64_t stride, int32_t count, int last, float* output) {
    const auto read = [last](const float* place, int p) {
        return WHOLE || p < P - 1 ? load(place + p * WIDTH) : load_some(place + p * WIDTH, last);
    };
    Pack even[P] = {}, odd[P] = {};
    int32_t s = 0;
    for (; s + 1 < count; s += 2, value += 2 * stride) {
        const Pack first = load_all(weight + s), second = load_all(weight + s + 1);
        for (int p = 0; p < P; ++p) {
            even[p] += first * read(value, p);
            odd[p] += second * read(value + stride, p);
        }
    }
    for (int p = 0; p < P; ++p) {
        if (s < count) even[p] += load_all(weight + s) * read(value, p);
        store_part(output + p * WIDTH, even[p] + odd[p], p < P - 1 ? WIDTH : last);
    }
}

void add_values(const S3dComposite& rays, int64_t ray, int64_t begin, int32_t count) {
    const float* weight = rays.weights + begin;
    const float* value = rays.values + begin * rays.channels;
    float* output = rays.output + ray * rays.channels;
    for (int c = 0; c < rays.channels; c += 2 * WIDTH) {
        const int left = rays.channels - c;
        if (left >= 2 * WIDTH) {
            add_packs<2, true>(weight, value + c, rays.channels, count, WIDTH, output + c);
        } else if (left > WIDTH) {
            add_packs<2, false>(weight, value + c, rays.channels, count, left - WIDTH, output + c);
        } else {
            add_packs<1, false>(weight, value + c, rays.channels, count, left, output + c);
        }
    }
}

void composite_ray(const S3dComposite& rays, int64_t ray, float last_seen) {
    const SampleRange range = find_samples(rays, ray);
    float ahead = 0.0f;
    Pack alpha{};
    int32_t seen = 0;
    for (int64_t s = range.begin; s < range.end; s += WIDTH) {
        const SamplePack samples = {s, count_lanes(s, range.end), WIDTH};
        const WeighedSamples weighed = weigh_samples(rays, samples, last_seen, ahead);
        alpha += weighed.weight;
        seen += __builtin_popcount(weighed.visible);
    }
    rays.alpha[ray] = sum_lanes(alpha);
    add_values(rays, ray, range.begin, seen);
}

// Rays of `count` samples each, as many as fit into a pack.
void composite_short_rays(const S3dComposite& rays, int64_t first, int lanes, int count, float last_seen) {
    const SamplePack samples = {first * count, lanes * count, count};
    float ahead = 0.0f;
    const WeighedSamples weighed = weigh_samples(rays, samples, last_seen, ahead);
    const Pack alpha = sum_up(weighed.weight, count);
    for (int lane = 0; lane < lanes; ++lane) {
        const int64_t ray = first + lane;
        rays.alpha[ray] = alpha[(lane + 1) * count - 1];
        const uint32_t own = (weighed.visible >> (lane * count)) & ((1u << count) - 1u);
        add_values(rays, ray, ray * count, __builtin_popcount(own));
    }
}

// Derivatives by the weights of some samples; writes those by their values.
Pack differentiate_weights(const S3dComposite& rays, const SamplePack& samples, int64_t first_ray) {
    Pack products[WIDTH] = {}, of_alpha{};
    for (int lane = 0; lane < samples.lanes; ++lane) {
        const int64_t ray = first_ray + lane / samples.segment, sample = samples.begin + lane;
        const float* gradient = rays.output_gradient + ray * rays.channels;
        const float* value = rays.values + sample * rays.channels;
        for (int c = 0; c < rays.channels; c += WIDTH) {
            const int count = count_lanes(c, rays.channels);
            const Pack part = load_part(gradient + c, count);
            products[lane] += part * load_part(value + c, count);
            if (rays.values_gradient != nullptr) {
                store_part(rays.values_gradient + sample * rays.channels + c, rays.weights[sample] * part, count);
            }
        }
        of_alpha[lane] = rays.alpha_gradient[ray];
    }
    return sum_rows(products) + of_alpha + samples.read(rays.weights_gradient);
}

// Writes the derivatives by density and length; `behind` is what lies behind the samples, and moves before them.
void differentiate_depths(const S3dComposite& rays, const SamplePack& samples, Pack weight_gradient, Pack after,
                          PackInt visible, float& behind) {
    const Pack from_here = sum_down(weight_gradient * samples.read(rays.weights), samples.segment);
    const Pack from_next = behind + shift_lanes(from_here, -1, samples.segment);
    const Pack slope = choose(visible, differentiate_depth(weight_gradient, after, from_next), Pack{});
    samples.write(rays.density_gradient, slope * samples.read(rays.lengths));
    samples.write(rays.lengths_gradient, slope * samples.read(rays.density));
    behind += from_here[0];
}

void differentiate_ray(const S3dComposite& rays, int64_t ray, float last_seen) {
    const SampleRange range = find_samples(rays, ray);
    float ahead = 0.0f;
    int64_t seen = range.begin;
    // The derivative by the weight waits where the one by density will stand, the light behind a sample where the one by
    // length will.
    for (int64_t s = range.begin; s < range.end; s += WIDTH) {
        const SamplePack samples = {s, count_lanes(s, range.end), WIDTH};
        samples.write(rays.density_gradient, differentiate_weights(rays, samples, ray));
        const Depth depth(samples, samples.read(rays.density) * samples.read(rays.lengths), ahead);
        samples.write(rays.lengths_gradient, exponential(-depth.after));
        seen += __builtin_popcount(~to_lane_bits(depth.before > splat<Pack>(last_seen)) & samples.bits());
        ahead = depth.after[samples.lanes - 1];
    }
    const int64_t packs = (range.end - range.begin + WIDTH - 1) / WIDTH;
    float behind = 0.0f;
    for (int64_t s = range.begin + (packs - 1) * WIDTH; s >= range.begin; s -= WIDTH) {
        const SamplePack samples = {s, count_lanes(s, range.end), WIDTH};
        const int32_t left = seen - s < WIDTH ? static_cast<int32_t>(seen - s) : WIDTH;
        differentiate_depths(rays, samples, samples.read(rays.density_gradient), samples.read(rays.lengths_gradient),
                             count_up() < left, behind);
    }
}

void differentiate_short_rays(const S3dComposite& rays, int64_t first, int lanes, int count, float last_seen) {
    const SamplePack samples = {first * count, lanes * count, count};
    const Pack weight_gradient = differentiate_weights(rays, samples, first);
    const Depth depth(samples, samples.read(rays.density) * samples.read(rays.lengths), 0.0f);
    float behind = 0.0f;
    differentiate_depths(rays, samples, weight_gradient, exponential(-depth.after),
                         ~(depth.before > splat<Pack>(last_seen)), behind);
}

using RayWork = void (*)(const S3dComposite&, int64_t ray, float last_seen);
using ShortRayWork = void (*)(const S3dComposite&, int64_t first, int lanes, int count, float last_seen);

int run(const S3dComposite& rays, int threads, RayWork work, ShortRayWork short_work) {
    if (rays.rays < 0 || rays.samples < 0 || rays.samples > INT32_MAX) return S3D_BAD_SIZE;
    if (rays.channels < 0 || threads < 1) return S3D_BAD_SIZE;
    const bool dense = rays.offsets == nullptr && rays.rays > 0;
    if (dense && rays.samples % rays.rays != 0) return S3D_BAD_SIZE;
    const float last_seen = last_seen_depth(rays.stop);
    const int64_t count = dense ? rays.samples / rays.rays : 0;
    const bool brief = count > 0 && count < WIDTH && (count & (count - 1)) == 0;
    const int together = brief ? WIDTH / static_cast<int>(count) : 1;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t first = 0; first < rays.rays; first += together) {
        if (brief) {
            const int lanes = rays.rays - first < together ? static_cast<int>(rays.rays - first) : together;
            short_work(rays, first, lanes, static_cast<int>(count), last_seen);
        } else {
            work(rays, first, last_seen);
        }
    }
    return S3D_OK;
}

}  // namespace

int composite_forward(const S3dComposite& rays, int threads) {
    return run(rays, threads, composite_ray, composite_short_rays);
}

int composite_backward(const S3dComposite& rays, int threads) {
    return run(rays, threads, differentiate_ray, differentiate_short_rays);
}

}  // namespace S3D_VARIANT

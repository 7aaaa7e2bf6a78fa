#include "compositing.h"

#include "kernels.h"
#include "pack_lanes.h"

namespace S3D_VARIANT {
namespace {

// Consecutive samples in the lanes of a pack: from one ray, or from several short rays.
struct SamplePack {
    int64_t begin;
    int lanes;
    int segment;  // lanes per ray; a power of two

    Pack read(const float* address) const { return load_partial(address + begin, lanes); }

    void write(float* address, Pack value) const { store_partial(address + begin, value, lanes); }

    uint32_t bits() const { return (1u << lanes) - 1u; }
};

// Optical depth before and after each sample of a pack; `ahead` is the depth before the first.
struct Depth {
    Pack before, after;

    Depth(const SamplePack& samples, Pack optical_depth, float ahead)
        : after(ahead + prefix_sum(optical_depth, samples.segment)) {
        const PackInt first = (iota() & (samples.segment - 1)) == 0;
        // Shifts instead of subtracting: the depth before a sample may be finite where the depth after it is infinite.
        before = select(first, splat<Pack>(ahead), shift_lanes(after, 1, samples.segment));
    }
};

// Up to WIDTH rays, one per lane.
struct RayGroup {
    int lanes;
    SampleRange range[WIDTH];
    int64_t longest = 0;

    RayGroup(const S3dComposite& rays, int64_t first, int count) : lanes(count) {
        for (int lane = 0; lane < lanes; ++lane) {
            range[lane] = find_samples(rays, first + lane);
            const int64_t samples = range[lane].end - range[lane].begin;
            longest = samples > longest ? samples : longest;
        }
    }

    int count_samples(int lane, int64_t step) const {
        const int64_t begin = range[lane].begin + step;
        return begin < range[lane].end ? count_lanes(begin, range[lane].end) : 0;
    }

    // Reads the optical depths of WIDTH samples from `step` on: one pack of rays per sample.
    void read(const S3dComposite& rays, int64_t step, Pack (&optical_depth)[WIDTH]) const {
        for (int lane = 0; lane < WIDTH; ++lane) {
            optical_depth[lane] = Pack{};
            const int count = lane < lanes ? count_samples(lane, step) : 0;
            if (count == 0) continue;
            const int64_t begin = range[lane].begin + step;
            optical_depth[lane] = load_partial(rays.density + begin, count) * load_partial(rays.deltas + begin, count);
        }
        transpose(optical_depth);
    }

    void write(const S3dComposite& rays, int64_t step, Pack (&weight)[WIDTH]) const {
        transpose(weight);
        for (int lane = 0; lane < lanes; ++lane) {
            const int count = count_samples(lane, step);
            if (count > 0) store_partial(rays.weights + range[lane].begin + step, weight[lane], count);
        }
    }
};

// Sums weight times value over `count` samples for P packs of channels, the last with `last` channels. Two accumulators
// hide the latency of the additions. WHOLE allows reading beyond the channels of the last pack.
template <int P, bool WHOLE>
void accumulate_packs(const float* weight, const float* value, int64_t stride, int32_t count, int last, float* output) {
    const auto read = [last](const float* address, int p) {
        return WHOLE || p < P - 1 ? load(address + p * WIDTH) : load_masked(address + p * WIDTH, last);
    };
    Pack even[P] = {}, odd[P] = {};
    int32_t s = 0;
    for (; s + 1 < count; s += 2, value += 2 * stride) {
        const Pack first = load_broadcast(weight + s), second = load_broadcast(weight + s + 1);
        for (int p = 0; p < P; ++p) {
            even[p] += first * read(value, p);
            odd[p] += second * read(value + stride, p);
        }
    }
    for (int p = 0; p < P; ++p) {
        if (s < count) even[p] += load_broadcast(weight + s) * read(value, p);
        store_partial(output + p * WIDTH, even[p] + odd[p], p < P - 1 ? WIDTH : last);
    }
}

template <int P>
void accumulate_packs(const S3dComposite& rays, int64_t begin, int32_t count, int channel, int last, float* output) {
    const float* weight = rays.weights + begin;
    const float* value = rays.values + begin * rays.channels + channel;
    // Never reads beyond the last sample of the array.
    if (last == WIDTH || (begin + count) * rays.channels + WIDTH <= rays.samples * rays.channels) {
        accumulate_packs<P, true>(weight, value, rays.channels, count, last, output);
    } else {
        accumulate_packs<P, false>(weight, value, rays.channels, count, last, output);
    }
}

// For few channels: the values of WIDTH samples fill as many packs as there are channels.
template <int C>
void accumulate_few_channels(const S3dComposite& rays, int64_t begin, int32_t count, float* output) {
    PackInt sample[C];  // index of the sample that each lane belongs to
    for (int p = 0; p < C; ++p) sample[p] = (iota() + p * WIDTH) / C;
    const float* value = rays.values + begin * C;
    Pack sum[C] = {};
    int32_t s = 0;
    for (; s + WIDTH <= count; s += WIDTH, value += WIDTH * C) {
        const Pack weight = load(rays.weights + begin + s);
        for (int p = 0; p < C; ++p) sum[p] += permute(weight, sample[p]) * load(value + p * WIDTH);
    }
    float sums[C * WIDTH];
    for (int p = 0; p < C; ++p) store(sums + p * WIDTH, sum[p]);
    for (int c = 0; c < C; ++c) {
        float total = 0.0f;
        for (int lane = 0; lane < WIDTH; ++lane) total += sums[lane * C + c];
        for (int32_t left = s; left < count; ++left) {
            total += rays.weights[begin + left] * rays.values[(begin + left) * C + c];
        }
        output[c] = total;
    }
}

void accumulate_values(const S3dComposite& rays, int64_t ray, int64_t begin, int32_t count) {
    float* output = rays.output + ray * rays.channels;
    switch (rays.channels) {
        case 1: return accumulate_few_channels<1>(rays, begin, count, output);
        case 3: return accumulate_few_channels<3>(rays, begin, count, output);
        case 4: return accumulate_few_channels<4>(rays, begin, count, output);
        default: break;
    }
    for (int c = 0; c < rays.channels;) {
        const int left = rays.channels - c, packs = (left + WIDTH - 1) / WIDTH;
        const int part = packs < 3 ? packs : 3, last = left < part * WIDTH ? left - (part - 1) * WIDTH : WIDTH;
        switch (part) {
            case 1: accumulate_packs<1>(rays, begin, count, c, last, output + c); break;
            case 2: accumulate_packs<2>(rays, begin, count, c, last, output + c); break;
            default: accumulate_packs<3>(rays, begin, count, c, last, output + c); break;
        }
        c += part * WIDTH;
    }
}

void composite_rays(const S3dComposite& rays, int64_t first, int lanes, float max_depth) {
    const RayGroup group(rays, first, lanes);
    Pack depth{}, alpha{}, transmittance = splat<Pack>(1.0f);
    PackInt visible{};
    for (int64_t step = 0; step < group.longest; step += WIDTH) {
        Pack block[WIDTH];
        group.read(rays, step, block);
        for (Pack& sample : block) {
            const PackInt ended = depth > splat<Pack>(max_depth);
            depth += sample;
            sample = select(ended, Pack{}, absorb(sample, transmittance));
            alpha += sample;
            visible += ended + 1;
        }
        group.write(rays, step, block);
    }
    for (int lane = 0; lane < lanes; ++lane) {
        const int64_t begin = group.range[lane].begin, count = group.range[lane].end - begin;
        rays.alpha[first + lane] = alpha[lane];
        accumulate_values(rays, first + lane, begin,
                          static_cast<int32_t>(visible[lane] < count ? visible[lane] : count));
    }
}

// Returns the gradients to the weights of a pack of samples and writes the gradients to their values.
Pack weights_backward(const S3dComposite& rays, const SamplePack& samples, int64_t first_ray) {
    Pack products[WIDTH] = {}, alpha_gradient{};
    for (int lane = 0; lane < samples.lanes; ++lane) {
        const int64_t ray = first_ray + lane / samples.segment, sample = samples.begin + lane;
        const float* gradient = rays.output_gradient + ray * rays.channels;
        const float* value = rays.values + sample * rays.channels;
        for (int c = 0; c < rays.channels; c += WIDTH) {
            const int count = count_lanes(c, rays.channels);
            const Pack part = load_partial(gradient + c, count);
            products[lane] += part * load_partial(value + c, count);
            if (rays.values_gradient != nullptr) {
                store_partial(rays.values_gradient + sample * rays.channels + c, rays.weights[sample] * part, count);
            }
        }
        alpha_gradient[lane] = rays.alpha_gradient[ray];
    }
    return sum_rows(products) + alpha_gradient + samples.read(rays.weights_gradient);
}

// Writes the gradients to density and length. `behind` holds the gradient behind the samples and is advanced past them.
void depths_backward(const S3dComposite& rays, const SamplePack& samples, Pack weight_gradient, Pack after,
                     PackInt visible, float& behind) {
    const Pack from_here = suffix_sum(weight_gradient * samples.read(rays.weights), samples.segment);
    const Pack from_next = behind + shift_lanes(from_here, -1, samples.segment);
    const Pack slope = select(visible, depth_derivative(weight_gradient, after, from_next), Pack{});
    samples.write(rays.density_gradient, slope * samples.read(rays.deltas));
    samples.write(rays.deltas_gradient, slope * samples.read(rays.density));
    behind += from_here[0];
}

void ray_backward(const S3dComposite& rays, int64_t ray, float max_depth) {
    const SampleRange range = find_samples(rays, ray);
    float ahead = 0.0f;
    int64_t visible_end = range.begin;
    // density_gradient temporarily holds the gradient to the weights, lengths_gradient the transmittance behind each
    // sample.
    for (int64_t s = range.begin; s < range.end; s += WIDTH) {
        const SamplePack samples = {s, count_lanes(s, range.end), WIDTH};
        samples.write(rays.density_gradient, weights_backward(rays, samples, ray));
        const Depth depth(samples, samples.read(rays.density) * samples.read(rays.deltas), ahead);
        samples.write(rays.deltas_gradient, exponential(-depth.after));
        visible_end += __builtin_popcount(~mask_to_bits(depth.before > splat<Pack>(max_depth)) & samples.bits());
        ahead = depth.after[samples.lanes - 1];
    }
    const int64_t packs = (range.end - range.begin + WIDTH - 1) / WIDTH;
    float behind = 0.0f;
    for (int64_t s = range.begin + (packs - 1) * WIDTH; s >= range.begin; s -= WIDTH) {
        const SamplePack samples = {s, count_lanes(s, range.end), WIDTH};
        const int32_t left = visible_end - s < WIDTH ? static_cast<int32_t>(visible_end - s) : WIDTH;
        depths_backward(rays, samples, samples.read(rays.density_gradient), samples.read(rays.deltas_gradient),
                        iota() < left, behind);
    }
}

void short_rays_backward(const S3dComposite& rays, int64_t first, int lanes, int count, float max_depth) {
    const SamplePack samples = {first * count, lanes * count, count};
    const Pack weight_gradient = weights_backward(rays, samples, first);
    const Depth depth(samples, samples.read(rays.density) * samples.read(rays.deltas), 0.0f);
    float behind = 0.0f;
    depths_backward(rays, samples, weight_gradient, exponential(-depth.after), ~(depth.before > splat<Pack>(max_depth)),
                    behind);
}

int check(const S3dComposite& rays, int threads) {
    if (rays.rays < 0 || rays.samples < 0 || rays.samples > INT32_MAX) return S3D_BAD_SIZE;
    if (rays.channels < 0 || threads < 1) return S3D_BAD_SIZE;
    return rays.rays > 0 && rays.samples % rays.rays != 0 ? S3D_BAD_SIZE : S3D_OK;
}

}  // namespace

int composite_forward(const S3dComposite& rays, int threads) {
    if (int error = check(rays, threads)) return error;
    const float max_depth = max_visible_depth(rays.early_stop_eps);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t first = 0; first < rays.rays; first += WIDTH) {
        composite_rays(rays, first, count_lanes(first, rays.rays), max_depth);
    }
    return S3D_OK;
}

int composite_backward(const S3dComposite& rays, int threads) {
    if (int error = check(rays, threads)) return error;
    const float max_depth = max_visible_depth(rays.early_stop_eps);
    // Short rays share a pack if their sample count is a power of two.
    const int64_t count = rays.rays > 0 ? rays.samples / rays.rays : 0;
    const bool are_short = count > 0 && count < WIDTH && (count & (count - 1)) == 0;
    const int rays_per_pack = are_short ? WIDTH / static_cast<int>(count) : 1;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t first = 0; first < rays.rays; first += rays_per_pack) {
        if (are_short) {
            const int lanes = rays.rays - first < rays_per_pack ? static_cast<int>(rays.rays - first) : rays_per_pack;
            short_rays_backward(rays, first, lanes, static_cast<int>(count), max_depth);
        } else {
            ray_backward(rays, first, max_depth);
        }
    }
    return S3D_OK;
}

}  // namespace S3D_VARIANT

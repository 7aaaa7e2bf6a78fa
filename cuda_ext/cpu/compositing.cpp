#include "compositing.h"

#include "kernels.h"

namespace S3D_VARIANT {
namespace {

// Up to WIDTH rays side by side in the lanes of a pack.
struct RayBlock {
    SampleRange range[WIDTH];
    alignas(64) int32_t begin[WIDTH] = {}, count[WIDTH] = {};
    int32_t longest = 0;

    RayBlock(const S3dComposite& rays, int64_t first, int lanes) {
        for (int lane = 0; lane < lanes; ++lane) {
            range[lane] = find_samples(rays, first + lane);
            begin[lane] = static_cast<int32_t>(range[lane].begin);
            count[lane] = static_cast<int32_t>(range[lane].end - range[lane].begin);
            longest = count[lane] > longest ? count[lane] : longest;
        }
    }
};

// Writes the weights of the block's samples and returns their sums; `seen` is the number of samples before each ray ends.
Pack weigh_rays(const S3dComposite& rays, const RayBlock& block, int lanes, float last_seen, int32_t (&seen)[WIDTH]) {
    PackInt begin, count;
    memcpy(&begin, block.begin, sizeof begin);
    memcpy(&count, block.count, sizeof count);
    Pack depth{}, alpha{};
    PackInt visible{};
    for (int32_t s = 0; s < block.longest; ++s) {
        const PackInt inside = count > s;
        // A lane whose ray has ended reads its first sample again; if there is none, the first of all.
        const PackInt index = choose(inside, begin + s, PackInt{});
        const Pack optical = gather(rays.density, index, lanes) * gather(rays.lengths, index, lanes);
        const PackInt ended = (depth > splat<Pack>(last_seen)) | ~inside;
        const Pack weight = choose(ended, Pack{}, weigh_sample(optical, depth));
        for (int lane = 0; lane < lanes; ++lane) {
            if (s < block.count[lane]) rays.weights[block.begin[lane] + s] = weight[lane];
        }
        alpha += weight;
        visible -= ~ended;
        depth += choose(inside, optical, Pack{});
    }
    memcpy(seen, &visible, sizeof visible);
    return alpha;
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

void composite_block(const S3dComposite& rays, int64_t first, int lanes, float last_seen) {
    const RayBlock block(rays, first, lanes);
    int32_t seen[WIDTH];
    const Pack alpha = weigh_rays(rays, block, lanes, last_seen, seen);
    for (int lane = 0; lane < lanes; ++lane) {
        rays.alpha[first + lane] = alpha[lane];
        add_values(rays, first + lane, block.begin[lane], seen[lane]);
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

void differentiate_block(const S3dComposite& rays, int64_t first, int lanes, float last_seen) {
    for (int lane = 0; lane < lanes; ++lane) differentiate_ray(rays, first + lane, last_seen);
}

int run(const S3dComposite& rays, int threads, void (*work)(const S3dComposite&, int64_t, int, float)) {
    if (rays.rays < 0 || rays.samples < 0 || rays.samples > INT32_MAX) return S3D_BAD_SIZE;
    if (rays.channels < 0 || threads < 1) return S3D_BAD_SIZE;
    if (rays.offsets == nullptr && rays.rays > 0 && rays.samples % rays.rays != 0) return S3D_BAD_SIZE;
    const float last_seen = last_seen_depth(rays.stop);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t first = 0; first < rays.rays; first += WIDTH) {
        work(rays, first, count_lanes(first, rays.rays), last_seen);
    }
    return S3D_OK;
}

}  // namespace

int composite_forward(const S3dComposite& rays, int threads) { return run(rays, threads, composite_block); }

int composite_backward(const S3dComposite& rays, int threads) { return run(rays, threads, differentiate_block); }

}  // namespace S3D_VARIANT

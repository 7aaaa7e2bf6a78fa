#include "compositing.h"

#include "launch.h"

namespace S3D_VARIANT {
namespace {

// One thread per ray: weights and their sum.
__global__ void compute_weights(S3dComposite rays) {
    const int64_t ray = find_thread();
    if (ray >= rays.rays) return;
    const SampleRange range = find_samples(rays, ray);
    const float max_depth = max_visible_depth(rays.early_stop_eps);
    float depth = 0.0f, alpha = 0.0f;
    for (int64_t s = range.begin; s < range.end; ++s) {
        const float optical_depth = rays.density[s] * rays.deltas[s];
        const float weight = depth > max_depth ? 0.0f : sample_weight(optical_depth, depth);
        rays.weights[s] = weight;
        alpha += weight;
        depth += optical_depth;
    }
    rays.alpha[ray] = alpha;
}

// One thread per ray and channel.
__global__ void accumulate_values(S3dComposite rays) {
    const int64_t ray = find_thread() / rays.channels;
    if (ray >= rays.rays) return;
    const int64_t channel = find_thread() % rays.channels;
    const SampleRange range = find_samples(rays, ray);
    float sum = 0.0f;
    for (int64_t s = range.begin; s < range.end; ++s) {
        sum += rays.weights[s] * rays.values[s * rays.channels + channel];
    }
    rays.output[ray * rays.channels + channel] = sum;
}

// One thread per sample: gradients to values, and to the weight, which is stored in density_gradient.
__global__ void weights_backward(S3dComposite rays) {
    const int64_t s = find_thread();
    if (s >= rays.samples) return;
    const int64_t ray = s / (rays.samples / rays.rays);
    const float* gradient = rays.output_gradient + ray * rays.channels;
    float sum = rays.alpha_gradient[ray] + rays.weights_gradient[s];
    for (int c = 0; c < rays.channels; ++c) {
        sum += gradient[c] * rays.values[s * rays.channels + c];
        rays.values_gradient[s * rays.channels + c] = rays.weights[s] * gradient[c];
    }
    rays.density_gradient[s] = sum;
}

// One thread per ray: converts gradients to weights into gradients to densities and lengths.
__global__ void rays_backward(S3dComposite rays) {
    const int64_t ray = find_thread();
    if (ray >= rays.rays) return;
    const SampleRange range = find_samples(rays, ray);
    const float max_depth = max_visible_depth(rays.early_stop_eps);
    float depth = 0.0f;
    int64_t visible_end = range.begin;
    for (int64_t s = range.begin; s < range.end; ++s) {
        if (!(depth > max_depth)) visible_end = s + 1;
        depth += rays.density[s] * rays.deltas[s];
        rays.deltas_gradient[s] = exponential(-depth);
    }
    float behind = 0.0f;
    for (int64_t s = range.end - 1; s >= range.begin; --s) {
        const float weight_gradient = rays.density_gradient[s];
        const float slope = s < visible_end ? depth_derivative(weight_gradient, rays.deltas_gradient[s], behind) : 0.0f;
        behind += weight_gradient * rays.weights[s];
        rays.density_gradient[s] = slope * rays.deltas[s];
        rays.deltas_gradient[s] = slope * rays.density[s];
    }
}

int check(const S3dComposite& rays) {
    if (rays.rays < 0 || rays.samples < 0 || rays.channels < 0) return S3D_BAD_SIZE;
    if (rays.rays > 0 && rays.samples % rays.rays != 0) return S3D_BAD_SIZE;
    if (rays.rays > 0 && count_blocks(rays.rays * (rays.channels + 1)) == 0) return S3D_BAD_SIZE;
    return rays.samples > 0 && count_blocks(rays.samples) == 0 ? S3D_BAD_SIZE : S3D_OK;
}

int run_forward(const S3dComposite& rays, cudaStream_t stream) {
    if (int error = check(rays)) return error;
    if (rays.rays == 0) return S3D_OK;
    int error = launch(compute_weights, dim3(count_blocks(rays.rays)), stream, rays);
    if (error == S3D_OK && rays.channels > 0) {
        error = launch(accumulate_values, dim3(count_blocks(rays.rays * rays.channels)), stream, rays);
    }
    return error;
}

int run_backward(const S3dComposite& rays, cudaStream_t stream) {
    if (int error = check(rays)) return error;
    if (rays.rays == 0 || rays.samples == 0) return S3D_OK;
    int error = launch(weights_backward, dim3(count_blocks(rays.samples)), stream, rays);
    if (error == S3D_OK) error = launch(rays_backward, dim3(count_blocks(rays.rays)), stream, rays);
    return error;
}

}  // namespace
}  // namespace S3D_VARIANT

int s3d_cuda_composite_forward(const S3dComposite* rays, void* stream) {
    return S3D_VARIANT::run_forward(*rays, static_cast<cudaStream_t>(stream));
}

int s3d_cuda_composite_backward(const S3dComposite* rays, void* stream) {
    return S3D_VARIANT::run_backward(*rays, static_cast<cudaStream_t>(stream));
}

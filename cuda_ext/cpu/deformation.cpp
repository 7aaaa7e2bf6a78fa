// The deformation network on the lattice, forward and backward. A thread takes a chunk of positions through all frames,
// one after the other, so that the network's activations stay in its cache; the backward pass recomputes them.
#include "kernels.h"
#include "network.h"

namespace S3D_VARIANT {
namespace {

constexpr int CHUNK_POSITIONS = 64;  // a multiple of BF16_TILE

// The codes of every frame, padded to whole packs. The pose is one more region, with weight 1 everywhere.
struct MotionCodes {
    int parts, stride, share_stride;
    float* codes = nullptr;       // [batch, parts, stride]
    float* transposed = nullptr;  // [batch, hidden, share_stride]

    explicit MotionCodes(const S3dDeformation& warp)
        : parts(warp.regions + 1), stride(pad_to_pack(warp.hidden)), share_stride(pad_to_pack(parts)) {
        const size_t count = warp.batch * parts * stride;
        codes = allocate_zeros(count + warp.batch * warp.hidden * share_stride);
        if (codes == nullptr) return;
        transposed = codes + count;
        for (int64_t row = 0; row < warp.batch * parts; ++row) {
            const int64_t item = row / parts, part = row % parts;
            const float* from = part == warp.regions ? warp.pose + item * warp.hidden
                                                     : warp.by_region + (item * warp.regions + part) * warp.hidden;
            memcpy(codes + row * stride, from, sizeof(float) * warp.hidden);
            for (int c = 0; c < warp.hidden; ++c) transposed[(item * warp.hidden + c) * share_stride + part] = from[c];
        }
    }
    MotionCodes(const MotionCodes&) = delete;
    MotionCodes& operator=(const MotionCodes&) = delete;
    ~MotionCodes() { free(codes); }

    const float* find_codes(int64_t item) const { return codes + item * parts * stride; }
    const float* find_transposed(int64_t item, int hidden) const { return transposed + item * hidden * share_stride; }
};

// One thread's buffers, taken from one allocation.
struct Scratch {
    float *position, *region_weights;  // of the chunk, padded to whole packs
    float* outer;                      // [CHUNK_POSITIONS, outer_stride]: first and last hidden layer, concatenated
    float* bottleneck;                 // [CHUNK_POSITIONS, *]
    float* outputs;                    // [CHUNK_POSITIONS, *]; their gradient in the backward pass
    float *outer_derivatives,
        *bottleneck_derivatives;  // from here on for the backward pass: derivatives of the activations
    float *outer_gradient, *bottleneck_gradient, *mixed_gradient;  // gradients
    float *position_gradient, *region_weights_gradient;
    int outer_stride;
    Bf16Scratch bf16;
};

// What one thread accumulates, and its buffers.
struct ThreadState {
    NetworkGradient network;
    float* codes = nullptr;  // [batch, parts, stride]
    Scratch scratch = {};
    float* buffer = nullptr;  // of the scratch
};

size_t assign_buffers(const S3dDeformation& warp, const Network& network, const MotionCodes& motion_codes, bool back,
                      float* buffer, Scratch& scratch) {
    Arena arena = {buffer};
    const auto take_rows = [&](int stride) { return arena.take(static_cast<size_t>(CHUNK_POSITIONS) * stride); };
    const int bottleneck = network.layer[0].stride;
    scratch.outer_stride = pad_to_pack(warp.hidden + motion_codes.stride);
    scratch.position = take_rows(motion_codes.stride);
    scratch.region_weights = take_rows(motion_codes.share_stride);
    scratch.outer = take_rows(scratch.outer_stride);
    scratch.bottleneck = take_rows(bottleneck);
    scratch.outputs = take_rows(network.layer[2].stride);
    if (back) {
        scratch.outer_derivatives = take_rows(scratch.outer_stride);
        scratch.bottleneck_derivatives = take_rows(bottleneck);
        scratch.outer_gradient = take_rows(scratch.outer_stride);
        scratch.bottleneck_gradient = take_rows(bottleneck);
        scratch.mixed_gradient = take_rows(motion_codes.stride);
        scratch.position_gradient = take_rows(motion_codes.stride);
        scratch.region_weights_gradient = take_rows(motion_codes.share_stride);
    }
    if (network.uses_bf16()) {
        const size_t words = network.count_bf16_words(CHUNK_POSITIONS);
        scratch.bf16.rows = reinterpret_cast<uint16_t*>(arena.take(words));
        if (back) scratch.bf16.pairs = reinterpret_cast<uint32_t*>(arena.take(words));
        if (back) scratch.bf16.transposed = reinterpret_cast<uint32_t*>(arena.take(words));
    }
    return arena.used;
}

// Copy rows of `columns` values to and from rows of whole packs.
void read_rows(const float* from, int rows, int columns, float* to, int stride) {
    for (int row = 0; row < rows; ++row, from += columns, to += stride) {
        for (int c = 0; c < columns; c += WIDTH) store(to + c, load_partial(from + c, count_lanes(c, columns)));
    }
}

void write_rows(const float* from, int stride, int rows, int columns, float* to) {
    for (int row = 0; row < rows; ++row, from += stride, to += columns) {
        for (int c = 0; c < columns; c += WIDTH) store_partial(to + c, load(from + c), count_lanes(c, columns));
    }
}

void read_points(const S3dDeformation& warp, const MotionCodes& motion_codes, int64_t first, int points,
                 Scratch& scratch) {
    read_rows(warp.position + first * warp.hidden, points, warp.hidden, scratch.position, motion_codes.stride);
    read_rows(warp.region_weights + first * warp.regions, points, warp.regions, scratch.region_weights,
              motion_codes.share_stride);
    for (int i = 0; i < points; ++i) scratch.region_weights[i * motion_codes.share_stride + warp.regions] = 1.0f;
}

// Computes the input of the first activation.
template <class Epilogue>
void mix_codes(const S3dDeformation& warp, const MotionCodes& motion_codes, int64_t item, int points, Scratch& scratch,
               Epilogue epilogue) {
    multiply({scratch.region_weights, motion_codes.share_stride, 1},
             {motion_codes.find_codes(item), motion_codes.stride, motion_codes.parts}, points, warp.hidden,
             {scratch.position, motion_codes.stride}, {scratch.outer, scratch.outer_stride}, epilogue);
}

void deform_chunk(const S3dDeformation& warp, const Network& network, const MotionCodes& motion_codes, int64_t first,
                  Scratch& scratch) {
    const int points = warp.points - first < CHUNK_POSITIONS ? static_cast<int>(warp.points - first) : CHUNK_POSITIONS;
    const int outer_stride = scratch.outer_stride, bottleneck_stride = network.layer[0].stride;
    const int output_stride = network.layer[2].stride;
    const Bf16Scratch& bf16 = scratch.bf16;
    float* last = scratch.outer + warp.hidden;
    read_points(warp, motion_codes, first, points, scratch);
    for (int64_t item = 0; item < warp.batch; ++item) {
        mix_codes(warp, motion_codes, item, points, scratch, [](Pack sum) { return silu(sum); });
        network.layer[0].forward(scratch.outer, outer_stride, points, scratch.bottleneck, bottleneck_stride, true,
                                 bf16);
        network.layer[1].forward(scratch.bottleneck, bottleneck_stride, points, last, outer_stride, true, bf16);
        network.layer[2].forward(scratch.outer, outer_stride, points, scratch.outputs, output_stride, false, bf16);
        float* to = warp.output + (item * warp.points + first) * warp.outputs;
        write_rows(scratch.outputs, output_stride, points, warp.outputs, to);
    }
}

// Recomputes the layers and stores the derivatives of their activations.
void recompute_layers(const S3dDeformation& warp, const Network& network, const MotionCodes& motion_codes, int64_t item,
                      int points, Scratch& scratch) {
    const int outer_stride = scratch.outer_stride, bottleneck_stride = network.layer[0].stride;
    const Bf16Scratch& bf16 = scratch.bf16;
    float *outer = scratch.outer, *last = outer + warp.hidden, *bottleneck = scratch.bottleneck;
    mix_codes(warp, motion_codes, item, points, scratch, [](Pack sum) { return sum; });
    activate_rows(outer, scratch.outer_derivatives, outer_stride, points, warp.hidden);
    network.layer[0].forward(outer, outer_stride, points, bottleneck, bottleneck_stride, false, bf16);
    activate_rows(bottleneck, scratch.bottleneck_derivatives, bottleneck_stride, points, warp.bottleneck);
    network.layer[1].forward(bottleneck, bottleneck_stride, points, last, outer_stride, false, bf16);
    activate_rows(last, scratch.outer_derivatives + warp.hidden, outer_stride, points, warp.hidden);
}

// Backward pass from the outputs to the input of the first activation.
void layers_backward(const S3dDeformation& warp, const Network& network, int points, ThreadState& state) {
    Scratch& scratch = state.scratch;
    LayerGradient* layer = state.network.layer;
    const int outer_stride = scratch.outer_stride, bottleneck_stride = network.layer[0].stride;
    const int output_stride = network.layer[2].stride, mixed_stride = pad_to_pack(warp.hidden);
    const Bf16Scratch& bf16 = scratch.bf16;
    float *outer_gradient = scratch.outer_gradient, *last_gradient = outer_gradient + warp.hidden,
          *bottleneck_gradient = scratch.bottleneck_gradient;
    layer[2].accumulate(network.layer[2], scratch.outputs, output_stride, points, scratch.outer, outer_stride, bf16);
    network.layer[2].backward_input(scratch.outputs, output_stride, points, outer_gradient, outer_stride,
                                    2 * warp.hidden, bf16);
    multiply_rows_by(last_gradient, outer_stride, scratch.outer_derivatives + warp.hidden, outer_stride, points,
                     warp.hidden);
    layer[1].accumulate(network.layer[1], last_gradient, outer_stride, points, scratch.bottleneck, bottleneck_stride,
                        bf16);
    network.layer[1].backward_input(last_gradient, outer_stride, points, bottleneck_gradient, bottleneck_stride,
                                    warp.bottleneck, bf16);
    multiply_rows_by(bottleneck_gradient, bottleneck_stride, scratch.bottleneck_derivatives, bottleneck_stride, points,
                     warp.bottleneck);
    layer[0].accumulate(network.layer[0], bottleneck_gradient, bottleneck_stride, points, scratch.outer, outer_stride,
                        bf16);
    network.layer[0].backward_input(bottleneck_gradient, bottleneck_stride, points, scratch.mixed_gradient,
                                    mixed_stride, warp.hidden, bf16);
    for (int row = 0; row < points; ++row) {
        float* mixed = scratch.mixed_gradient + row * mixed_stride;
        const float *derivative = scratch.outer_derivatives + row * outer_stride,
                    *beside = outer_gradient + row * outer_stride;
        for (int c = 0; c < warp.hidden; c += WIDTH) {
            store(mixed + c, (load(mixed + c) + load(beside + c)) * load(derivative + c));
        }
    }
}

// Accumulates the gradients to the codes of a frame, and the contribution of the frame to the gradients of positions
// and region_weights.
void codes_backward(const S3dDeformation& warp, const MotionCodes& motion_codes, int64_t item, int points,
                    ThreadState& state) {
    const Scratch& scratch = state.scratch;
    const auto identity = [](Pack sum) { return sum; };
    const int stride = motion_codes.stride, share_stride = motion_codes.share_stride;
    float* codes = state.codes + item * motion_codes.parts * stride;
    multiply({scratch.region_weights, 1, share_stride}, {scratch.mixed_gradient, stride, points}, motion_codes.parts,
             warp.hidden, {codes, stride}, {codes, stride}, identity);
    multiply({scratch.mixed_gradient, stride, 1},
             {motion_codes.find_transposed(item, warp.hidden), share_stride, warp.hidden}, points, warp.regions,
             {scratch.region_weights_gradient, share_stride}, {scratch.region_weights_gradient, share_stride},
             identity);
    for (int64_t i = 0; i < static_cast<int64_t>(points) * stride; i += WIDTH) {
        store(scratch.position_gradient + i, load(scratch.position_gradient + i) + load(scratch.mixed_gradient + i));
    }
}

void chunk_backward(const S3dDeformation& warp, const Network& network, const MotionCodes& motion_codes, int64_t first,
                    ThreadState& state) {
    Scratch& scratch = state.scratch;
    const int points = warp.points - first < CHUNK_POSITIONS ? static_cast<int>(warp.points - first) : CHUNK_POSITIONS;
    read_points(warp, motion_codes, first, points, scratch);
    memset(scratch.region_weights_gradient, 0, sizeof(float) * points * motion_codes.share_stride);
    memset(scratch.position_gradient, 0, sizeof(float) * points * motion_codes.stride);
    for (int64_t item = 0; item < warp.batch; ++item) {
        recompute_layers(warp, network, motion_codes, item, points, scratch);
        const float* from = warp.output_gradient + (item * warp.points + first) * warp.outputs;
        read_rows(from, points, warp.outputs, scratch.outputs, network.layer[2].stride);
        layers_backward(warp, network, points, state);
        codes_backward(warp, motion_codes, item, points, state);
    }
    write_rows(scratch.position_gradient, motion_codes.stride, points, warp.hidden,
               warp.position_gradient + first * warp.hidden);
    write_rows(scratch.region_weights_gradient, motion_codes.share_stride, points, warp.regions,
               warp.region_weights_gradient + first * warp.regions);
}

// Backward pass over the chunks `begin` to `end`, for one thread.
int range_backward(const S3dDeformation& warp, const Network& network, const MotionCodes& motion_codes, int64_t begin,
                   int64_t end, ThreadState& state) {
    if (begin == end) return S3D_OK;
    state.codes = allocate_zeros(warp.batch * motion_codes.parts * motion_codes.stride);
    state.buffer = allocate_zeros(assign_buffers(warp, network, motion_codes, true, nullptr, state.scratch));
    if (!state.network.reserve(network) || state.codes == nullptr || state.buffer == nullptr) return S3D_NO_MEMORY;
    assign_buffers(warp, network, motion_codes, true, state.buffer, state.scratch);
    const AmxTiles tiles(network.uses_bf16());
    for (int64_t chunk = begin; chunk < end; ++chunk) {
        chunk_backward(warp, network, motion_codes, chunk * CHUNK_POSITIONS, state);
    }
    return S3D_OK;
}

void add_thread_gradients(const S3dDeformation& warp, const Network& network, const MotionCodes& motion_codes,
                          const ThreadState& state) {
    state.network.add_to(network, warp.weights_gradient, warp.biases_gradient);
    for (int64_t row = 0; state.codes != nullptr && row < warp.batch * motion_codes.parts; ++row) {
        const int64_t item = row / motion_codes.parts, part = row % motion_codes.parts;
        float* to = part == warp.regions ? warp.pose_gradient + item * warp.hidden
                                         : warp.by_region_gradient + (item * warp.regions + part) * warp.hidden;
        for (int c = 0; c < warp.hidden; ++c) to[c] += state.codes[row * motion_codes.stride + c];
    }
}

int run_backward(const S3dDeformation& warp, const Network& network, const MotionCodes& motion_codes,
                 ThreadState* states, int threads) {
    const int64_t chunks = (warp.points + CHUNK_POSITIONS - 1) / CHUNK_POSITIONS;
    int error = S3D_OK;
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int part = 0; part < threads; ++part) {
        const int64_t begin = chunks * part / threads, end = chunks * (part + 1) / threads;
        if (int failure = range_backward(warp, network, motion_codes, begin, end, states[part])) {
#pragma omp atomic write
            error = failure;
        }
    }
    if (error != S3D_OK) return error;
    // In the order of the threads, so that the sum is reproducible.
    for (int part = 0; part < threads; ++part) add_thread_gradients(warp, network, motion_codes, states[part]);
    return S3D_OK;
}

int check(const S3dDeformation& warp, int threads) {
    constexpr int MAX_SIZE = 1 << 20;
    const int32_t sizes[] = {warp.regions, warp.hidden, warp.bottleneck, warp.outputs};
    for (const int32_t size : sizes) {
        if (size < 1 || size > MAX_SIZE) return S3D_BAD_SIZE;
    }
    return warp.batch < 0 || warp.points < 0 || threads < 1 ? S3D_BAD_SIZE : S3D_OK;
}

bool pack(const S3dDeformation& warp, Network& network) {
    const LayerSize sizes[] = {
        {warp.hidden, warp.bottleneck}, {warp.bottleneck, warp.hidden}, {2 * warp.hidden, warp.outputs}};
    return network.pack(sizes, warp.weights, warp.biases, warp.bf16_products != 0);
}

}  // namespace

int deformation_forward(const S3dDeformation& warp, int threads) {
    if (int error = check(warp, threads)) return error;
    const MotionCodes motion_codes(warp);
    Network network;
    if (!pack(warp, network) || motion_codes.codes == nullptr) return S3D_NO_MEMORY;
    const int64_t chunks = (warp.points + CHUNK_POSITIONS - 1) / CHUNK_POSITIONS;
    int error = S3D_OK;
#pragma omp parallel num_threads(threads)
    {
        Scratch scratch = {};
        float* buffer = allocate_zeros(assign_buffers(warp, network, motion_codes, false, nullptr, scratch));
        if (buffer == nullptr) {
#pragma omp atomic write
            error = S3D_NO_MEMORY;
        } else {
            assign_buffers(warp, network, motion_codes, false, buffer, scratch);
        }
        const AmxTiles tiles(network.uses_bf16());
#pragma omp for schedule(dynamic, 4)
        for (int64_t chunk = 0; chunk < chunks; ++chunk) {
            if (buffer != nullptr) deform_chunk(warp, network, motion_codes, chunk * CHUNK_POSITIONS, scratch);
        }
        free(buffer);
    }
    return error;
}

int deformation_backward(const S3dDeformation& warp, int threads) {
    if (int error = check(warp, threads)) return error;
    const MotionCodes motion_codes(warp);
    Network network;
    if (!pack(warp, network) || motion_codes.codes == nullptr) return S3D_NO_MEMORY;
    ThreadState* states = static_cast<ThreadState*>(malloc(sizeof(ThreadState) * threads));
    if (states == nullptr) return S3D_NO_MEMORY;
    for (int part = 0; part < threads; ++part) states[part] = ThreadState();
    const int error = run_backward(warp, network, motion_codes, states, threads);
    for (int part = 0; part < threads; ++part) {
        states[part].network.release();
        free(states[part].codes);
        free(states[part].buffer);
    }
    free(states);
    return error;
}

}  // namespace S3D_VARIANT

// Backward pass of the fused field. A thread takes a chunk of rays with all their samples, recomputes the forward pass
// and differentiates it, so that all intermediate values stay in its cache.
#include "planes_backward.h"
#include "compositing.h"
#include "kernels.h"

namespace S3D_VARIANT {
namespace {

constexpr int CHUNK_RAYS = 16;  // interleaved: sample s of ray r is row s * CHUNK_RAYS + r

// One thread's buffers, taken from one allocation.
struct Scratch {
    SampleRows rows;               // the inputs, later their gradient
    float* projected_gradient[3];  // gradient to the projected positions
    // Per sample: length, raw density, weight, transmittance behind it.
    float *length, *raw, *weight, *transmittance;
    float* weight_gradient;            // gradient to the weight, later to the raw density
    float *hidden[2], *derivative[2];  // activations and their derivatives, later the gradients
    float* outputs;                    // of the network, later their gradient
    float* lattice;                    // [WIDTH, *] gradient to the interpolated lattice values
    // Gradients to the chunk's results; the first is laid out like `outputs`.
    float *value_gradient, *flow_gradient[2], *alpha_gradient;
    int hidden_stride, output_stride;
    Bf16Scratch bf16;
};

// What one thread accumulates, and its buffers.
struct ThreadState {
    ThreadGradient lattice, planes[S3D_MAX_SCALES];
    NetworkGradient network;
    Scratch scratch = {};
    float* buffer = nullptr;  // of the scratch
};

int count_inputs_with_gradient(const S3dField& field) {
    return field.scales * field.plane_channels + field.ambient + 3;
}

size_t assign_buffers(const S3dField& field, const Network& network, float* buffer, Scratch& scratch) {
    const size_t rows = static_cast<size_t>(CHUNK_RAYS) * field.samples;
    Arena arena = {buffer};
    for (int d = 0; d < 3; ++d) {
        scratch.rows.position[d] = arena.take(rows);
        scratch.rows.warped[d] = arena.take(rows);
        scratch.rows.projected[d] = arena.take(rows);
        scratch.projected_gradient[d] = arena.take(rows);
    }
    scratch.length = arena.take(rows);
    scratch.raw = arena.take(rows);
    scratch.weight = arena.take(rows);
    scratch.transmittance = arena.take(rows);
    scratch.weight_gradient = arena.take(rows);
    const int inputs = pad_to_pack(count_inputs(field));
    // Gradients to the planes' features are read in whole packs.
    const int read = pad_to_pack((field.scales - 1) * field.plane_channels + pad_to_pack(field.plane_channels));
    scratch.rows.stride = inputs > read ? inputs : read;
    scratch.rows.count = static_cast<int>(rows);
    scratch.hidden_stride = pad_to_pack(field.hidden);
    scratch.output_stride = pad_to_pack(4 + field.features);
    scratch.rows.inputs = arena.take(rows * scratch.rows.stride);
    for (int i = 0; i < 2; ++i) {
        scratch.hidden[i] = arena.take(rows * scratch.hidden_stride);
        scratch.derivative[i] = arena.take(rows * scratch.hidden_stride);
        scratch.flow_gradient[i] = arena.take(CHUNK_RAYS);
    }
    scratch.outputs = arena.take(rows * scratch.output_stride);
    scratch.value_gradient = arena.take(static_cast<size_t>(CHUNK_RAYS) * scratch.output_stride);
    scratch.alpha_gradient = arena.take(CHUNK_RAYS);
    scratch.lattice = arena.take(static_cast<size_t>(WIDTH) * pad_to_pack(3 + field.ambient));
    if (network.uses_bf16()) {
        const size_t words = network.count_bf16_words(scratch.rows.count);
        scratch.bf16.rows = reinterpret_cast<uint16_t*>(arena.take(words));
        scratch.bf16.pairs = reinterpret_cast<uint32_t*>(arena.take(words));
        scratch.bf16.transposed = reinterpret_cast<uint32_t*>(arena.take(words));
    }
    return arena.used;
}

// Reads the samples of the chunk. Rays beyond the last one repeat it with a zero gradient.
void read_chunk(const S3dField& field, const Item& item, int64_t first, Scratch& scratch) {
    const int rays = field.rays - first < CHUNK_RAYS ? static_cast<int>(field.rays - first) : CHUNK_RAYS;
    for (int begin = 0; begin < CHUNK_RAYS; begin += WIDTH) {
        const PackInt ray = iota() + begin;
        const PackInt origin = select(ray < rays, ray, PackInt{} + (rays - 1)) * field.samples;
        for (int s = 0; s < field.samples; ++s) {
            const int64_t from = first * field.samples + s;
            const int64_t to = s * CHUNK_RAYS + begin;
            for (int d = 0; d < 3; ++d) {
                store(scratch.rows.position[d] + to, gather(item.positions + from * 3 + d, origin * 3, WIDTH));
            }
            store(scratch.length + to, gather(item.deltas + from, origin, WIDTH));
        }
    }
    const int channels = 5 + field.features;
    for (int ray = 0; ray < CHUNK_RAYS; ++ray) {
        const int64_t index = item.index * field.rays + first + ray;
        const float* gradient = field.output_gradient + index * channels;
        float* to = scratch.value_gradient + ray * scratch.output_stride + 1;
        const bool inside = ray < rays;
        for (int c = 0; c < 3 + field.features; ++c) to[c] = inside ? gradient[c] : 0.0f;
        for (int i = 0; i < 2; ++i) scratch.flow_gradient[i][ray] = inside ? gradient[3 + field.features + i] : 0.0f;
        scratch.alpha_gradient[ray] = inside ? field.alpha_gradient[index] : 0.0f;
    }
}

void network_forward(const Network& network, Scratch& scratch) {
    const SampleRows& rows = scratch.rows;
    const int stride = scratch.hidden_stride;
    const Bf16Scratch& bf16 = scratch.bf16;
    network.layer[0].forward(rows.inputs, rows.stride, rows.count, scratch.hidden[0], stride, false, bf16);
    activate_rows(scratch.hidden[0], scratch.derivative[0], stride, rows.count, stride);
    network.layer[1].forward(scratch.hidden[0], stride, rows.count, scratch.hidden[1], stride, false, bf16);
    activate_rows(scratch.hidden[1], scratch.derivative[1], stride, rows.count, stride);
    network.layer[2].forward(scratch.hidden[1], stride, rows.count, scratch.outputs, scratch.output_stride, false,
                             bf16);
}

// Colors are outputs 1 to 3, all in the first pack.
S3D_HD PackInt color_lanes() { return (iota() > 0) & (iota() < 4); }

// Applies the sigmoid to the colors and starts the gradients to the weights with the part from the network's outputs.
void init_weight_gradients(Scratch& scratch) {
    const PackInt colors = color_lanes();
    for (int i = 0; i < scratch.rows.count; ++i) {
        float* row = scratch.outputs + static_cast<int64_t>(i) * scratch.output_stride;
        const float* gradient = scratch.value_gradient + i % CHUNK_RAYS * scratch.output_stride;
        const Pack first = load(row), bounded = select(colors, sigmoid(first), first);
        scratch.raw[i] = row[0];
        store(row, bounded);
        // Masks the density, which may be infinite.
        Pack sum = select(iota() > 0, bounded, Pack{}) * load(gradient);
        for (int c = WIDTH; c < scratch.output_stride; c += WIDTH) sum += load(row + c) * load(gradient + c);
        scratch.weight_gradient[i] = sum_lanes(sum);
    }
}

// Composites interleaved rays: front to back for the weights, then back to front for the gradients to the raw density.
void rays_backward(const S3dField& field, float max_depth, int begin, Scratch& scratch) {
    Pack depth{};
    for (int s = 0; s < field.samples; ++s) {
        const int i = s * CHUNK_RAYS + begin;
        const Pack optical_depth = to_density(load(scratch.raw + i)) * load(scratch.length + i);
        const PackInt ended = depth > splat<Pack>(max_depth);
        store(scratch.weight + i, select(ended, Pack{}, sample_weight(optical_depth, depth)));
        depth += optical_depth;
        store(scratch.transmittance + i, select(ended, Pack{}, exponential(-depth)));
    }
    const Pack flow[2] = {load(scratch.flow_gradient[0] + begin), load(scratch.flow_gradient[1] + begin)};
    const Pack alpha = load(scratch.alpha_gradient + begin);
    Pack behind{};
    for (int s = field.samples - 1; s >= 0; --s) {
        const int i = s * CHUNK_RAYS + begin;
        const Pack weight = load(scratch.weight + i);
        const Pack weight_gradient = load(scratch.weight_gradient + i) + alpha +
                                     flow[0] * load(scratch.rows.projected[0] + i) +
                                     flow[1] * load(scratch.rows.projected[1] + i);
        const Pack depth_gradient = depth_derivative(weight_gradient, load(scratch.transmittance + i), behind);
        behind += weight_gradient * weight;
        store(scratch.weight_gradient + i,
              depth_gradient * load(scratch.length + i) * density_derivative(load(scratch.raw + i)));
        store(scratch.projected_gradient[0] + i, weight * flow[0]);
        store(scratch.projected_gradient[1] + i, weight * flow[1]);
        store(scratch.projected_gradient[2] + i, Pack{});
    }
}

// Replaces the network's outputs by their gradient.
void values_backward(Scratch& scratch) {
    const PackInt colors = color_lanes();
    for (int i = 0; i < scratch.rows.count; ++i) {
        float* row = scratch.outputs + static_cast<int64_t>(i) * scratch.output_stride;
        const float* gradient = scratch.value_gradient + i % CHUNK_RAYS * scratch.output_stride;
        const Pack weight = load_broadcast(scratch.weight + i), value = load(row);
        const Pack derivative = select(colors, sigmoid_derivative(value), splat<Pack>(1.0f));
        store(row,
              select(iota() > 0, weight * load(gradient) * derivative, load_broadcast(scratch.weight_gradient + i)));
        for (int c = WIDTH; c < scratch.output_stride; c += WIDTH) store(row + c, weight * load(gradient + c));
    }
}

// Backward pass from the outputs to the inputs; gradients replace the activations.
void network_backward(const S3dField& field, const Network& network, ThreadState& state) {
    Scratch& scratch = state.scratch;
    const SampleRows& rows = scratch.rows;
    const Bf16Scratch& bf16 = scratch.bf16;
    LayerGradient* layer = state.network.layer;
    const float* gradient = scratch.outputs;
    const int hidden_stride = scratch.hidden_stride;
    int stride = scratch.output_stride;
    for (int i = LAYERS - 1; i > 0; --i) {
        float *hidden = scratch.hidden[i - 1], *derivative = scratch.derivative[i - 1];
        layer[i].accumulate(network.layer[i], gradient, stride, rows.count, hidden, hidden_stride, bf16);
        network.layer[i].backward_input(gradient, stride, rows.count, hidden, hidden_stride, field.hidden, bf16);
        multiply_rows_by(derivative, hidden_stride, hidden, hidden_stride, rows.count, hidden_stride);
        gradient = derivative;
        stride = hidden_stride;
    }
    layer[0].accumulate(network.layer[0], gradient, stride, rows.count, rows.inputs, rows.stride, bf16);
    network.layer[0].backward_input(gradient, stride, rows.count, rows.inputs, rows.stride,
                                    count_inputs_with_gradient(field), bf16);
}

// Accumulates the gradient to the lattice for the lanes from sample `first` on.
void deformation_backward(const S3dField& field, const Item& item, int first, ThreadState& state) {
    const Scratch& scratch = state.scratch;
    const SampleRows& rows = scratch.rows;
    const int stride = state.lattice.stride, ambient = field.scales * field.plane_channels;
    const float* inputs = rows.inputs + static_cast<int64_t>(first) * rows.stride + ambient;
    const ProjectedPoint<Pack> projected = {load(scratch.projected_gradient[0] + first),
                                            load(scratch.projected_gradient[1] + first),
                                            load(scratch.projected_gradient[2] + first)};
    for (int d = 0; d < 3; ++d) {
        const Pack offset = gather(inputs + field.ambient + d, iota() * rows.stride, WIDTH);
        const Pack value = OFFSET_GAIN * offset + projection_backward(projected, item.rotation, item.scale, d);
        for (int lane = 0; lane < WIDTH; ++lane) scratch.lattice[lane * stride + d] = value[lane];
    }
    for (int lane = 0; lane < WIDTH; ++lane) {
        for (int c = 0; c < field.ambient; ++c) {
            scratch.lattice[lane * stride + 3 + c] = inputs[static_cast<int64_t>(lane) * rows.stride + c];
        }
    }
    LatticeCells cells;
    find_cells(field, rows, first, cells);
    for (int corner = 0; corner < 8; ++corner) {
        float* points = state.lattice.data + corner_offset(field, corner) * stride;
        for (int lane = 0; lane < WIDTH; ++lane) {
            const Pack weight = load_broadcast(cells.weight[corner] + lane);
            float* point = points + static_cast<int64_t>(cells.point[lane]) * stride;
            for (int c = 0; c < stride; c += WIDTH) {
                store(point + c, multiply_add(weight, load(scratch.lattice + lane * stride + c), load(point + c)));
            }
        }
    }
}

template <class T>
void chunk_backward(const S3dField& field, const Network& network, const Item& item, int64_t first,
                    ThreadState& state) {
    Scratch& scratch = state.scratch;
    read_chunk(field, item, first, scratch);
    prepare_inputs<T>(field, item, scratch.rows);
    network_forward(network, scratch);
    init_weight_gradients(scratch);
    for (int ray = 0; ray < CHUNK_RAYS; ray += WIDTH)
        rays_backward(field, max_visible_depth(field.early_stop_eps), ray, scratch);
    values_backward(scratch);
    network_backward(field, network, state);
    for (int row = 0; row < scratch.rows.count; row += WIDTH) {
        planes_backward<T>(field, item, scratch.rows, row, state.planes, scratch.projected_gradient);
        deformation_backward(field, item, row, state);
    }
}

bool reserve(const S3dField& field, const Network& network, ThreadState& state) {
    const int64_t points = static_cast<int64_t>(field.lattice_size[0]) * field.lattice_size[1] * field.lattice_size[2];
    bool ok = state.lattice.reserve(points, 3 + field.ambient);
    for (int s = 0; s < field.scales; ++s) {
        ok = state.planes[s].reserve(3 * count_pixels(field, s), field.plane_channels) && ok;
    }
    ok = state.network.reserve(network) && ok;
    state.buffer = allocate_zeros(assign_buffers(field, network, nullptr, state.scratch));
    if (!ok || state.buffer == nullptr) return false;
    assign_buffers(field, network, state.buffer, state.scratch);
    return true;
}

void release(ThreadState& state) {
    state.lattice.release();
    for (ThreadGradient& scale : state.planes) scale.release();
    state.network.release();
    free(state.buffer);
}

// Sets the destination of the gradients of an item.
void begin_item(const S3dField& field, int64_t item, ThreadState& state) {
    state.lattice.output = field.lattice_gradient + item * state.lattice.rows * state.lattice.channels;
    for (int s = 0; s < field.scales; ++s) {
        const int64_t own = field.plane_batch_stride[s] == 0 ? 0 : item;
        state.planes[s].output = field.planes_gradient[s] + own * state.planes[s].rows * state.planes[s].channels;
    }
}

// Planes shared by the batch are flushed with the `last` item; they belong to the thread of the first chunk.
bool flush_item(const S3dField& field, bool owns, bool owns_shared, bool last, ThreadState& state) {
    bool ok = state.lattice.flush(owns);
    for (int s = 0; s < field.scales; ++s) {
        const bool shared = field.plane_batch_stride[s] == 0;
        if (!shared || last) ok = state.planes[s].flush(shared ? owns_shared : owns) && ok;
    }
    return ok;
}

// Backward pass over the chunks `begin` to `end` of all items, for one thread.
template <class T>
int range_backward(const S3dField& field, const Network& network, int64_t begin, int64_t end, ThreadState& state) {
    if (begin == end) return S3D_OK;
    if (!reserve(field, network, state)) return S3D_NO_MEMORY;
    const int64_t chunks = (field.rays + CHUNK_RAYS - 1) / CHUNK_RAYS;
    const AmxTiles tiles(network.uses_bf16());
    for (int64_t index = begin / chunks; index * chunks < end; ++index) {
        const Item item = find_item(field, index);
        const int64_t from = index * chunks > begin ? index * chunks : begin;
        const int64_t to = (index + 1) * chunks < end ? (index + 1) * chunks : end;
        begin_item(field, index, state);
        for (int64_t task = from; task < to; ++task) {
            chunk_backward<T>(field, network, item, task % chunks * CHUNK_RAYS, state);
        }
        const bool owns = from == index * chunks;
        if (!flush_item(field, owns, begin == 0, to == end, state)) return S3D_NO_MEMORY;
    }
    return S3D_OK;
}

// Adds deferred gradients in the order of the threads, so that the sum is reproducible.
void add_deferred(const ThreadGradient& gradient, int threads) {
    if (gradient.deferred == nullptr) return;
    const int64_t step = (gradient.rows + threads - 1) / threads;
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int part = 0; part < threads; ++part) {
        const int64_t begin = part * step, end = begin + step < gradient.rows ? begin + step : gradient.rows;
        gradient.add_rows(gradient.deferred, begin, end, gradient.deferred_output);
    }
}

template <class T>
int run_backward(const S3dField& field, const Network& network, ThreadState* states, int threads) {
    const int64_t tasks = field.batch * ((field.rays + CHUNK_RAYS - 1) / CHUNK_RAYS);
    int error = S3D_OK;
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int part = 0; part < threads; ++part) {
        const int64_t begin = tasks * part / threads, end = tasks * (part + 1) / threads;
        if (int failure = range_backward<T>(field, network, begin, end, states[part])) {
#pragma omp atomic write
            error = failure;
        }
    }
    if (error != S3D_OK) return error;
    for (int part = 0; part < threads; ++part) {
        add_deferred(states[part].lattice, threads);
        for (const ThreadGradient& scale : states[part].planes) add_deferred(scale, threads);
        states[part].network.add_to(network, field.weights_gradient, field.biases_gradient);
    }
    return S3D_OK;
}

}  // namespace

int field_backward(const S3dField& field, int threads) {
    if (int error = check(field, threads)) return error;
    if (static_cast<int64_t>(field.samples) * CHUNK_RAYS > INT32_MAX / 3) return S3D_BAD_SIZE;
    const int hidden = field.hidden;
    const LayerSize sizes[] = {{count_inputs(field), hidden}, {hidden, hidden}, {hidden, 4 + field.features}};
    Network network;
    if (!network.pack(sizes, field.weights, field.biases, field.bf16_products != 0)) return S3D_NO_MEMORY;
    ThreadState* states = static_cast<ThreadState*>(malloc(sizeof(ThreadState) * threads));
    if (states == nullptr) return S3D_NO_MEMORY;
    for (int part = 0; part < threads; ++part) states[part] = ThreadState();
    const int error = field.storage == S3D_FLOAT32 ? run_backward<float>(field, network, states, threads)
                                                   : run_backward<BFloat16>(field, network, states, threads);
    for (int part = 0; part < threads; ++part) release(states[part]);
    free(states);
    return error;
}

}  // namespace S3D_VARIANT

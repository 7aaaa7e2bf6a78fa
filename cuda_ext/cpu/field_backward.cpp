// The way back through the fused path. A thread takes a chunk of rays with all their samples, computes what the way
// forward did with them once more, and walks back from there, so that nothing a sample needs ever leaves its cache.
#include "appearance_gradient.h"
#include "compositing.h"
#include "kernels.h"

namespace S3D_VARIANT {
namespace {

constexpr int RAYS = 16;  // of a chunk, one beside the other: sample s of ray r is row s * RAYS + r

// Buffers of one thread, cut from one allocation.
struct Scratch {
    SampleRows rows;                     // the inputs, later the gradient to them
    float* place[3];                     // the gradient to where samples are seen
    float *length, *raw, *weight, *after;  // of each sample: raw density, what it weighs, transmittance behind it
    float* by_weight;                    // the derivative by its weight, later that by its raw density
    float *hidden[2], *slope[2];         // the activations of the layers and their derivatives, later the gradients
    float* outputs;                      // of the network, later the gradient to them
    float* lattice;                      // [WIDTH, *] the gradient to what the lattice gave
    float *by_value, *by_flow[2], *by_alpha;  // the gradients to what the chunk's rays see; the first like `outputs`
    int hidden_stride, output_stride;
    NarrowScratch narrow;
};

// What one thread adds up.
struct Sums {
    PrivateGradient lattice, planes[S3D_MAX_SCALES];
    NetworkGradient network;
    Scratch scratch = {};
    float* buffer = nullptr;  // of the scratch
};

int count_learned_inputs(const S3dField& field) { return field.scales * field.plane_channels + field.ambient + 3; }

size_t cut(const S3dField& field, const Network& network, float* buffer, Scratch& scratch) {
    const size_t rows = static_cast<size_t>(RAYS) * field.samples;
    Cutter cutter = {buffer};
    for (int d = 0; d < 3; ++d) {
        scratch.rows.position[d] = cutter.take(rows);
        scratch.rows.warped[d] = cutter.take(rows);
        scratch.rows.seen[d] = cutter.take(rows);
        scratch.place[d] = cutter.take(rows);
    }
    scratch.length = cutter.take(rows);
    scratch.raw = cutter.take(rows);
    scratch.weight = cutter.take(rows);
    scratch.after = cutter.take(rows);
    scratch.by_weight = cutter.take(rows);
    const int inputs = pad_to_pack(count_inputs(field));
    // Gradients to the planes' features are read in whole packs.
    const int read = pad_to_pack((field.scales - 1) * field.plane_channels + pad_to_pack(field.plane_channels));
    scratch.rows.stride = inputs > read ? inputs : read;
    scratch.rows.count = static_cast<int>(rows);
    scratch.hidden_stride = pad_to_pack(field.hidden);
    scratch.output_stride = pad_to_pack(4 + field.features);
    scratch.rows.inputs = cutter.take(rows * scratch.rows.stride);
    for (int i = 0; i < 2; ++i) {
        scratch.hidden[i] = cutter.take(rows * scratch.hidden_stride);
        scratch.slope[i] = cutter.take(rows * scratch.hidden_stride);
        scratch.by_flow[i] = cutter.take(RAYS);
    }
    scratch.outputs = cutter.take(rows * scratch.output_stride);
    scratch.by_value = cutter.take(static_cast<size_t>(RAYS) * scratch.output_stride);
    scratch.by_alpha = cutter.take(RAYS);
    scratch.lattice = cutter.take(static_cast<size_t>(WIDTH) * pad_to_pack(3 + field.ambient));
    if (network.narrow()) {
        const size_t words = network.count_narrow_words(scratch.rows.count);
        scratch.narrow.rows = reinterpret_cast<uint16_t*>(cutter.take(words));
        scratch.narrow.pairs = reinterpret_cast<uint32_t*>(cutter.take(words));
        scratch.narrow.turned = reinterpret_cast<uint32_t*>(cutter.take(words));
    }
    return cutter.taken;
}

// Reads the samples of the chunk. Rays beyond the last one repeat it, with no gradient.
void gather_chunk(const S3dField& field, const Item& item, int64_t first, Scratch& scratch) {
    const int rays = field.rays - first < RAYS ? static_cast<int>(field.rays - first) : RAYS;
    for (int begin = 0; begin < RAYS; begin += WIDTH) {
        const PackInt ray = count_up() + begin;
        const PackInt origin = choose(ray < rays, ray, PackInt{} + (rays - 1)) * field.samples;
        for (int s = 0; s < field.samples; ++s) {
            const int64_t from = first * field.samples + s;
            const int64_t to = s * RAYS + begin;
            for (int d = 0; d < 3; ++d) {
                store(scratch.rows.position[d] + to, gather(item.positions + from * 3 + d, origin * 3, WIDTH));
            }
            store(scratch.length + to, gather(item.lengths + from, origin, WIDTH));
        }
    }
    const int channels = 5 + field.features;
    for (int ray = 0; ray < RAYS; ++ray) {
        const int64_t index = item.index * field.rays + first + ray;
        const float* gradient = field.output_gradient + index * channels;
        float* to = scratch.by_value + ray * scratch.output_stride + 1;
        const bool there = ray < rays;
        for (int c = 0; c < 3 + field.features; ++c) to[c] = there ? gradient[c] : 0.0f;
        for (int i = 0; i < 2; ++i) scratch.by_flow[i][ray] = there ? gradient[3 + field.features + i] : 0.0f;
        scratch.by_alpha[ray] = there ? field.alpha_gradient[index] : 0.0f;
    }
}

void apply_network(const Network& network, Scratch& scratch) {
    const SampleRows& rows = scratch.rows;
    const int stride = scratch.hidden_stride;
    const NarrowScratch& narrow = scratch.narrow;
    network.layer[0].apply(rows.inputs, rows.stride, rows.count, scratch.hidden[0], stride, false, narrow);
    activate_rows(scratch.hidden[0], scratch.slope[0], stride, rows.count, stride);
    network.layer[1].apply(scratch.hidden[0], stride, rows.count, scratch.hidden[1], stride, false, narrow);
    activate_rows(scratch.hidden[1], scratch.slope[1], stride, rows.count, stride);
    network.layer[2].apply(scratch.hidden[1], stride, rows.count, scratch.outputs, scratch.output_stride, false,
                           narrow);
}

// Colors are the outputs 1 to 3, all in the first pack.
S3D_HD PackInt find_colors() { return (count_up() > 0) & (count_up() < 4); }

// Bounds the colors, and takes the part of the derivatives by the weights that comes from the network's outputs.
void weigh_values(Scratch& scratch) {
    const PackInt colors = find_colors();
    for (int i = 0; i < scratch.rows.count; ++i) {
        float* row = scratch.outputs + static_cast<int64_t>(i) * scratch.output_stride;
        const float* gradient = scratch.by_value + i % RAYS * scratch.output_stride;
        const Pack first = load(row), bounded = choose(colors, sigmoid(first), first);
        scratch.raw[i] = row[0];
        store(row, bounded);
        // The gradient has a zero where density is, which may be infinite.
        Pack sum = choose(count_up() > 0, bounded, Pack{}) * load(gradient);
        for (int c = WIDTH; c < scratch.output_stride; c += WIDTH) sum += load(row + c) * load(gradient + c);
        scratch.by_weight[i] = sum_lanes(sum);
    }
}

// Composites rays side by side: front to back for the weights, then back to front for the derivatives by raw density.
void differentiate_rays(const S3dField& field, float last_seen, int begin, Scratch& scratch) {
    Pack depth{};
    for (int s = 0; s < field.samples; ++s) {
        const int i = s * RAYS + begin;
        const Pack optical = to_density(load(scratch.raw + i)) * load(scratch.length + i);
        const PackInt ended = depth > splat<Pack>(last_seen);
        store(scratch.weight + i, choose(ended, Pack{}, weigh_sample(optical, depth)));
        depth += optical;
        store(scratch.after + i, choose(ended, Pack{}, exponential(-depth)));
    }
    const Pack flow[2] = {load(scratch.by_flow[0] + begin), load(scratch.by_flow[1] + begin)};
    const Pack alpha = load(scratch.by_alpha + begin);
    Pack behind{};
    for (int s = field.samples - 1; s >= 0; --s) {
        const int i = s * RAYS + begin;
        const Pack weight = load(scratch.weight + i);
        const Pack by_weight = load(scratch.by_weight + i) + alpha + flow[0] * load(scratch.rows.seen[0] + i) +
                               flow[1] * load(scratch.rows.seen[1] + i);
        const Pack by_depth = differentiate_depth(by_weight, load(scratch.after + i), behind);
        behind += by_weight * weight;
        store(scratch.by_weight + i, by_depth * load(scratch.length + i) * density_slope(load(scratch.raw + i)));
        store(scratch.place[0] + i, weight * flow[0]);
        store(scratch.place[1] + i, weight * flow[1]);
        store(scratch.place[2] + i, Pack{});
    }
}

// Puts the gradient to the network's outputs in their place.
void differentiate_values(Scratch& scratch) {
    const PackInt colors = find_colors();
    for (int i = 0; i < scratch.rows.count; ++i) {
        float* row = scratch.outputs + static_cast<int64_t>(i) * scratch.output_stride;
        const float* gradient = scratch.by_value + i % RAYS * scratch.output_stride;
        const Pack weight = load_all(scratch.weight + i), value = load(row);
        const Pack slope = choose(colors, sigmoid_slope(value), splat<Pack>(1.0f));
        store(row, choose(count_up() > 0, weight * load(gradient) * slope, load_all(scratch.by_weight + i)));
        for (int c = WIDTH; c < scratch.output_stride; c += WIDTH) store(row + c, weight * load(gradient + c));
    }
}

// From the gradient to the outputs to that of the inputs, each in the other's place.
void differentiate_network(const S3dField& field, const Network& network, Sums& sums) {
    Scratch& scratch = sums.scratch;
    const SampleRows& rows = scratch.rows;
    const NarrowScratch& narrow = scratch.narrow;
    LayerGradient* layer = sums.network.layer;
    const float* gradient = scratch.outputs;
    const int hidden_stride = scratch.hidden_stride;
    int stride = scratch.output_stride;
    for (int i = LAYERS - 1; i > 0; --i) {
        float *hidden = scratch.hidden[i - 1], *slope = scratch.slope[i - 1];
        layer[i].add(network.layer[i], gradient, stride, rows.count, hidden, hidden_stride, narrow);
        network.layer[i].apply_back(gradient, stride, rows.count, hidden, hidden_stride, field.hidden, narrow);
        multiply_rows_by(slope, hidden_stride, hidden, hidden_stride, rows.count, hidden_stride);
        gradient = slope;
        stride = hidden_stride;
    }
    layer[0].add(network.layer[0], gradient, stride, rows.count, rows.inputs, rows.stride, narrow);
    network.layer[0].apply_back(gradient, stride, rows.count, rows.inputs, rows.stride, count_learned_inputs(field),
                                narrow);
}

// Adds the gradient to the lattice of samples `first` and the lanes behind it.
void differentiate_deformation(const S3dField& field, const Item& item, int first, Sums& sums) {
    const Scratch& scratch = sums.scratch;
    const SampleRows& rows = scratch.rows;
    const int stride = sums.lattice.stride, ambient = field.scales * field.plane_channels;
    const float* inputs = rows.inputs + static_cast<int64_t>(first) * rows.stride + ambient;
    const SeenPoint<Pack> seen = {load(scratch.place[0] + first), load(scratch.place[1] + first),
                                  load(scratch.place[2] + first)};
    for (int d = 0; d < 3; ++d) {
        const Pack offset = gather(inputs + field.ambient + d, count_up() * rows.stride, WIDTH);
        const Pack value = OFFSET_GAIN * offset + differentiate_projection(seen, item.rotation, item.scale, d);
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
        float* points = sums.lattice.data + corner_distance(field, corner) * stride;
        for (int lane = 0; lane < WIDTH; ++lane) {
            const Pack share = load_all(cells.share[corner] + lane);
            float* point = points + static_cast<int64_t>(cells.point[lane]) * stride;
            for (int c = 0; c < stride; c += WIDTH) {
                store(point + c, multiply_add(share, load(scratch.lattice + lane * stride + c), load(point + c)));
            }
        }
    }
}

template <class T>
void differentiate_chunk(const S3dField& field, const Network& network, const Item& item, int64_t first, Sums& sums) {
    Scratch& scratch = sums.scratch;
    gather_chunk(field, item, first, scratch);
    prepare_inputs<T>(field, item, scratch.rows);
    apply_network(network, scratch);
    weigh_values(scratch);
    for (int ray = 0; ray < RAYS; ray += WIDTH) differentiate_rays(field, last_seen_depth(field.stop), ray, scratch);
    differentiate_values(scratch);
    differentiate_network(field, network, sums);
    for (int row = 0; row < scratch.rows.count; row += WIDTH) {
        differentiate_lanes<T>(field, item, scratch.rows, row, sums.planes, scratch.place);
        differentiate_deformation(field, item, row, sums);
    }
}

bool reserve(const S3dField& field, const Network& network, Sums& sums) {
    const int64_t points = static_cast<int64_t>(field.lattice_size[0]) * field.lattice_size[1] * field.lattice_size[2];
    bool there = sums.lattice.reserve(points, 3 + field.ambient);
    for (int s = 0; s < field.scales; ++s) {
        there = sums.planes[s].reserve(3 * count_pixels(field, s), field.plane_channels) && there;
    }
    there = sums.network.reserve(network) && there;
    sums.buffer = allocate(cut(field, network, nullptr, sums.scratch));
    if (!there || sums.buffer == nullptr) return false;
    cut(field, network, sums.buffer, sums.scratch);
    return true;
}

void release(Sums& sums) {
    sums.lattice.release();
    for (PrivateGradient& scale : sums.planes) scale.release();
    sums.network.release();
    free(sums.buffer);
}

// Tells the sums where the gradients of an item go.
void begin_item(const S3dField& field, int64_t item, Sums& sums) {
    sums.lattice.output = field.lattice_gradient + item * sums.lattice.rows * sums.lattice.channels;
    for (int s = 0; s < field.scales; ++s) {
        const int64_t own = field.plane_batch_stride[s] == 0 ? 0 : item;
        sums.planes[s].output = field.planes_gradient[s] + own * sums.planes[s].rows * sums.planes[s].channels;
    }
}

// Planes that all items share are finished with the `last` item; the thread of the first one began them.
bool finish_item(const S3dField& field, bool began, bool began_all, bool last, Sums& sums) {
    bool there = sums.lattice.finish(began);
    for (int s = 0; s < field.scales; ++s) {
        const bool shared = field.plane_batch_stride[s] == 0;
        if (!shared || last) there = sums.planes[s].finish(shared ? began_all : began) && there;
    }
    return there;
}

// The chunks `begin` to `end` of all items, for one thread.
template <class T>
int differentiate_part(const S3dField& field, const Network& network, int64_t begin, int64_t end, Sums& sums) {
    if (begin == end) return S3D_OK;
    if (!reserve(field, network, sums)) return S3D_NO_MEMORY;
    const int64_t chunks = (field.rays + RAYS - 1) / RAYS;
    const Tiles tiles(network.narrow());
    for (int64_t index = begin / chunks; index * chunks < end; ++index) {
        const Item item = find_item(field, index);
        const int64_t from = index * chunks > begin ? index * chunks : begin;
        const int64_t to = (index + 1) * chunks < end ? (index + 1) * chunks : end;
        begin_item(field, index, sums);
        for (int64_t task = from; task < to; ++task) {
            differentiate_chunk<T>(field, network, item, task % chunks * RAYS, sums);
        }
        const bool began = from == index * chunks;
        if (!finish_item(field, began, begin == 0, to == end, sums)) return S3D_NO_MEMORY;
    }
    return S3D_OK;
}

// What threads have kept for themselves, in their order, so that the sum is the same each time.
void add_parked(const PrivateGradient& gradient, int threads) {
    if (gradient.parked == nullptr) return;
    const int64_t step = (gradient.rows + threads - 1) / threads;
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int part = 0; part < threads; ++part) {
        const int64_t begin = part * step, end = begin + step < gradient.rows ? begin + step : gradient.rows;
        gradient.add_rows(gradient.parked, begin, end, gradient.parked_output);
    }
}

template <class T>
int differentiate(const S3dField& field, const Network& network, Sums* sums, int threads) {
    const int64_t tasks = field.batch * ((field.rays + RAYS - 1) / RAYS);
    int error = S3D_OK;
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int part = 0; part < threads; ++part) {
        const int64_t begin = tasks * part / threads, end = tasks * (part + 1) / threads;
        if (int failure = differentiate_part<T>(field, network, begin, end, sums[part])) {
#pragma omp atomic write
            error = failure;
        }
    }
    if (error != S3D_OK) return error;
    for (int part = 0; part < threads; ++part) {
        add_parked(sums[part].lattice, threads);
        for (const PrivateGradient& scale : sums[part].planes) add_parked(scale, threads);
        sums[part].network.add_to(network, field.weights_gradient, field.biases_gradient);
    }
    return S3D_OK;
}

}  // namespace

int field_backward(const S3dField& field, int threads) {
    if (int error = check(field, threads)) return error;
    if (static_cast<int64_t>(field.samples) * RAYS > INT32_MAX / 3) return S3D_BAD_SIZE;
    const int hidden = field.hidden;
    const LayerSize sizes[] = {{count_inputs(field), hidden}, {hidden, hidden}, {hidden, 4 + field.features}};
    Network network;
    if (!network.pack(sizes, field.weights, field.biases, field.bfloat_products != 0)) return S3D_NO_MEMORY;
    Sums* sums = static_cast<Sums*>(malloc(sizeof(Sums) * threads));
    if (sums == nullptr) return S3D_NO_MEMORY;
    for (int part = 0; part < threads; ++part) sums[part] = Sums();
    const int error = field.storage == S3D_FLOAT32 ? differentiate<float>(field, network, sums, threads)
                                                   : differentiate<Bfloat>(field, network, sums, threads);
    for (int part = 0; part < threads; ++part) release(sums[part]);
    free(sums);
    return error;
}

}  // namespace S3D_VARIANT

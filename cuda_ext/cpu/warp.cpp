// The warp of the deformation lattice, and the way back. A thread takes a chunk of positions and computes it for one
// frame after the other, so that the network's layers never leave its cache; the way back computes them once more.
#include "kernels.h"
#include "network.h"

namespace S3D_VARIANT {
namespace {

constexpr int POINTS = 64;  // of a chunk: a multiple of a tile

// What frames say to the regions, in rows of whole packs. The pose is one more region, of which everything is part.
struct Mixture {
    int parts, stride, share_stride;
    float* codes = nullptr;   // [batch, parts, stride]
    float* turned = nullptr;  // [batch, hidden, share_stride]

    explicit Mixture(const S3dWarp& warp)
        : parts(warp.regions + 1), stride(pad_to_pack(warp.hidden)), share_stride(pad_to_pack(parts)) {
        const size_t count = warp.batch * parts * stride;
        codes = allocate(count + warp.batch * warp.hidden * share_stride);
        if (codes == nullptr) return;
        turned = codes + count;
        for (int64_t row = 0; row < warp.batch * parts; ++row) {
            const int64_t item = row / parts, part = row % parts;
            const float* from = part == warp.regions
                                    ? warp.pose + item * warp.hidden
                                    : warp.by_region + (item * warp.regions + part) * warp.hidden;
            memcpy(codes + row * stride, from, sizeof(float) * warp.hidden);
            for (int c = 0; c < warp.hidden; ++c) turned[(item * warp.hidden + c) * share_stride + part] = from[c];
        }
    }
    Mixture(const Mixture&) = delete;
    Mixture& operator=(const Mixture&) = delete;
    ~Mixture() { free(codes); }

    const float* find_codes(int64_t item) const { return codes + item * parts * stride; }
    const float* find_turned(int64_t item, int hidden) const { return turned + item * hidden * share_stride; }
};

// Buffers of one thread, cut from one allocation.
struct Scratch {
    float *position, *shares;       // of the chunk, in rows of whole packs
    float* ends;                    // [POINTS, end_stride]: the first and, beside it, the last layer
    float* middle;                  // [POINTS, *]: the narrow one
    float* outputs;                 // [POINTS, *], on the way back the gradient to them
    float *end_slopes, *mid_slopes;  // from here on for the way back: derivatives of the activations
    float *by_ends, *by_middle, *by_mixed;  // the gradients
    float *by_position, *by_shares;
    int end_stride;
    NarrowScratch narrow;
};

// What one thread adds up.
struct Sums {
    NetworkGradient network;
    float* codes = nullptr;  // [batch, parts, stride]
    Scratch scratch = {};
    float* buffer = nullptr;  // of the scratch
};

size_t cut(const S3dWarp& warp, const Network& network, const Mixture& mixture, bool back, float* buffer,
           Scratch& scratch) {
    Cutter cutter = {buffer};
    const auto take_rows = [&](int stride) { return cutter.take(static_cast<size_t>(POINTS) * stride); };
    const int middle = network.layer[0].stride;
    scratch.end_stride = pad_to_pack(warp.hidden + mixture.stride);
    scratch.position = take_rows(mixture.stride);
    scratch.shares = take_rows(mixture.share_stride);
    scratch.ends = take_rows(scratch.end_stride);
    scratch.middle = take_rows(middle);
    scratch.outputs = take_rows(network.layer[2].stride);
    if (back) {
        scratch.end_slopes = take_rows(scratch.end_stride);
        scratch.mid_slopes = take_rows(middle);
        scratch.by_ends = take_rows(scratch.end_stride);
        scratch.by_middle = take_rows(middle);
        scratch.by_mixed = take_rows(mixture.stride);
        scratch.by_position = take_rows(mixture.stride);
        scratch.by_shares = take_rows(mixture.share_stride);
    }
    if (network.narrow()) {
        const size_t words = network.count_narrow_words(POINTS);
        scratch.narrow.rows = reinterpret_cast<uint16_t*>(cutter.take(words));
        if (back) scratch.narrow.pairs = reinterpret_cast<uint32_t*>(cutter.take(words));
        if (back) scratch.narrow.turned = reinterpret_cast<uint32_t*>(cutter.take(words));
    }
    return cutter.taken;
}

// Rows of `columns` numbers, from and to rows of whole packs.
void read_rows(const float* from, int rows, int columns, float* to, int stride) {
    for (int row = 0; row < rows; ++row, from += columns, to += stride) {
        for (int c = 0; c < columns; c += WIDTH) store(to + c, load_part(from + c, count_lanes(c, columns)));
    }
}

void write_rows(const float* from, int stride, int rows, int columns, float* to) {
    for (int row = 0; row < rows; ++row, from += stride, to += columns) {
        for (int c = 0; c < columns; c += WIDTH) store_part(to + c, load(from + c), count_lanes(c, columns));
    }
}

void read_points(const S3dWarp& warp, const Mixture& mixture, int64_t first, int points, Scratch& scratch) {
    read_rows(warp.position + first * warp.hidden, points, warp.hidden, scratch.position, mixture.stride);
    read_rows(warp.shares + first * warp.regions, points, warp.regions, scratch.shares, mixture.share_stride);
    for (int i = 0; i < points; ++i) scratch.shares[i * mixture.share_stride + warp.regions] = 1.0f;
}

// What the first layer activates.
template <class Finish>
void mix(const S3dWarp& warp, const Mixture& mixture, int64_t item, int points, Scratch& scratch, Finish finish) {
    multiply({scratch.shares, mixture.share_stride, 1}, {mixture.find_codes(item), mixture.stride, mixture.parts},
             points, warp.hidden, {scratch.position, mixture.stride}, {scratch.ends, scratch.end_stride}, finish);
}

void warp_chunk(const S3dWarp& warp, const Network& network, const Mixture& mixture, int64_t first, Scratch& scratch) {
    const int points = warp.points - first < POINTS ? static_cast<int>(warp.points - first) : POINTS;
    const int end_stride = scratch.end_stride, middle_stride = network.layer[0].stride;
    const int output_stride = network.layer[2].stride;
    const NarrowScratch& narrow = scratch.narrow;
    float* last = scratch.ends + warp.hidden;
    read_points(warp, mixture, first, points, scratch);
    for (int64_t item = 0; item < warp.batch; ++item) {
        mix(warp, mixture, item, points, scratch, [](Pack sum) { return silu(sum); });
        network.layer[0].apply(scratch.ends, end_stride, points, scratch.middle, middle_stride, true, narrow);
        network.layer[1].apply(scratch.middle, middle_stride, points, last, end_stride, true, narrow);
        network.layer[2].apply(scratch.ends, end_stride, points, scratch.outputs, output_stride, false, narrow);
        float* to = warp.output + (item * warp.points + first) * warp.outputs;
        write_rows(scratch.outputs, output_stride, points, warp.outputs, to);
    }
}

// The layers once more, with the derivatives of their activations.
void repeat_layers(const S3dWarp& warp, const Network& network, const Mixture& mixture, int64_t item, int points,
                   Scratch& scratch) {
    const int end_stride = scratch.end_stride, middle_stride = network.layer[0].stride;
    const NarrowScratch& narrow = scratch.narrow;
    float *ends = scratch.ends, *last = ends + warp.hidden, *middle = scratch.middle;
    mix(warp, mixture, item, points, scratch, [](Pack sum) { return sum; });
    activate_rows(ends, scratch.end_slopes, end_stride, points, warp.hidden);
    network.layer[0].apply(ends, end_stride, points, middle, middle_stride, false, narrow);
    activate_rows(middle, scratch.mid_slopes, middle_stride, points, warp.narrow);
    network.layer[1].apply(middle, middle_stride, points, last, end_stride, false, narrow);
    activate_rows(last, scratch.end_slopes + warp.hidden, end_stride, points, warp.hidden);
}

// From the gradient to the outputs to that of what the first layer activates.
void differentiate_layers(const S3dWarp& warp, const Network& network, int points, Sums& sums) {
    Scratch& scratch = sums.scratch;
    LayerGradient* layer = sums.network.layer;
    const int end_stride = scratch.end_stride, middle_stride = network.layer[0].stride;
    const int output_stride = network.layer[2].stride, mixed_stride = pad_to_pack(warp.hidden);
    const NarrowScratch& narrow = scratch.narrow;
    float *by_ends = scratch.by_ends, *by_last = by_ends + warp.hidden, *by_middle = scratch.by_middle;
    layer[2].add(network.layer[2], scratch.outputs, output_stride, points, scratch.ends, end_stride, narrow);
    network.layer[2].apply_back(scratch.outputs, output_stride, points, by_ends, end_stride, 2 * warp.hidden, narrow);
    multiply_rows_by(by_last, end_stride, scratch.end_slopes + warp.hidden, end_stride, points, warp.hidden);
    layer[1].add(network.layer[1], by_last, end_stride, points, scratch.middle, middle_stride, narrow);
    network.layer[1].apply_back(by_last, end_stride, points, by_middle, middle_stride, warp.narrow, narrow);
    multiply_rows_by(by_middle, middle_stride, scratch.mid_slopes, middle_stride, points, warp.narrow);
    layer[0].add(network.layer[0], by_middle, middle_stride, points, scratch.ends, end_stride, narrow);
    network.layer[0].apply_back(by_middle, middle_stride, points, scratch.by_mixed, mixed_stride, warp.hidden, narrow);
    for (int row = 0; row < points; ++row) {
        float* mixed = scratch.by_mixed + row * mixed_stride;
        const float *slope = scratch.end_slopes + row * end_stride, *beside = by_ends + row * end_stride;
        for (int c = 0; c < warp.hidden; c += WIDTH) {
            store(mixed + c, (load(mixed + c) + load(beside + c)) * load(slope + c));
        }
    }
}

// Adds the gradients to the codes of a frame, and of the positions and their shares those that come from it.
void differentiate_mixture(const S3dWarp& warp, const Mixture& mixture, int64_t item, int points, Sums& sums) {
    const Scratch& scratch = sums.scratch;
    const auto keep = [](Pack sum) { return sum; };
    const int stride = mixture.stride, share_stride = mixture.share_stride;
    float* codes = sums.codes + item * mixture.parts * stride;
    multiply({scratch.shares, 1, share_stride}, {scratch.by_mixed, stride, points}, mixture.parts, warp.hidden,
             {codes, stride}, {codes, stride}, keep);
    multiply({scratch.by_mixed, stride, 1}, {mixture.find_turned(item, warp.hidden), share_stride, warp.hidden}, points,
             warp.regions, {scratch.by_shares, share_stride}, {scratch.by_shares, share_stride}, keep);
    for (int64_t i = 0; i < static_cast<int64_t>(points) * stride; i += WIDTH) {
        store(scratch.by_position + i, load(scratch.by_position + i) + load(scratch.by_mixed + i));
    }
}

void differentiate_chunk(const S3dWarp& warp, const Network& network, const Mixture& mixture, int64_t first,
                         Sums& sums) {
    Scratch& scratch = sums.scratch;
    const int points = warp.points - first < POINTS ? static_cast<int>(warp.points - first) : POINTS;
    read_points(warp, mixture, first, points, scratch);
    memset(scratch.by_shares, 0, sizeof(float) * points * mixture.share_stride);
    memset(scratch.by_position, 0, sizeof(float) * points * mixture.stride);
    for (int64_t item = 0; item < warp.batch; ++item) {
        repeat_layers(warp, network, mixture, item, points, scratch);
        const float* from = warp.output_gradient + (item * warp.points + first) * warp.outputs;
        read_rows(from, points, warp.outputs, scratch.outputs, network.layer[2].stride);
        differentiate_layers(warp, network, points, sums);
        differentiate_mixture(warp, mixture, item, points, sums);
    }
    write_rows(scratch.by_position, mixture.stride, points, warp.hidden, warp.position_gradient + first * warp.hidden);
    write_rows(scratch.by_shares, mixture.share_stride, points, warp.regions,
               warp.shares_gradient + first * warp.regions);
}

// The chunks `begin` to `end`, for one thread.
int differentiate_part(const S3dWarp& warp, const Network& network, const Mixture& mixture, int64_t begin, int64_t end,
                       Sums& sums) {
    if (begin == end) return S3D_OK;
    sums.codes = allocate(warp.batch * mixture.parts * mixture.stride);
    sums.buffer = allocate(cut(warp, network, mixture, true, nullptr, sums.scratch));
    if (!sums.network.reserve(network) || sums.codes == nullptr || sums.buffer == nullptr) return S3D_NO_MEMORY;
    cut(warp, network, mixture, true, sums.buffer, sums.scratch);
    const Tiles tiles(network.narrow());
    for (int64_t chunk = begin; chunk < end; ++chunk) {
        differentiate_chunk(warp, network, mixture, chunk * POINTS, sums);
    }
    return S3D_OK;
}

void add_sums(const S3dWarp& warp, const Network& network, const Mixture& mixture, const Sums& sums) {
    sums.network.add_to(network, warp.weights_gradient, warp.biases_gradient);
    for (int64_t row = 0; sums.codes != nullptr && row < warp.batch * mixture.parts; ++row) {
        const int64_t item = row / mixture.parts, part = row % mixture.parts;
        float* to = part == warp.regions ? warp.pose_gradient + item * warp.hidden
                                         : warp.by_region_gradient + (item * warp.regions + part) * warp.hidden;
        for (int c = 0; c < warp.hidden; ++c) to[c] += sums.codes[row * mixture.stride + c];
    }
}

int differentiate(const S3dWarp& warp, const Network& network, const Mixture& mixture, Sums* sums, int threads) {
    const int64_t chunks = (warp.points + POINTS - 1) / POINTS;
    int error = S3D_OK;
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int part = 0; part < threads; ++part) {
        const int64_t begin = chunks * part / threads, end = chunks * (part + 1) / threads;
        if (int failure = differentiate_part(warp, network, mixture, begin, end, sums[part])) {
#pragma omp atomic write
            error = failure;
        }
    }
    if (error != S3D_OK) return error;
    // In the order of the threads, so that the sum is the same each time.
    for (int part = 0; part < threads; ++part) add_sums(warp, network, mixture, sums[part]);
    return S3D_OK;
}

int check(const S3dWarp& warp, int threads) {
    constexpr int MOST = 1 << 20;
    const int32_t sizes[] = {warp.regions, warp.hidden, warp.narrow, warp.outputs};
    for (const int32_t size : sizes) {
        if (size < 1 || size > MOST) return S3D_BAD_SIZE;
    }
    return warp.batch < 0 || warp.points < 0 || threads < 1 ? S3D_BAD_SIZE : S3D_OK;
}

bool pack(const S3dWarp& warp, Network& network) {
    const LayerSize sizes[] = {{warp.hidden, warp.narrow}, {warp.narrow, warp.hidden}, {2 * warp.hidden, warp.outputs}};
    return network.pack(sizes, warp.weights, warp.biases, warp.bfloat_products != 0);
}

}  // namespace

int warp_forward(const S3dWarp& warp, int threads) {
    if (int error = check(warp, threads)) return error;
    const Mixture mixture(warp);
    Network network;
    if (!pack(warp, network) || mixture.codes == nullptr) return S3D_NO_MEMORY;
    const int64_t chunks = (warp.points + POINTS - 1) / POINTS;
    int error = S3D_OK;
#pragma omp parallel num_threads(threads)
    {
        Scratch scratch = {};
        float* buffer = allocate(cut(warp, network, mixture, false, nullptr, scratch));
        if (buffer == nullptr) {
#pragma omp atomic write
            error = S3D_NO_MEMORY;
        } else {
            cut(warp, network, mixture, false, buffer, scratch);
        }
        const Tiles tiles(network.narrow());
#pragma omp for schedule(dynamic, 4)
        for (int64_t chunk = 0; chunk < chunks; ++chunk) {
            if (buffer != nullptr) warp_chunk(warp, network, mixture, chunk * POINTS, scratch);
        }
        free(buffer);
    }
    return error;
}

int warp_backward(const S3dWarp& warp, int threads) {
    if (int error = check(warp, threads)) return error;
    const Mixture mixture(warp);
    Network network;
    if (!pack(warp, network) || mixture.codes == nullptr) return S3D_NO_MEMORY;
    Sums* sums = static_cast<Sums*>(malloc(sizeof(Sums) * threads));
    if (sums == nullptr) return S3D_NO_MEMORY;
    for (int part = 0; part < threads; ++part) sums[part] = Sums();
    const int error = differentiate(warp, network, mixture, sums, threads);
    for (int part = 0; part < threads; ++part) {
        sums[part].network.release();
        free(sums[part].codes);
        free(sums[part].buffer);
    }
    free(sums);
    return error;
}

}  // namespace S3D_VARIANT

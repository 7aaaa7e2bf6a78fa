#include "hash_grid.h"

#include "kernels.h"
#include "pack_lanes.h"

namespace S3D_VARIANT {
namespace {

// Points processed through all levels before the next block, so that their results stay in the L2 cache.
constexpr int64_t BLOCK_POINTS = 4096;

template <int F>
struct Features {
    typedef float Type __attribute__((vector_size(4 * F)));
};

template <>
struct Features<1> {
    using Type = float;
};

float sum(float value) { return value; }

template <class V>
float sum(V value) {
    float sum = 0.0f;
    for (unsigned i = 0; i < sizeof(V) / sizeof(float); ++i) sum += value[i];
    return sum;
}

// The cells of up to WIDTH points, and the entries and weights of their corners.
template <int D>
struct Cells {
    GridAxis<Pack> axis[D];
    alignas(64) uint32_t entry[1 << D][WIDTH];
    alignas(64) float weight[1 << D][WIDTH];
};

template <int D>
void find_cells(const float* positions, int lanes, const S3dGridLevel& level, Cells<D>& cells) {
    for (int d = 0; d < D; ++d) {
        cells.axis[d] = locate_in_cell(gather(positions + d, iota() * D, lanes), level.scale);
    }
    for (int corner = 0; corner < 1 << D; ++corner) {
        store(cells.entry[corner], entry_index(cells.axis, corner, level));
        store(cells.weight[corner], corner_weight(cells.axis, corner));
    }
}

template <int D, int F>
void read_block(const S3dHashGrid& grid, int64_t begin, int64_t end) {
    using Vector = typename Features<F>::Type;
    const int64_t stride = static_cast<int64_t>(grid.levels) * F;
    Cells<D> cells;
    for (int l = 0; l < grid.levels; ++l) {
        const S3dGridLevel& level = grid.level[l];
        const float* table = static_cast<const float*>(grid.table) + level.offset * F;
        for (int64_t first = begin; first < end; first += WIDTH) {
            const int lanes = count_lanes(first, end);
            find_cells<D>(grid.positions + first * D, lanes, level, cells);
            float* output = grid.output + first * stride + l * F;
            for (int lane = 0; lane < lanes; ++lane, output += stride) {
                Vector sum{};
                for (int corner = 0; corner < 1 << D; ++corner) {
                    Vector stored;
                    memcpy(&stored, table + static_cast<size_t>(cells.entry[corner][lane]) * F, sizeof stored);
                    sum += cells.weight[corner][lane] * stored;
                }
                memcpy(output, &sum, sizeof sum);
            }
        }
    }
}

// Each level belongs to one thread, so no two threads write the same entry.
template <int D, int F>
void add_level_gradient(const S3dHashGrid& grid, int l) {
    using Vector = typename Features<F>::Type;
    const int64_t stride = static_cast<int64_t>(grid.levels) * F;
    const S3dGridLevel& level = grid.level[l];
    float* table = grid.table_gradient + level.offset * F;
    Cells<D> cells;
    for (int64_t first = 0; first < grid.points; first += WIDTH) {
        const int lanes = count_lanes(first, grid.points);
        find_cells<D>(grid.positions + first * D, lanes, level, cells);
        const float* output = grid.output_gradient + first * stride + l * F;
        for (int lane = 0; lane < lanes; ++lane, output += stride) {
            Vector gradient;
            memcpy(&gradient, output, sizeof gradient);
            for (int corner = 0; corner < 1 << D; ++corner) {
                float* entry = table + static_cast<size_t>(cells.entry[corner][lane]) * F;
                Vector sum;
                memcpy(&sum, entry, sizeof sum);
                sum += cells.weight[corner][lane] * gradient;
                memcpy(entry, &sum, sizeof sum);
            }
        }
    }
}

template <int D, int F>
void write_positions_gradient(const S3dHashGrid& grid, int64_t first, int lanes) {
    using Vector = typename Features<F>::Type;
    const int64_t stride = static_cast<int64_t>(grid.levels) * F;
    Cells<D> cells;
    Pack slope[D] = {};
    for (int l = 0; l < grid.levels; ++l) {
        const S3dGridLevel& level = grid.level[l];
        const float* table = static_cast<const float*>(grid.table) + level.offset * F;
        find_cells<D>(grid.positions + first * D, lanes, level, cells);
        alignas(64) float along[1 << D][WIDTH] = {};
        const float* output = grid.output_gradient + first * stride + l * F;
        for (int lane = 0; lane < lanes; ++lane, output += stride) {
            Vector gradient;
            memcpy(&gradient, output, sizeof gradient);
            for (int corner = 0; corner < 1 << D; ++corner) {
                Vector stored;
                memcpy(&stored, table + static_cast<size_t>(cells.entry[corner][lane]) * F, sizeof stored);
                along[corner][lane] = sum(stored * gradient);
            }
        }
        Pack at_corner[1 << D];
        for (int corner = 0; corner < 1 << D; ++corner) at_corner[corner] = load(along[corner]);
        for (int d = 0; d < D; ++d) slope[d] += derivative_along_axis(cells.axis, at_corner, d, level.scale);
    }
    for (int lane = 0; lane < lanes; ++lane) {
        for (int d = 0; d < D; ++d) grid.positions_gradient[(first + lane) * D + d] = slope[d][lane];
    }
}

template <int D, int F>
void run_all_forward(const S3dHashGrid& grid, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t begin = 0; begin < grid.points; begin += BLOCK_POINTS) {
        read_block<D, F>(grid, begin, begin + BLOCK_POINTS < grid.points ? begin + BLOCK_POINTS : grid.points);
    }
}

template <int D, int F>
void run_all_backward(const S3dHashGrid& grid, int threads) {
    if (grid.table_gradient != nullptr) {
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
        for (int l = grid.levels - 1; l >= 0; --l) add_level_gradient<D, F>(grid, l);
    }
    if (grid.positions_gradient != nullptr) {
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int64_t first = 0; first < grid.points; first += WIDTH) {
            write_positions_gradient<D, F>(grid, first, count_lanes(first, grid.points));
        }
    }
}

using Work = void (*)(const S3dHashGrid&, int);

template <int D>
Work choose_features(int features, bool backward) {
    switch (features) {
        case 1: return backward ? run_all_backward<D, 1> : run_all_forward<D, 1>;
        case 2: return backward ? run_all_backward<D, 2> : run_all_forward<D, 2>;
        case 4: return backward ? run_all_backward<D, 4> : run_all_forward<D, 4>;
        case 8: return backward ? run_all_backward<D, 8> : run_all_forward<D, 8>;
        default: return nullptr;
    }
}

int run(const S3dHashGrid& grid, int threads, bool backward) {
    if (grid.levels < 1 || grid.levels > S3D_MAX_LEVELS || grid.points < 0 || threads < 1) return S3D_BAD_SIZE;
    if (grid.storage != S3D_FLOAT32) return S3D_BAD_STORAGE;
    Work work = nullptr;
    if (grid.dimensions == 2) work = choose_features<2>(grid.features, backward);
    if (grid.dimensions == 3) work = choose_features<3>(grid.features, backward);
    if (work == nullptr) return S3D_BAD_SIZE;
    work(grid, threads);
    return S3D_OK;
}

}  // namespace

int hash_grid_forward(const S3dHashGrid& grid, int threads) { return run(grid, threads, false); }

int hash_grid_backward(const S3dHashGrid& grid, int threads) { return run(grid, threads, true); }

}  // namespace S3D_VARIANT

// Marks the points of a lattice that interpolation at some positions reads.
#include <cstdlib>

#include "field.h"
#include "kernels.h"
#include "pack_memory.h"

namespace S3D_VARIANT {
namespace {

constexpr int64_t BLOCK_POSITIONS = 4096;

// Marks the first corner of the cell around each position.
void mark_block(const S3dMarkCells& cells, int64_t first, int64_t end, uint8_t* corners) {
    for (int64_t position = first; position < end; position += WIDTH) {
        const int lanes = count_lanes(position, end);
        PackInt point{};
        for (int d = 2; d >= 0; --d) {
            const float* from = cells.positions + 3 * position + d;
            Pack x{};
            for (int lane = 0; lane < lanes; ++lane) x[lane] = from[3 * lane];
            point = point * cells.size[d] +
                    locate_in_lattice(x, cells.center[d], cells.focus[d], cells.extent[d], cells.size[d]).low;
        }
        for (int lane = 0; lane < lanes; ++lane) corners[point[lane]] = 1;
    }
}

// Marks all corners of the cells along one axis: the points `step` behind those marked so far.
void spread_marks(uint8_t* marks, int64_t count, int64_t step) {
    for (int64_t point = count - 1; point >= step; --point) marks[point] |= marks[point - step];
}

}  // namespace

int mark_cells_forward(const S3dMarkCells& cells, int threads) {
    if (cells.count < 0 || threads < 1) return S3D_BAD_SIZE;
    int64_t points = 1;
    for (int d = 0; d < 3; ++d) {
        if (cells.size[d] < 2) return S3D_BAD_SIZE;
        points *= cells.size[d];
        if (points > INT32_MAX) return S3D_BAD_SIZE;
    }
    memset(cells.marks, 0, points);
    const int64_t blocks = (cells.count + BLOCK_POSITIONS - 1) / BLOCK_POSITIONS;
    int error = S3D_OK;
#pragma omp parallel num_threads(threads)
    {
        uint8_t* corners = static_cast<uint8_t*>(calloc(points, 1));
        if (corners == nullptr) {
#pragma omp atomic write
            error = S3D_NO_MEMORY;
        }
#pragma omp for schedule(static)
        for (int64_t block = 0; block < blocks; ++block) {
            const int64_t first = block * BLOCK_POSITIONS, end = first + BLOCK_POSITIONS;
            if (corners != nullptr) mark_block(cells, first, end < cells.count ? end : cells.count, corners);
        }
#pragma omp critical
        for (int64_t point = 0; corners != nullptr && point < points; ++point) cells.marks[point] |= corners[point];
        free(corners);
    }
    // No cell begins at the last point of an axis, so that marks do not run over its end.
    spread_marks(cells.marks, points, 1);
    spread_marks(cells.marks, points, cells.size[0]);
    spread_marks(cells.marks, points, static_cast<int64_t>(cells.size[0]) * cells.size[1]);
    return error;
}

}  // namespace S3D_VARIANT

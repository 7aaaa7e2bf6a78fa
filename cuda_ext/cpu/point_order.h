// Sorts points so that neighbors read the same pixels of the three planes from the L1 cache. The order does not affect
// the result of a point.
#pragma once

#include <memory>
#include <new>

#include "pack_lanes.h"
#include "triplane.h"

namespace S3D_VARIANT {

constexpr int64_t MAX_SORTED_POINTS = 1 << 17;  // sorted at a time
constexpr int CUBE_SIZE = 8;                    // edge length in pixels of a cube of points
constexpr int MAX_CUBE_BITS = 5;                // of a cube's index along one axis

// Spreads up to five bits three positions apart.
S3D_HD PackUInt spread_bits(PackUInt value) {
    value = (value | (value << 8)) & 0x100fu;
    value = (value | (value << 4)) & 0x10c3u;
    return (value | (value << 2)) & 0x1249u;
}

class PointOrder {
public:
    // For up to `capacity` points on planes whose longer side has `size` pixels.
    PointOrder(int64_t capacity, int32_t size) {
        while (bits_ < MAX_CUBE_BITS && (CUBE_SIZE << bits_) < size) ++bits_;
        const int64_t padded = (capacity + WIDTH - 1) / WIDTH * WIDTH;
        cubes_.reset(new (std::nothrow) uint16_t[padded]);
        points_.reset(new (std::nothrow) int32_t[padded]());
        next_.reset(new (std::nothrow) int32_t[int64_t{1} << (3 * bits_)]);
    }

    // Sorts `count` positions. Returns false if sorting does not pay off: the order is already good, or memory is
    // exhausted.
    bool sort(const float* positions, int64_t count) {
        if (!cubes_ || !points_ || !next_) return false;
        find_cubes(positions, count);
        int64_t changes = 0;
        for (int64_t point = 1; point < count; ++point) changes += cubes_[point] != cubes_[point - 1];
        if (4 * changes < count) return false;
        const int64_t cubes = int64_t{1} << (3 * bits_);
        for (int64_t cube = 0; cube < cubes; ++cube) next_[cube] = 0;
        for (int64_t point = 0; point < count; ++point) ++next_[cubes_[point]];
        int32_t begin = 0;
        for (int64_t cube = 0; cube < cubes; ++cube) {
            const int32_t inside = next_[cube];
            next_[cube] = begin;
            begin += inside;
        }
        for (int64_t point = 0; point < count; ++point) {
            points_[next_[cubes_[point]]++] = static_cast<int32_t>(point);
        }
        return true;
    }

    // Sorted point indices, padded so that WIDTH of them can be read from every position.
    const int32_t* points() const { return points_.get(); }

private:
    // Cubes are numbered along a Morton curve, so consecutive cubes share pixels of the planes.
    void find_cubes(const float* positions, int64_t count) {
        const float half = 0.5f * static_cast<float>(1 << bits_), last = static_cast<float>((1 << bits_) - 1);
        for (int64_t first = 0; first < count; first += WIDTH) {
            const int lanes = count_lanes(first, count);
            PackUInt cube{};
            for (int axis = 0; axis < 3; ++axis) {
                const Pack x = gather(positions + first * 3 + axis, iota() * 3, lanes);
                const Pack coordinate = x * half + half;
                // The comparison is false for NaN.
                const Pack inside =
                    select(coordinate > Pack{}, select(coordinate < last, coordinate, splat<Pack>(last)), Pack{});
                cube |= spread_bits(to_unsigned(to_int(inside))) << axis;
            }
            for (int lane = 0; lane < lanes; ++lane) cubes_[first + lane] = static_cast<uint16_t>(cube[lane]);
        }
    }

    int bits_ = 0;
    std::unique_ptr<uint16_t[]> cubes_;
    std::unique_ptr<int32_t[]> points_, next_;
};

}  // namespace S3D_VARIANT

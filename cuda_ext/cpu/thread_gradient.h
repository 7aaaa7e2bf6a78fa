// One thread's gradients to the lattice and the planes of one batch item. Rows are padded to whole packs, because a
// load that follows a store forwards from the store buffer only if both cover the whole pack.
#pragma once

#include "samples.h"

namespace S3D_VARIANT {

struct ThreadGradient {
    int64_t rows = 0;
    int channels = 0, stride = 0;
    float* data = nullptr;      // [rows, stride] of the current item
    float* deferred = nullptr;  // of an item whose gradient belongs to another thread
    float* output = nullptr;    // destination of `data`: [rows, channels]
    float* deferred_output = nullptr;

    bool reserve(int64_t row_count, int channel_count) {
        rows = row_count;
        channels = channel_count;
        stride = pad_to_pack(channels);
        data = allocate_zeros(static_cast<size_t>(rows) * stride);
        return data != nullptr;
    }

    void release() {
        free(data);
        free(deferred);
    }

    // Adds rows `begin` to `end` of `from` to an output.
    void add_rows(const float* from, int64_t begin, int64_t end, float* to) const {
        for (int64_t row = begin; row < end; ++row) {
            for (int c = 0; c < channels; c += WIDTH) {
                const int count = channels - c < WIDTH ? channels - c : WIDTH;
                float* address = to + row * channels + c;
                store_partial(address, load_partial(address, count) + load(from + row * stride + c), count);
            }
        }
    }

    // Finishes an item. Only the thread that owns the item writes its output now; the others defer until all are done.
    bool flush(bool owns) {
        if (owns) {
            add_rows(data, 0, rows, output);
            memset(data, 0, sizeof(float) * rows * stride);
            return true;
        }
        deferred = data;
        deferred_output = output;
        data = allocate_zeros(static_cast<size_t>(rows) * stride);
        return data != nullptr;
    }
};

}  // namespace S3D_VARIANT

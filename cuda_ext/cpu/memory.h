// Huge pages for memory that a kernel writes for the first time.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

// The C library maps blocks from this size on afresh, and a page fault every 4 KiB would cost more than the kernel.
constexpr size_t HUGE_PAGE_THRESHOLD = size_t{32} << 20;

// Requests huge pages for a large block. This is only a hint; failure is harmless.
static inline void advise_huge_pages(void* memory, size_t bytes) {
#if defined(__linux__)
    if (memory == nullptr || bytes < HUGE_PAGE_THRESHOLD) return;
    const uintptr_t page = 4096;
    const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + page - 1) / page * page;
    const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + bytes) / page * page;
    (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
    (void)memory;
    (void)bytes;
#endif
}

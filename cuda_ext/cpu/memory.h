// Memory that a kernel is about to fill for the first time.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

// The C library maps blocks of this size anew each time, and a page fault every 4 KiB would cost more than the kernel.
constexpr size_t HUGE_PAGE_THRESHOLD = size_t{32} << 20;

// Asks for large pages under a big block. Only a hint: nothing depends on its success.
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

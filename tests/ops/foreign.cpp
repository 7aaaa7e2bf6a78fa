// Serves calls of the kernels over standard input and output, so that a library for another processor or system is
// tested under an emulator by the tests of this folder. tests/ops/foreign.py is the other end.
//
//     qemu-aarch64 -L /usr/aarch64-linux-gnu foreign libs3d_cpu.so
//
// A request is the name of a function, its structure, the offsets of the pointers in it, the number of threads, and the
// memory that the pointers refer to, as blocks with their addresses in the other process. The answer is the result of
// the function and the blocks. Numbers are little-endian.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#if defined(_WIN32)
#include <fcntl.h>
#include <io.h>
#include <windows.h>
#else
#include <dlfcn.h>
#endif

namespace {

struct Block {
    uint64_t address, size;
    std::vector<char> bytes;
};

using Kernel = int (*)(const void*, int);

void* find_function(const char* library, const char* name) {
#if defined(_WIN32)
    static HMODULE handle = LoadLibraryA(library);
    return handle ? reinterpret_cast<void*>(GetProcAddress(handle, name)) : nullptr;
#else
    static void* handle = dlopen(library, RTLD_NOW);
    if (handle == nullptr) fprintf(stderr, "%s\n", dlerror());
    return handle ? dlsym(handle, name) : nullptr;
#endif
}

bool read_bytes(void* target, size_t size) { return size == 0 || fread(target, 1, size, stdin) == size; }

template <class T>
T read_number() {
    T value{};
    if (!read_bytes(&value, sizeof value)) exit(0);
    return value;
}

template <class T>
std::vector<T> read_list() {
    std::vector<T> values(read_number<uint32_t>());
    if (!read_bytes(values.data(), values.size() * sizeof(T))) exit(2);
    return values;
}

// Translates an address of the other process.
uint64_t translate(std::vector<Block>& blocks, uint64_t address) {
    for (Block& block : blocks) {
        if (address >= block.address && address - block.address < block.size) {
            return reinterpret_cast<uint64_t>(block.bytes.data()) + (address - block.address);
        }
    }
    fprintf(stderr, "foreign: no block holds an address\n");
    exit(3);
}

}  // namespace

int main(int count, char** words) {
    if (count != 2) return 1;
#if defined(_WIN32)
    _setmode(0, _O_BINARY);
    _setmode(1, _O_BINARY);
#endif
    const auto variant = reinterpret_cast<const char* (*)()>(find_function(words[1], "s3d_cpu_variant"));
    if (variant == nullptr) return 1;
    const uint32_t length = static_cast<uint32_t>(strlen(variant()));
    fwrite(&length, sizeof length, 1, stdout);
    fwrite(variant(), 1, length, stdout);
    fflush(stdout);
    while (true) {
        const std::vector<char> name = read_list<char>();
        std::vector<char> structure = read_list<char>();
        const std::vector<uint32_t> offsets = read_list<uint32_t>();
        const int32_t threads = read_number<int32_t>();
        std::vector<Block> blocks(read_number<uint32_t>());
        for (Block& block : blocks) {
            block.address = read_number<uint64_t>();
            block.size = read_number<uint64_t>();
            block.bytes.resize(block.size);
            if (!read_bytes(block.bytes.data(), block.size)) return 2;
        }
        for (uint32_t offset : offsets) {
            uint64_t address;
            memcpy(&address, structure.data() + offset, sizeof address);
            if (address != 0) address = translate(blocks, address);
            memcpy(structure.data() + offset, &address, sizeof address);
        }
        void* function = find_function(words[1], std::string(name.begin(), name.end()).c_str());
        if (function == nullptr) return 4;
        const int32_t code = reinterpret_cast<Kernel>(function)(structure.data(), threads);
        fwrite(&code, sizeof code, 1, stdout);
        for (const Block& block : blocks) fwrite(block.bytes.data(), 1, block.size, stdout);
        fflush(stdout);
    }
}

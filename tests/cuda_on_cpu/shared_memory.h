// Shared memory and asynchronous copies into it.
//
// Every array has a block of the heap to itself, exactly as large as it is, so AddressSanitizer
// sees an index that is one too large; and is all bits one (NaN, -1) when a block starts.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>
#include <vector>

#include "block.h"

namespace cuda_on_cpu {

constexpr int kPoison = 0xff;
constexpr size_t kLargestDynamic = 227 * 1024;  // what a block can get on sm_90

struct Array {
  char* begin = nullptr;
  size_t size = 0;
};

inline std::vector<Array> static_arrays;
inline Array dynamic_array;

inline char* allocate(size_t size) {
  void* memory = std::malloc(size);
  if (memory == nullptr) throw std::bad_alloc();
  std::memset(memory, kPoison, size);
  return static_cast<char*>(memory);
}

inline void set_dynamic_shared(size_t size) {
  if (size > kLargestDynamic) fail("asks for %zu bytes of dynamic shared memory", size);
  if (dynamic_array.size == size && dynamic_array.begin != nullptr) {
    std::memset(dynamic_array.begin, kPoison, size);
    return;
  }
  std::free(dynamic_array.begin);
  dynamic_array = {allocate(size), size};
}

// What NNMF_CUDA_SHARED declares, once in the program, as __shared__ does once in a block: blocks
// run one after another.
template <class T>
class SharedArray {
 public:
  T& of_this_block() {
    if (memory_ == nullptr) {
      memory_ = allocate(sizeof(T));
      static_arrays.push_back({memory_, sizeof(T)});
    }
    if (std::exchange(serial_, block_serial) != block_serial)
      std::memset(memory_, kPoison, sizeof(T));
    return *reinterpret_cast<T*>(memory_);
  }

 private:
  char* memory_ = nullptr;
  uint64_t serial_ = 0;
};

inline bool is_shared(const char* address, size_t size) {
  const auto inside = [&](const Array& array) {
    return address >= array.begin && address + size <= array.begin + array.size;
  };
  return inside(dynamic_array) || std::any_of(static_arrays.begin(), static_arrays.end(), inside);
}

inline void start_copy(char* to, const char* from, size_t size, size_t zfill) {
  if (size != 4 && size != 8 && size != 16) fail("asynchronous copy of %zu bytes", size);
  if (zfill > size) fail("asynchronous copy of %zu bytes with %zu zeros", size, zfill);
  if (reinterpret_cast<uintptr_t>(to) % size != 0 || reinterpret_cast<uintptr_t>(from) % size != 0)
    fail("asynchronous copy of %zu bytes whose %s is not aligned", size,
         reinterpret_cast<uintptr_t>(to) % size != 0 ? "destination" : "source");
  if (!is_shared(to, size))
    fail("asynchronous copy of %zu bytes to what is not shared memory", size);
  // Read here for AddressSanitizer's sake: its report then shows the line of the kernel.
  char now[16];
  std::memcpy(now, from, size - zfill);
  std::memset(to, kPoison, size);
  current->copies.push_back({to, from, size, size - zfill, current->committed});
}

inline void commit_copies() {
  ++current->committed;
  pause();
}

inline void wait_for_copies(size_t groups_left) {
  pause();
  std::erase_if(current->copies, [&](const Copy& copy) {
    if (copy.group + groups_left >= current->committed) return false;
    land(copy);
    return true;
  });
}

}  // namespace cuda_on_cpu

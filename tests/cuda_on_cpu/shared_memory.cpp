// Shared memory and asynchronous copies into it.
//
// Every array has a part of the heap to itself, exactly as large as it is, so AddressSanitizer sees
// an index that is one too large.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>
#include <vector>

#include "thread.h"

namespace cuda_on_cpu {
namespace {

constexpr int kPoison = 0xff;
constexpr size_t kLargestDynamic = 227 * 1024;  // what a block can get on sm_90

struct Range {
  const char* begin;
  size_t size;
};

std::vector<Range> static_arrays;
size_t dynamic_size = 0;

bool is_shared(const char* address, size_t size) {
  const auto inside = [&](const Range& range) {
    return address >= range.begin && address + size <= range.begin + range.size;
  };
  return inside({dynamic_shared, dynamic_size}) ||
         std::any_of(static_arrays.begin(), static_arrays.end(), inside);
}

void land(const Copy& copy) {
  std::memcpy(copy.to, copy.from, copy.valid);
  std::memset(copy.to + copy.valid, 0, copy.size - copy.valid);
}

bool is_aligned(const void* address, size_t size) {
  return reinterpret_cast<uintptr_t>(address) % size == 0;
}

}  // namespace

char* allocate_poisoned(size_t size) {
  void* memory = std::malloc(size);
  if (memory == nullptr) throw std::bad_alloc();
  return static_cast<char*>(std::memset(memory, kPoison, size));
}

void set_dynamic_shared(size_t size) {
  if (size > kLargestDynamic) fail("asks for %zu bytes of dynamic shared memory", size);
  if (dynamic_shared == nullptr || dynamic_size != size) {
    std::free(dynamic_shared);
    dynamic_shared = allocate_poisoned(size);
    dynamic_size = size;
  }
  std::memset(dynamic_shared, kPoison, size);
}

DynamicShared put_dynamic_shared_aside() {
  return {std::exchange(dynamic_shared, nullptr), std::exchange(dynamic_size, 0)};
}

void take_dynamic_shared_up(const DynamicShared& shared) {
  std::free(dynamic_shared);
  dynamic_shared = shared.memory;
  dynamic_size = shared.size;
}

void* array_of_this_block(SharedArray& array, size_t size) {
  if (array.memory == nullptr) {
    array.memory = allocate_poisoned(size);
    static_arrays.push_back({array.memory, size});
  }
  if (std::exchange(array.block, block_serial) != block_serial)
    std::memset(array.memory, kPoison, size);
  return array.memory;
}

void start_copy(void* to, const void* from, size_t size, size_t zfill) {
  if (size != 4 && size != 8 && size != 16) fail("asynchronous copy of %zu bytes", size);
  if (zfill > size) fail("asynchronous copy of %zu bytes with %zu zeros", size, zfill);
  if (!is_aligned(to, size) || !is_aligned(from, size))
    fail("asynchronous copy of %zu bytes whose %s is not aligned", size,
         is_aligned(to, size) ? "source" : "destination");
  char* const destination = static_cast<char*>(to);
  const char* const source = static_cast<const char*>(from);
  if (!is_shared(destination, size))
    fail("asynchronous copy of %zu bytes to what is not shared memory", size);
  // Read here for AddressSanitizer's sake: its report then shows the line of the kernel.
  char now[16];
  std::memcpy(now, source, size - zfill);
  std::memset(destination, kPoison, size);
  current->copies.push_back({destination, source, size, size - zfill, current->committed});
}

void land_some(float probability) {
  if (probability == 0) return;
  std::erase_if(current->copies, [probability](const Copy& copy) {
    if (draw() >= probability) return false;
    land(copy);
    return true;
  });
}

void commit_copies() {
  ++current->committed;
  pause_thread();
}

void wait_for_copies(size_t groups_left) {
  pause_thread();
  std::erase_if(current->copies, [groups_left](const Copy& copy) {
    if (copy.group + groups_left >= current->committed) return false;
    land(copy);
    return true;
  });
}

}  // namespace cuda_on_cpu

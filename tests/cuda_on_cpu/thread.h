// The threads of a block, as block.cpp and shared_memory.cpp see them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

#include "block.h"
#include "fiber.h"

namespace cuda_on_cpu {

constexpr unsigned kLanes = 32;

// What a thread waits for. `mask` is 0 for the barrier of the block.
struct Collective {
  const char* name = nullptr;  // null: nothing
  unsigned mask = 0;
};

// One asynchronous copy under way.
struct Copy {
  char* to;
  const char* from;
  size_t size, valid;
  size_t group;
};

struct Thread {
  Fiber fiber;
  unsigned number = 0;  // in the block
  dim3 index;
  bool done = false;
  bool waited = false;  // for the kernel before
  float key = 0;        // who has the largest goes first
  Collective waits_for;
  uint64_t given = 0, received = 0;  // in a warp collective
  int source = 0;                    // the lane to receive from
  std::vector<Copy> copies;
  size_t committed = 0;  // groups of copies
};

inline std::mt19937 random_bits;
inline Thread* current = nullptr;  // the thread that is running
inline uint64_t block_serial = 0;  // counts the blocks that have run

// In [0, 1).
inline float draw() {
  return static_cast<float>(random_bits() >> 8) / (1 << 24);
}

// A switch point at which the thread waits for nobody.
void pause_thread();

void set_dynamic_shared(size_t size);

// Dynamic shared memory of a block that another kernel's blocks run in the midst of.
struct DynamicShared {
  char* memory;
  size_t size;
};

DynamicShared put_dynamic_shared_aside();
void take_dynamic_shared_up(const DynamicShared& shared);

// Lets each copy of the running thread land with this probability.
void land_some(float probability);

// A part of the heap, all bits one.
char* allocate_poisoned(size_t size);

}  // namespace cuda_on_cpu

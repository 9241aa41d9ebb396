// What the kernels see of the machine that runs them: one block at a time, its threads in random
// order.
//
// A thread runs until a switch point: a barrier, a warp collective, the commit of or the wait for
// asynchronous copies. Which thread goes on then is drawn at random, so an order that the kernel
// does not enforce is not kept: a missing barrier shows as a wrong result. A collective completes
// when all threads that it names have arrived; where that can never be, the run ends with a list
// of who waits where. Threads that have returned count as missing.
//
// Kernels are compiled under sanitizers, often with one mistake each: this header is kept light,
// and what is behind it is compiled once.
#pragma once

#include <cstddef>
#include <cstdint>

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace cuda_on_cpu {

inline dim3 grid_dim, block_dim, block_index, thread_index;
inline char* dynamic_shared = nullptr;

// Which of the mistakes that an executable has is made, see share_a_build of harness.py; 0: none.
extern const int mutation;

// Ends the run: the kernel has broken a rule.
[[noreturn, gnu::format(printf, 1, 2)]] void fail(const char* format, ...);

// Runs `body(arguments)` as every thread of every block, blocks in random order.
void launch_blocks(const char* name, dim3 grid, dim3 block, size_t shared_bytes,
                   void (*body)(const void*), const void* arguments);

// The same for a kernel whose blocks may start before the one launched before has run, as
// NNMF_CUDA_LAUNCH_NEXT lets them: each thread then waits for it by `wait_for_kernel_before`, and
// what it does earlier must not depend on it. Such a kernel is run late, so that the next one can
// start early: when another is launched, or when the call ends. `destroy` frees the arguments.
void launch_next_blocks(const char* name, dim3 grid, dim3 block, size_t shared_bytes,
                        void (*body)(const void*), const void* arguments,
                        void (*destroy)(const void*));
void wait_for_kernel_before();
void finish_launches();

void block_barrier();
void warp_barrier(unsigned mask);

// Returns what lane `source` of the warp gives; what `name` calls itself is for messages.
uint64_t shuffle(const char* name, unsigned mask, uint64_t value, int source);
unsigned ballot(const char* name, unsigned mask, bool vote);

// The source of a shuffle within segments of `width` lanes. Where it would lie beyond the segment
// of this lane it is the lane itself.
int lane_xor(int lane_mask, int width);
int lane_below(unsigned delta, int width);
int lane_above(unsigned delta, int width);
int lane_of_segment(int source, int width);

// An array in shared memory. There is one in the program, as there is one in a block: blocks run
// one after another. `array_of_this_block` makes it all bits one (NaN, -1) in every new block.
struct SharedArray {
  char* memory = nullptr;
  uint64_t block = 0;
};

void* array_of_this_block(SharedArray& array, size_t size);

// An asynchronous copy poisons its destination at once. It lands at a random later switch point
// of the thread or when the thread waits for its group.
void start_copy(void* to, const void* from, size_t size, size_t zfill);
void commit_copies();
void wait_for_copies(size_t groups_left);

}  // namespace cuda_on_cpu

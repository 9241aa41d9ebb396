// Stands in for CUDA, so that kernels can be compiled and run as host code on a machine without
// one: CUDA's names, made of the parts beside this file.
//
// Every CUDA thread is a fiber; threads go on in random order after every switch point (block.h).
// Blocks run one after another in random order, so a kernel whose blocks wait for each other cannot
// run here. What is not here is not supported on purpose: __activemask tells nothing on which a
// kernel may rely, atomics on floats have no fixed order. Arithmetic is the host's.
#pragma once

#include <bit>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "block.h"
#include "shared_memory.h"

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(size) __attribute__((aligned(size)))
// Shared by the block, but neither poisoned nor guarded: NNMF_CUDA_SHARED is both.
#define __shared__ static

using cudaStream_t = void*;

namespace cuda_on_cpu {

template <class Kernel, class... Args>
void launch(const char* name, Kernel kernel, dim3 grid, dim3 block, size_t shared_bytes,
            cudaStream_t /*stream*/, const Args&... args) {
  kernel_name = name;
  grid_dim = grid;
  block_dim = block;
  block_size = block.x * block.y * block.z;
  if (block_size == 0 || block_size > 1024) fail("launched with %u threads", block_size);
  // Threads are never moved: their fibers know where they are.
  if (threads.empty()) threads = std::vector<Thread>(1024);
  for (unsigned i = 0; i < block_size; ++i)
    if (threads[i].fiber.bottom == nullptr) start_fiber(threads[i].fiber, run_thread);
  body = [&] { kernel(args...); };
  std::vector<uint64_t> blocks(uint64_t{grid.x} * grid.y * grid.z);
  if (blocks.empty()) fail("launched with an empty grid");
  for (uint64_t i = 0; i < blocks.size(); ++i) blocks[i] = i;
  std::shuffle(blocks.begin(), blocks.end(), random_bits);
  for (const uint64_t i : blocks) {
    block_index = dim3(i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y);
    set_dynamic_shared(shared_bytes);
    run_block();
  }
}

// A warp collective that gives `value` and receives that of lane `source` of the warp.
template <class T>
T shuffle(const char* name, unsigned mask, T value, int source) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= sizeof(uint64_t));
  if ((mask >> source & 1) == 0)
    fail("%s with mask %08x reads lane %d, which is not in it", name, mask, source);
  std::memcpy(&current->given, &value, sizeof(T));
  current->source = source;
  warp_collective(name, mask, [mask](Thread* lanes) {
    for (unsigned i = 0; i < kLanes; ++i)
      if (mask >> i & 1) lanes[i].received = lanes[lanes[i].source].given;
  });
  std::memcpy(&value, &current->received, sizeof(T));
  return value;
}

inline unsigned ballot(const char* name, unsigned mask, bool vote) {
  current->given = vote;
  warp_collective(name, mask, [mask](Thread* lanes) {
    uint64_t votes = 0;
    for (unsigned i = 0; i < kLanes; ++i)
      if (mask >> i & 1) votes |= lanes[i].given << i;
    for (unsigned i = 0; i < kLanes; ++i)
      if (mask >> i & 1) lanes[i].received = votes;
  });
  return static_cast<unsigned>(current->received);
}

// This thread's lane and the first and last lane of the segment of `width` that it is in.
struct Segment {
  int lane, first, last;
};

inline Segment segment_of(int width) {
  if (width < 1 || width > 32 || !std::has_single_bit(static_cast<unsigned>(width)))
    fail("shuffle of width %d", width);
  const int lane = static_cast<int>(current->number % kLanes), first = lane & ~(width - 1);
  return {lane, first, first + width - 1};
}

}  // namespace cuda_on_cpu

#define threadIdx (cuda_on_cpu::current->index)
#define blockIdx (cuda_on_cpu::block_index)
#define blockDim (cuda_on_cpu::block_dim)
#define gridDim (cuda_on_cpu::grid_dim)
constexpr int warpSize = 32;

inline void __syncthreads() {
  cuda_on_cpu::barrier();
}

inline void __syncwarp(unsigned mask = ~0u) {
  cuda_on_cpu::warp_collective("__syncwarp", mask, [](cuda_on_cpu::Thread*) {});
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const auto [lane, first, last] = cuda_on_cpu::segment_of(width);
  return cuda_on_cpu::shuffle("__shfl_sync", mask, value, first + (source & (width - 1)));
}

// Where the source lies beyond the segment, a lane keeps its own value.
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32) {
  const auto [lane, first, last] = cuda_on_cpu::segment_of(width);
  const int source = (lane ^ lane_mask) & 31;
  return cuda_on_cpu::shuffle("__shfl_xor_sync", mask, value, source > last ? lane : source);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const auto [lane, first, last] = cuda_on_cpu::segment_of(width);
  const int source = lane + static_cast<int>(delta);
  return cuda_on_cpu::shuffle("__shfl_down_sync", mask, value, source > last ? lane : source);
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const auto [lane, first, last] = cuda_on_cpu::segment_of(width);
  const int source = lane - static_cast<int>(delta);
  return cuda_on_cpu::shuffle("__shfl_up_sync", mask, value, source < first ? lane : source);
}

inline unsigned __ballot_sync(unsigned mask, int vote) {
  return cuda_on_cpu::ballot("__ballot_sync", mask, vote != 0);
}

inline int __any_sync(unsigned mask, int vote) {
  return cuda_on_cpu::ballot("__any_sync", mask, vote != 0) != 0;
}

inline int __all_sync(unsigned mask, int vote) {
  return cuda_on_cpu::ballot("__all_sync", mask, vote != 0) == mask;
}

inline int __popc(unsigned bits) {
  return std::popcount(bits);
}

inline int __clz(int bits) {
  return std::countl_zero(static_cast<unsigned>(bits));
}

inline int __ffs(int bits) {
  return __builtin_ffs(bits);
}

inline void __threadfence() {}

inline void __threadfence_block() {}

template <class T>
T __ldg(const T* address) {
  return *address;
}

inline float __fdividef(float numerator, float denominator) {
  return numerator / denominator;
}

template <std::integral T>
T atomicAdd(T* address, std::type_identity_t<T> value) {
  const T old = *address;
  *address = old + value;
  return old;
}

inline void __pipeline_memcpy_async(void* to, const void* from, size_t size, size_t zfill = 0) {
  cuda_on_cpu::start_copy(static_cast<char*>(to), static_cast<const char*>(from), size, zfill);
}

inline void __pipeline_commit() {
  cuda_on_cpu::commit_copies();
}

inline void __pipeline_wait_prior(size_t groups_left) {
  cuda_on_cpu::wait_for_copies(groups_left);
}

#define NNMF_CUDA_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  cuda_on_cpu::launch(#kernel, kernel, grid, block, shared_bytes, stream __VA_OPT__(, ) __VA_ARGS__)

#define NNMF_CUDA_DYNAMIC_SHARED(T, name) \
  T* const name = reinterpret_cast<T*>(cuda_on_cpu::dynamic_array.begin)

#define NNMF_CUDA_SHARED(T, name, ...)                            \
  static cuda_on_cpu::SharedArray<T __VA_ARGS__> name##_of_block; \
  T(&name) __VA_ARGS__ = name##_of_block.of_this_block()

namespace nnmf_cuda {

// A small device: the work of a test is then cut as that of a large problem is on a large one.
inline int64_t multiprocessors(int32_t /*device*/) {
  return 3;
}

}  // namespace nnmf_cuda

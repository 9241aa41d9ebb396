// Stands in for CUDA, so that kernels can be compiled and run as host code on a machine without
// one: CUDA's names for what block.h declares.
//
// Blocks run one after another, so a kernel whose blocks wait for each other cannot run here; of
// two kernels that overlap, one runs while the first block of the other waits. What is not here is
// not supported on purpose: __activemask tells nothing on which a kernel may rely, atomics on
// floats have no fixed order. Arithmetic is the host's.
#pragma once

#include <bit>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "block.h"

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(size) __attribute__((aligned(size)))
// Shared by the block, but neither poisoned nor guarded: NNMF_CUDA_SHARED is both.
#define __shared__ static

#define threadIdx (cuda_on_cpu::thread_index)
#define blockIdx (cuda_on_cpu::block_index)
#define blockDim (cuda_on_cpu::block_dim)
#define gridDim (cuda_on_cpu::grid_dim)

using cudaStream_t = void*;
constexpr int warpSize = 32;

inline void __syncthreads() {
  cuda_on_cpu::block_barrier();
}

inline void __syncwarp(unsigned mask = ~0u) {
  cuda_on_cpu::warp_barrier(mask);
}

namespace cuda_on_cpu {

template <class T>
T shuffle_value(const char* name, unsigned mask, T value, int source) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = shuffle(name, mask, bits, source);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace cuda_on_cpu

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  return cuda_on_cpu::shuffle_value("__shfl_sync", mask, value,
                                    cuda_on_cpu::lane_of_segment(source, width));
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32) {
  return cuda_on_cpu::shuffle_value("__shfl_xor_sync", mask, value,
                                    cuda_on_cpu::lane_xor(lane_mask, width));
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  return cuda_on_cpu::shuffle_value("__shfl_down_sync", mask, value,
                                    cuda_on_cpu::lane_above(delta, width));
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  return cuda_on_cpu::shuffle_value("__shfl_up_sync", mask, value,
                                    cuda_on_cpu::lane_below(delta, width));
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
  cuda_on_cpu::start_copy(to, from, size, zfill);
}

inline void __pipeline_commit() {
  cuda_on_cpu::commit_copies();
}

inline void __pipeline_wait_prior(size_t groups_left) {
  cuda_on_cpu::wait_for_copies(groups_left);
}

namespace cuda_on_cpu {

template <class Kernel, class... Args>
void launch(const char* name, Kernel kernel, dim3 grid, dim3 block, size_t shared_bytes,
            cudaStream_t /*stream*/, const Args&... args) {
  const auto body = [&] { kernel(args...); };
  launch_blocks(
      name, grid, block, shared_bytes,
      [](const void* call) { (*static_cast<decltype(&body)>(call))(); }, &body);
}

template <class Kernel, class... Args>
void launch_next(const char* name, Kernel kernel, dim3 grid, dim3 block, size_t shared_bytes,
                 cudaStream_t /*stream*/, const Args&... args) {
  const auto* const body = new auto([kernel, args...] { kernel(args...); });
  using Body = decltype(body);
  launch_next_blocks(
      name, grid, block, shared_bytes, [](const void* call) { (*static_cast<Body>(call))(); }, body,
      [](const void* call) { delete static_cast<Body>(call); });
}

}  // namespace cuda_on_cpu

#define NNMF_CUDA_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  cuda_on_cpu::launch(#kernel, kernel, grid, block, shared_bytes, stream __VA_OPT__(, ) __VA_ARGS__)

#define NNMF_CUDA_LAUNCH_NEXT(kernel, grid, block, shared_bytes, stream, ...) \
  cuda_on_cpu::launch_next(#kernel, kernel, grid, block, shared_bytes,        \
                           stream __VA_OPT__(, ) __VA_ARGS__)

#define NNMF_CUDA_DYNAMIC_SHARED(T, name) \
  T* const name = reinterpret_cast<T*>(cuda_on_cpu::dynamic_shared)

#define NNMF_CUDA_SHARED(T, name, ...)             \
  static cuda_on_cpu::SharedArray name##_of_block; \
  T(&name)                                         \
  __VA_ARGS__ = *static_cast<T(*) __VA_ARGS__>(    \
      cuda_on_cpu::array_of_this_block(name##_of_block, sizeof(T __VA_ARGS__)))

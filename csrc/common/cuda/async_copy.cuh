// Copies from global to shared memory that a thread starts and waits for later (cp.async, sm_80
// on). The three calls of cuda_pipeline.h have host versions where kernels are tested on the CPU.
#pragma once

#include <cstddef>

#include "launch.h"

#if defined(__CUDACC__)
#include <cuda_pipeline.h>
#endif

namespace nnmf_cuda {

// Starts to copy the first `valid` of kBytes (4, 8 or 16) bytes and to fill up with zeros. Both
// addresses are multiples of kBytes; with valid == 0 nothing is read. One instruction, which
// cuda_pipeline.h makes a switch where `valid` is not a constant.
template <int kBytes>
__device__ __forceinline__ void copy_async(void* shared, const void* global, int valid) {
#if defined(__CUDA_ARCH__)
  const auto to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  if constexpr (kBytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(to), "l"(global), "r"(valid)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;"
                 :
                 : "r"(to), "l"(global), "n"(kBytes), "r"(valid)
                 : "memory");
#else
  __pipeline_memcpy_async(shared, global, kBytes, static_cast<size_t>(kBytes - valid));
#endif
}

// The same for all kBytes.
template <int kBytes>
__device__ __forceinline__ void copy_async(void* shared, const void* global) {
  __pipeline_memcpy_async(shared, global, kBytes);
}

// Ends a group of copies; `wait_for_copies<n>` then waits until at most the last n groups of this
// thread are under way. What other threads have copied needs a barrier besides.
__device__ inline void commit_copies() {
  __pipeline_commit();
}

template <int kGroupsLeft>
__device__ inline void wait_for_copies() {
  __pipeline_wait_prior(kGroupsLeft);
}

}  // namespace nnmf_cuda

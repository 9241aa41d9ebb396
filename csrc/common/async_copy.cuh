// Copies from global to shared memory that a thread starts and waits for later (cp.async, sm_80
// on). The three calls of cuda_pipeline.h have host versions where kernels are tested on the CPU.
#pragma once

#include <cstddef>
#include <cstdint>

#include "launch.h"

#if defined(__CUDACC__)
#include <cuda_pipeline.h>
#endif

namespace nnmf_cuda {

// Starts to copy the first `valid` of kBytes (4, 8 or 16) bytes and to fill up with zeros. Both
// addresses are multiples of kBytes; with valid == 0 nothing is read.
template <int kBytes>
__device__ inline void copy_async(void* shared, const void* global, int valid) {
  __pipeline_memcpy_async(shared, global, kBytes, static_cast<size_t>(kBytes - valid));
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

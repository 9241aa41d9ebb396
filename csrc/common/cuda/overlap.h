// Kernels of one stream that overlap: blocks of the next one start while the last of the one before
// are still at work, and wait where they need its results (programmatic dependent launch, sm_90
// on). What a launch takes, and what a kernel does before it waits, then costs no time.
#pragma once

#include "launch.h"
#include "settings.h"

namespace nnmf_cuda {

// Waits until all kernels launched before have ended, and what they have written can be read; then
// lets blocks of the next kernel start. Every thread of a kernel that is launched by
// NNMF_CUDA_LAUNCH_NEXT calls it, before it writes anything or returns. As a kernel lets the next
// one start after its own wait, all kernels but the very last one have ended where a block starts:
// what that one does not write can be read before the wait.
__device__ __forceinline__ void wait_for_kernel_before() {
#if !defined(__CUDACC__)
  cuda_on_cpu::wait_for_kernel_before();
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

}  // namespace nnmf_cuda

#if defined(__CUDACC__)

#include <map>
#include <mutex>
#include <utility>

namespace nnmf_cuda {

// Whether a kernel may start early on the current device: not where the machine code that runs was
// made for an older one, as it does not wait then; and not with NNMF_CUDA_OVERLAP=0.
inline bool may_overlap(const void* kernel) {
  static const bool wanted = setting("NNMF_CUDA_OVERLAP", 1, {0, 1}) == 1;
  if (!wanted) return false;
  static std::mutex mutex;
  static std::map<std::pair<const void*, int>, bool> known;
  const std::pair key{kernel, CudaRuntime::device()};
  const std::lock_guard lock(mutex);
  const auto found = known.find(key);
  if (found != known.end()) return found->second;
  cudaFuncAttributes attributes{};
  check_cuda(cudaFuncGetAttributes(&attributes, kernel), "cannot ask for a kernel's attributes");
  prefer_shared(kernel);
  return known[key] = attributes.ptxVersion >= 90 && attributes.binaryVersion >= 90;
}

template <class... Parameters, class... Arguments>
void launch_next(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
                 cudaStream_t stream, Arguments&&... arguments) {
  const auto* const address = reinterpret_cast<const void*>(kernel);
  allow_shared(address, shared_bytes);
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &overlap;
  config.numAttrs = may_overlap(address) ? 1 : 0;
  check_cuda(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...),
             "CUDA launch failed");
}

}  // namespace nnmf_cuda

// As NNMF_CUDA_LAUNCH, for a kernel that calls wait_for_kernel_before().
#define NNMF_CUDA_LAUNCH_NEXT(kernel, grid, block, shared_bytes, stream, ...) \
  nnmf_cuda::launch_next(kernel, grid, block, shared_bytes, stream, __VA_ARGS__)

#endif

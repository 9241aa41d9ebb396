// Stands in for CUDA where only the launches of a call are wanted: csrc's own launch code runs,
// each launch is written down, and no kernel runs.
#pragma once

#include "../../tests/cuda_on_cpu/cuda_on_cpu.h"

namespace launch_plan {

// Writes down a launch; `kernel` is its function, whose name in the executable is that of the
// machine code; where it has none there, `name` is what the source calls it.
// `overlaps`: blocks may start before the kernel before has ended.
void record(const char* name, const void* kernel, dim3 grid, dim3 block, size_t shared_bytes,
            bool overlaps);

}  // namespace launch_plan

#undef NNMF_CUDA_LAUNCH
#undef NNMF_CUDA_LAUNCH_NEXT
#define NNMF_CUDA_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                         \
  launch_plan::record(#kernel, reinterpret_cast<const void*>(kernel), grid, block, shared_bytes, \
                      false)
#define NNMF_CUDA_LAUNCH_NEXT(kernel, grid, block, shared_bytes, stream, ...)                    \
  launch_plan::record(#kernel, reinterpret_cast<const void*>(kernel), grid, block, shared_bytes, \
                      true)

// Coordinate descent on half the squared Frobenius norm, component by component, from sums over X;
// the twin of update_by_coordinates in update.h.
#pragma once

#include <cstdint>

#include "beta_loss.h"
#include "factor_kernels.cuh"

namespace nnmf_cuda {

constexpr int kHalsThreads = 32;  // of a block: one for each row, whose components they all hold

template <class T>
struct HalsTask {
  T* factor;             // [B, length, padded]
  const double* cross;   // [B, length, padded]: the numerators
  const double* gram;    // [B, padded, padded], of the other factor
  int64_t rows, length;  // rows: of all problems
  int n_components, padded;
  Update update;
};

template <class T>
__global__ void __launch_bounds__(kHalsThreads) hals_kernel(HalsTask<T> task) {
  NNMF_CUDA_DYNAMIC_SHARED(double, values);  // [n_components, kHalsThreads]
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kHalsThreads + threadIdx.x;
  if (row >= task.rows) return;
  double* const own = values + threadIdx.x;
  T* const factor = task.factor + row * task.padded;
  const double* const cross = task.cross + row * task.padded;
  const double* const gram = task.gram + row / task.length * task.padded * task.padded;
  const double l1 = task.update.rule.l1_reg, l2 = task.update.rule.l2_reg;
  for (int r = 0; r < task.n_components; ++r)
    own[r * kHalsThreads] = static_cast<double>(factor[r]);
  for (int64_t sweep = 0; sweep < task.update.n_inner; ++sweep) {
    for (int r = 0; r < task.n_components; ++r) {
      const double* const column = gram + r * task.padded;
      const double curvature = column[r] + l2, here = own[r * kHalsThreads];
      double slope = l2 * here + l1 - task.update.scale * cross[r];
#pragma unroll 4
      for (int other = 0; other < task.n_components; ++other)
        slope += own[other * kHalsThreads] * column[other];
      const double moved = here - slope / curvature;
      if (curvature != 0) own[r * kHalsThreads] = moved < 0 ? 0 : moved;
    }
  }
  for (int r = 0; r < task.n_components; ++r) factor[r] = static_cast<T>(own[r * kHalsThreads]);
}

template <class T>
void launch_hals(const HalsTask<T>& task, cudaStream_t stream) {
  const int bytes = task.n_components * kHalsThreads * static_cast<int>(sizeof(double));
  if (task.rows > 0 && task.n_components > 0)
    NNMF_CUDA_LAUNCH((hals_kernel<T>), grid_of(blocks_of(task.rows, kHalsThreads)), kHalsThreads,
                     bytes, stream, task);
}

}  // namespace nnmf_cuda

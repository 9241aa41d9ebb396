// New values of a factor from the sums that the splits of a half-step have left.
#pragma once

#include <cstdint>

#include "beta_loss.h"
#include "factor_kernels.cuh"

namespace nnmf_cuda {

template <class T>
struct UpdateTask {
  T* factor;              // [B, length, padded]
  const T* numerators;    // [B, splits, length, padded]
  const T* denominators;  // the same; where the loss sums them
  const double* sums;     // Kullback-Leibler: [B, splits, padded]
  const double* gram;     // Frobenius: [B, padded, padded]
  const bool* active;     // [B] or nullptr
  int64_t length, splits;
  int n_components, padded;
  Update update;
  Ways ways;
};

// The other factor's components summed, for all values of the block.
template <class T>
__device__ double sum_of_component(const UpdateTask<T>& task, int64_t b, int component) {
  NNMF_CUDA_SHARED(double, sums, [kMaxComponents]);
  const Ways ways{kThreads / task.padded, task.padded};
  const int own = static_cast<int>(threadIdx.x) % task.padded;
  const double sum = sum_parts(task.sums + b * task.splits * task.padded + own, task.splits,
                               task.padded, true, ways);
  if (static_cast<int>(threadIdx.x) < task.padded) sums[own] = sum;
  __syncthreads();
  return sums[component];
}

// A block for some values that lie side by side, in whole rows; a way of threads each.
template <Loss loss, class T>
__global__ void __launch_bounds__(kThreads, 4) update_kernel(UpdateTask<T> task) {
  const int64_t size = task.length * task.padded;
  const int64_t blocks = (size + task.ways.columns - 1) / task.ways.columns;
  const int64_t b = blockIdx.x / blocks;
  const int64_t at = blockIdx.x % blocks * task.ways.columns + threadIdx.x % task.ways.columns;
  if (task.active != nullptr && !task.active[b]) return;
  const bool inside = at < size;
  const int component = static_cast<int>(at % task.padded);
  const int64_t first = b * task.splits * size + at;
  T* const value = task.factor + b * size + at;
  double denominator = 0;
  if constexpr (loss == Loss::kKullbackLeibler) {
    denominator = sum_of_component(task, b, component);
    if (denominator == 0) denominator = task.update.zero_sum;
  } else if constexpr (loss == Loss::kFrobenius) {
    const double* gram = task.gram + b * task.padded * task.padded;
    if (inside)
      for (int other = 0; other < task.n_components; ++other)
        denominator +=
            static_cast<double>(value[other - component]) * gram[other * task.padded + component];
    __syncthreads();  // all of a row is read before any of it changes
  } else {
    denominator = sum_parts(task.denominators + first, task.splits, size, inside, task.ways);
  }
  const double numerator = sum_parts(task.numerators + first, task.splits, size, inside, task.ways);
  if (!inside || static_cast<int>(threadIdx.x) >= task.ways.columns) return;
  const T changed = updated(*value, static_cast<T>(numerator * task.update.scale),
                            static_cast<T>(denominator), task.update.rule);
  *value = component < task.n_components ? changed : T{0};  // behind the last it may be NaN
}

template <Loss loss, class T>
void launch_update(UpdateTask<T> task, int64_t batch, cudaStream_t stream) {
  task.ways = ways_of(task.splits, task.padded);
  const int64_t blocks = batch * blocks_of(task.length * task.padded, task.ways.columns);
  if (blocks > 0)
    NNMF_CUDA_LAUNCH((update_kernel<loss, T>), grid_of(blocks), kThreads, 0, stream, task);
}

}  // namespace nnmf_cuda

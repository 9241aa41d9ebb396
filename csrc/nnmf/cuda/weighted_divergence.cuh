// The divergence where entries of X have weights, a block a tile of W H, for any number of
// components.
#pragma once

#include <cstdint>

#include "divergence.cuh"
#include "weighted_iterations.cuh"

namespace nnmf_cuda {

template <class T, class Data>
struct WeightedDivergenceTask {
  FactorParams<T, Data> problem;  // with H as [B, n_features, k]
  Weights<T> weights;
  double* parts;  // [B, tiles]
  TermRule<double> rule;
};

template <Loss loss, class T, class Data>
__global__ void __launch_bounds__(kThreads)
    weighted_divergence_kernel(WeightedDivergenceTask<T, Data> task) {
  const Shape& s = task.problem.shape;
  const int64_t k = s.n_components;
  const WidePlace<> at(s.n_samples, s.n_features);
  const WideSum<T> wh = wide_tile_product<T, T>(
      task.problem.W + (at.problem * s.n_samples + at.row) * k, k, 1, s.n_samples - at.row,
      task.problem.H + (at.problem * s.n_features + at.column) * k, k, 1, s.n_features - at.column,
      k);
  const Data* const X = task.problem.X + at.problem * s.x_stride;
  const T floor = static_cast<T>(task.rule.floor);
  double total = 0;
#pragma unroll
  for (int i = 0; i < kWideEach; ++i) {
    const int64_t row = at.row + wh.row() + i;
#pragma unroll
    for (int j = 0; j < kWideEach; ++j) {
      const int64_t column = at.column + wh.column() + j;
      if (row >= s.n_samples || column >= s.n_features) continue;
      const T weight = weight_at(task.weights, at.problem, row, column);
      if (!(weight > 0)) continue;
      const T x = value_of<T>(X[row * s.x_row_stride + column]);
      total +=
          static_cast<double>(weight) * accurate_term<loss>(x, wh.values[i][j], task.rule, floor);
    }
  }
  NNMF_CUDA_SHARED(double, of_warps, [kThreads / kWarp]);
  total = sum_over_warp(total);
  if (threadIdx.x % kWarp == 0) of_warps[threadIdx.x / kWarp] = total;
  __syncthreads();
  if (threadIdx.x > 0) return;
  for (int warp = 1; warp < kThreads / kWarp; ++warp) total += of_warps[warp];
  task.parts[blockIdx.x] = total;
}

// divergence [B]. Memory has get<T>(size), as DeviceMemory.
template <Loss loss, class T, class Data, class Memory>
void launch_weighted_divergence(const DeviceProblem<T, Data>& problem, const Weights<T>& weights,
                                const TermRule<double>& rule, double* divergence, Memory& memory,
                                cudaStream_t stream) {
  const Shape& s = problem.shape;
  const int64_t tiles = wide_blocks(1, s.n_samples, s.n_features);
  T* const H = memory.template get<T>(s.batch * s.n_features * s.n_components);
  WeightedDivergenceTask<T, Data> task{problem, weights,
                                       memory.template get<double>(s.batch * tiles), rule};
  launch_pack(problem.H, H, s.batch, layout_of_H(s, static_cast<int>(s.n_components)), stream);
  task.problem.H = H;
  if (s.batch * tiles > 0)
    NNMF_CUDA_LAUNCH((weighted_divergence_kernel<loss, T, Data>), grid_of(s.batch * tiles),
                     kThreads, 0, stream, task);
  launch_sum_parts(task.parts, divergence, s.batch, tiles, {1, 1, 1, 1, 1}, stream);
}

}  // namespace nnmf_cuda

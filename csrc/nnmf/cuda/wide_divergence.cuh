// The divergence with more than kMaxComponents components, a block a tile of W H.
#pragma once

#include <cstdint>

#include "divergence.cuh"
#include "wide_product.cuh"

namespace nnmf_cuda {

template <class T, class Data>
struct WideDivergenceTask {
  FactorParams<T, Data> problem;  // with H as [B, n_features, k]
  double* parts;                  // [B, tiles]
  TermRule<double> rule;
};

template <Loss loss, class T, class Data>
__global__ void __launch_bounds__(kThreads, 2)
    wide_divergence_kernel(WideDivergenceTask<T, Data> task) {
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
      const T x = value_of<T>(X[row * s.x_row_stride + column]);
      total += accurate_term<loss>(x, wh.values[i][j], task.rule, floor);
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

template <Loss loss, class T, class Data>
class WideDivergence {
 public:
  // Memory has get<T>(size), as DeviceMemory.
  template <class Memory>
  WideDivergence(const DeviceProblem<T, Data>& problem, Memory& memory)
      : problem_(problem),
        tiles_(wide_blocks(1, problem.shape.n_samples, problem.shape.n_features)) {
    const Shape& s = problem.shape;
    H_ = memory.template get<T>(s.batch * s.n_features * s.n_components);
    parts_ = memory.template get<double>(s.batch * tiles_);
  }

  void launch(const TermRule<double>& rule, double* divergence, cudaStream_t stream) const {
    const Shape& s = problem_.shape;
    launch_pack(problem_.H, H_, s.batch, layout_of_H(s, static_cast<int>(s.n_components)), stream);
    WideDivergenceTask<T, Data> task{problem_, parts_, rule};
    task.problem.H = H_;
    if (s.batch * tiles_ > 0)
      NNMF_CUDA_LAUNCH((wide_divergence_kernel<loss, T, Data>), grid_of(s.batch * tiles_), kThreads,
                       0, stream, task);
    launch_sum_parts(parts_, divergence, s.batch, tiles_, {1, 1, 1, 1, 1}, stream);
  }

 private:
  DeviceProblem<T, Data> problem_;
  int64_t tiles_;
  T* H_;
  double* parts_;
};

}  // namespace nnmf_cuda

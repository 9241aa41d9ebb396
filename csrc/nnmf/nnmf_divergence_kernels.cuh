// The beta-divergence on the device: partial sums over tiles of X, then one sum per problem.
#pragma once

#include <algorithm>
#include <cstdint>

#include "nnmf_cuda.cuh"

namespace nnmf_cuda {

constexpr int64_t kTilesOfBlock = 16;  // tiles along a row of tiles that one block adds up

inline int64_t divergence_parts(const Shape& s) {
  return blocks_of(s.n_samples, kTileSide) * blocks_of(s.n_features, kTileSide * kTilesOfBlock);
}

// A block per problem and part; all in float64, because near a good fit the terms almost cancel.
template <Loss loss, class T, class Data>
__global__ void divergence_kernel(DeviceBatch<T, Data> batch, int64_t parts, double* sums) {
  const Shape& s = batch.shape;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t b = blockIdx.x / parts, part = blockIdx.x % parts;
  const int64_t row_tiles = (s.n_samples + kTileSide - 1) / kTileSide;
  const int64_t row = part % row_tiles * kTileSide;
  const Data* X = batch.X + b * s.x_stride;
  double sum = 0;
  for (int64_t t = 0; t < kTilesOfBlock; ++t) {
    const int64_t column = (part / row_tiles * kTilesOfBlock + t) * kTileSide;
    double wh[kTileSide / kWarps];
    multiply(batch, b, row, column, wh);
    for (int i = 0; i < kTileSide / kWarps; ++i) {
      const int64_t own_row = row + warp + i * kWarps;
      if (own_row >= s.n_samples || column + lane >= s.n_features) continue;
      const double x = static_cast<double>(
          value_of<std::remove_const_t<T>>(X[own_row * s.n_features + column + lane]));
      sum += divergence_term<loss>(x, wh[i], batch.beta_loss);
    }
  }
  sum = sum_over_block(sum);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// A block per problem.
static __global__ void sum_parts_kernel(const double* sums, int64_t parts, double* divergence) {
  double sum = 0;
  for (int64_t part = threadIdx.x; part < parts; part += kThreads)
    sum += sums[blockIdx.x * parts + part];
  sum = sum_over_block(sum);
  if (threadIdx.x == 0) divergence[blockIdx.x] = sum;
}

template <Loss loss, class T, class Data>
void launch_nnmf_divergence(const DeviceBatch<T, Data>& batch, double* sums, double* divergence,
                            cudaStream_t stream) {
  const int64_t parts = divergence_parts(batch.shape);
  if (batch.shape.batch == 0) return;
  if (parts > 0)
    NNMF_CUDA_LAUNCH((divergence_kernel<loss, T, Data>), grid_of(batch.shape.batch * parts),
                     kThreads, 0, stream, batch, parts, sums);
  NNMF_CUDA_LAUNCH(sum_parts_kernel, grid_of(batch.shape.batch), kThreads, 0, stream, sums, parts,
                   divergence);
}

}  // namespace nnmf_cuda

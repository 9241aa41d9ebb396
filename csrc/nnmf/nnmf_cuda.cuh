// Building blocks of the CUDA kernels: blocks of 256 threads work on tiles of 32 by 32 entries of
// X.
//
// Sums have a fixed order that depends on the shape, batch included: no atomics, the same bits on
// every run.
#pragma once

#include <cstdint>

#include "../common/launch.h"
#include "beta_loss.h"
#include "problem.h"

namespace nnmf_cuda {

constexpr int kWarp = 32;
constexpr int kTileSide = kWarp;  // a lane per row or per column
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

// All problems of the batch; contiguous, X may be shared.
template <class T, class Data>
struct DeviceBatch {
  const Data* X;
  T* W;
  T* H;
  Shape shape;
  double beta_loss;
};

// W H at rows row + warp + kWarps * i, i = 0..3, and column `column + lane`; 0 outside the matrix.
// The precision is Sum's.
template <class Sum, class T, class Data>
__device__ void multiply(const DeviceBatch<T, Data>& batch, int64_t b, int64_t row, int64_t column,
                         Sum (&wh)[kTileSide / kWarps]) {
  const Shape& s = batch.shape;
  const int64_t own_row = row + threadIdx.x / kWarp, own_column = column + threadIdx.x % kWarp;
  const T* W = batch.W + (b * s.n_samples + own_row) * s.n_components;
  const T* H = batch.H + b * s.n_components * s.n_features + own_column;
  for (Sum& value : wh) value = 0;
  if (own_column >= s.n_features) return;
  for (int64_t r = 0; r < s.n_components; ++r) {
    const Sum h = static_cast<Sum>(H[r * s.n_features]);
    for (int i = 0; i < kTileSide / kWarps; ++i)
      if (own_row + i * kWarps < s.n_samples)
        wh[i] += static_cast<Sum>(W[i * kWarps * s.n_components + r]) * h;
  }
}

// Sum of every thread's value, in a fixed order; the result is thread 0's.
__device__ inline double sum_over_block(double value) {
  NNMF_CUDA_SHARED(double, values, [kThreads]);
  values[threadIdx.x] = value;
  __syncthreads();
  for (int width = kThreads / 2; width > 0; width /= 2) {
    if (static_cast<int>(threadIdx.x) < width) values[threadIdx.x] += values[threadIdx.x + width];
    __syncthreads();
  }
  return values[0];
}

}  // namespace nnmf_cuda

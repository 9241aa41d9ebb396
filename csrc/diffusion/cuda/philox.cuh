// Counter-based normals on the device.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../../common/cuda/launch.h"
#include "../philox.h"

namespace nnmf_cuda {

constexpr int kPhiloxThreads = 256, kPhiloxBlocks = 8;  // of a block; of a multiprocessor

// Threads take entries of out [n_steps, n_rows, n_draws, n_features] in turn.
template <class T>
__global__ void __launch_bounds__(kPhiloxThreads)
    philox_normal_kernel(T* out, DrawsShape s, uint64_t seed) {
  const int64_t size = s.size(), threads = int64_t{gridDim.x} * blockDim.x;
  for (int64_t at = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; at < size; at += threads) {
    const int64_t flat = at / s.n_features, sample = flat / s.n_draws, step = sample / s.n_rows;
    out[at] = static_cast<T>(philox_normal(seed, static_cast<uint32_t>(step),
                                           static_cast<uint32_t>(sample - step * s.n_rows),
                                           static_cast<uint32_t>(flat - sample * s.n_draws),
                                           static_cast<uint32_t>(at - flat * s.n_features)));
  }
}

// For at least one entry.
template <class T>
void launch_philox_normal(T* out, const DrawsShape& s, uint64_t seed, int64_t multiprocessors,
                          cudaStream_t stream) {
  const int64_t needed = (s.size() + kPhiloxThreads - 1) / kPhiloxThreads;
  const int64_t blocks = std::min(needed, kPhiloxBlocks * multiprocessors);
  NNMF_CUDA_LAUNCH(philox_normal_kernel<T>, grid_of(blocks), kPhiloxThreads, 0, stream, out, s,
                   seed);
}

}  // namespace nnmf_cuda

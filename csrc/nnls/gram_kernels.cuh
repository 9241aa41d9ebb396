// Gram matrices made ready on the device, as gram.h does it on the host.
#pragma once

#include <cstdint>

#include "gram.h"
#include "team.cuh"

namespace nnmf_cuda {

// A problem of size k in scaled variables; see Gram.
struct DeviceGram {
  const double* values;         // [k, k]
  const double* factor;         // [k, k]: L below the diagonal, mirrored above it
  const double* scale;          // [k]
  const double* inverse_pivot;  // [k]
  bool finite;
};

NNMF_CUDA_INLINE int64_t doubles_of_gram(int64_t k) {
  return 2 * k * k + 2 * k + 1;
}

// Those of all problems, in memory of the device.
struct DeviceGrams {
  double* memory;  // [batch, doubles_of_gram(k)]
  int64_t k;

  __device__ double* of(int64_t b) const { return memory + b * doubles_of_gram(k); }

  __device__ DeviceGram operator[](int64_t b) const {
    const double *values = of(b), *scale = values + 2 * k * k;
    return {values, values + k * k, scale, scale + k, scale[2 * k] != 0};
  }
};

// Powers of two that bring the diagonal into [1/2, 2]; NaN and zeros keep their units.
__device__ inline double scale_of_diagonal(double square) {
  if (!(square > 0) || square * 0 != 0) return 1;
  return ldexp(1.0, -static_cast<int>(lround(log2(square) / 2)));
}

// A block per problem; its threads take variables in turn.
template <class T>
__global__ void prepare_gram_kernel(const T* gram, DeviceGrams grams) {
  const int64_t k = grams.k, threads = blockDim.x;
  double* values = grams.of(blockIdx.x);
  double *factor = values + k * k, *scale = factor + k * k, *inverse = scale + k;
  gram += blockIdx.x * k * k;
  for (int64_t j = threadIdx.x; j < k; j += threads)
    scale[j] = scale_of_diagonal(static_cast<double>(gram[j * k + j]));
  __syncthreads();
  bool finite = true;
  for (int64_t at = threadIdx.x; at < k * k; at += threads) {
    const int64_t i = at / k, j = at % k;
    const double sum = static_cast<double>(gram[i * k + j]) + static_cast<double>(gram[j * k + i]);
    finite = finite && sum * 0 == 0;
    factor[at] = values[at] = sum / 2 * scale[i] * scale[j];
  }
  const bool all_finite = tally_over_block(!finite).count == 0;
  if (threadIdx.x == 0) inverse[k] = all_finite;
  // L D in the lower triangle, a column at a time; L where a column is read.
  const double least = dependent_pivot(k);
  for (int64_t j = 0; j < k; ++j) {
    for (int64_t i = j + threadIdx.x; i < k; i += threads) {
      double sum = factor[j * k + i];
      for (int64_t p = 0; p < j; ++p) sum -= factor[p * k + i] * (factor[p * k + j] * inverse[p]);
      factor[j * k + i] = sum;
      if (i == j) inverse[j] = sum > least ? 1 / sum : 0;
    }
    __syncthreads();
  }
  for (int64_t at = threadIdx.x; at < k * k; at += threads) {
    const int64_t i = at / k, j = at % k;
    if (i < j) factor[j * k + i] = factor[at] *= inverse[i];
  }
}

// Those of gram [batch, k, k].
template <class T, class Memory>
DeviceGrams launch_prepare_grams(const T* gram, int64_t batch, int64_t k, Memory& memory,
                                 cudaStream_t stream) {
  const DeviceGrams grams{memory.template get<double>(batch * doubles_of_gram(k)), k};
  NNMF_CUDA_LAUNCH(prepare_gram_kernel<T>, grid_of(batch), 128, 0, stream, gram, grams);
  return grams;
}

}  // namespace nnmf_cuda

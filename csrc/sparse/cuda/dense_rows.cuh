// Some rows of sparse X, or of X transposed, with their zeros: for losses that need W H everywhere.
#pragma once

#include <algorithm>
#include <cstdint>

#include "columns.cuh"

namespace nnmf_cuda {

constexpr int64_t kDenseBytes = int64_t{64} << 20;  // of rows that are dense at a time

// How many rows of `depth` entries those are.
template <class T>
int64_t dense_rows(int64_t length, int64_t depth) {
  const int64_t row = std::max<int64_t>(depth, 1) * int64_t{sizeof(T)};
  return std::min(std::max<int64_t>(kDenseBytes / row, 1), length);
}

// to [rows, depth] = rows [first, first + rows) of X, a block a row.
template <class T, class Index>
__global__ void __launch_bounds__(kThreads)
    dense_rows_kernel(SparseView<T, Index> x, int64_t first, T* to) {
  T* const row = to + blockIdx.x * x.depth;
  for (int64_t i = threadIdx.x; i < x.depth; i += kThreads) row[i] = 0;
  __syncthreads();
  const int64_t at = first + blockIdx.x;
  for (int64_t p = x.start[at] + threadIdx.x; p < x.start[at + 1]; p += kThreads)
    row[x.other[p]] = x.values[p];
}

template <class T, class Index>
void launch_dense_rows(const SparseView<T, Index>& x, int64_t first, int64_t rows, T* to,
                       cudaStream_t stream) {
  if (rows > 0 && x.depth > 0)
    NNMF_CUDA_LAUNCH((dense_rows_kernel<T, Index>), grid_of(rows), kThreads, 0, stream, x, first,
                     to);
}

}  // namespace nnmf_cuda

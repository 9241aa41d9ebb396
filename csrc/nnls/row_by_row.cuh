// What the slow ways have in common: a block takes the rows that are marked, one by one, and has
// scratch memory for two matrices of any size.
#pragma once

#include <algorithm>
#include <cstdint>

#include "active_set.cuh"

namespace nnmf_cuda {

// Of a block; a row has fewer variables, one for each thread.
constexpr int kMostThreads = 288;

// Doubles of a block's two matrices.
NNMF_CUDA_INLINE int64_t row_matrices(int64_t k) {
  return 2 * k * k;
}

// Blocks: enough for speed while their matrices stay in cache.
inline int64_t row_blocks(const RowsShape& shape) {
  const int64_t fit = (int64_t{1} << 21) / (shape.k * shape.k);
  return std::min(shape.batch * shape.n, std::clamp(fit, int64_t{8}, int64_t{2048}));
}

// Calls f(row) with all threads of the block for each of its rows that is marked. A barrier lies
// between two calls.
template <class F>
__device__ void for_marked_rows(const uint8_t* marked, int64_t rows, const F& f) {
  for (int64_t first = int64_t{blockIdx.x} * blockDim.x; first < rows;
       first += int64_t{gridDim.x} * blockDim.x) {
    const int64_t own = first + threadIdx.x;
    bool waits = own < rows && marked[own] != 0;
    for (;;) {
      const Tally left = tally_over_block(waits);
      if (left.count == 0) break;
      if (static_cast<int>(threadIdx.x) == left.first) waits = false;
      f(first + left.first);
    }
  }
}

// A lower triangle with entry (i, j) at [j * stride + i].
struct Triangle {
  double* entries;
  int64_t stride;

  __device__ double& operator()(int64_t i, int64_t j) const { return entries[j * stride + i]; }
};

// y = L^-1 b and x = L^-T y, an entry for each of the first `size` threads; `told` [size] is
// shared.
__device__ inline double solve_lower(const Triangle& l, int size, double b, double* told) {
  const int own = threadIdx.x;
  for (int i = 0; i < size; ++i) {
    if (own == i) told[i] = b = b / l(i, i);
    __syncthreads();
    if (own > i && own < size) b -= l(own, i) * told[i];
  }
  return b;
}

__device__ inline double solve_lower_transposed(const Triangle& l, int size, double y,
                                                double* told) {
  const int own = threadIdx.x;
  for (int i = size - 1; i >= 0; --i) {
    if (own == i) told[i] = y = y / l(i, i);
    __syncthreads();
    if (own < i) y -= l(i, own) * told[i];
  }
  return y;
}

}  // namespace nnmf_cuda

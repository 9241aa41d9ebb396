// Gradients of rows whose free variables depend on each other, a row for each block: minimum_norm.h
// step by step. Thread a has the free variable at position a.
#pragma once

#include <cstdint>

#include "active_set.cuh"
#include "row_by_row.cuh"

namespace nnmf_cuda {

// Writes M [size, rank], column by column, with A = M M^T, by Cholesky's method with the largest
// pivot first; A is overwritten, each column of it by one thread. Returns the rank. `told` [size]
// is shared.
__device__ inline int rank_factor(double* A, int size, double* M, double* told) {
  const int own = threadIdx.x;
  const bool in = own < size;
  double largest = 0;
  for (int rank = 0; rank < size; ++rank) {
    const double candidate = in ? A[int64_t{own} * size + own] : 0;
    const double pivot = largest_of_block(candidate);
    if (rank == 0) largest = pivot;
    if (!(pivot > kRankTolerance * largest)) return rank;
    const int best = tally_over_block(in && candidate == pivot).first;
    const double entry = in ? A[int64_t{best} * size + own] / sqrt(pivot) : 0;
    if (in) M[int64_t{rank} * size + own] = told[own] = entry;
    __syncthreads();
    if (in) {
      for (int i = 0; i < size; ++i) A[int64_t{i} * size + own] -= told[i] * entry;
      if (own == best) A[int64_t{own} * size + own] = 0;
    }
    __syncthreads();
  }
  return size;
}

// L with L L^T = M^T M for M [size, rank].
__device__ inline void factorise_gram(const double* M, int size, int rank, const Triangle& L) {
  const int own = threadIdx.x;
  for (int j = 0; j < rank; ++j) {
    double sum = 0;
    if (own >= j && own < rank) {
      for (int i = 0; i < size; ++i) sum += M[int64_t{own} * size + i] * M[int64_t{j} * size + i];
      for (int p = 0; p < j; ++p) sum -= L(own, p) * L(j, p);
    }
    if (own == j) L(j, j) = sqrt(sum);
    __syncthreads();
    if (own > j && own < rank) L(own, j) = sum / L(j, j);
    __syncthreads();
  }
}

// The own entry of pinv(A) b = M (M^T M)^-2 M^T b for `size` threads. A is overwritten; scratch
// [size, size]; `told` [size] is shared.
__device__ inline double solve_minimum_norm(double* A, int size, double b, double* scratch,
                                            double* told) {
  const int own = threadIdx.x;
  double* M = scratch;
  const int rank = rank_factor(A, size, M, told);
  if (own < size) told[own] = b;
  __syncthreads();
  double reduced = 0;
  if (own < rank) {
    for (int i = 0; i < size; ++i) reduced += M[int64_t{own} * size + i] * told[i];
  }
  const Triangle L{A, rank};
  factorise_gram(M, size, rank, L);
  for (int twice = 0; twice < 2; ++twice) {
    reduced = solve_lower(L, rank, reduced, told);
    reduced = solve_lower_transposed(L, rank, reduced, told);
  }
  double solved = 0;
  if (own < size) {
    for (int p = 0; p < rank; ++p) solved += M[int64_t{p} * size + own] * told[p];
  }
  return solved;
}

template <class T>
__global__ void __launch_bounds__(kMostThreads, 1)
    minimum_norm_kernel(BackwardRows<T> rows, DeviceGrams grams, double* matrices) {
  NNMF_CUDA_DYNAMIC_SHARED(double, told);
  const int64_t k = rows.shape.k;
  int* order = reinterpret_cast<int*>(told + k);
  double *A = matrices + blockIdx.x * row_matrices(k), *M = A + k * k;
  for_marked_rows(rows.unsolved, rows.shape.batch * rows.shape.n, [&](int64_t row) {
    const DeviceGram gram = grams[row / rows.shape.n];
    const int own = threadIdx.x;
    const bool free = own < k && rows.h[row * k + own] > 0;
    const Tally position = tally_over_block(free);
    const int size = position.count;
    if (free) order[position.before] = own;
    __syncthreads();
    const int j = own < size ? order[own] : 0;
    if (own < size) {
      for (int a = 0; a < size; ++a)
        A[int64_t{a} * size + own] =
            gram.values[order[a] * k + j] / (gram.scale[order[a]] * gram.scale[j]);
    }
    const double b = own < size ? static_cast<double>(rows.grad[row * k + j]) : 0;
    const double u = solve_minimum_norm(A, size, b, M, told);
    if (own < size) rows.u[row * k + j] = u;
  });
}

inline size_t minimum_norm_bytes(int64_t k) {
  return static_cast<size_t>(k) * (sizeof(double) + sizeof(int));
}

}  // namespace nnmf_cuda

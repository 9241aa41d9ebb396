// Sparse X as the kernels read it, by rows and by columns. Where a call updates H it sorts the
// non-zeros by columns once, in the order of their rows: by counting, a block for a chunk of rows,
// which it takes one after the other. In a row no column occurs twice, so that no two threads want
// one counter.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../../nnmf/cuda/factor_kernels.cuh"
#include "../problem.h"

namespace nnmf_cuda {

// X by rows, or by columns and then transposed.
template <class T, class Index>
struct SparseView {
  const Index* start;  // [length + 1]
  const Index* other;  // [n_nonzeros]: the column of a non-zero, or its row
  const T* values;     // [n_nonzeros]
  int64_t length, depth;
};

template <class Index>
struct ColumnCount {
  const Index* crow;
  const Index* col;
  Index* counts;  // [chunks, n_features]
  int64_t n_samples, n_features, chunks;
};

// counts = 0; a thread a number
template <class Index>
__global__ void clear_counts_kernel(Index* counts, int64_t size) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at < size) counts[at] = 0;
}

// Calls f(p, the non-zero's counter) for each non-zero of the block's chunk of rows.
template <class Index, class F>
__device__ __forceinline__ void for_chunk(const ColumnCount<Index>& task, const F& f) {
  const int64_t rows = (task.n_samples + task.chunks - 1) / task.chunks;
  const int64_t begin = blockIdx.x * rows;
  const int64_t end = begin + rows < task.n_samples ? begin + rows : task.n_samples;
  Index* const counts = task.counts + blockIdx.x * task.n_features;
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t p = task.crow[row] + threadIdx.x; p < task.crow[row + 1]; p += kThreads)
      f(row, p, counts[task.col[p]]);
    __syncthreads();  // before the next row counts the same columns
  }
}

template <class Index>
__global__ void __launch_bounds__(kThreads) count_columns_kernel(ColumnCount<Index> task) {
  for_chunk(task, [](int64_t, int64_t, Index& counter) { ++counter; });
}

// In each column, counts become how many non-zeros there are in the chunks before; start[column +
// 1] is how many in all. A thread a column.
template <class Index>
__global__ void sum_chunks_kernel(ColumnCount<Index> task, Index* start) {
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (column == 0) start[0] = 0;
  if (column >= task.n_features) return;
  Index before = 0;
  for (int64_t chunk = 0; chunk < task.chunks; ++chunk) {
    Index& counter = task.counts[chunk * task.n_features + column];
    const Index own = counter;
    counter = before;
    before += own;
  }
  start[column + 1] = before;
}

// start[i] = start[0] + ... + start[i], one block.
template <class Index>
__global__ void __launch_bounds__(kThreads) accumulate_kernel(Index* start, int64_t size) {
  NNMF_CUDA_SHARED(Index, totals, [kThreads]);
  const int own = static_cast<int>(threadIdx.x);
  const int64_t each = (size + kThreads - 1) / kThreads;
  const int64_t begin = own * each, end = begin + each < size ? begin + each : size;
  Index sum = 0;
  for (int64_t i = begin; i < end; ++i) sum += start[i];
  totals[own] = sum;
  __syncthreads();
  Index before = 0;
  for (int thread = 0; thread < own; ++thread) before += totals[thread];
  for (int64_t i = begin; i < end; ++i) {
    before += start[i];
    start[i] = before;
  }
}

template <class T, class Index>
struct ColumnFill {
  ColumnCount<Index> count;
  const T* values;
  const Index* start;
  Index* rows;  // by columns
  T* sorted;    // the same
};

template <class T, class Index>
__global__ void __launch_bounds__(kThreads) fill_columns_kernel(ColumnFill<T, Index> task) {
  for_chunk(task.count, [&](int64_t row, int64_t p, Index& counter) {
    const Index to = task.start[task.count.col[p]] + counter++;
    task.rows[to] = static_cast<Index>(row);
    task.sorted[to] = task.values[p];
  });
}

// Memory for whole numbers, from memory that knows floating-point ones.
template <class Index, class Memory>
Index* indices_from(Memory& memory, int64_t size) {
  if constexpr (sizeof(Index) == 4)
    return reinterpret_cast<Index*>(memory.template get<float>(size));
  else
    return reinterpret_cast<Index*>(memory.template get<double>(size));
}

// X by columns, in new memory; its counters take about as much as the non-zeros.
template <class T, class Index, class Memory>
SparseView<T, Index> by_columns(const SparseParams<T, Index>& p, Memory& memory,
                                cudaStream_t stream) {
  constexpr int64_t kMostChunks = 1024;
  const SparseShape& s = p.shape;
  const int64_t chunks =
      std::clamp<int64_t>(s.n_nonzeros / std::max<int64_t>(s.n_features, 1), 1, kMostChunks);
  const int64_t size = chunks * s.n_features;
  Index* const counts = indices_from<Index>(memory, size);
  Index* const start = indices_from<Index>(memory, s.n_features + 1);
  Index* const rows = indices_from<Index>(memory, s.n_nonzeros);
  T* const sorted = memory.template get<T>(s.n_nonzeros);
  const ColumnCount<Index> count{p.crow, p.col, counts, s.n_samples, s.n_features, chunks};
  NNMF_CUDA_LAUNCH((clear_counts_kernel<Index>), grid_of(blocks_of(size, kThreads)), kThreads, 0,
                   stream, counts, size);
  NNMF_CUDA_LAUNCH((count_columns_kernel<Index>), grid_of(chunks), kThreads, 0, stream, count);
  NNMF_CUDA_LAUNCH((sum_chunks_kernel<Index>), grid_of(blocks_of(s.n_features, kThreads)), kThreads,
                   0, stream, count, start);
  NNMF_CUDA_LAUNCH((accumulate_kernel<Index>), grid_of(1), kThreads, 0, stream, start,
                   s.n_features + 1);
  NNMF_CUDA_LAUNCH((fill_columns_kernel<T, Index>), grid_of(chunks), kThreads, 0, stream,
                   ColumnFill<T, Index>{count, p.values, start, rows, sorted});
  return {start, rows, sorted, s.n_features, s.n_samples};
}

template <class T, class Index>
SparseView<T, Index> by_rows(const SparseParams<T, Index>& p) {
  return {p.crow, p.col, p.values, p.shape.n_samples, p.shape.n_features};
}

}  // namespace nnmf_cuda

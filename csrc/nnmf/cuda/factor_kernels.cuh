// Kernels on the factors alone: into and out of the layout of warp_tile.cuh, sums of parts, inner
// products of components.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../../common/cuda/divisor.h"
#include "../../common/cuda/overlap.h"
#include "../problem.h"

namespace nnmf_cuda {

constexpr int kThreads = 256;
constexpr int kMaxComponents = kThreads;  // padded ones

// Where a factor's values lie in the tensor that the user sees, W [B, length, k] or H [B, k,
// length], and how many components they have there and in the padded layout.
struct FactorLayout {
  int64_t length;
  int n_components, padded;
  int64_t row_stride, component_stride;
};

inline FactorLayout layout_of_W(const Shape& s, int padded) {
  return {s.n_samples, static_cast<int>(s.n_components), padded, s.n_components, 1};
}

inline FactorLayout layout_of_H(const Shape& s, int padded) {
  return {s.n_features, static_cast<int>(s.n_components), padded, 1, s.n_features};
}

// A value of the padded layout: zero behind the last component.
template <class T>
__device__ __forceinline__ T packed_value(const T* from, const FactorLayout& layout, int64_t b,
                                          int64_t row, int component) {
  if (component >= layout.n_components) return 0;
  return from[b * layout.length * layout.n_components + row * layout.row_stride +
              component * layout.component_stride];
}

// to [B, length, padded]; a thread a value
template <class T>
__global__ void pack_kernel(const T* from, T* to, int64_t size, FactorLayout layout) {
  wait_for_kernel_before();
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= size) return;
  const int64_t row = at / layout.padded;
  to[at] = packed_value(from, layout, row / layout.length, row % layout.length,
                        static_cast<int>(at % layout.padded));
}

// The other way: from [B, length, padded]; a thread a value of what the user sees.
template <class T>
__global__ void unpack_kernel(const T* from, T* to, int64_t size, FactorLayout layout) {
  wait_for_kernel_before();
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= size) return;
  const int64_t of_problem = layout.length * layout.n_components;
  const int64_t b = at / of_problem, in = at % of_problem;
  const bool rows_first = layout.component_stride == 1;
  const int64_t component = rows_first ? in % layout.n_components : in / layout.length;
  const int64_t i = rows_first ? in / layout.n_components : in % layout.length;
  to[at] = from[(b * layout.length + i) * layout.padded + component];
}

// When a kernel starts: after the kernel before has ended, or while that is at work. Early is for
// one that follows others of this project, none of which has written X.
enum class Starts { kAfter, kEarly };

// The first of a sequence of kernels that overlap starts after what came before.
template <class T>
void launch_pack(const T* from, T* to, int64_t batch, const FactorLayout& layout,
                 cudaStream_t stream, Starts starts = Starts::kAfter) {
  const int64_t size = batch * layout.length * layout.padded;
  if (size == 0) return;
  if (starts == Starts::kEarly)
    NNMF_CUDA_LAUNCH_NEXT((pack_kernel<T>), grid_of(blocks_of(size, kThreads)), kThreads, 0, stream,
                          from, to, size, layout);
  else
    NNMF_CUDA_LAUNCH((pack_kernel<T>), grid_of(blocks_of(size, kThreads)), kThreads, 0, stream,
                     from, to, size, layout);
}

template <class T>
void launch_unpack(const T* from, T* to, int64_t batch, const FactorLayout& layout,
                   cudaStream_t stream) {
  const int64_t size = batch * layout.length * layout.n_components;
  if (size > 0)
    NNMF_CUDA_LAUNCH_NEXT((unpack_kernel<T>), grid_of(blocks_of(size, kThreads)), kThreads, 0,
                          stream, from, to, size, layout);
}

// How the threads of a block share sums over parts: each adds up every `ways`-th part of one of
// `columns` values. Both are powers of two, so that no thread has to divide.
struct Ways {
  int ways, log_columns;

  NNMF_CUDA_INLINE int columns() const { return 1 << log_columns; }
  NNMF_CUDA_INLINE int column(unsigned thread) const {
    return static_cast<int>(thread) & (columns() - 1);
  }
  NNMF_CUDA_INLINE int way(unsigned thread) const {
    return static_cast<int>(thread) >> log_columns;
  }
  // Blocks for `size` values.
  NNMF_CUDA_INLINE int64_t blocks(int64_t size) const {
    return (size + columns() - 1) >> log_columns;
  }
};

// `columns` of a block, a power of two.
inline Ways ways_for(int columns) {
  Ways shared{kThreads / columns, 0};
  while (shared.columns() < columns) ++shared.log_columns;
  return shared;
}

// At least four parts for each thread, if there are as many; `columns` values of a block at least.
inline Ways ways_of(int64_t parts, int64_t columns, int most = 8) {
  int ways = 1;
  while (ways * 2 * columns <= kThreads && ways * 2 * 4 <= parts && ways < most) ways *= 2;
  return ways_for(kThreads / ways);
}

// The sum of the block's ways, in fixed order, for all threads of the first one. A kernel calls
// this once: a second call would need a barrier before it.
__device__ inline double sum_ways(double sum, const Ways& ways) {
  NNMF_CUDA_SHARED(double, sums, [kThreads]);
  if (ways.ways == 1) return sum;
  const int own = static_cast<int>(threadIdx.x);
  sums[own] = sum;
  __syncthreads();
  if (own < ways.columns())
#pragma unroll 4
    for (int way = 1; way < ways.ways; ++way) sum += sums[(way << ways.log_columns) + own];
  return sum;
}

// Calls body(from) for parts `first`, `first` + `step`, ... below `parts`, whose addresses are
// `stride` apart: four at a time, so that their loads wait for each other's memory. (Unrolled by
// the compiler, such a loop begins with a division.)
template <class T, class Body>
__device__ __forceinline__ void for_each_part(const T* from, int first, int parts, int step,
                                              int64_t stride, const Body& body) {
  from += first * stride;
  const int64_t next = step * stride;
#pragma unroll 1
  for (int part = first; part < parts; part += 4 * step) {
#pragma unroll
    for (int at = 0; at < 4; ++at, from += next)
      if (part + at * step < parts) body(from);
  }
}

// The sum of from[part * stride] over all parts, for all threads of the first way; `inside` says
// whether the thread's column has parts.
template <class T>
__device__ double sum_parts(const T* from, int parts, int64_t stride, bool inside,
                            const Ways& ways) {
  double sum = 0;
  if (inside)
    for_each_part(from, ways.way(threadIdx.x), parts, ways.ways, stride,
                  [&](const T* part) { sum += static_cast<double>(*part); });
  return sum_ways(sum, ways);
}

// Matrices that are added up, [B, parts, stored_rows, padded], and what of them is wanted, [B,
// rows, columns], times `scale`.
struct Crop {
  int64_t stored_rows, rows;
  int padded, columns;
  double scale;
};

// `lacking`: parts that the last problem of the batch lacks.
template <class T>
__global__ void sum_parts_kernel(const T* from, double* to, int64_t parts, int64_t lacking,
                                 Crop crop, Ways ways) {
  wait_for_kernel_before();
  const int64_t size = crop.stored_rows * crop.padded;
  const auto blocks = static_cast<unsigned>(ways.blocks(size)), block = blockIdx.x % blocks;
  const int64_t b = blockIdx.x / blocks;
  const int64_t at = (int64_t{block} << ways.log_columns) + ways.column(threadIdx.x);
  const bool last = blockIdx.x + blocks >= gridDim.x;
  const double sum =
      sum_parts(from + b * parts * size + at, static_cast<int>(last ? parts - lacking : parts),
                size, at < size, ways);
  const int64_t row = at / crop.padded;
  const int column = static_cast<int>(at % crop.padded);
  if (ways.way(threadIdx.x) == 0 && row < crop.rows && column < crop.columns)
    to[(b * crop.rows + row) * crop.columns + column] = crop.scale * sum;
}

template <class T>
void launch_sum_parts(const T* from, double* to, int64_t batch, int64_t parts, const Crop& crop,
                      cudaStream_t stream, int64_t lacking = 0) {
  // Where a block has few values, all its threads help with them.
  const int64_t size = crop.stored_rows * crop.padded;
  const Ways ways = ways_of(parts, 1, size <= kThreads / 64 ? 64 : 8);
  const int64_t blocks = batch * ways.blocks(size);
  if (blocks > 0)
    NNMF_CUDA_LAUNCH_NEXT((sum_parts_kernel<T>), grid_of(blocks), kThreads, 0, stream, from, to,
                          parts, lacking, crop, ways);
}

constexpr int64_t kSummedRows = 256;  // of a matrix, by a block

// sums [columns] of [rows, columns]: one block for all rows would wait for memory most of the time.
// partial [blocks_of(rows, kSummedRows), columns].
template <class T>
void launch_sum_rows(const T* from, double* partial, double* sums, int64_t rows, int columns,
                     cudaStream_t stream) {
  const Crop crop{1, 1, columns, columns, 1};
  const int64_t blocks = blocks_of(rows, kSummedRows);
  launch_sum_parts(from, partial, blocks, kSummedRows, crop, stream, blocks * kSummedRows - rows);
  launch_sum_parts(partial, sums, 1, blocks, crop, stream);
}

// Inner products of components over a chunk of `rows` rows; a thread a pair of components. There is
// a block for each problem, chunk and tile of the pairs.
template <class T>
__global__ void gram_kernel(const T* factor, double* parts, int64_t length, int padded,
                            int64_t rows, Divisor chunks, Divisor tiles) {
  wait_for_kernel_before();
  const unsigned line = tiles.quotient(blockIdx.x), b = chunks.quotient(line);
  const unsigned tile = blockIdx.x - line * tiles.value();
  const int pairs = padded * padded, pair = static_cast<int>(tile * kThreads + threadIdx.x);
  if (pair >= pairs) return;
  const int64_t begin = (line - b * chunks.value()) * rows, left = length - begin;
  const int one = pair / padded, other = pair - one * padded;
  const T* const row = factor + (b * length + begin) * padded;
  double sum = 0;
  for_each_part(row, 0, static_cast<int>(left < rows ? left : rows), 1, padded, [&](const T* at) {
    sum += static_cast<double>(at[one]) * static_cast<double>(at[other]);
  });
  parts[static_cast<int64_t>(line) * pairs + pair] = sum;
}

// So many that a thread adds up 64 rows, if the device has room for all blocks at one time, or for
// most of them: 2048 of a batch. A single problem stops at 256, whose sums one launch adds up.
inline int64_t gram_chunks(int64_t batch, int64_t length) {
  const int64_t most = std::clamp<int64_t>(2048 / std::max<int64_t>(batch, 1), 1, 256);
  return std::clamp<int64_t>(length / 64, 1, most);
}

// gram [B, size, size] of the first `size` components of a packed factor; parts [B, gram_chunks,
// padded, padded].
template <class T>
void launch_gram(const T* factor, double* parts, double* gram, int64_t batch, int64_t length,
                 int padded, int size, cudaStream_t stream) {
  const int64_t chunks = gram_chunks(batch, length), rows = blocks_of(length, chunks);
  const int64_t tiles = blocks_of(static_cast<int64_t>(padded) * padded, kThreads);
  if (batch == 0) return;
  NNMF_CUDA_LAUNCH_NEXT((gram_kernel<T>), grid_of(batch * chunks * tiles), kThreads, 0, stream,
                        factor, parts, length, padded, rows, Divisor(chunks), Divisor(tiles));
  launch_sum_parts(parts, gram, batch, chunks, {padded, size, padded, size, 1}, stream);
}

}  // namespace nnmf_cuda

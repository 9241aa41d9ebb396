// Products for more components than a warp keeps in registers (kMaxComponents): tiles of both
// matrices go through shared memory, and what comes of them through global memory. A slower way
// than half_step.cuh, for any number of components.
#pragma once

#include <cstdint>

#include "factor_kernels.cuh"
#include "warp_tile.cuh"

namespace nnmf_cuda {

constexpr int kWideTile = 64;  // rows and columns of a block's tile
constexpr int kWideStep = 16;  // how deep the tiles in shared memory are
constexpr int kWideEach = 4;   // rows and columns of a thread
constexpr int kWideSide = kWideTile / kWideEach;
// Threads along the columns of a product with as few of them as a factor mostly has; the others
// make more rows.
constexpr int kNarrowSide = 4;
template <class T>
constexpr int kWideResident = sizeof(T) == 4 ? 2 : 1;  // blocks that registers allow at a time
constexpr int64_t kWideSplit = 512;                    // depth of a block where blocks share it
static_assert(kWideSide * kWideSide == kThreads);

// A tile of one of the matrices, [depth][row] or [depth][column], for so many threads along it. One
// pack more than there are rows keeps what neighbouring threads write in different banks.
template <class T>
using WidePack = Pack<T, kWideEach>;
template <class T, int side>
using WideTile = WidePack<T>[kWideStep][side + 1];

// Copies what there is of a tile, zeros elsewhere. The entry of a row at a depth lies at row *
// row_stride + depth * depth_stride, one of which is 1: that way neighbouring threads read.
template <class T, int side, class From>
__device__ __forceinline__ void load_wide_tile(const From* from, int64_t row_stride,
                                               int64_t depth_stride, int64_t rows, int64_t depth,
                                               WideTile<T, side>& to) {
  constexpr int kTile = side * kWideEach;
  static_assert(kTile * kWideStep % kThreads == 0 && kThreads % kTile == 0);
  const bool along_rows = row_stride == 1;
  const int thread = static_cast<int>(threadIdx.x);
  int row = along_rows ? thread % kTile : thread / kWideStep;
  int deep = along_rows ? thread / kTile : thread % kWideStep;
  const int row_step = along_rows ? 0 : kThreads / kWideStep;
  const int deep_step = along_rows ? kThreads / kTile : 0;
  const int64_t step = row_step * row_stride + deep_step * depth_stride;
  from += row * row_stride + deep * depth_stride;
#pragma unroll 4
  for (int i = 0; i < kTile * kWideStep / kThreads; ++i) {
    const bool inside = row < rows && deep < depth;
    to[deep][row / kWideEach].values[row % kWideEach] = inside ? static_cast<T>(*from) : T{0};
    row += row_step;
    deep += deep_step;
    from += step;
  }
}

// A thread's part of a block's tile: rows from `row()` on and columns from `column()` on, with
// `across` threads along these.
template <class T, int across = kWideSide>
struct WideSum {
  static constexpr int kDown = kThreads / across;  // threads along the rows
  T values[kWideEach][kWideEach] = {};

  static __device__ __forceinline__ int row() {
    return static_cast<int>(threadIdx.x) / across * kWideEach;
  }
  static __device__ __forceinline__ int column() {
    return static_cast<int>(threadIdx.x) % across * kWideEach;
  }

  __device__ __forceinline__ void add(const WideTile<T, kDown>& left,
                                      const WideTile<T, across>& right) {
#pragma unroll
    for (int deep = 0; deep < kWideStep; ++deep) {
      const WidePack<T> l = left[deep][row() / kWideEach], r = right[deep][column() / kWideEach];
#pragma unroll
      for (int i = 0; i < kWideEach; ++i)
#pragma unroll
        for (int j = 0; j < kWideEach; ++j) values[i][j] += l.values[i] * r.values[j];
    }
  }
};

// A tile of the product of two matrices, T being what is multiplied and added up; every 128 terms
// the sum goes on in Sum. Called by all threads of a block with pointers to the tile's own rows and
// columns, of which `rows` and `columns` exist.
template <class T, class Sum, int across = kWideSide, class Left, class Right>
__device__ __forceinline__ WideSum<Sum, across> wide_tile_product(
    const Left* left, int64_t left_row, int64_t left_deep, int64_t rows, const Right* right,
    int64_t right_column, int64_t right_deep, int64_t columns, int64_t depth) {
  constexpr int64_t kFlush = 128;
  constexpr int kDown = WideSum<T, across>::kDown;
  NNMF_CUDA_SHARED(WidePack<T>, left_tile, [kWideStep][kDown + 1]);
  NNMF_CUDA_SHARED(WidePack<T>, right_tile, [kWideStep][across + 1]);
  WideSum<Sum, across> total;
  for (int64_t begin = 0; begin < depth; begin += kFlush) {
    WideSum<T, across> sum;
    for (int64_t deep = begin; deep < begin + kFlush && deep < depth; deep += kWideStep) {
      load_wide_tile<T, kDown>(left + deep * left_deep, left_row, left_deep, rows, depth - deep,
                               left_tile);
      load_wide_tile<T, across>(right + deep * right_deep, right_column, right_deep, columns,
                                depth - deep, right_tile);
      __syncthreads();
      sum.add(left_tile, right_tile);
      __syncthreads();  // before the next tiles overwrite these
    }
#pragma unroll
    for (int i = 0; i < kWideEach; ++i)
#pragma unroll
      for (int j = 0; j < kWideEach; ++j) total.values[i][j] += static_cast<Sum>(sum.values[i][j]);
  }
  return total;
}

// Which tile of which problem a block works on.
template <int side = kWideSide>
struct WidePlace {
  static constexpr int kRows = kThreads / side * kWideEach, kColumns = side * kWideEach;
  int64_t problem, row, column;

  __device__ __forceinline__ WidePlace(int64_t rows, int64_t columns) {
    const int64_t across = (columns + kColumns - 1) / kColumns;
    const int64_t down = (rows + kRows - 1) / kRows;
    column = blockIdx.x % across * kColumns;
    row = blockIdx.x / across % down * kRows;
    problem = blockIdx.x / across / down;
  }
};

template <int side = kWideSide>
int64_t wide_blocks(int64_t problems, int64_t rows, int64_t columns) {
  using Place = WidePlace<side>;
  return problems * blocks_of(rows, Place::kRows) * blocks_of(columns, Place::kColumns);
}

// out [problems, rows, columns] = scale * left right, where left(row, deep) lies at row * left_row
// + deep * left_deep and right is [depth, columns], both from one problem to the next. T is what is
// multiplied.
template <class T, class Left, class Right>
struct WideProduct {
  const Left* left;
  int64_t left_problem, left_row, left_deep;
  const Right* right;
  int64_t right_problem;
  double* out;
  const bool* active;  // [problems]: what is not stays as it is; nullptr: all are
  int64_t rows, columns, depth;
  double scale;
  int64_t splits = 1;  // of the depth, if more: out is [problems, splits, rows, columns]
};

template <int across, class T, class Left, class Right>
__global__ void __launch_bounds__(kThreads, kWideResident<T>)
    wide_product_kernel(WideProduct<T, Left, Right> task) {
  const WidePlace<across> at(task.rows, task.columns);
  const int64_t problem = at.problem / task.splits;
  if (task.active != nullptr && !task.active[problem]) return;
  const int64_t begin = at.problem % task.splits * kWideSplit, left = task.depth - begin;
  const WideSum<double, across> sum = wide_tile_product<T, double, across>(
      task.left + problem * task.left_problem + at.row * task.left_row + begin * task.left_deep,
      task.left_row, task.left_deep, task.rows - at.row,
      task.right + problem * task.right_problem + at.column + begin * task.columns, 1, task.columns,
      task.columns - at.column, task.splits > 1 && left > kWideSplit ? kWideSplit : left);
  double* const out = task.out + at.problem * task.rows * task.columns;
#pragma unroll
  for (int i = 0; i < kWideEach; ++i) {
    const int64_t row = at.row + sum.row() + i;
#pragma unroll
    for (int j = 0; j < kWideEach; ++j) {
      const int64_t column = at.column + sum.column() + j;
      if (row < task.rows && column < task.columns)
        out[row * task.columns + column] = task.scale * sum.values[i][j];
    }
  }
}

template <int across = kWideSide, class T, class Left, class Right>
void launch_wide_product(const WideProduct<T, Left, Right>& task, int64_t problems,
                         cudaStream_t stream) {
  const int64_t blocks = wide_blocks<across>(problems, task.rows, task.columns);
  if (blocks > 0)
    NNMF_CUDA_LAUNCH((wide_product_kernel<across, T, Left, Right>), grid_of(blocks), kThreads, 0,
                     stream, task);
}

inline int64_t wide_splits(int64_t depth) {
  return depth > kWideSplit ? blocks_of(depth, kWideSplit) : 1;
}

// How many numbers the parts of a product with `size` numbers are.
inline int64_t wide_parts(int64_t size, int64_t depth) {
  return depth > kWideSplit ? size * wide_splits(depth) : 0;
}

// The same where few tiles are deep: blocks share the depth. How, depends on it alone; the order in
// which what they find is added up depends on the number of values too. parts [wide_parts].
template <class T, class Left, class Right>
void launch_split_product(WideProduct<T, Left, Right> task, double* parts, int64_t problems,
                          cudaStream_t stream) {
  double* const out = task.out;
  task.splits = wide_splits(task.depth);
  if (task.splits > 1) task.out = parts;
  if (task.columns <= WidePlace<kNarrowSide>::kColumns)
    launch_wide_product<kNarrowSide>(task, problems * task.splits, stream);
  else
    launch_wide_product(task, problems * task.splits, stream);
  const int columns = static_cast<int>(task.columns);
  if (task.splits > 1)
    launch_sum_parts(parts, out, problems, task.splits, {task.rows, task.rows, columns, columns, 1},
                     stream);
}

// gram [problems, k, k] of factors [problems, length, k], added up in float64.
template <class T>
void launch_wide_gram(const T* factor, double* gram, const bool* active, int64_t problems,
                      int64_t length, int64_t k, cudaStream_t stream) {
  launch_wide_product(WideProduct<double, T, T>{factor, length * k, 1, k, factor, length * k, gram,
                                                active, k, k, length, 1},
                      problems, stream);
}

// Numbers that launch_single_gram needs for one factor of any of these lengths.
inline int64_t single_gram_parts(int64_t longest, int64_t k) {
  return k <= kMaxComponents ? gram_chunks(1, longest) * k * k : 0;
}

// The same of one factor [length, k], by more blocks than there are tiles; parts
// [single_gram_parts].
template <class T>
void launch_single_gram(const T* factor, double* parts, double* gram, int64_t length, int64_t k,
                        cudaStream_t stream) {
  const int columns = static_cast<int>(k);
  if (k > kMaxComponents)
    launch_wide_gram(factor, gram, nullptr, 1, length, k, stream);
  else if (k > 0)
    launch_gram(factor, parts, gram, 1, length, columns, columns, stream);
}

}  // namespace nnmf_cuda

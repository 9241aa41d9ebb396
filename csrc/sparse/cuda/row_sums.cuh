// What the numerators of an update sum over the non-zeros, a warp a row of X, or of X transposed,
// and a block a long one.
#pragma once

#include <cstdint>

#include "columns.cuh"

namespace nnmf_cuda {

constexpr int kRowsOfBlock = kThreads / kWarp;

template <class T, class Index>
struct SparseSums {
  SparseView<T, Index> x;
  const T* own;        // [length, k]: the factor that is updated
  const T* other;      // [depth, k]
  double* to;          // [length, k]
  const bool* active;  // of this problem; nullptr: it is
  int n_components;
  T floor;
};

// Which row a warp has, and what of X.
template <class T, class Index>
struct SparseRow {
  int64_t row, begin, end;

  __device__ __forceinline__ explicit SparseRow(const SparseView<T, Index>& x)
      : row(static_cast<int64_t>(blockIdx.x) * kRowsOfBlock +
            static_cast<int>(threadIdx.x) / kWarp),
        begin(row < x.length ? x.start[row] : 0),
        end(row < x.length ? x.start[row + 1] : 0) {}
};

constexpr int kSumsOfLane = 4;
constexpr int64_t kLongRow = 256;  // non-zeros; with more, all warps of a block share a row

// The sums over some non-zeros of a row, up to 32 components: `group` lanes share a non-zero, each
// has every group-th component. For all lanes.
template <Loss loss, class T, class Index>
__device__ __forceinline__ void sum_non_zeros(const SparseSums<T, Index>& task, int group,
                                              int64_t row, int64_t begin, int64_t end,
                                              double (&total)[kSumsOfLane]) {
  constexpr int64_t kFlush = 128;  // non-zeros of a team before the sums go on in float64
  // Non-zeros of a team under way at one time: each waits for its index, then for its row.
  constexpr int kAhead = 4;
  static_assert(kFlush % kAhead == 0);
  const int lane = static_cast<int>(threadIdx.x) % kWarp, k = task.n_components;
  const int member = lane % group, teams = kWarp / group;
  T own[kSumsOfLane], sum[kSumsOfLane];
#pragma unroll
  for (int i = 0; i < kSumsOfLane; ++i) {
    const int component = member + i * group;
    own[i] = component < k ? task.own[row * k + component] : T{0};
    total[i] = 0;
  }
  for (int64_t first = begin; first < end; first += kFlush * teams) {
    const int64_t last = first + kFlush * teams < end ? first + kFlush * teams : end;
#pragma unroll
    for (int i = 0; i < kSumsOfLane; ++i) sum[i] = 0;
    for (int64_t base = first; base < last; base += kAhead * teams) {
      const T* other[kAhead];
      T term[kAhead], values[kAhead][kSumsOfLane], wh[kAhead] = {};
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        const int64_t p = base + a * teams + lane / group;
        const bool inside = p < last;
        other[a] = task.other + (inside ? static_cast<int64_t>(task.x.other[p]) : 0) * k;
        term[a] = inside ? task.x.values[p] : T{0};
      }
#pragma unroll
      for (int a = 0; a < kAhead; ++a)
#pragma unroll
        for (int i = 0; i < kSumsOfLane; ++i) {
          const int component = member + i * group;
          values[a][i] = component < k ? other[a][component] : T{0};
          wh[a] += own[i] * values[a][i];
        }
      if constexpr (loss == Loss::kKullbackLeibler) {
        for (int mask = group / 2; mask > 0; mask /= 2)
#pragma unroll
          for (int a = 0; a < kAhead; ++a) wh[a] += __shfl_xor_sync(kAllLanes, wh[a], mask);
#pragma unroll
        for (int a = 0; a < kAhead; ++a) term[a] = quotient(term[a], at_least(task.floor, wh[a]));
      }
#pragma unroll
      for (int a = 0; a < kAhead; ++a)
#pragma unroll
        for (int i = 0; i < kSumsOfLane; ++i) sum[i] += term[a] * values[a][i];
    }
#pragma unroll
    for (int i = 0; i < kSumsOfLane; ++i) total[i] += static_cast<double>(sum[i]);
  }
#pragma unroll
  for (int i = 0; i < kSumsOfLane; ++i)
    for (int mask = group; mask < kWarp; mask *= 2)
      total[i] += __shfl_xor_sync(kAllLanes, total[i], mask);
}

// Up to 32 components. Words of a text are as frequent as Zipf's law has it: a warp alone with the
// longest row would keep all others waiting.
template <Loss loss, class T, class Index>
__global__ void __launch_bounds__(kThreads, 2)
    sparse_row_sums_kernel(SparseSums<T, Index> task, int group) {
  NNMF_CUDA_SHARED(double, parts, [kRowsOfBlock][kWarp]);
  if (task.active != nullptr && !*task.active) return;
  const int thread = static_cast<int>(threadIdx.x), k = task.n_components;
  const int lane = thread % kWarp, warp = thread / kWarp, member = lane % group;
  double total[kSumsOfLane];
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * kRowsOfBlock, i = 0;
       i < kRowsOfBlock && row < task.x.length; ++i, ++row) {
    const int64_t begin = task.x.start[row], end = task.x.start[row + 1];
    if (end - begin <= kLongRow) continue;
    const int64_t each = (end - begin + kRowsOfBlock - 1) / kRowsOfBlock;
    const int64_t from = begin + warp * each, to = from + each < end ? from + each : end;
    sum_non_zeros<loss>(task, group, row, from, to, total);
#pragma unroll
    for (int j = 0; j < kSumsOfLane; ++j)
      if (lane < group) parts[warp][member + j * group] = total[j];
    __syncthreads();
    if (thread < k) {
      double sum = 0;
      for (int w = 0; w < kRowsOfBlock; ++w) sum += parts[w][thread];
      task.to[row * k + thread] = sum;
    }
    __syncthreads();  // before the next long row overwrites them
  }
  const SparseRow<T, Index> at(task.x);
  if (at.row >= task.x.length || at.end - at.begin > kLongRow) return;
  sum_non_zeros<loss>(task, group, at.row, at.begin, at.end, total);
#pragma unroll
  for (int i = 0; i < kSumsOfLane; ++i) {
    const int component = member + i * group;
    if (lane < group && component < k) task.to[at.row * k + component] = total[i];
  }
}

// Any number of components: 32 non-zeros at a time, first what they are divided by, a lane each at
// the end, then what they add to 32 components at a time.
template <Loss loss, class T, class Index>
__global__ void __launch_bounds__(kThreads, 2)
    sparse_long_row_sums_kernel(SparseSums<T, Index> task) {
  if (task.active != nullptr && !*task.active) return;
  const SparseRow<T, Index> at(task.x);
  if (at.row >= task.x.length) return;
  const int lane = static_cast<int>(threadIdx.x) % kWarp, k = task.n_components;
  const T* const own = task.own + at.row * k;
  double* const to = task.to + at.row * k;  // each lane reads what it has written itself
  for (int c = lane; c < k; c += kWarp) to[c] = 0;
  for (int64_t first = at.begin; first < at.end; first += kWarp) {
    const int count = at.end - first < kWarp ? static_cast<int>(at.end - first) : kWarp;
    const int64_t place = lane < count ? static_cast<int64_t>(task.x.other[first + lane]) : 0;
    T term = lane < count ? task.x.values[first + lane] : T{0};
    if constexpr (loss == Loss::kKullbackLeibler) {
      T of_lane = 1;
      for (int p = 0; p < count; ++p) {
        const T* const other = task.other + __shfl_sync(kAllLanes, place, p) * k;
        T wh = 0;
        for (int c = lane; c < k; c += kWarp) wh += own[c] * other[c];
        for (int mask = kWarp / 2; mask > 0; mask /= 2) wh += __shfl_xor_sync(kAllLanes, wh, mask);
        if (p == lane) of_lane = wh;
      }
      term = quotient(term, at_least(task.floor, of_lane));
    }
    for (int begin = 0; begin < k; begin += kWarp) {
      const int c = begin + lane;
      T sum = 0;
      for (int p = 0; p < count; ++p) {
        const T* const other = task.other + __shfl_sync(kAllLanes, place, p) * k;
        const T t = __shfl_sync(kAllLanes, term, p);
        if (c < k) sum += t * other[c];
      }
      if (c < k) to[c] += static_cast<double>(sum);
    }
  }
}

template <Loss loss, class T, class Index>
void launch_sparse_sums(const SparseSums<T, Index>& task, cudaStream_t stream) {
  const int64_t blocks = blocks_of(task.x.length, kRowsOfBlock);
  if (blocks == 0 || task.n_components == 0) return;
  if (task.n_components > kWarp) {
    NNMF_CUDA_LAUNCH((sparse_long_row_sums_kernel<loss, T, Index>), grid_of(blocks), kThreads, 0,
                     stream, task);
    return;
  }
  int group = 1;
  while (4 * group < task.n_components) group *= 2;
  NNMF_CUDA_LAUNCH((sparse_row_sums_kernel<loss, T, Index>), grid_of(blocks), kThreads, 0, stream,
                   task, group);
}

}  // namespace nnmf_cuda

// Coordinate descent for Kullback-Leibler on sparse X: a row of a factor after the other, all of
// them at once, as each depends on the other factor alone. A warp has a row and keeps W H of its
// non-zeros in registers; all warps of a block share a long one, whose W H is in memory.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../coordinate.h"
#include "row_sums.cuh"

namespace nnmf_cuda {

template <class T, class Index>
struct SparseDescent {
  SparseView<T, Index> x;
  T* own;              // [length, k]: the factor that is updated
  const T* other;      // [depth, k]
  const double* sums;  // [k], of the other factor
  T* wh;               // [n_nonzeros]: memory for the long rows
  int n_components;
  T floor;
  Descent rule;
};

// What a non-zero adds.
template <class T>
__device__ __forceinline__ void add_to(PoleSums<T>& sums, T x, T wh, T floor, T h) {
  const T ratio = quotient(h, at_least(floor, wh)), term = x * ratio;
  sums.S += term;
  sums.D += term * ratio;
}

// Both sums over a warp, in fixed order, for all its lanes. Half of the lanes go on with each, so
// that there are seven shuffles and not ten.
template <class T>
__device__ __forceinline__ PoleSums<T> sum_over_lanes(const PoleSums<T>& sums) {
  constexpr int kHalf = kWarp / 2;
  const bool is_high = static_cast<int>(threadIdx.x) % kWarp >= kHalf;
  T sum = is_high ? sums.D : sums.S;
  sum += __shfl_xor_sync(kAllLanes, is_high ? sums.S : sums.D, kHalf);
  for (int mask = kHalf / 2; mask > 0; mask /= 2) sum += __shfl_xor_sync(kAllLanes, sum, mask);
  return {__shfl_sync(kAllLanes, sum, 0), __shfl_sync(kAllLanes, sum, kHalf)};
}

constexpr int kHeld = 6;                     // non-zeros of a lane, in registers
constexpr int64_t kHeldRow = kHeld * kWarp;  // and of a row that a warp takes alone

// A row of up to kHeldRow non-zeros, a warp's.
template <class T, class Index>
class HeldRow {
 public:
  __device__ __forceinline__ HeldRow(const SparseDescent<T, Index>& task, const T* own,
                                     int64_t begin, int64_t end)
      : task_(task), count_(static_cast<int>(end - begin)) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const int at = i * kWarp + lane;
      const bool inside = at < count_;
      place_[i] = inside ? task.x.other[begin + at] : Index{0};
      x_[i] = inside ? task.x.values[begin + at] : T{0};
      wh_[i] = h_[i] = 0;
    }
    for (int c = 0; c < task.n_components; ++c) {
      const T w = own[c];
      for_each([&](int i) { wh_[i] += w * value_of(i, c); });
    }
  }

  // Moves the coordinate by `step`, and then turns to another, whose sums it returns.
  __device__ __forceinline__ PoleSums<T> move(T step, int next) {
    PoleSums<T> sums{0, 0};
    for_each([&](int i) {
      wh_[i] += step * h_[i];
      h_[i] = value_of(i, next);
      add_to(sums, x_[i], wh_[i], task_.floor, h_[i]);
    });
    return sum_over_lanes(sums);
  }

  // The sums were the coordinate moved by `step`.
  __device__ __forceinline__ PoleSums<T> sums_at(T step) const {
    PoleSums<T> sums{0, 0};
    for_each([&](int i) { add_to(sums, x_[i], wh_[i] + step * h_[i], task_.floor, h_[i]); });
    return sum_over_lanes(sums);
  }

 private:
  // Calls f(i) for those that at least one lane has.
  template <class F>
  __device__ __forceinline__ void for_each(const F& f) const {
#pragma unroll
    for (int i = 0; i < kHeld; ++i)
      if (i * kWarp < count_) f(i);
  }

  __device__ __forceinline__ T value_of(int i, int component) const {
    return task_.other[static_cast<int64_t>(place_[i]) * task_.n_components + component];
  }

  const SparseDescent<T, Index>& task_;
  int count_;
  Index place_[kHeld];
  T x_[kHeld], wh_[kHeld], h_[kHeld];
};

// A longer row, a block's: the same from memory. Each thread reads what it has written itself.
template <class T, class Index>
class SharedRow {
 public:
  using Parts = PoleSums<double>[kRowsOfBlock];  // of the warps, in shared memory

  __device__ __forceinline__ SharedRow(const SparseDescent<T, Index>& task, const T* own,
                                       int64_t begin, int64_t end, Parts& parts)
      : task_(task), begin_(begin), end_(end), parts_(parts) {
    for (int64_t p = begin + threadIdx.x; p < end; p += kThreads) {
      const T* const other = other_of(p);
      T wh = 0;
      for (int c = 0; c < task.n_components; ++c) wh += own[c] * other[c];
      task.wh[p] = wh;
    }
  }

  __device__ __forceinline__ PoleSums<T> move(T step, int next) {
    const int last = coordinate_;
    coordinate_ = next;
    return sum([&](int64_t p, const T* other) {
      const T wh = task_.wh[p] + step * other[last];
      task_.wh[p] = wh;
      return wh;
    });
  }

  __device__ __forceinline__ PoleSums<T> sums_at(T step) const {
    return sum([&](int64_t p, const T* other) { return task_.wh[p] + step * other[coordinate_]; });
  }

 private:
  __device__ __forceinline__ const T* other_of(int64_t p) const {
    return task_.other + static_cast<int64_t>(task_.x.other[p]) * task_.n_components;
  }

  // The sums of the coordinate with wh_of(p, values of the other factor).
  template <class F>
  __device__ __forceinline__ PoleSums<T> sum(const F& wh_of) const {
    constexpr int64_t kFlush = 128 * kThreads;  // non-zeros before the sums go on in float64
    PoleSums<double> total{0, 0};
    for (int64_t first = begin_; first < end_; first += kFlush) {
      const int64_t last = first + kFlush < end_ ? first + kFlush : end_;
      PoleSums<T> sums{0, 0};
      for (int64_t p = first + threadIdx.x; p < last; p += kThreads) {
        const T* const other = other_of(p);
        add_to(sums, task_.x.values[p], wh_of(p, other), task_.floor, other[coordinate_]);
      }
      total.S += static_cast<double>(sums.S);
      total.D += static_cast<double>(sums.D);
    }
    total = sum_over_lanes(total);
    if (threadIdx.x % kWarp == 0) parts_[threadIdx.x / kWarp] = total;
    __syncthreads();
    total = {0, 0};
    for (int warp = 0; warp < kRowsOfBlock; ++warp) {
      total.S += parts_[warp].S;
      total.D += parts_[warp].D;
    }
    __syncthreads();  // before the next sums overwrite them
    return {static_cast<T>(total.S), static_cast<T>(total.D)};
  }

  const SparseDescent<T, Index>& task_;
  int64_t begin_, end_;
  Parts& parts_;
  int coordinate_ = 0;
};

// Sweeps over the coordinates of a row, which is at `own`. Each thread reads what it has written
// itself: all of them write the same.
template <class T, class Index, class Row>
__device__ __forceinline__ void descend(const SparseDescent<T, Index>& task, T* own, Row& row) {
  const int k = task.n_components, first = static_cast<int>(task.rule.n_fixed);
  const T l2 = static_cast<T>(task.rule.l2_reg);
  PoleSums<T> sums = row.move(T{0}, first);
  for (int64_t sweep = 0; sweep < task.rule.n_inner; ++sweep) {
    for (int i = first; i < k; ++i) {
      const T a = static_cast<T>(task.sums[i] + task.rule.l1_reg), w = own[i];
      const T t =
          descended(Coordinate<T>{a, l2}, w, sums, [&](T to) { return row.sums_at(to - w); });
      sums = row.move(t - w, i + 1 < k ? i + 1 : first);
      own[i] = t;
    }
  }
}

template <class T>
constexpr int kDescending = sizeof(T) == 4 ? 3 : 2;  // blocks that registers allow at a time

template <class T, class Index>
__global__ void __launch_bounds__(kThreads, kDescending<T>)
    sparse_descent_kernel(SparseDescent<T, Index> task) {
  NNMF_CUDA_SHARED(PoleSums<double>, parts, [kRowsOfBlock]);
  // Long rows often lie side by side: those of a block do not.
  const int64_t stride = gridDim.x;
  for (int64_t row = blockIdx.x; row < task.x.length; row += stride) {
    const int64_t begin = task.x.start[row], end = task.x.start[row + 1];
    if (end - begin <= kHeldRow) continue;
    T* const own = task.own + row * task.n_components;
    SharedRow<T, Index> shared(task, own, begin, end, parts);
    descend(task, own, shared);
  }
  const int64_t row = blockIdx.x + static_cast<int>(threadIdx.x) / kWarp * stride;
  if (row >= task.x.length) return;
  const int64_t begin = task.x.start[row], end = task.x.start[row + 1];
  if (end - begin > kHeldRow) return;
  T* const own = task.own + row * task.n_components;
  HeldRow<T, Index> held(task, own, begin, end);
  descend(task, own, held);
}

// The launches. Both factors are rows of components, one problem of a batch after the other.
template <class T, class Index>
class SparseDescents {
 public:
  // Memory has get<T>(size), as DeviceMemory. H is held where by_columns, X transposed, is null.
  template <class Memory>
  SparseDescents(const SparseParams<T, Index>& problem, const SparseParams<T, Index>* by_columns,
                 Memory& memory, cudaStream_t stream)
      : problem_(problem),
        k_(problem.shape.n_components),
        stream_(stream),
        rows_(by_rows(problem)),
        updates_H_(by_columns != nullptr) {
    const SparseShape& s = problem.shape;
    if (updates_H_) columns_ = by_rows(*by_columns);
    H_ = memory.template get<T>(s.n_features * k_);
    wh_ = memory.template get<T>(s.n_nonzeros);
    sums_ = memory.template get<double>(k_);
    const int64_t deepest = std::max(s.n_samples, s.n_features);
    parts_ = memory.template get<double>(blocks_of(deepest, kSummedRows) * k_);
  }

  // n_iter iterations, from the problem's factors to W and H, which are shaped as they are.
  void run(const Descent& of_W, const Descent& of_H, int64_t n_iter, T* W, T* H) const {
    const SparseShape& s = problem_.shape;
    const Shape one{1, s.n_samples, s.n_features, k_, 0, s.n_features};
    const int64_t size_W = s.n_samples * k_, size_H = s.n_features * k_;
    const int padded = static_cast<int>(k_);
    for (int64_t b = 0; b < s.batch; ++b) {
      T* const own_W = W + b * size_W;
      launch_pack(problem_.W + b * size_W, own_W, 1, layout_of_W(one, padded), stream_);
      launch_pack(problem_.H + b * size_H, H_, 1, layout_of_H(one, padded), stream_);
      for (int64_t i = 0; i < n_iter; ++i) {
        update(rows_, of_W, own_W, H_);
        if (updates_H_) update(columns_, of_H, H_, own_W);
      }
      launch_unpack(H_, H + b * size_H, 1, layout_of_H(one, padded), stream_);
    }
  }

 private:
  void update(const SparseView<T, Index>& x, const Descent& rule, T* own, const T* other) const {
    const int k = static_cast<int>(k_);
    const int64_t blocks = blocks_of(x.length, kRowsOfBlock);
    if (blocks == 0 || k <= rule.n_fixed) return;
    launch_sum_rows(other, parts_, sums_, x.depth, k, stream_);
    NNMF_CUDA_LAUNCH(
        (sparse_descent_kernel<T, Index>), grid_of(blocks), kThreads, 0, stream_,
        SparseDescent<T, Index>{x, own, other, sums_, wh_, k, static_cast<T>(rule.floor), rule});
  }

  SparseParams<T, Index> problem_;
  int64_t k_;
  cudaStream_t stream_;
  SparseView<T, Index> rows_, columns_{};
  bool updates_H_;
  T *H_, *wh_;
  double *sums_, *parts_;
};

}  // namespace nnmf_cuda

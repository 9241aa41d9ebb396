// The beta-divergence of sparse X on the device, in float64. What W H puts where X is zero is its
// sum over all places, which the sums of the factors tell, less that at the non-zeros.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../../nnmf/cuda/wide_divergence.cuh"
#include "dense_rows.cuh"
#include "row_sums.cuh"

namespace nnmf_cuda {

template <class T, class Index>
struct SparseDivergenceTask {
  SparseView<T, Index> x;
  const T* W;        // [n_samples, k]
  const T* H;        // [n_features, k]
  double* terms;     // [n_samples]: what the non-zeros of a row add
  double* products;  // [n_samples]: W H at them, for Frobenius its square
  int n_components;
  TermRule<double> rule;
};

// A warp a row: W H of 32 non-zeros, some at a time, as all wait for memory; then a term a lane.
template <Loss loss, class T, class Index>
__global__ void __launch_bounds__(kThreads, 2)
    sparse_divergence_kernel(SparseDivergenceTask<T, Index> task) {
  constexpr int kTogether = 4;
  const SparseRow<T, Index> at(task.x);
  if (at.row >= task.x.length) return;
  const int lane = static_cast<int>(threadIdx.x) % kWarp, k = task.n_components;
  const T* const W = task.W + at.row * k;
  double terms = 0, products = 0;
  for (int64_t first = at.begin; first < at.end; first += kWarp) {
    const int count = at.end - first < kWarp ? static_cast<int>(at.end - first) : kWarp;
    const int64_t place = lane < count ? static_cast<int64_t>(task.x.other[first + lane]) : 0;
    double own = 0;
    for (int p = 0; p < count; p += kTogether) {
      const T* H[kTogether];
      double wh[kTogether] = {};
#pragma unroll
      for (int i = 0; i < kTogether; ++i)  // lanes behind the last non-zero have place 0
        H[i] = task.H + __shfl_sync(kAllLanes, place, p + i) * k;
      for (int c = lane; c < k; c += kWarp)
#pragma unroll
        for (int i = 0; i < kTogether; ++i)
          wh[i] += static_cast<double>(W[c]) * static_cast<double>(H[i][c]);
      for (int mask = kWarp / 2; mask > 0; mask /= 2)
#pragma unroll
        for (int i = 0; i < kTogether; ++i) wh[i] += __shfl_xor_sync(kAllLanes, wh[i], mask);
#pragma unroll
      for (int i = 0; i < kTogether; ++i)
        if (p + i == lane) own = wh[i];
    }
    if (lane >= count) continue;
    const double x = static_cast<double>(task.x.values[first + lane]);
    terms += accurate_term<loss>(x, own, task.rule, task.rule.floor);
    products += loss == Loss::kFrobenius ? own * own : own;
  }
  terms = sum_over_warp(terms);
  products = sum_over_warp(products);
  if (lane > 0) return;
  task.terms[at.row] = terms;
  task.products[at.row] = products;
}

// divergence = terms + unit * (left . right - products); one warp.
struct SparseTotal {
  const double* terms;
  const double* products;
  const double* left;  // [size]
  const double* right;
  int64_t size;
  double unit;
  double* divergence;
};

__global__ void sparse_total_kernel(SparseTotal task) {
  double elsewhere = 0;
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < task.size; i += kWarp)
    elsewhere += task.left[i] * task.right[i];
  elsewhere = sum_over_warp(elsewhere);
  if (threadIdx.x > 0) return;
  elsewhere -= *task.products;
  if (elsewhere < 0) elsewhere = 0;  // rounding; NaN stays
  *task.divergence = *task.terms + task.unit * elsewhere;
}

template <Loss loss, class T, class Index>
class SparseDivergence {
 public:
  // Memory has get<T>(size), as DeviceMemory.
  template <class Memory>
  SparseDivergence(const SparseParams<T, Index>& problem, Memory& memory)
      : problem_(problem), k_(problem.shape.n_components) {
    const SparseShape& s = problem.shape;
    H_ = memory.template get<T>(s.n_features * k_);
    if constexpr (kOfEntries) {
      const int64_t sums = loss == Loss::kFrobenius ? k_ * k_ : k_;
      for (double** of_rows : {&terms_, &products_})
        *of_rows = memory.template get<double>(s.n_samples);
      for (double** of_factor : {&left_, &right_}) *of_factor = memory.template get<double>(sums);
      totals_ = memory.template get<double>(2);
      const int64_t longest = std::max(s.n_samples, s.n_features);
      const int64_t parts = blocks_of(longest, kSummedRows) * std::max<int64_t>(k_, 1);
      parts_ = memory.template get<double>(
          std::max(parts, loss == Loss::kFrobenius ? single_gram_parts(longest, k_) : int64_t{0}));
    } else {
      most_ = dense_rows<T>(s.n_samples, s.n_features);
      dense_ = memory.template get<T>(most_ * s.n_features);
      terms_ = memory.template get<double>(n_tiles());
    }
  }

  // divergence [B]
  void launch(const TermRule<double>& rule, double* divergence, cudaStream_t stream) const {
    const SparseShape& s = problem_.shape;
    for (int64_t b = 0; b < s.batch; ++b) {
      const T* const W = problem_.W + b * s.n_samples * k_;
      const Shape one{1, s.n_samples, s.n_features, k_, 0, s.n_features};
      launch_pack(problem_.H + b * s.n_features * k_, H_, 1, layout_of_H(one, static_cast<int>(k_)),
                  stream);
      if constexpr (kOfEntries)
        launch_entries(W, rule, divergence + b, stream);
      else
        launch_dense(W, rule, divergence + b, stream);
    }
  }

 private:
  static constexpr bool kOfEntries = loss == Loss::kFrobenius || loss == Loss::kKullbackLeibler;

  void launch_entries(const T* W, const TermRule<double>& rule, double* divergence,
                      cudaStream_t stream) const {
    const SparseShape& s = problem_.shape;
    const int k = static_cast<int>(k_);
    const int64_t blocks = blocks_of(s.n_samples, kRowsOfBlock);
    if (blocks > 0)
      NNMF_CUDA_LAUNCH(
          (sparse_divergence_kernel<loss, T, Index>), grid_of(blocks), kThreads, 0, stream,
          SparseDivergenceTask<T, Index>{by_rows(problem_), W, H_, terms_, products_, k, rule});
    launch_sum_rows(terms_, parts_, totals_, s.n_samples, 1, stream);
    launch_sum_rows(products_, parts_, totals_ + 1, s.n_samples, 1, stream);
    int64_t size = k_;
    if constexpr (loss == Loss::kFrobenius) {
      size *= k_;
      launch_single_gram(W, parts_, left_, s.n_samples, k_, stream);
      launch_single_gram(H_, parts_, right_, s.n_features, k_, stream);
    } else {
      launch_sum_rows(W, parts_, left_, s.n_samples, k, stream);
      launch_sum_rows(H_, parts_, right_, s.n_features, k, stream);
    }
    const double unit = loss == Loss::kFrobenius ? 0.5 : 1;
    NNMF_CUDA_LAUNCH((sparse_total_kernel), grid_of(1), kWarp, 0, stream,
                     SparseTotal{totals_, totals_ + 1, left_, right_, size, unit, divergence});
  }

  void launch_dense(const T* W, const TermRule<double>& rule, double* divergence,
                    cudaStream_t stream) const {
    const SparseShape& s = problem_.shape;
    double* parts = terms_;
    for (int64_t first = 0; first < s.n_samples; first += most_) {
      const int64_t rows = std::min(most_, s.n_samples - first);
      launch_dense_rows(by_rows(problem_), first, rows, dense_, stream);
      const Shape some{1, rows, s.n_features, k_, 0, s.n_features};
      const WideDivergenceTask<T, T> task{{dense_, W + first * k_, H_, some, nullptr}, parts, rule};
      const int64_t tiles = wide_blocks(1, rows, s.n_features);
      if (tiles > 0)
        NNMF_CUDA_LAUNCH((wide_divergence_kernel<loss, T, T>), grid_of(tiles), kThreads, 0, stream,
                         task);
      parts += tiles;
    }
    launch_sum_parts(terms_, divergence, 1, n_tiles(), {1, 1, 1, 1, 1}, stream);
  }

  // Tiles of all parts of X.
  int64_t n_tiles() const {
    const SparseShape& s = problem_.shape;
    if (most_ == 0) return 0;
    const int64_t whole = s.n_samples / most_;
    return whole * wide_blocks(1, most_, s.n_features) +
           wide_blocks(1, s.n_samples - whole * most_, s.n_features);
  }

  SparseParams<T, Index> problem_;
  int64_t k_, most_ = 0;
  T *H_, *dense_ = nullptr;
  double *terms_ = nullptr, *products_ = nullptr, *left_ = nullptr, *right_ = nullptr,
         *totals_ = nullptr, *parts_ = nullptr;
};

}  // namespace nnmf_cuda

// Iterations on sparse X: both factors as rows of components, one problem of a batch after the
// other. W is updated from X by rows, H in the same way from X by columns.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../../nnmf/cuda/wide_iterations.cuh"
#include "dense_rows.cuh"
#include "row_sums.cuh"

namespace nnmf_cuda {

template <Loss loss, class T, class Index>
class SparseIterations {
 public:
  // Memory has get<T>(size), as DeviceMemory.
  template <class Memory>
  SparseIterations(const SparseParams<T, Index>& problem, bool updates_H, Memory& memory,
                   cudaStream_t stream)
      : problem_(problem),
        k_(problem.shape.n_components),
        stream_(stream),
        rows_(by_rows(problem)) {
    const SparseShape& s = problem.shape;
    if (updates_H) columns_ = by_columns(problem, memory, stream);
    H_ = memory.template get<T>(s.n_features * k_);
    const int64_t longest = std::max(s.n_samples, updates_H ? s.n_features : 0);
    const int64_t deepest = std::max(s.n_samples, s.n_features);
    numerators_ = memory.template get<double>(longest * k_);
    if (loss == Loss::kKullbackLeibler) {
      sums_ = memory.template get<double>(k_);
      parts_ = memory.template get<double>(blocks_of(deepest, kSummedRows) * k_);
    } else {
      denominators_ = memory.template get<double>(longest * k_);
    }
    if (loss == Loss::kFrobenius) {
      gram_ = memory.template get<double>(k_ * k_);
      parts_ = memory.template get<double>(single_gram_parts(deepest, k_));
    }
    if constexpr (kSumsDenominator) {
      parts_ = memory.template get<double>(
          std::max(wide_parts(dense_rows<T>(s.n_samples, s.n_features) * k_, s.n_features),
                   wide_parts(dense_rows<T>(s.n_features, s.n_samples) * k_, s.n_samples)));
      const int64_t terms = std::max(dense_rows<T>(s.n_samples, s.n_features) * s.n_features,
                                     dense_rows<T>(s.n_features, s.n_samples) * s.n_samples);
      for (T** dense : {&dense_, &top_, &bottom_}) *dense = memory.template get<T>(terms);
    }
  }

  // n_iter iterations, from the problem's factors to W and H, which are shaped as they are.
  void run(const Update& update_W, const Update& update_H, int64_t n_iter, bool updates_H, T* W,
           T* H) const {
    const SparseShape& s = problem_.shape;
    const Shape one{1, s.n_samples, s.n_features, k_, 0, s.n_features};
    const int64_t size_W = s.n_samples * k_, size_H = s.n_features * k_;
    const int padded = static_cast<int>(k_);
    for (int64_t b = 0; b < s.batch; ++b) {
      T* const own_W = W + b * size_W;
      const bool* active = problem_.active == nullptr ? nullptr : problem_.active + b;
      launch_pack(problem_.W + b * size_W, own_W, 1, layout_of_W(one, padded), stream_);
      launch_pack(problem_.H + b * size_H, H_, 1, layout_of_H(one, padded), stream_);
      for (int64_t i = 0; i < n_iter; ++i) {
        update(rows_, update_W, own_W, H_, active);
        if (updates_H) update(columns_, update_H, H_, own_W, active);
      }
      launch_unpack(H_, H + b * size_H, 1, layout_of_H(one, padded), stream_);
    }
  }

 private:
  static constexpr bool kSumsDenominator = loss == Loss::kItakuraSaito || loss == Loss::kGeneral;

  void update(const SparseView<T, Index>& x, const Update& rule, T* own, const T* other,
              const bool* active) const {
    const T floor = static_cast<T>(rule.terms.floor);
    const int k = static_cast<int>(k_);
    const double* denominators = denominators_;
    if constexpr (kSumsDenominator) {
      sum_dense_rows(x, rule, own, other, active);
    } else {
      launch_sparse_sums<loss>(SparseSums<T, Index>{x, own, other, numerators_, active, k, floor},
                               stream_);
      if constexpr (loss == Loss::kKullbackLeibler) {
        launch_sum_rows(other, parts_, sums_, x.depth, k, stream_);
        denominators = nullptr;
      } else {
        launch_single_gram(other, parts_, gram_, x.depth, k_, stream_);
        if (rule.n_inner > 0) return descend(x, rule, own);
        launch_wide_product(WideProduct<double, T, double>{own, 0, k_, 1, gram_, 0, denominators_,
                                                           active, x.length, k_, k_, 1},
                            1, stream_);
      }
    }
    WideUpdate<T> task{};
    task.factor = own;
    task.numerators = numerators_;
    task.denominators = denominators;
    task.sums = sums_;
    task.active = active;
    task.size = x.length * k_;
    task.rows = x.length;
    task.n_components = k_;
    task.update = rule;
    if (task.size > 0)
      NNMF_CUDA_LAUNCH((wide_update_kernel<T>), grid_of(blocks_of(task.size, kThreads)), kThreads,
                       0, stream_, task);
  }

  void descend(const SparseView<T, Index>& x, const Update& rule, T* own) const {
    WideDescent<T> task{};
    task.factor = own;
    task.cross = numerators_;
    task.gram = gram_;
    task.values = denominators_;
    task.size = x.length;
    task.rows = x.length;
    task.n_components = static_cast<int>(k_);
    task.update = rule;
    if (task.size > 0 && k_ > 0)
      NNMF_CUDA_LAUNCH((wide_descent_kernel<T>), grid_of(blocks_of(task.size, kThreads / kWarp)),
                       kThreads, 0, stream_, task);
  }

  // Numerators and denominators from W H, made for some rows at a time.
  void sum_dense_rows(const SparseView<T, Index>& x, const Update& rule, const T* own,
                      const T* other, const bool* active) const {
    const int64_t most = dense_rows<T>(x.length, x.depth);
    for (int64_t first = 0; first < x.length; first += most) {
      const int64_t rows = std::min(most, x.length - first);
      launch_dense_rows(x, first, rows, dense_, stream_);
      WideTerms<T, T> terms{};
      terms.X = dense_;
      terms.x_row_stride = x.depth;
      terms.W = own + first * k_;
      terms.H = other;
      terms.numerators = top_;
      terms.denominators = bottom_;
      terms.active = active;
      terms.rows = rows;
      terms.columns = x.depth;
      terms.n_components = k_;
      terms.rule = rule.terms.as<T>();
      const int64_t blocks = wide_blocks(1, rows, x.depth);
      if (blocks > 0)
        NNMF_CUDA_LAUNCH((wide_terms_kernel<loss, T, T>), grid_of(blocks), kThreads, 0, stream_,
                         terms);
      for (auto [from, to] : {std::pair{top_, numerators_}, std::pair{bottom_, denominators_}})
        launch_split_product(WideProduct<T, T, T>{from, 0, x.depth, 1, other, 0, to + first * k_,
                                                  active, rows, k_, x.depth, 1},
                             parts_, 1, stream_);
    }
  }

  SparseParams<T, Index> problem_;
  int64_t k_;
  cudaStream_t stream_;
  SparseView<T, Index> rows_, columns_{};
  T *H_, *dense_ = nullptr, *top_ = nullptr, *bottom_ = nullptr;
  double *numerators_, *denominators_ = nullptr, *sums_ = nullptr, *parts_ = nullptr,
                       *gram_ = nullptr;
};

}  // namespace nnmf_cuda

// Iterations with more than kMaxComponents components. Where the loss needs W H, what comes of it
// lies in memory, for as many rows (or columns) of X as fit into kWideBytes.
#pragma once

#include <algorithm>
#include <cstdint>

#include "device_problem.cuh"
#include "wide_product.cuh"

namespace nnmf_cuda {

constexpr int64_t kWideBytes = int64_t{128} << 20;  // of what is kept for a part of a half-step

// The terms of rows x columns of X, for some problems.
template <class T, class Data>
struct WideTerms {
  const Data* X;
  int64_t x_stride, x_row_stride;
  const T* W;  // [problems, ..., k]
  const T* H;  // the same
  int64_t W_stride, H_stride;
  T* numerators;    // [problems, rows, columns]
  T* denominators;  // the same; only where the loss sums them
  const bool* active;
  int64_t rows, columns, n_components;
  TermRule<T> rule;
};

template <Loss loss, class T, class Data>
__global__ void __launch_bounds__(kThreads) wide_terms_kernel(WideTerms<T, Data> task) {
  const WidePlace<> at(task.rows, task.columns);
  if (task.active != nullptr && !task.active[at.problem]) return;
  const int64_t k = task.n_components;
  const WideSum<T> wh = wide_tile_product<T, T>(
      task.W + at.problem * task.W_stride + at.row * k, k, 1, task.rows - at.row,
      task.H + at.problem * task.H_stride + at.column * k, k, 1, task.columns - at.column, k);
  const Data* const X = task.X + at.problem * task.x_stride;
#pragma unroll
  for (int i = 0; i < kWideEach; ++i) {
    const int64_t row = at.row + wh.row() + i;
#pragma unroll
    for (int j = 0; j < kWideEach; ++j) {
      const int64_t column = at.column + wh.column() + j;
      if (row >= task.rows || column >= task.columns) continue;
      const int64_t to = (at.problem * task.rows + row) * task.columns + column;
      const T x = static_cast<T>(X[row * task.x_row_stride + column]);
      task.numerators[to] = numerator_term<loss>(x, wh.values[i][j], task.rule);
      if constexpr (loss == Loss::kItakuraSaito || loss == Loss::kGeneral)
        task.denominators[to] = denominator_term<loss>(wh.values[i][j], task.rule);
    }
  }
}

// New values of some rows of a factor from their sums.
template <class T>
struct WideUpdate {
  T* factor;  // [problems, ..., k]
  int64_t stride;
  const double* numerators;    // [problems, rows, k]
  const double* denominators;  // the same, or nullptr: then
  const double* sums;          // [problems, k]
  const bool* active;
  int64_t size, rows, n_components;
  Update update;
};

template <class T>
__global__ void __launch_bounds__(kThreads) wide_update_kernel(WideUpdate<T> task) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= task.size) return;
  const int64_t k = task.n_components, component = at % k;
  const int64_t problem = at / k / task.rows;
  if (component < task.update.n_fixed) return;
  if (task.active != nullptr && !task.active[problem]) return;
  double denominator;
  if (task.denominators != nullptr) {
    denominator = task.denominators[at];
  } else {
    denominator = task.sums[problem * k + component];
    if (denominator == 0) denominator = task.update.zero_sum;
  }
  T* const value = task.factor + problem * task.stride + at % (task.rows * k);
  *value = updated(*value, static_cast<T>(task.numerators[at] * task.update.scale),
                   static_cast<T>(denominator), task.update.rule);
}

// Coordinate descent as in hals_kernel, a warp a row.
template <class T>
struct WideDescent {
  T* factor;  // [problems, ..., k]
  int64_t stride;
  const double* cross;  // [problems, rows, k]: the numerators
  const double* gram;   // [problems, k, k], of the other factor
  double* values;       // [problems, rows, k]: memory to work in
  int64_t size, rows;   // size: rows of all problems
  int n_components;
  Update update;
};

template <class T>
__global__ void __launch_bounds__(kThreads) wide_descent_kernel(WideDescent<T> task) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, k = task.n_components;
  const int64_t row =
      static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + static_cast<int>(threadIdx.x) / kWarp;
  if (row >= task.size) return;
  const int64_t problem = row / task.rows;
  T* const factor = task.factor + problem * task.stride + row % task.rows * k;
  const double* const cross = task.cross + row * k;
  const double* const gram = task.gram + problem * k * k;
  const double l1 = task.update.rule.l1_reg, l2 = task.update.rule.l2_reg;
  double* const own = task.values + row * k;  // each lane reads what it has written itself
  for (int r = lane; r < k; r += kWarp) own[r] = static_cast<double>(factor[r]);
  for (int64_t sweep = 0; sweep < task.update.n_inner; ++sweep) {
    for (int r = static_cast<int>(task.update.n_fixed); r < k; ++r) {
      const double* const column = gram + static_cast<int64_t>(r) * k;
      const double curvature = column[r] + l2;
      if (curvature == 0) continue;
      const bool is_mine = lane == r % kWarp;
      if (is_mine) own[r] = 0;
      double taken = 0;  // by the other components
#pragma unroll 4
      for (int other = lane; other < k; other += kWarp) taken += own[other] * column[other];
      for (int mask = kWarp / 2; mask > 0; mask /= 2)
        taken += __shfl_xor_sync(kAllLanes, taken, mask);
      const double left = task.update.scale * cross[r] - l1 - taken;
      if (is_mine) own[r] = left < 0 ? 0 : left / curvature;
    }
  }
  for (int r = lane; r < k; r += kWarp) factor[r] = static_cast<T>(own[r]);
}

// Both factors as rows of components, and the launches.
template <Loss loss, class T, class Data>
class WideIterations {
 public:
  // Memory has get<T>(size), as DeviceMemory.
  template <class Memory>
  WideIterations(const DeviceProblem<T, Data>& problem, Memory& memory)
      : problem_(problem), k_(problem.shape.n_components) {
    const Shape& s = problem.shape;
    H_ = memory.template get<T>(s.batch * s.n_features * k_);
    const Part of_W = part_of(s.n_samples, s.n_features), of_H = part_of(s.n_features, s.n_samples);
    const int64_t rows = std::max(of_W.problems * of_W.rows, of_H.problems * of_H.rows);
    const int64_t terms =
        std::max(of_W.problems * of_W.rows * s.n_features, of_H.problems * of_H.rows * s.n_samples);
    const int64_t problems = std::max(of_W.problems, of_H.problems);
    if (loss != Loss::kFrobenius) top_ = memory.template get<T>(terms);
    if (kSumsDenominator) bottom_ = memory.template get<T>(terms);
    numerators_ = memory.template get<double>(rows * k_);
    if (loss == Loss::kKullbackLeibler)
      sums_ = memory.template get<double>(problems * k_);
    else
      denominators_ = memory.template get<double>(rows * k_);
    if (loss == Loss::kFrobenius) gram_ = memory.template get<double>(problems * k_ * k_);
  }

  // n_iter iterations, from the problem's factors to W and H, which are shaped as they are.
  void run(const Update& update_W, const Update& update_H, int64_t n_iter, bool updates_H, T* W,
           T* H, cudaStream_t stream) const {
    const Shape& s = problem_.shape;
    const int padded = static_cast<int>(k_);
    launch_pack(problem_.W, W, s.batch, layout_of_W(s, padded), stream);
    launch_pack(problem_.H, H_, s.batch, layout_of_H(s, padded), stream);
    for (int64_t i = 0; i < n_iter; ++i) {
      update<Factor::kW>(update_W, W, stream);
      if (updates_H) update<Factor::kH>(update_H, W, stream);
    }
    launch_unpack(H_, H, s.batch, layout_of_H(s, padded), stream);
  }

 private:
  static constexpr bool kSumsDenominator = loss == Loss::kItakuraSaito || loss == Loss::kGeneral;

  // Rows of a factor that are updated together: some of one problem's, or all of some problems'.
  struct Part {
    int64_t problems, rows;
    int64_t first_problem = 0, first = 0;
  };

  // The size of parts that fit into kWideBytes, though no smaller than a tile.
  Part part_of(int64_t length, int64_t depth) const {
    constexpr int64_t kDouble = sizeof(double);
    const int64_t terms = loss == Loss::kFrobenius ? 0 : kSumsDenominator ? 2 : 1;
    const int64_t row = terms * depth * int64_t{sizeof(T)} + 2 * k_ * kDouble;
    const int64_t fitting = std::max<int64_t>(kWideBytes / row, kWideTile);
    if (fitting < length || length == 0) return {1, std::min(fitting, length)};
    const int64_t grams = std::max<int64_t>(kWideBytes / (k_ * k_ * kDouble), 1);
    return {std::min({fitting / length, grams, std::max<int64_t>(problem_.shape.batch, 1)}),
            length};
  }

  template <Factor factor>
  void update(const Update& rule, T* W, cudaStream_t stream) const {
    const Shape& s = problem_.shape;
    constexpr bool kIsW = factor == Factor::kW;
    const int64_t length = kIsW ? s.n_samples : s.n_features;
    const int64_t depth = kIsW ? s.n_features : s.n_samples;
    const Part most = part_of(length, depth);
    Part part = most;
    for (part.first_problem = 0; part.first_problem < s.batch;
         part.first_problem += most.problems) {
      part.problems = std::min(most.problems, s.batch - part.first_problem);
      const T* other = (kIsW ? H_ : W) + part.first_problem * depth * k_;
      if (loss == Loss::kFrobenius)
        launch_wide_gram(other, gram_, active(part), part.problems, depth, k_, stream);
      if (loss == Loss::kKullbackLeibler)
        launch_sum_parts(other, sums_, part.problems, depth,
                         {1, 1, static_cast<int>(k_), static_cast<int>(k_), 1}, stream);
      for (part.first = 0; part.first < length; part.first += most.rows) {
        part.rows = std::min(most.rows, length - part.first);
        sum<factor>(part, rule, W, other, stream);
        T* const own = (kIsW ? W : H_) + (part.first_problem * length + part.first) * k_;
        if (rule.n_inner > 0)
          descend(part, rule, own, length, stream);
        else
          multiply(part, rule, own, length, stream);
      }
    }
  }

  const bool* active(const Part& part) const {
    return problem_.active == nullptr ? nullptr : problem_.active + part.first_problem;
  }

  // The numerators of a part, and denominators that are sums over X.
  template <Factor factor>
  void sum(const Part& part, const Update& rule, const T* W, const T* other,
           cudaStream_t stream) const {
    const Shape& s = problem_.shape;
    constexpr bool kIsW = factor == Factor::kW;
    const int64_t depth = kIsW ? s.n_features : s.n_samples;
    const Data* X =
        problem_.X + part.first_problem * s.x_stride + part.first * (kIsW ? s.x_row_stride : 1);
    if constexpr (loss == Loss::kFrobenius) {
      add_up<factor>(part, X, s.x_stride, s.x_row_stride, other, numerators_, stream);
    } else {
      WideTerms<T, Data> terms{};
      terms.X = X;
      terms.x_stride = s.x_stride;
      terms.x_row_stride = s.x_row_stride;
      terms.W_stride = s.n_samples * k_;
      terms.H_stride = s.n_features * k_;
      terms.W = W + part.first_problem * terms.W_stride + (kIsW ? part.first * k_ : 0);
      terms.H = H_ + part.first_problem * terms.H_stride + (kIsW ? 0 : part.first * k_);
      terms.numerators = top_;
      terms.denominators = bottom_;
      terms.active = active(part);
      terms.rows = kIsW ? part.rows : depth;
      terms.columns = kIsW ? depth : part.rows;
      terms.n_components = k_;
      terms.rule = rule.terms.as<T>();
      const int64_t blocks = wide_blocks(part.problems, terms.rows, terms.columns);
      if (blocks > 0)
        NNMF_CUDA_LAUNCH((wide_terms_kernel<loss, T, Data>), grid_of(blocks), kThreads, 0, stream,
                         terms);
      const int64_t of_problem = terms.rows * terms.columns;
      add_up<factor>(part, top_, of_problem, terms.columns, other, numerators_, stream);
      if constexpr (kSumsDenominator)
        add_up<factor>(part, bottom_, of_problem, terms.columns, other, denominators_, stream);
    }
  }

  // to [problems, rows, k]: rows of X or of terms times the other factor; for H columns of them.
  template <Factor factor, class From>
  void add_up(const Part& part, const From* from, int64_t stride, int64_t row_stride,
              const T* other, double* to, cudaStream_t stream) const {
    constexpr bool kIsW = factor == Factor::kW;
    const int64_t depth = kIsW ? problem_.shape.n_features : problem_.shape.n_samples;
    WideProduct<T, From, T> product{};
    product.left = from;
    product.left_problem = stride;
    product.left_row = kIsW ? row_stride : 1;
    product.left_deep = kIsW ? 1 : row_stride;
    product.right = other;
    product.right_problem = depth * k_;
    product.out = to;
    product.active = active(part);
    product.rows = part.rows;
    product.columns = k_;
    product.depth = depth;
    product.scale = 1;
    launch_wide_product(product, part.problems, stream);
  }

  void multiply(const Part& part, const Update& rule, T* own, int64_t length,
                cudaStream_t stream) const {
    if constexpr (loss == Loss::kFrobenius)
      launch_wide_product(
          WideProduct<double, T, double>{own, length * k_, k_, 1, gram_, k_ * k_, denominators_,
                                         active(part), part.rows, k_, k_, 1},
          part.problems, stream);
    WideUpdate<T> task{};
    task.factor = own;
    task.stride = length * k_;
    task.numerators = numerators_;
    task.denominators = denominators_;
    task.sums = sums_;
    task.active = active(part);
    task.size = part.problems * part.rows * k_;
    task.rows = part.rows;
    task.n_components = k_;
    task.update = rule;
    if (task.size > 0)
      NNMF_CUDA_LAUNCH((wide_update_kernel<T>), grid_of(blocks_of(task.size, kThreads)), kThreads,
                       0, stream, task);
  }

  void descend(const Part& part, const Update& rule, T* own, int64_t length,
               cudaStream_t stream) const {
    WideDescent<T> task{};
    task.factor = own;
    task.stride = length * k_;
    task.cross = numerators_;
    task.gram = gram_;
    task.values = denominators_;
    task.size = part.problems * part.rows;
    task.rows = part.rows;
    task.n_components = static_cast<int>(k_);
    task.update = rule;
    if (task.size > 0)
      NNMF_CUDA_LAUNCH((wide_descent_kernel<T>), grid_of(blocks_of(task.size, kThreads / kWarp)),
                       kThreads, 0, stream, task);
  }

  DeviceProblem<T, Data> problem_;
  int64_t k_;
  T *H_, *top_ = nullptr, *bottom_ = nullptr;
  double *numerators_, *denominators_ = nullptr, *sums_ = nullptr, *gram_ = nullptr;
};

}  // namespace nnmf_cuda

// Iterations where entries of X have weights, for any number of components: the way of
// wide_iterations.cuh, with what comes of W H and the weights in memory, for as many rows (or
// columns) of X as fit into kWideBytes.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../weights.h"
#include "device_problem.cuh"
#include "wide_iterations.cuh"
#include "wide_product.cuh"

namespace nnmf_cuda {

// The weight of an entry.
template <class T>
__device__ __forceinline__ T weight_at(const Weights<T>& weights, int64_t problem, int64_t row,
                                       int64_t column) {
  const int64_t first = problem * weights.stride + row * weights.row_stride;
  if (weights.values != nullptr) return weights.values[first + column];
  return (weights.bits[first + column / 8] >> (column % 8) & 1) != 0 ? T{1} : T{0};
}

// The terms of rows x columns of X, for some problems. Numerators and denominators, or, for
// coordinate descent, what is left of X and the weights.
template <class T, class Data>
struct WeightedTermsTask {
  const Data* X;  // from the first row and column on, as W and H
  int64_t x_stride, x_row_stride;
  const T* W;  // [problems, ..., k]
  const T* H;  // the same
  int64_t W_stride, H_stride;
  Weights<T> weights;  // of all X
  int64_t first_problem, first_row, first_column;
  T* numerators;    // [problems, rows, columns]
  T* denominators;  // the same
  const bool* active;
  int64_t rows, columns, n_components;
  TermRule<T> rule;
  bool descends;
};

template <Loss loss, class T, class Data>
__global__ void __launch_bounds__(kThreads) weighted_terms_kernel(WeightedTermsTask<T, Data> task) {
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
      const T weight = weight_at(task.weights, task.first_problem + at.problem,
                                 task.first_row + row, task.first_column + column);
      T above = 0, below = 0;  // where X does not count it may be anything
      if (weight > 0) {
        const Data x = X[row * task.x_row_stride + column];
        if (task.descends) {
          above = weight * (value_of<T>(x) - wh.values[i][j]);
          below = weight;
        } else {
          above = weight * numerator_term<loss>(static_cast<T>(x), wh.values[i][j], task.rule);
          below = weight * denominator_term<loss>(wh.values[i][j], task.rule);
        }
      }
      task.numerators[to] = above;
      task.denominators[to] = below;
    }
  }
}

// Coordinate descent, a block a row of a factor; the twin of cpu/weighted_descent.h.
template <class T>
struct WeightedDescent {
  T* factor;  // [problems, ..., k]
  int64_t factor_stride;
  const T* other;  // [problems, depth, k]
  T* residual;     // [problems, rows x depth]: an entry at row * row_stride + deep * deep_stride
  const T* values;
  int64_t row_stride, deep_stride;
  const bool* active;
  int64_t rows, depth, n_components;
  Update update;
};

template <class T>
__global__ void __launch_bounds__(kThreads) weighted_descent_kernel(WeightedDescent<T> task) {
  NNMF_CUDA_SHARED(double, lefts, [kThreads]);
  NNMF_CUDA_SHARED(double, curvatures, [kThreads]);
  const int own = static_cast<int>(threadIdx.x);
  const int64_t k = task.n_components, problem = blockIdx.x / task.rows;
  const int64_t row = blockIdx.x % task.rows;
  if (task.active != nullptr && !task.active[problem]) return;
  const int64_t first = problem * task.rows * task.depth + row * task.row_stride;
  T* const residual = task.residual + first;
  const T* const values = task.values + first;
  const T* const other = task.other + problem * task.depth * k;
  T* const factor = task.factor + problem * task.factor_stride + row * k;
  const double l1 = task.update.rule.l1_reg, l2 = task.update.rule.l2_reg;
  for (int64_t sweep = 0; sweep < task.update.n_inner; ++sweep) {
    for (int64_t t = task.update.n_fixed; t < k; ++t) {
      double left = 0, curvature = 0;
      for (int64_t deep = own; deep < task.depth; deep += kThreads) {
        const int64_t at = deep * task.deep_stride;
        const double h = static_cast<double>(other[deep * k + t]);
        left += static_cast<double>(residual[at]) * h;
        curvature += static_cast<double>(values[at]) * h * h;
      }
      lefts[own] = left;
      curvatures[own] = curvature;
      __syncthreads();
      for (int half = kThreads / 2; half > 0; half /= 2) {
        if (own < half) {
          lefts[own] += lefts[own + half];
          curvatures[own] += curvatures[own + half];
        }
        __syncthreads();
      }
      const double here = static_cast<double>(factor[t]), whole = curvatures[0] + l2;
      double moved = whole == 0 ? here : here + (lefts[0] - l1 - l2 * here) / whole;
      moved = moved < 0 ? 0 : moved;
      const T step = static_cast<T>(moved) - static_cast<T>(here);
      __syncthreads();  // all have read the sums and the factor
      if (own == 0) factor[t] = static_cast<T>(moved);
      // Each thread changes what it reads itself.
      for (int64_t deep = own; deep < task.depth; deep += kThreads) {
        const int64_t at = deep * task.deep_stride;
        residual[at] -= step * values[at] * other[deep * k + t];
      }
    }
  }
}

// Both factors as rows of components, and the launches.
template <Loss loss, class T, class Data>
class WeightedIterations {
 public:
  // Memory has get<T>(size), as DeviceMemory.
  template <class Memory>
  WeightedIterations(const DeviceProblem<T, Data>& problem, const Weights<T>& weights,
                     Memory& memory)
      : problem_(problem), weights_(weights), k_(problem.shape.n_components) {
    const Shape& s = problem.shape;
    H_ = memory.template get<T>(s.batch * s.n_features * k_);
    const Part of_W = part_of(s.n_samples, s.n_features), of_H = part_of(s.n_features, s.n_samples);
    const int64_t rows = std::max(of_W.problems * of_W.rows, of_H.problems * of_H.rows);
    const int64_t terms =
        std::max(of_W.problems * of_W.rows * s.n_features, of_H.problems * of_H.rows * s.n_samples);
    top_ = memory.template get<T>(terms);
    bottom_ = memory.template get<T>(terms);
    numerators_ = memory.template get<double>(rows * k_);
    denominators_ = memory.template get<double>(rows * k_);
    parts_ = memory.template get<double>(
        std::max(wide_parts(of_W.problems * of_W.rows * k_, s.n_features),
                 wide_parts(of_H.problems * of_H.rows * k_, s.n_samples)));
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
  // Rows of a factor that are updated together: some of one problem's, or all of some problems'.
  struct Part {
    int64_t problems, rows;
    int64_t first_problem = 0, first = 0;
  };

  // The size of parts that fit into kWideBytes, though no smaller than a tile.
  Part part_of(int64_t length, int64_t depth) const {
    constexpr int64_t kDouble = sizeof(double);
    const int64_t row =
        2 * (depth * int64_t{sizeof(T)} + k_ * kDouble) + wide_parts(k_, depth) * kDouble;
    const int64_t fitting = std::max<int64_t>(kWideBytes / std::max<int64_t>(row, 1), kWideTile);
    if (fitting < length || length == 0) return {1, std::min(fitting, length)};
    return {std::min(fitting / length, std::max<int64_t>(problem_.shape.batch, 1)), length};
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
      for (part.first = 0; part.first < length; part.first += most.rows) {
        part.rows = std::min(most.rows, length - part.first);
        form<factor>(part, rule, W, stream);
        T* const own = (kIsW ? W : H_) + (part.first_problem * length + part.first) * k_;
        if (rule.n_inner > 0) {
          descend<factor>(part, rule, own, other, stream);
        } else {
          add_up<factor>(part, top_, other, numerators_, stream);
          add_up<factor>(part, bottom_, other, denominators_, stream);
          multiply(part, rule, own, length, stream);
        }
      }
    }
  }

  const bool* active(const Part& part) const {
    return problem_.active == nullptr ? nullptr : problem_.active + part.first_problem;
  }

  template <Factor factor>
  void form(const Part& part, const Update& rule, const T* W, cudaStream_t stream) const {
    const Shape& s = problem_.shape;
    constexpr bool kIsW = factor == Factor::kW;
    WeightedTermsTask<T, Data> task{};
    task.first_problem = part.first_problem;
    task.first_row = kIsW ? part.first : 0;
    task.first_column = kIsW ? 0 : part.first;
    task.X = problem_.X + part.first_problem * s.x_stride + task.first_row * s.x_row_stride +
             task.first_column;
    task.x_stride = s.x_stride;
    task.x_row_stride = s.x_row_stride;
    task.W_stride = s.n_samples * k_;
    task.H_stride = s.n_features * k_;
    task.W = W + part.first_problem * task.W_stride + task.first_row * k_;
    task.H = H_ + part.first_problem * task.H_stride + task.first_column * k_;
    task.weights = weights_;
    task.numerators = top_;
    task.denominators = bottom_;
    task.active = active(part);
    task.rows = kIsW ? part.rows : s.n_samples;
    task.columns = kIsW ? s.n_features : part.rows;
    task.n_components = k_;
    task.rule = rule.terms.as<T>();
    task.descends = rule.n_inner > 0;
    const int64_t blocks = wide_blocks(part.problems, task.rows, task.columns);
    if (blocks > 0)
      NNMF_CUDA_LAUNCH((weighted_terms_kernel<loss, T, Data>), grid_of(blocks), kThreads, 0, stream,
                       task);
  }

  // to [problems, rows, k]: rows of terms times the other factor; for H columns of them.
  template <Factor factor>
  void add_up(const Part& part, const T* from, const T* other, double* to,
              cudaStream_t stream) const {
    constexpr bool kIsW = factor == Factor::kW;
    const int64_t depth = kIsW ? problem_.shape.n_features : problem_.shape.n_samples;
    const int64_t row_stride = kIsW ? depth : part.rows;
    launch_split_product(
        WideProduct<T, T, T>{from, part.rows * depth, kIsW ? row_stride : 1, kIsW ? 1 : row_stride,
                             other, depth * k_, to, active(part), part.rows, k_, depth, 1},
        parts_, part.problems, stream);
  }

  void multiply(const Part& part, const Update& rule, T* own, int64_t length,
                cudaStream_t stream) const {
    WideUpdate<T> task{};
    task.factor = own;
    task.stride = length * k_;
    task.numerators = numerators_;
    task.denominators = denominators_;
    task.active = active(part);
    task.size = part.problems * part.rows * k_;
    task.rows = part.rows;
    task.n_components = k_;
    task.update = rule;
    if (task.size > 0)
      NNMF_CUDA_LAUNCH((wide_update_kernel<T>), grid_of(blocks_of(task.size, kThreads)), kThreads,
                       0, stream, task);
  }

  template <Factor factor>
  void descend(const Part& part, const Update& rule, T* own, const T* other,
               cudaStream_t stream) const {
    const Shape& s = problem_.shape;
    constexpr bool kIsW = factor == Factor::kW;
    WeightedDescent<T> task{};
    task.depth = kIsW ? s.n_features : s.n_samples;
    task.factor = own;
    task.factor_stride = (kIsW ? s.n_samples : s.n_features) * k_;
    task.other = other;
    task.residual = top_;
    task.values = bottom_;
    task.row_stride = kIsW ? task.depth : 1;
    task.deep_stride = kIsW ? 1 : part.rows;
    task.active = active(part);
    task.rows = part.rows;
    task.n_components = k_;
    task.update = rule;
    const int64_t blocks = part.problems * part.rows;
    if (blocks > 0)
      NNMF_CUDA_LAUNCH((weighted_descent_kernel<T>), grid_of(blocks), kThreads, 0, stream, task);
  }

  DeviceProblem<T, Data> problem_;
  Weights<T> weights_;
  int64_t k_;
  T *H_, *top_, *bottom_;
  double *numerators_, *denominators_, *parts_;
};

}  // namespace nnmf_cuda

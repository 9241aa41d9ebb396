// Iterations on the device, multiplicative or by coordinates: a launch sequence without a word from
// the host in between.
#pragma once

#include <algorithm>
#include <cstdint>

#include "factor_kernels.cuh"
#include "half_step_kernel.cuh"
#include "hals_kernel.cuh"
#include "update_kernel.cuh"

namespace nnmf_cuda {

// Both factors in the kernels' layout, what is summed for them, and the launches that do it.
template <class Tiling>
class Iterations {
 public:
  using T = typename Tiling::T;
  using Data = typename Tiling::Data;

  // Memory has get<T>(size), as DeviceMemory.
  template <class Memory>
  Iterations(const DeviceProblem<T, Data>& problem, int group, Memory& memory)
      : problem_(problem),
        group_(group),
        padded_(Tiling::kComponents * group),
        W_(cut_for<Tiling, Factor::kW>(problem, group)),
        H_(cut_for<Tiling, Factor::kH>(problem, group)) {
    const int64_t rows = problem.shape.batch * padded_;
    W_packed_ = memory.template get<T>(rows * W_.length);
    H_packed_ = memory.template get<T>(rows * H_.length);
    const int64_t sums = rows * std::max(W_.splits * W_.length, H_.splits * H_.length);
    numerators_ = memory.template get<T>(sums);
    if (Tiling::kSumsDenominator) denominators_ = memory.template get<T>(sums);
    if (Tiling::kLoss == Loss::kKullbackLeibler)
      sums_ = memory.template get<double>(rows * std::max(W_.splits, H_.splits));
    if (Tiling::kLoss == Loss::kFrobenius) {
      const int64_t batch = problem.shape.batch;
      const int64_t chunks = std::max(gram_chunks(batch, W_.length), gram_chunks(batch, H_.length));
      gram_ = memory.template get<double>(rows * padded_);
      gram_parts_ = memory.template get<double>(rows * padded_ * chunks);
      cross_ = memory.template get<double>(rows * std::max(W_.length, H_.length));
    }
  }

  // n_iter iterations, from the problem's factors to W and H, which are shaped as they are.
  void run(const Update& update_W, const Update& update_H, int64_t n_iter, bool updates_H, T* W,
           T* H, cudaStream_t stream) const {
    const Shape& s = problem_.shape;
    launch_pack(problem_.W, W_packed_, s.batch, layout_of_W(s, padded_), stream);
    launch_pack(problem_.H, H_packed_, s.batch, layout_of_H(s, padded_), stream);
    for (int64_t i = 0; i < n_iter; ++i) {
      update<Factor::kW>(update_W, stream);
      if (updates_H) update<Factor::kH>(update_H, stream);
    }
    launch_unpack(W_packed_, W, s.batch, layout_of_W(s, padded_), stream);
    launch_unpack(H_packed_, H, s.batch, layout_of_H(s, padded_), stream);
  }

 private:
  template <Factor factor>
  void update(const Update& rule, cudaStream_t stream) const {
    const int64_t batch = problem_.shape.batch;
    const auto step = half_step<factor>(rule);
    if (Tiling::kLoss == Loss::kFrobenius)
      launch_gram(step.other, gram_parts_, gram_, batch, step.cut.depth, padded_, padded_, stream);
    launch_half_step<Tiling, factor>(step, batch, stream);
    if (rule.n_inner > 0)
      descend(step, stream);
    else if (!step.whole)
      multiply(step, stream);
  }

  void multiply(const HalfStep<T, Data>& step, cudaStream_t stream) const {
    UpdateTask<T> task{};
    task.factor = step.own;
    task.numerators = step.numerators;
    task.denominators = step.denominators;
    task.sums = sums_;
    task.gram = gram_;
    task.active = problem_.active;
    task.length = step.cut.length;
    task.splits = step.cut.splits;
    task.n_components = step.n_components;
    task.padded = padded_;
    task.update = step.update;
    launch_update<Tiling::kLoss>(task, problem_.shape.batch, stream);
  }

  void descend(const HalfStep<T, Data>& step, cudaStream_t stream) const {
    const int64_t batch = problem_.shape.batch, length = step.cut.length;
    launch_sum_parts(step.numerators, cross_, batch, step.cut.splits,
                     {length, length, padded_, padded_, 1}, stream);
    HalsTask<T> task{};
    task.factor = step.own;
    task.cross = cross_;
    task.gram = gram_;
    task.rows = batch * length;
    task.length = length;
    task.n_components = step.n_components;
    task.padded = padded_;
    task.update = step.update;
    launch_hals(task, stream);
  }

  template <Factor factor>
  HalfStep<T, Data> half_step(const Update& update) const {
    const Shape& s = problem_.shape;
    constexpr bool kIsW = factor == Factor::kW;
    HalfStep<T, Data> step{};
    step.X = problem_.X;
    step.x_stride = s.x_stride;
    step.x_row_stride = s.x_row_stride;
    step.other = kIsW ? H_packed_ : W_packed_;
    step.own = kIsW ? W_packed_ : H_packed_;
    step.cut = kIsW ? W_ : H_;
    step.numerators = numerators_;
    step.denominators = denominators_;
    step.sums = sums_;
    step.active = problem_.active;
    step.update = update;
    step.n_components = static_cast<int>(s.n_components);
    step.group = group_;
    step.at_once = copied_at_once<Tiling, factor>(problem_, group_);
    step.whole = Tiling::kLoss == Loss::kKullbackLeibler && step.cut.splits == 1;
    return step;
  }

  DeviceProblem<T, Data> problem_;
  int group_, padded_;
  Cut W_, H_;
  T *W_packed_, *H_packed_, *numerators_, *denominators_ = nullptr;
  double *sums_ = nullptr, *gram_ = nullptr, *gram_parts_ = nullptr, *cross_ = nullptr;
};

}  // namespace nnmf_cuda

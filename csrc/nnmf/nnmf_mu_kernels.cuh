// Multiplicative updates on the device: a launch sequence without a word from the host in between.
#pragma once

#include <algorithm>
#include <cstdint>

#include "factor_kernels.cuh"
#include "half_step_kernel.cuh"
#include "update_kernel.cuh"

namespace nnmf_cuda {

// Both factors in the kernels' layout, what is summed for them, and the launches that do it.
template <class Tiling>
class MuLaunches {
 public:
  using T = typename Tiling::T;
  using Data = typename Tiling::Data;

  // Memory has get<T>(size), as DeviceMemory.
  template <class Memory>
  MuLaunches(const DeviceProblem<T, Data>& problem, int group, Memory& memory)
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
    }
  }

  void pack(cudaStream_t stream) const {
    const Shape& s = problem_.shape;
    launch_pack(problem_.W, W_packed_, s.batch, layout_of_W(s, padded_), stream);
    launch_pack(problem_.H, H_packed_, s.batch, layout_of_H(s, padded_), stream);
  }

  void unpack_W(T* W, cudaStream_t stream) const {
    launch_unpack(W_packed_, W, problem_.shape.batch, layout_of_W(problem_.shape, padded_), stream);
  }

  void unpack_H(T* H, cudaStream_t stream) const {
    launch_unpack(H_packed_, H, problem_.shape.batch, layout_of_H(problem_.shape, padded_), stream);
  }

  template <Factor factor>
  void update(const Update& update, cudaStream_t stream) const {
    const int64_t batch = problem_.shape.batch;
    const auto step = half_step<factor>(update);
    if (Tiling::kLoss == Loss::kFrobenius)
      launch_gram(step.other, gram_parts_, gram_, batch, step.cut.depth, padded_, padded_, stream);
    launch_half_step<Tiling, factor>(step, batch, stream);
    if (step.whole) return;
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
    task.update = update;
    launch_update<Tiling::kLoss>(task, batch, stream);
  }

 private:
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
    step.aligned = is_aligned<Tiling, factor>(problem_, group_);
    step.whole = Tiling::kLoss == Loss::kKullbackLeibler && step.cut.splits == 1;
    return step;
  }

  DeviceProblem<T, Data> problem_;
  int group_, padded_;
  Cut W_, H_;
  T *W_packed_, *H_packed_, *numerators_, *denominators_ = nullptr;
  double *sums_ = nullptr, *gram_ = nullptr, *gram_parts_ = nullptr;
};

// Where the results go: contiguous, shaped as the factors.
template <class T>
struct MuResult {
  T* W;
  T* H;
};

template <class Tiling>
void launch_nnmf_mu(const MuLaunches<Tiling>& launches, const MuOptions& options, double scale,
                    const MuResult<typename Tiling::T>& result, cudaStream_t stream) {
  const Update update_W = update_of_W(options, scale), update_H = update_of_H(options, scale);
  launches.pack(stream);
  for (int64_t i = 0; i < options.n_iter; ++i) {
    launches.template update<Factor::kW>(update_W, stream);
    if (options.update_H) launches.template update<Factor::kH>(update_H, stream);
  }
  launches.unpack_W(result.W, stream);
  launches.unpack_H(result.H, stream);
}

}  // namespace nnmf_cuda

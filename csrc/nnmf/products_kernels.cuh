// X H^T and H H^T, all that least squares needs of X and H.
#pragma once

#include <cstdint>

#include "factor_kernels.cuh"
#include "half_step_kernel.cuh"

namespace nnmf_cuda {

// Tiling is one of dispatch_tiling<Loss::kFrobenius, ...>; the problem's W is not looked at.
template <class Tiling>
class ProductsLaunches {
 public:
  using T = typename Tiling::T;
  using Data = typename Tiling::Data;
  static_assert(Tiling::kLoss == Loss::kFrobenius);

  // Memory has get<T>(size), as DeviceMemory.
  template <class Memory>
  ProductsLaunches(const DeviceProblem<T, Data>& problem, int group, Memory& memory)
      : problem_(problem),
        group_(group),
        padded_(Tiling::kComponents * group),
        cut_(cut_for<Tiling, Factor::kW>(problem, group)) {
    const Shape& s = problem.shape;
    const int64_t rows = s.batch * padded_;
    H_packed_ = memory.template get<T>(rows * s.n_features);
    products_ = memory.template get<T>(rows * cut_.splits * s.n_samples);
    gram_parts_ = memory.template get<double>(rows * padded_ * gram_chunks(s.batch, s.n_features));
  }

  // cross [B, n_samples, n_components] = scale * X H^T; gram [B, n_components, n_components] = H
  // H^T; both added up in float64.
  void launch(double scale, double* cross, double* gram, cudaStream_t stream) const {
    const Shape& s = problem_.shape;
    const int k = static_cast<int>(s.n_components);
    launch_pack(problem_.H, H_packed_, s.batch, layout_of_H(s, padded_), stream);
    launch_gram(H_packed_, gram_parts_, gram, s.batch, s.n_features, padded_, k, stream);
    HalfStep<T, Data> step{};
    step.X = problem_.X;
    step.x_stride = s.x_stride;
    step.x_row_stride = s.x_row_stride;
    step.other = H_packed_;
    step.cut = cut_;
    step.numerators = products_;
    step.n_components = k;
    step.group = group_;
    step.at_once = copied_at_once<Tiling, Factor::kW>(problem_, group_);
    launch_half_step<Tiling, Factor::kW>(step, s.batch, stream);
    launch_sum_parts(products_, cross, s.batch, cut_.splits,
                     {s.n_samples, s.n_samples, padded_, k, scale}, stream);
  }

 private:
  DeviceProblem<T, Data> problem_;
  int group_, padded_;
  Cut cut_;
  T *H_packed_, *products_;
  double* gram_parts_;
};

}  // namespace nnmf_cuda

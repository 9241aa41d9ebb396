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

  ProductsLaunches(const DeviceProblem<T, Data>& problem, int group)
      : problem_(problem),
        group_(group),
        padded_(Tiling::kComponents * group),
        cut_(cut_for<Tiling, Factor::kW>(problem, group)) {}

  ScratchSize scratch_size() const {
    const Shape& s = problem_.shape;
    return {s.batch * padded_ * (s.n_features + cut_.splits * s.n_samples),
            s.batch * padded_ * padded_ * gram_chunks(s.batch, s.n_features)};
  }

  // cross [B, n_samples, n_components] = scale * X H^T; gram [B, n_components, n_components] = H
  // H^T; both added up in float64.
  void launch(const DeviceScratch<T>& scratch, double scale, double* cross, double* gram,
              cudaStream_t stream) const {
    const Shape& s = problem_.shape;
    const int k = static_cast<int>(s.n_components);
    launch_pack(problem_.H, scratch.values, s.batch, layout_of_H(s, padded_), stream);
    launch_gram(scratch.values, scratch.doubles, gram, s.batch, s.n_features, padded_, k, stream);
    HalfStep<T, Data> step{};
    step.X = problem_.X;
    step.x_stride = s.x_stride;
    step.x_row_stride = s.x_row_stride;
    step.other = scratch.values;
    step.cut = cut_;
    step.numerators = scratch.values + s.batch * padded_ * s.n_features;
    step.n_components = k;
    step.group = group_;
    step.aligned = is_aligned<Tiling, Factor::kW>(problem_, group_);
    launch_half_step<Tiling, Factor::kW>(step, s.batch, stream);
    launch_sum_parts(step.numerators, cross, s.batch, cut_.splits,
                     {s.n_samples, s.n_samples, padded_, k, scale}, stream);
  }

 private:
  DeviceProblem<T, Data> problem_;
  int group_, padded_;
  Cut cut_;
};

}  // namespace nnmf_cuda

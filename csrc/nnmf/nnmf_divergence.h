// Beta-divergence of X from W H, one float64 number per problem; W H is never held as a whole.
#pragma once

#include <limits>

#include "factors.h"

namespace nnmf_cuda {

Tensor nnmf_divergence_cpu(const Tensor& X, const Tensor& W, const Tensor& H, double beta_loss);
#ifdef USE_CUDA
Tensor nnmf_divergence_cuda(const Tensor& X, const Tensor& W, const Tensor& H, double beta_loss);
#endif

// What an op returns where the divergence was not asked for: [B], NaN.
inline Tensor no_divergence(const Tensor& W) {
  Tensor divergence = torch::stable::new_empty(W, {W.size(0)}, ScalarType::Double);
  return torch::stable::fill_(divergence, std::numeric_limits<double>::quiet_NaN());
}

}  // namespace nnmf_cuda

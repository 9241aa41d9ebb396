// nnmf_weighted_divergence on the device.
#include "../weighted_ops.h"
#include "weighted_divergence.cuh"

namespace nnmf_cuda {
namespace {

struct WeightedDivergenceOnCuda : CudaDevice {
  using CudaDevice::CudaDevice;

  template <Loss loss, class T, class Data>
  void divergence(const FactorParams<T, Data>& p, const Weights<T>& weights,
                  const TermRule<double>& rule, double* to) {
    launch_weighted_divergence<loss>(DeviceProblem<T, Data>{p, size()}, weights, rule, to, memory,
                                     stream());
  }
};

}  // namespace

Tensor nnmf_weighted_divergence_cuda(const Tensor& X, const Tensor& W, const Tensor& H,
                                     const Tensor& weights, double beta_loss, double floor) {
  return nnmf_weighted_divergence<WeightedDivergenceOnCuda>(X, W, H, weights, beta_loss, floor);
}

STABLE_TORCH_LIBRARY_IMPL(nnmf_cuda, CUDA, m) {
  m.impl("nnmf_weighted_divergence", TORCH_BOX(&nnmf_weighted_divergence_cuda));
}

}  // namespace nnmf_cuda

// nnmf_divergence on the device.
#include "../ops.h"
#include "divergence.cuh"
#include "wide_divergence.cuh"

namespace nnmf_cuda {
namespace {

struct DivergenceOnCuda : CudaDevice {
  using CudaDevice::CudaDevice;

  template <Loss loss, class T, class Data>
  void divergence(const FactorParams<T, Data>& p, const TermRule<double>& rule, double* to) {
    const DeviceProblem<T, Data> problem{p, size()};
    if (p.shape.n_components > kMaxComponents)
      return WideDivergence<loss, T, Data>(problem, memory).launch(rule, to, stream());
    const auto run = [&]<class Tiling>(Tiling, int group) {
      DivergenceLaunches<Tiling>(problem, group, memory).launch(rule, to, stream());
    };
    dispatch_divergence_tiling<loss, T, Data>(p.shape.n_components, run);
  }
};

}  // namespace

Tensor nnmf_divergence_cuda(const Tensor& X, const Tensor& W, const Tensor& H, double beta_loss,
                            double floor) {
  return nnmf_divergence<DivergenceOnCuda>(X, W, H, beta_loss, floor);
}

STABLE_TORCH_LIBRARY_IMPL(nnmf_cuda, CUDA, m) {
  m.impl("nnmf_divergence", TORCH_BOX(&nnmf_divergence_cuda));
}

}  // namespace nnmf_cuda

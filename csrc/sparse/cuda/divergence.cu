// nnmf_sparse_divergence on the device.
#include "../ops.h"
#include "divergence.cuh"

namespace nnmf_cuda {
namespace {

struct SparseDivergenceOnCuda : CudaDevice {
  using CudaDevice::CudaDevice;

  template <Loss loss, class T, class Index>
  void divergence(const SparseParams<T, Index>& p, const TermRule<double>& rule, double* to) {
    SparseDivergence<loss, T, Index>(p, memory).launch(rule, to, stream());
  }
};

}  // namespace

Tensor nnmf_sparse_divergence_cuda(const Tensor& crow, const Tensor& col, const Tensor& values,
                                   const Tensor& W, const Tensor& H, double beta_loss,
                                   double floor) {
  return nnmf_sparse_divergence<SparseDivergenceOnCuda>(crow, col, values, W, H, beta_loss, floor);
}

STABLE_TORCH_LIBRARY_IMPL(nnmf_cuda, CUDA, m) {
  m.impl("nnmf_sparse_divergence", TORCH_BOX(&nnmf_sparse_divergence_cuda));
}

}  // namespace nnmf_cuda

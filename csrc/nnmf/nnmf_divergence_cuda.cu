#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "../common/dispatch.h"
#include "nnmf_divergence.h"
#include "nnmf_divergence_kernels.cuh"

namespace nnmf_cuda {

Tensor nnmf_divergence_cuda(const Tensor& X, const Tensor& W, const Tensor& H, double beta_loss) {
  const Shape s = check_factors(X, W, H);
  const torch::stable::accelerator::DeviceGuard guard(W.get_device_index());
  const Tensor x = torch::stable::contiguous(X), w = torch::stable::contiguous(W),
               h = torch::stable::contiguous(H);
  const Tensor result = torch::stable::new_empty(W, {s.batch}, ScalarType::Double);
  const Tensor sums =
      torch::stable::new_empty(W, {s.batch * divergence_parts(s)}, ScalarType::Double);
  dispatch_floating(W.scalar_type(), [&]<class T>(Type<T>) {
    dispatch_data<T>(X.scalar_type(), [&]<class Data>(Type<Data>) {
      dispatch_loss(beta_loss, [&]<Loss loss>(LossType<loss>) {
        const DeviceBatch<const T, Data> batch{x.const_data_ptr<Data>(), w.const_data_ptr<T>(),
                                               h.const_data_ptr<T>(), s, beta_loss};
        launch_nnmf_divergence<loss>(batch, sums.mutable_data_ptr<double>(),
                                     result.mutable_data_ptr<double>(),
                                     current_stream(W.get_device_index()));
      });
    });
  });
  return result;
}

STABLE_TORCH_LIBRARY_IMPL(nnmf_cuda, CUDA, m) {
  m.impl("nnmf_divergence", TORCH_BOX(&nnmf_divergence_cuda));
}

}  // namespace nnmf_cuda

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "../common/device_memory.h"
#include "../common/dispatch.h"
#include "nnmf_divergence.h"
#include "nnmf_divergence_kernels.cuh"

namespace nnmf_cuda {

Tensor nnmf_divergence_cuda(const Tensor& X, const Tensor& W, const Tensor& H, double beta_loss) {
  Shape s = check_factors(X, W, H);
  check_components(s.n_components, "X, W and H");
  const int32_t device = W.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const Tensor x = rows_contiguous(X, s), w = torch::stable::contiguous(W),
               h = torch::stable::contiguous(H);
  const Tensor result = torch::stable::new_empty(W, {s.batch}, ScalarType::Double);
  DeviceMemory memory(w);
  dispatch_floating(W.scalar_type(), [&]<class T>(Type<T>) {
    dispatch_data<T>(X.scalar_type(), [&]<class Data>(Type<Data>) {
      const DeviceProblem<T, Data> problem{
          x.const_data_ptr<Data>(), w.const_data_ptr<T>(), h.const_data_ptr<T>(), s, nullptr,
          device_size(device)};
      dispatch_loss(beta_loss, [&]<Loss loss>(LossType<loss>) {
        const auto run = [&]<class Tiling>(Tiling, int group) {
          const DivergenceLaunches<Tiling> launches(problem, group, memory);
          launches.launch(beta_loss, result.mutable_data_ptr<double>(), current_stream(device));
        };
        dispatch_divergence_tiling<loss, T, Data>(s.n_components, run);
      });
    });
  });
  return result;
}

STABLE_TORCH_LIBRARY_IMPL(nnmf_cuda, CUDA, m) {
  m.impl("nnmf_divergence", TORCH_BOX(&nnmf_divergence_cuda));
}

}  // namespace nnmf_cuda

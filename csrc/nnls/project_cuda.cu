#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "../common/device_memory.h"
#include "../common/dispatch.h"
#include "../nnmf/device_problem.cuh"
#include "../nnmf/factors.h"
#include "../nnmf/products_kernels.cuh"
#include "arguments.h"
#include "nnls_kernels.cuh"

namespace nnmf_cuda {
namespace {

Tensor project_cuda(const Tensor& X, const Tensor& H) {
  Shape s = check_project(X, H);
  check_components(s.n_components, "X and H");
  const int32_t device = H.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const Tensor x = rows_contiguous(X, s), components = torch::stable::contiguous(H);
  const int64_t batch = s.batch, n = s.n_samples, k = s.n_components;
  const Tensor h = torch::stable::new_empty(components, {batch, n, k});
  if (batch * n * k == 0) return h;
  const cudaStream_t stream = current_stream(device);
  DeviceMemory memory(components);
  double* cross = memory.get<double>(batch * n * k);
  double* gram = memory.get<double>(batch * k * k);
  dispatch_floating(H.scalar_type(), [&]<class T>(Type<T>) {
    dispatch_data<T>(X.scalar_type(), [&]<class Data>(Type<Data>) {
      const DeviceProblem<T, Data> problem{
          x.const_data_ptr<Data>(), nullptr, components.const_data_ptr<T>(), s, nullptr,
          device_size(device)};
      dispatch_tiling<Loss::kFrobenius, T, Data>(k, [&]<class Tiling>(Tiling, int group) {
        ProductsLaunches<Tiling>(problem, group, memory).launch(scale_of(X), cross, gram, stream);
      });
    });
    launch_nnls(gram, cross, h.mutable_data_ptr<T>(), {batch, n, k}, memory, stream);
  });
  return h;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(nnmf_cuda, CUDA, m) {
  m.impl("project", TORCH_BOX(&project_cuda));
}

}  // namespace nnmf_cuda

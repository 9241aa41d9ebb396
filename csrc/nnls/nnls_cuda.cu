#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "../common/device_memory.h"
#include "../common/dispatch.h"
#include "arguments.h"
#include "nnls_kernels.cuh"

namespace nnmf_cuda {
namespace {

Tensor nnls_cuda(const Tensor& gram, const Tensor& cross) {
  check_rows({"gram", gram}, {"cross", cross});
  const int64_t batch = cross.size(0), n = cross.size(1), k = cross.size(2);
  check_components(k, "gram and cross");
  const int32_t device = cross.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const Tensor rows = torch::stable::contiguous(cross);
  const Tensor h = torch::stable::empty_like(rows);
  if (batch * n * k == 0) return h;
  const Tensor values = torch::stable::contiguous(gram);
  DeviceMemory memory(rows);
  dispatch_floating(gram.scalar_type(), [&]<class G>(Type<G>) {
    dispatch_floating(rows.scalar_type(), [&]<class T>(Type<T>) {
      launch_nnls(values.const_data_ptr<G>(), rows.const_data_ptr<T>(), h.mutable_data_ptr<T>(),
                  {batch, n, k}, memory, current_stream(device));
    });
  });
  return h;
}

Tensor nnls_backward_cuda(const Tensor& gram, const Tensor& h, const Tensor& grad) {
  check_backward({"gram", gram}, {"h", h}, {"grad", grad});
  const int64_t batch = grad.size(0), n = grad.size(1), k = grad.size(2);
  check_components(k, "gram and cross");
  const int32_t device = grad.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const Tensor answers = torch::stable::contiguous(h), grads = torch::stable::contiguous(grad);
  const Tensor u =
      torch::stable::new_empty(grads, {batch, n, k}, std::make_optional(ScalarType::Double));
  if (batch * n * k == 0) return u;
  const Tensor values = torch::stable::contiguous(gram);
  DeviceMemory memory(grads);
  dispatch_floating(gram.scalar_type(), [&]<class G>(Type<G>) {
    dispatch_floating(grads.scalar_type(), [&]<class T>(Type<T>) {
      launch_nnls_backward(values.const_data_ptr<G>(), answers.const_data_ptr<T>(),
                           grads.const_data_ptr<T>(), u.mutable_data_ptr<double>(), {batch, n, k},
                           memory, current_stream(device));
    });
  });
  return u;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(nnmf_cuda, CUDA, m) {
  m.impl("nnls", TORCH_BOX(&nnls_cuda));
  m.impl("nnls_backward", TORCH_BOX(&nnls_backward_cuda));
}

}  // namespace nnmf_cuda

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "../common/dispatch.h"
#include "arguments.h"
#include "nnls_cuda.h"
#include "nnls_kernels.cuh"

namespace nnmf_cuda {
namespace {

Tensor new_doubles(const Tensor& like, int64_t size) {
  return torch::stable::new_empty(like, {size}, std::make_optional(ScalarType::Double));
}

// Memory that the rows [batch, n, k] need besides arguments and results.
struct Scratch {
  Tensor grams, matrices, unsolved;

  explicit Scratch(const Tensor& rows)
      : grams(new_doubles(rows, rows.size(0) * doubles_of_gram(rows.size(2)))),
        matrices(new_doubles(rows, row_scratch_doubles(rows.size(0) * rows.size(1), rows.size(2)))),
        unsolved(torch::stable::new_empty(rows, {rows.size(0) * rows.size(1)},
                                          std::make_optional(ScalarType::Byte))) {}
};

void check_device_size(int64_t k) {
  STD_TORCH_CHECK(k <= kMostVariables, "n_components must be at most ", kMostVariables,
                  " on CUDA, got ", k, "; the CPU takes any number");
}

DeviceGrams prepare(const Tensor& gram, const Tensor& memory, cudaStream_t stream) {
  const Tensor values = torch::stable::contiguous(gram);
  const DeviceGrams grams{memory.mutable_data_ptr<double>(), gram.size(1)};
  dispatch_floating(values.scalar_type(), [&]<class T>(Type<T>) {
    launch_prepare_grams(values.const_data_ptr<T>(), values.size(0), grams, stream);
  });
  return grams;
}

}  // namespace

Tensor nnls_cuda(const Tensor& gram, const Tensor& cross) {
  check_rows({"gram", gram}, {"cross", cross});
  const int64_t batch = cross.size(0), n = cross.size(1), k = cross.size(2);
  check_device_size(k);
  const int32_t device = cross.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const Tensor rows = torch::stable::contiguous(cross);
  const Tensor h = torch::stable::empty_like(rows);
  if (batch * n * k == 0) return h;
  const cudaStream_t stream = current_stream(device);
  const Scratch scratch(rows);
  const DeviceGrams grams = prepare(gram, scratch.grams, stream);
  dispatch_floating(rows.scalar_type(), [&]<class T>(Type<T>) {
    launch_nnls(NnlsRows<T, T>{rows.const_data_ptr<T>(), h.mutable_data_ptr<T>(),
                               scratch.unsolved.mutable_data_ptr<uint8_t>(), batch, n, k},
                grams, scratch.matrices.mutable_data_ptr<double>(), stream);
  });
  return h;
}

Tensor nnls_backward_cuda(const Tensor& gram, const Tensor& h, const Tensor& grad) {
  check_backward({"gram", gram}, {"h", h}, {"grad", grad});
  const int64_t batch = grad.size(0), n = grad.size(1), k = grad.size(2);
  check_device_size(k);
  const int32_t device = grad.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const Tensor answers = torch::stable::contiguous(h), grads = torch::stable::contiguous(grad);
  const Tensor u =
      torch::stable::new_empty(grads, {batch, n, k}, std::make_optional(ScalarType::Double));
  if (batch * n * k == 0) return u;
  const cudaStream_t stream = current_stream(device);
  const Scratch scratch(grads);
  const DeviceGrams grams = prepare(gram, scratch.grams, stream);
  dispatch_floating(grads.scalar_type(), [&]<class T>(Type<T>) {
    launch_nnls_backward(BackwardRows<T>{answers.const_data_ptr<T>(), grads.const_data_ptr<T>(),
                                         u.mutable_data_ptr<double>(),
                                         scratch.unsolved.mutable_data_ptr<uint8_t>(), batch, n, k},
                         grams, scratch.matrices.mutable_data_ptr<double>(), stream);
  });
  return u;
}

STABLE_TORCH_LIBRARY_IMPL(nnmf_cuda, CUDA, m) {
  m.impl("nnls", TORCH_BOX(&nnls_cuda));
  m.impl("nnls_backward", TORCH_BOX(&nnls_backward_cuda));
}

}  // namespace nnmf_cuda

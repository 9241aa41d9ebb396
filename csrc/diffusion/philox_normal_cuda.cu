#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "../common/dispatch.h"
#include "philox_arguments.h"
#include "philox_kernels.cuh"

namespace nnmf_cuda {
namespace {

Tensor philox_normal_cuda(const Tensor& like, int64_t seed, int64_t n_steps, int64_t n_rows,
                          int64_t n_draws, int64_t n_features) {
  const DrawsShape s = check_draws({"like", like}, n_steps, n_rows, n_draws, n_features);
  const int32_t device = like.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const Tensor draws =
      torch::stable::new_empty(like, {s.n_steps, s.n_rows, s.n_draws, s.n_features});
  if (draws.numel() == 0) return draws;
  dispatch_floating(like.scalar_type(), [&]<class T>(Type<T>) {
    launch_philox_normal(draws.mutable_data_ptr<T>(), s, static_cast<uint64_t>(seed),
                         device_size(device).multiprocessors, current_stream(device));
  });
  return draws;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(nnmf_cuda, CUDA, m) {
  m.impl("philox_normal", TORCH_BOX(&philox_normal_cuda));
}

}  // namespace nnmf_cuda

// nnmf_weighted_mu and nnmf_weighted_hals on the device.
#include "../weighted_ops.h"
#include "weighted_iterations.cuh"

namespace nnmf_cuda {
namespace {

struct WeightedUpdatesOnCuda : CudaDevice {
  using CudaDevice::CudaDevice;
  static constexpr auto divergence = &nnmf_weighted_divergence_cuda;

  template <Loss loss, class T, class Data>
  void iterate(const FactorParams<T, Data>& p, const Weights<T>& weights, const Update& update_W,
               const Update& update_H, int64_t n_iter, bool updates_H, T* W, T* H) {
    const DeviceProblem<T, Data> problem{p, size()};
    WeightedIterations<loss, T, Data>(problem, weights, memory)
        .run(update_W, update_H, n_iter, updates_H, W, H, stream());
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(nnmf_cuda, CUDA, m) {
  m.impl("nnmf_weighted_mu", TORCH_BOX(&nnmf_weighted_mu<WeightedUpdatesOnCuda>));
  m.impl("nnmf_weighted_hals", TORCH_BOX(&nnmf_weighted_hals<WeightedUpdatesOnCuda>));
}

}  // namespace nnmf_cuda

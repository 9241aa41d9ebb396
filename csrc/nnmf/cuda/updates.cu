// nnmf_mu and nnmf_hals on the device.
#include "../ops.h"
#include "iterations.cuh"
#include "resident.cuh"
#include "wide_iterations.cuh"

namespace nnmf_cuda {
namespace {

struct UpdatesOnCuda : CudaDevice {
  using CudaDevice::CudaDevice;
  static constexpr auto divergence = &nnmf_divergence_cuda;

  template <Loss loss, class T, class Data>
  void iterate(const FactorParams<T, Data>& p, const Update& update_W, const Update& update_H,
               int64_t n_iter, bool updates_H, T* W, T* H) {
    const DeviceProblem<T, Data> problem{p, size()};
    if constexpr (loss == Loss::kKullbackLeibler && sizeof(T) == 4)
      if (stays_resident(p.shape, problem.device))
        return launch_resident(p, update_W, update_H, n_iter, updates_H, W, H, stream());
    if (p.shape.n_components > kMaxComponents)
      return WideIterations<loss, T, Data>(problem, memory)
          .run(update_W, update_H, n_iter, updates_H, W, H, stream());
    dispatch_tiling<loss, T, Data>(p.shape.n_components, [&]<class Tiling>(Tiling, int group) {
      Iterations<Tiling>(problem, group, memory)
          .run(update_W, update_H, n_iter, updates_H, W, H, stream());
    });
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(nnmf_cuda, CUDA, m) {
  m.impl("nnmf_mu", TORCH_BOX(&nnmf_mu<UpdatesOnCuda>));
  m.impl("nnmf_hals", TORCH_BOX(&nnmf_hals<UpdatesOnCuda>));
}

}  // namespace nnmf_cuda

// nnmf_sparse_mu and nnmf_sparse_hals on the device.
#include "../ops.h"
#include "iterations.cuh"

namespace nnmf_cuda {
namespace {

struct SparseUpdatesOnCuda : CudaDevice {
  using CudaDevice::CudaDevice;
  static constexpr auto divergence = &nnmf_sparse_divergence_cuda;

  template <Loss loss, class T, class Index>
  void iterate(const SparseParams<T, Index>& p, const Update& update_W, const Update& update_H,
               int64_t n_iter, bool updates_H, T* W, T* H) {
    SparseIterations<loss, T, Index>(p, updates_H, memory, stream())
        .run(update_W, update_H, n_iter, updates_H, W, H);
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(nnmf_cuda, CUDA, m) {
  m.impl("nnmf_sparse_mu", TORCH_BOX(&nnmf_sparse_mu<SparseUpdatesOnCuda>));
  m.impl("nnmf_sparse_hals", TORCH_BOX(&nnmf_sparse_hals<SparseUpdatesOnCuda>));
}

}  // namespace nnmf_cuda

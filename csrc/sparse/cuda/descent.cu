// nnmf_sparse_cd on the device.
#include "../cd_ops.h"
#include "descent.cuh"

namespace nnmf_cuda {
namespace {

struct SparseDescentOnCuda : CudaDevice {
  using CudaDevice::CudaDevice;
  static constexpr auto divergence = &nnmf_sparse_divergence_cuda;

  template <class T, class Index>
  void descend(const SparseParams<T, Index>& by_rows, const SparseParams<T, Index>* by_columns,
               const Descent& of_W, const Descent& of_H, int64_t n_iter, T* W, T* H) {
    SparseDescents<T, Index>(by_rows, by_columns, memory, stream()).run(of_W, of_H, n_iter, W, H);
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(nnmf_cuda, CUDA, m) {
  m.impl("nnmf_sparse_cd", TORCH_BOX(&nnmf_sparse_cd<SparseDescentOnCuda>));
}

}  // namespace nnmf_cuda

// nnls, nnls_backward, prepare_components and project on the device.
#include "../ops.h"
#include "project.cuh"

namespace nnmf_cuda {
namespace {

struct NnlsOnCuda : CudaDevice {
  using CudaDevice::CudaDevice;
  template <class G, class T>
  void solve(const G* gram, const T* cross, T* h, const ActiveSets& sets, const RowsShape& s) {
    launch_nnls(gram, cross, h, sets, s, memory, stream());
  }

  template <class G, class T>
  void solve_backward(const G* gram, const T* h, const T* grad, double* u, const RowsShape& s) {
    launch_nnls_backward(gram, h, grad, u, s, memory, stream());
  }

  // Where products are formed by blocks, packing is the least of it.
  static int64_t packed_rows(const Shape& s) {
    return s.n_components > kMaxComponents || s.n_components > s.n_features ? 0 : s.n_features;
  }

  template <class T>
  void prepare(const FactorParams<T, T>& p, T* packed, double* grams) {
    launch_prepared(DeviceProblem<T, T>{p, size()}, packed_rows(p.shape) > 0 ? packed : nullptr,
                    /*cold=*/true, grams, memory, stream());
  }

  template <class T, class Data>
  void project(const FactorParams<T, Data>& p, double scale, T* h, const ActiveSets& sets,
               const PreparedComponents<T>& prepared) {
    launch_project(DeviceProblem<T, Data>{p, size()}, scale, h, sets, prepared, memory, stream());
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(nnmf_cuda, CUDA, m) {
  m.impl("nnls", TORCH_BOX(&nnls<NnlsOnCuda>));
  m.impl("nnls_backward", TORCH_BOX(&nnls_backward<NnlsOnCuda>));
  m.impl("prepare_components", TORCH_BOX(&prepare_components<NnlsOnCuda>));
  m.impl("project", TORCH_BOX(&project<NnlsOnCuda>));
}

}  // namespace nnmf_cuda

// nnls, nnls_backward and project on the device.
#include "../../nnmf/cuda/half_step.cuh"
#include "../../nnmf/cuda/wide_product.cuh"
#include "../ops.h"
#include "launches.cuh"

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

  template <class T, class Data>
  void project(const FactorParams<T, Data>& p, double scale, T* h, const ActiveSets& sets) {
    const Shape& s = p.shape;
    const int64_t k = s.n_components;
    double* cross = memory.get<double>(s.batch * s.n_samples * k);
    double* gram = memory.get<double>(s.batch * k * k);
    const DeviceProblem<T, Data> problem{p, size()};
    launch_products(problem, scale, cross, gram, memory, stream());
    launch_nnls(gram, cross, h, sets, {s.batch, s.n_samples, k}, memory, stream());
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(nnmf_cuda, CUDA, m) {
  m.impl("nnls", TORCH_BOX(&nnls<NnlsOnCuda>));
  m.impl("nnls_backward", TORCH_BOX(&nnls_backward<NnlsOnCuda>));
  m.impl("project", TORCH_BOX(&project<NnlsOnCuda>));
}

}  // namespace nnmf_cuda

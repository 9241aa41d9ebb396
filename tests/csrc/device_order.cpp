// The ops once more, with an Implementation that counts how often it is constructed and computes
// nothing: what is checked before a device is taken. See test_device_order.py.
#include <cstdint>
#include <numeric>

#include "crown/ops.h"
#include "diffusion/ops.h"
#include "nnls/ops.h"
#include "nnmf/ops.h"
#include "nnmf/weighted_ops.h"
#include "sparse/cd_ops.h"
#include "sparse/ops.h"

namespace {

constexpr int64_t kPrepared = 4001;  // numbers of weights that a forward pass prepares
int64_t n_constructed = 0, n_found = 0;

using nnmf_cuda::Loss;
using nnmf_cuda::Tensor;

struct Recorder {
  static constexpr bool kWeightsNeedSigns = true;
  explicit Recorder(const Tensor&) { ++n_constructed; }

  template <class... Given>
  void solve(const Given&...) {}
  template <class... Given>
  void solve_backward(const Given&...) {}
  template <class... Given>
  void project(const Given&...) {}
  template <class... Given>
  void prepare(const Given&...) {}
  static int64_t packed_rows(const nnmf_cuda::Shape&) { return 2; }
  template <class... Given>
  void descend(const Given&...) {}
  template <class T>
  static int64_t prepared_size(const nnmf_cuda::DefenceParams<T>&) {
    return kPrepared;
  }
  template <class T>
  void forward(const nnmf_cuda::DefenceParams<T>&, T*, uint32_t*, T* prepared) {
    if (prepared != nullptr) std::iota(prepared, prepared + kPrepared, T{1});
  }
  template <class T>
  void backward(const nnmf_cuda::DefenceParams<T>&, const T*, const uint32_t*, const T* prepared,
                T*, T*) {
    n_found = 0;
    while (prepared != nullptr && n_found < kPrepared && prepared[n_found] == T(n_found + 1))
      ++n_found;
    if (reinterpret_cast<std::uintptr_t>(prepared) % 16 != 0) n_found = -1;
  }
  template <class... Given>
  void backward_with_weights(const Given&...) {}
  template <class... Given>
  void draw_normals(const Given&...) {}
  template <class... Given>
  void bound(const Given&...) {}
};

struct Measures : Recorder {
  using Recorder::Recorder;
  template <Loss loss, class... Given>
  void divergence(const Given&...) {}
};

struct Updates : Recorder {
  using Recorder::Recorder;
  template <Loss loss, class... Given>
  void iterate(const Given&...) {}
  template <class... Given>
  static Tensor divergence(const Tensor& X, const Given&...) {
    return X;
  }
};

}  // namespace

extern "C" __attribute__((visibility("default"))) int64_t devices_taken() {
  return n_constructed;
}

// Of what the last forward pass has prepared, what the last backward pass was given.
extern "C" __attribute__((visibility("default"))) int64_t prepared_found() {
  return n_found;
}

extern "C" __attribute__((visibility("default"))) void forget_devices() {
  n_constructed = 0;
}

STABLE_TORCH_LIBRARY_IMPL(nnmf_cuda_devices, CompositeExplicitAutograd, m) {
  using namespace nnmf_cuda;
  m.impl("nnmf_mu", TORCH_BOX(&nnmf_mu<Updates>));
  m.impl("nnmf_hals", TORCH_BOX(&nnmf_hals<Updates>));
  m.impl("nnmf_divergence", TORCH_BOX(&nnmf_divergence<Measures>));
  m.impl("nnmf_weighted_mu", TORCH_BOX(&nnmf_weighted_mu<Updates>));
  m.impl("nnmf_weighted_hals", TORCH_BOX(&nnmf_weighted_hals<Updates>));
  m.impl("nnmf_weighted_divergence", TORCH_BOX(&nnmf_weighted_divergence<Measures>));
  m.impl("nnmf_sparse_mu", TORCH_BOX(&nnmf_sparse_mu<Updates>));
  m.impl("nnmf_sparse_hals", TORCH_BOX(&nnmf_sparse_hals<Updates>));
  m.impl("nnmf_sparse_divergence", TORCH_BOX(&nnmf_sparse_divergence<Measures>));
  m.impl("nnmf_sparse_cd", TORCH_BOX(&nnmf_sparse_cd<Updates>));
  m.impl("nnls", TORCH_BOX(&nnls<Recorder>));
  m.impl("nnls_backward", TORCH_BOX(&nnls_backward<Recorder>));
  m.impl("prepare_components", TORCH_BOX(&prepare_components<Recorder>));
  m.impl("project", TORCH_BOX(&project<Recorder>));
  m.impl("crown_bounds", TORCH_BOX(&crown_bounds<Recorder>));
  implement_diffusion<Recorder>(m);
}

namespace {

// What a CudaDevice is made from.
Tensor take_cuda(const Tensor& tensor) {
  nnmf_cuda::cuda_index_of(tensor);
  return tensor;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(nnmf_cuda_devices, CPU, m) {
  m.impl("take_cuda", TORCH_BOX(&take_cuda));
}

// nnmf_sparse_divergence on the CPU.
#include <algorithm>
#include <cstdint>
#include <numeric>
#include <type_traits>
#include <utility>
#include <vector>

#include "../../common/cpu/threads.h"
#include "../ops.h"

#define NNMF_CUDA_ISA_SOURCE "../../sparse/cpu/divergence.h"
#include "../../common/cpu/isa.h"

namespace nnmf_cuda {
namespace {

struct SparseDivergenceOnCpu {
  explicit SparseDivergenceOnCpu(const Tensor&) {}

  template <Loss loss, class T, class Index>
  void divergence(const SparseParams<T, Index>& p, const TermRule<double>& rule, double* to) const {
    NNMF_CUDA_CHOOSE(sparse_divergences<loss, T, Index>)(p, rule, to);
  }
};

}  // namespace

Tensor nnmf_sparse_divergence_cpu(const Tensor& crow, const Tensor& col, const Tensor& values,
                                  const Tensor& W, const Tensor& H, double beta_loss,
                                  double floor) {
  return nnmf_sparse_divergence<SparseDivergenceOnCpu>(crow, col, values, W, H, beta_loss, floor);
}

STABLE_TORCH_LIBRARY_IMPL(nnmf_cuda, CPU, m) {
  m.impl("nnmf_sparse_divergence", TORCH_BOX(&nnmf_sparse_divergence_cpu));
}

}  // namespace nnmf_cuda

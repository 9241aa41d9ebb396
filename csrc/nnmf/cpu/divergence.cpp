// nnmf_divergence on the CPU.
#include <algorithm>
#include <cstdint>
#include <numeric>
#include <type_traits>
#include <utility>

#include "../../common/cpu/threads.h"
#include "../ops.h"

#define NNMF_CUDA_ISA_SOURCE "../../nnmf/cpu/divergence.h"
#include "../../common/cpu/isa.h"

namespace nnmf_cuda {
namespace {

struct DivergenceOnCpu {
  explicit DivergenceOnCpu(const Tensor&) {}

  template <Loss loss, class T, class Data>
  void divergence(const FactorParams<T, Data>& p, const TermRule<double>& rule, double* to) const {
    NNMF_CUDA_CHOOSE(divergences<loss, T, Data>)(p.X, p.W, p.H, p.shape, rule, to);
  }
};

}  // namespace

Tensor nnmf_divergence_cpu(const Tensor& X, const Tensor& W, const Tensor& H, double beta_loss,
                           double floor) {
  return nnmf_divergence<DivergenceOnCpu>(X, W, H, beta_loss, floor);
}

STABLE_TORCH_LIBRARY_IMPL(nnmf_cuda, CPU, m) {
  m.impl("nnmf_divergence", TORCH_BOX(&nnmf_divergence_cpu));
}

}  // namespace nnmf_cuda

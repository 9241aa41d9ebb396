// nnmf_weighted_divergence on the CPU.
#include <algorithm>
#include <bit>
#include <cstdint>
#include <numeric>
#include <type_traits>
#include <utility>

#include "../../common/cpu/threads.h"
#include "../weighted_ops.h"

#define NNMF_CUDA_ISA_SOURCE "../../nnmf/cpu/weighted_divergence.h"
#include "../../common/cpu/isa.h"

namespace nnmf_cuda {
namespace {

struct WeightedDivergenceOnCpu {
  explicit WeightedDivergenceOnCpu(const Tensor&) {}

  template <Loss loss, class T, class Data>
  void divergence(const FactorParams<T, Data>& p, const Weights<T>& weights,
                  const TermRule<double>& rule, double* to) const {
    NNMF_CUDA_CHOOSE(weighted_divergences<loss, T, Data>)(p, weights, rule, to);
  }
};

}  // namespace

Tensor nnmf_weighted_divergence_cpu(const Tensor& X, const Tensor& W, const Tensor& H,
                                    const Tensor& weights, double beta_loss, double floor) {
  return nnmf_weighted_divergence<WeightedDivergenceOnCpu>(X, W, H, weights, beta_loss, floor);
}

STABLE_TORCH_LIBRARY_IMPL(nnmf_cuda, CPU, m) {
  m.impl("nnmf_weighted_divergence", TORCH_BOX(&nnmf_weighted_divergence_cpu));
}

}  // namespace nnmf_cuda

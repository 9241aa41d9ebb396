// nnmf_weighted_mu and nnmf_weighted_hals on the CPU.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include "../../common/cpu/threads.h"
#include "../weighted_ops.h"

#define NNMF_CUDA_ISA_SOURCE "../../nnmf/cpu/weighted_iterate.h"
#include "../../common/cpu/isa.h"

namespace nnmf_cuda {
namespace {

struct WeightedUpdatesOnCpu {
  explicit WeightedUpdatesOnCpu(const Tensor&) {}
  static constexpr auto divergence = &nnmf_weighted_divergence_cpu;

  template <Loss loss, class T, class Data>
  void iterate(const FactorParams<T, Data>& p, const Weights<T>& weights, const Update& update_W,
               const Update& update_H, int64_t n_iter, bool updates_H, T* W, T* H) const {
    NNMF_CUDA_CHOOSE(iterate_with_weights<loss, T, Data>)
    (p, weights, update_W, update_H, n_iter, updates_H, W, H);
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(nnmf_cuda, CPU, m) {
  m.impl("nnmf_weighted_mu", TORCH_BOX(&nnmf_weighted_mu<WeightedUpdatesOnCpu>));
  m.impl("nnmf_weighted_hals", TORCH_BOX(&nnmf_weighted_hals<WeightedUpdatesOnCpu>));
}

}  // namespace nnmf_cuda

// nnmf_mu and nnmf_hals on the CPU.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include "../../common/cpu/threads.h"
#include "../ops.h"

#define NNMF_CUDA_ISA_SOURCE "../../nnmf/cpu/iterate.h"
#include "../../common/cpu/isa.h"

namespace nnmf_cuda {
namespace {

struct UpdatesOnCpu {
  explicit UpdatesOnCpu(const Tensor&) {}
  static constexpr auto divergence = &nnmf_divergence_cpu;

  template <Loss loss, class T, class Data>
  void iterate(const FactorParams<T, Data>& p, const Update& update_W, const Update& update_H,
               int64_t n_iter, bool updates_H, T* W, T* H) const {
    NNMF_CUDA_CHOOSE(iterate<loss, T, Data>)(p, update_W, update_H, n_iter, updates_H, W, H);
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(nnmf_cuda, CPU, m) {
  m.impl("nnmf_mu", TORCH_BOX(&nnmf_mu<UpdatesOnCpu>));
  m.impl("nnmf_hals", TORCH_BOX(&nnmf_hals<UpdatesOnCpu>));
}

}  // namespace nnmf_cuda

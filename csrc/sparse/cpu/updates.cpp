// nnmf_sparse_mu and nnmf_sparse_hals on the CPU.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include "../../common/cpu/threads.h"
#include "../ops.h"

#define NNMF_CUDA_ISA_SOURCE "../../sparse/cpu/iterate.h"
#include "../../common/cpu/isa.h"

namespace nnmf_cuda {
namespace {

struct SparseUpdatesOnCpu {
  explicit SparseUpdatesOnCpu(const Tensor&) {}
  static constexpr auto divergence = &nnmf_sparse_divergence_cpu;

  template <Loss loss, class T, class Index>
  void iterate(const SparseParams<T, Index>& p, const Update& update_W, const Update& update_H,
               int64_t n_iter, bool updates_H, T* W, T* H) const {
    NNMF_CUDA_CHOOSE(iterate_sparse<loss, T, Index>)(p, update_W, update_H, n_iter, updates_H, W,
                                                     H);
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(nnmf_cuda, CPU, m) {
  m.impl("nnmf_sparse_mu", TORCH_BOX(&nnmf_sparse_mu<SparseUpdatesOnCpu>));
  m.impl("nnmf_sparse_hals", TORCH_BOX(&nnmf_sparse_hals<SparseUpdatesOnCpu>));
}

}  // namespace nnmf_cuda

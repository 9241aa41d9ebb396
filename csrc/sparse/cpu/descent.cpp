// nnmf_sparse_cd on the CPU.
#include <algorithm>
#include <cstdint>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

#include "../../common/cpu/threads.h"
#include "../cd_ops.h"

#define NNMF_CUDA_ISA_SOURCE "../../sparse/cpu/descent.h"
#include "../../common/cpu/isa.h"

namespace nnmf_cuda {
namespace {

struct SparseDescentOnCpu {
  explicit SparseDescentOnCpu(const Tensor&) {}
  static constexpr auto divergence = &nnmf_sparse_divergence_cpu;

  template <class T, class Index>
  void descend(const SparseParams<T, Index>& by_rows, const SparseParams<T, Index>* by_columns,
               const Descent& of_W, const Descent& of_H, int64_t n_iter, T* W, T* H) const {
    NNMF_CUDA_CHOOSE(descend_sparse<T, Index>)(by_rows, by_columns, of_W, of_H, n_iter, W, H);
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(nnmf_cuda, CPU, m) {
  m.impl("nnmf_sparse_cd", TORCH_BOX(&nnmf_sparse_cd<SparseDescentOnCpu>));
}

}  // namespace nnmf_cuda

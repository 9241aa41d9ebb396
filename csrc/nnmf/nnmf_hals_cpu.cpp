#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include <torch/csrc/stable/library.h>

#include "../common/dispatch.h"
#include "../common/parallel.h"
#include "../common/scratch.h"
#include "beta_loss.h"
#include "factors.h"
#include "nnmf_divergence.h"

#define NNMF_CUDA_ISA_SOURCE "../nnmf/nnmf_mu_tiles.h"
#include "../common/foreach_isa.h"

namespace nnmf_cuda {
namespace {

//   nnmf_hals(Tensor X, Tensor W, Tensor H, *, int n_iter, int n_inner=1, bool update_H=True,
//             float l1_reg_W=0., float l1_reg_H=0., float l2_reg_W=0., float l2_reg_H=0.,
//             bool compute_divergence=False) -> (Tensor, Tensor, Tensor)
std::tuple<Tensor, Tensor, Tensor> nnmf_hals_cpu(const Tensor& X, const Tensor& W, const Tensor& H,
                                                 int64_t n_iter, int64_t n_inner, bool update_H,
                                                 double l1_reg_W, double l1_reg_H, double l2_reg_W,
                                                 double l2_reg_H, bool compute_divergence) {
  Shape s = check_factors(X, W, H);
  const Tensor x = rows_contiguous(X, s), w = contiguous_copy(W), h = contiguous_copy(H);
  dispatch_floating(W.scalar_type(), [&]<class T>(Type<T>) {
    dispatch_data<T>(X.scalar_type(), [&]<class Data>(Type<Data>) {
      NNMF_CUDA_CHOOSE(iterate<Loss::kFrobenius, T, Data>)
      (x.const_data_ptr<Data>(), w.mutable_data_ptr<T>(), h.mutable_data_ptr<T>(), s,
       descent_of(l1_reg_W, l2_reg_W, scale_of(X), n_inner),
       descent_of(l1_reg_H, l2_reg_H, scale_of(X), n_inner), n_iter, update_H, nullptr);
    });
  });
  return {w, h, compute_divergence ? nnmf_divergence_cpu(x, w, h, 2) : no_divergence(w)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(nnmf_cuda, CPU, m) {
  m.impl("nnmf_hals", TORCH_BOX(&nnmf_hals_cpu));
}

}  // namespace nnmf_cuda
